package query

import (
	"cmp"
	"slices"
	"strings"

	"github.com/capacloud/capanode/market/credit"
	"github.com/capacloud/capanode/market/offer"
)

// field is one thing that a query can ask about. A number field has num and units, a text field has text and same.
type field struct {
	num   func(*offer.Offer) uint64       // value in base units
	units map[string]uint64               // base units per unit; "" is a bare number
	text  func(*offer.Offer) string       // value of a text field
	same  func(value, wanted string) bool // equality of a text field
}

func (f field) compare(a, b *offer.Offer) int {
	if f.num != nil {
		return cmp.Compare(f.num(a), f.num(b))
	}
	return cmp.Compare(f.text(a), f.text(b))
}

var (
	// Memory is compared in bytes. A bare number is decimal gigabytes, which is how cards are named: a "24 GB" card
	// reports 24 564 MiB and must match vram>=24.
	memory = map[string]uint64{
		"": 1e9, "gb": 1e9, "g": 1e9, "mb": 1e6, "tb": 1e12, "gib": 1 << 30, "mib": 1 << 20, "tib": 1 << 40,
	}
	credits = map[string]uint64{"": credit.PerCredit}
	// Speed is compared in MFLOP/s; a bare number is GFLOP/s.
	speed = map[string]uint64{
		"": 1000, "m": 1, "g": 1000, "t": 1e6, "mflops": 1, "gflops": 1000, "tflops": 1e6,
	}
	whole = map[string]uint64{"": 1}
)

var fields = map[string]field{
	"vram":  {num: func(o *offer.Offer) uint64 { return uint64(o.Beacon.VRAMMiB) << 20 }, units: memory},
	"price": {num: func(o *offer.Offer) uint64 { return uint64(o.Beacon.Price) }, units: credits},
	"floor": {num: func(o *offer.Offer) uint64 { return uint64(o.Beacon.Floor) }, units: credits},
	"rate":  {num: func(o *offer.Offer) uint64 { return uint64(o.Beacon.Rate) }, units: credits},
	"perf":  {num: func(o *offer.Offer) uint64 { return o.Beacon.PerfMFLOPS }, units: speed},
	"slots": {num: func(o *offer.Offer) uint64 { return uint64(o.Beacon.Free) }, units: whole},
	"class": {text: func(o *offer.Offer) string { return o.Beacon.Class }, same: sameClass},
	"region": {text: func(o *offer.Offer) string { return o.Beacon.Region }, same: func(value, wanted string) bool {
		return strings.EqualFold(value, wanted)
	}},
	"peer": {text: func(o *offer.Offer) string { return o.Peer.String() }, same: strings.HasPrefix},
}

// sameClass compares a class by its whole name or by one of its words, without regard to case: "4090" is "RTX 4090".
func sameClass(value, wanted string) bool {
	if strings.EqualFold(value, wanted) {
		return true
	}
	for word := range strings.FieldsSeq(value) {
		if strings.EqualFold(word, wanted) {
			return true
		}
	}
	return false
}

// Fields lists the field names in alphabetical order.
func Fields() []string {
	names := make([]string, 0, len(fields))
	for name := range fields {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// suggest proposes the field nearest to a misspelt one, or lists all.
func suggest(word string) string {
	best, distance := "", 3
	for _, name := range Fields() {
		if d := edits(strings.ToLower(word), name); d < distance {
			best, distance = name, d
		}
	}
	if best != "" {
		return "did you mean " + best + "?"
	}
	return "fields are " + strings.Join(Fields(), ", ")
}

// edits is the Levenshtein distance of two words.
func edits(a, b string) int {
	if len(a) > 32 {
		return len(a)
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j+1]+1, row[j]+1)
		}
	}
	return row[len(b)]
}
