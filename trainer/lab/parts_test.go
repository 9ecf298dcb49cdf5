package lab

import "testing"

// Every case of the comparison of groups runs and learns, and its bytes are in the order that codecs, sizes and silence ask for.
func TestPartsCompareBytes(t *testing.T) {
	s := setup(16, 20)
	s.Rows = 1
	outcomes, err := Study{Setup: s, Seeds: []uint64{1}}.Run(t.Context(), Parts(s, 8))
	if err != nil {
		t.Fatal(err)
	}
	shares := map[string]float64{}
	for _, o := range outcomes {
		if shares[o.Family] = o.Share; o.Loss > 6 {
			t.Errorf("%s: loss %g; guessing gives 5.5", o.Family, o.Loss)
		}
	}
	if len(shares) != len(outcomes) {
		t.Errorf("%d cases have %d names", len(outcomes), len(shares))
	}
	for _, pair := range [][2]string{
		{"one group, top512, H 10", "one group, top512"}, {"groups of 8, top512", "groups of 8, int8"}, {"groups of 4, top512", "groups of 4, int8"},
		{"groups of 4, top512", "groups of 8, top512"}, {"pairs, int4", "groups of 4, int8"}, {"groups of 8, int8", "data-parallel"},
	} {
		if less, more := shares[pair[0]], shares[pair[1]]; !(0 < less && less < more) {
			t.Errorf("%s moves %.4f of data-parallel bytes, %s %.4f", pair[0], less, pair[1], more)
		}
	}
}
