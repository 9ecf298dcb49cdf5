package query

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"pgregory.net/rapid"

	"github.com/capacloud/capanode/market/credit"
	"github.com/capacloud/capanode/market/offer"
)

// drawQuery makes a query of every kind of part.
func drawQuery(t *rapid.T, depth int) string {
	if depth == 0 {
		return strings.ReplaceAll(rapid.SampledFrom([]string{
			"vram>=%dGiB", "vram<%dGiB", "price<=0.%d", "price!=0.%d", "class=c%d", "class!=c%d", "class in [c%d, c2]", "class not in [c%d, c3]", "slots>%d",
			"lease>%dh", "speed=claimed", "peer=%d", "perf in [1, %d]",
		}).Draw(t, "condition"), "%d", fmt.Sprint(rapid.IntRange(0, 4).Draw(t, "value")))
	}
	parts := make([]string, rapid.IntRange(1, 3).Draw(t, "parts"))
	for i := range parts {
		parts[i] = drawQuery(t, depth-1)
		if strings.ContainsAny(parts[i], " ") && depth > 1 {
			parts[i] = "(" + parts[i] + ")"
		}
		if rapid.Bool().Draw(t, "not") {
			parts[i] = "not " + parts[i]
		}
	}
	return strings.Join(parts, rapid.SampledFrom([]string{" ", " and ", " or "}).Draw(t, "joint"))
}

// A table that has seen offers come, change, go and die answers as one row at a time does.
func TestTableAnswersLikeItsRows(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := drawQuery(t, rapid.IntRange(0, 3).Draw(t, "depth"))
		q, err := Parse(text)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		tab, held := NewTable(), map[peer.ID]*offer.Offer{}
		for range rapid.IntRange(0, 60).Draw(t, "changes") {
			id := fmt.Sprint(rapid.IntRange(0, 12).Draw(t, "peer"))
			if rapid.IntRange(0, 4).Draw(t, "change") == 0 {
				tab.Remove(peer.ID(id))
				delete(held, peer.ID(id))
				continue
			}
			n := rapid.Uint32Range(0, 5).Draw(t, "n")
			o := card(id, fmt.Sprintf("c%d", n), n<<10, credit.Micro(n*100_000), uint64(n)*1000)
			o.Beacon.Free, o.Beacon.MaxLease, o.Beacon.Claimed = uint16(n%3), n*3600, n%2 == 0
			o.Beacon.IssuedMs -= rapid.SampledFrom([]int64{0, 89_999, 90_000, 90_001}).Draw(t, "age")
			tab.Put(&o)
			held[o.Peer] = &o
		}
		res := q.Run(tab, noon)
		var want []offer.Offer
		counts, alive := map[Reason]int{}, 0
		for _, o := range held {
			if offer.Dead(o.Beacon, noon) {
				continue
			}
			alive++
			one := q.Run(NewTable(o), noon)
			if len(one.Rejected) > 0 {
				counts[one.Rejected[0].Reason]++
			} else {
				want = append(want, *o)
			}
		}
		slices.SortFunc(want, func(a, b offer.Offer) int {
			return cmp.Or(cmp.Compare(a.Beacon.Price, b.Beacon.Price), cmp.Compare(a.Peer, b.Peer))
		})
		if !slices.EqualFunc(res.Offers, want, func(a, b offer.Offer) bool { return a.Peer == b.Peer && a.Beacon == b.Beacon }) {
			t.Fatalf("%s: found %v, want %v", text, res.Offers, want)
		}
		got := map[Reason]int{}
		for _, c := range res.Rejected {
			got[c.Reason] = c.Offers
		}
		if !maps.Equal(got, counts) {
			t.Fatalf("%s: rejected %v, want %v", text, got, counts)
		}
		if tab.Len() != len(held) || len(slices.Collect(tab.All(noon, false))) != alive || len(slices.Collect(tab.All(noon, true))) != len(held)-alive {
			t.Fatalf("%d offers, want %d of which %d live", tab.Len(), len(held), alive)
		}
		for i := range tab.lexica {
			if l := &tab.lexica[i]; len(l.numbers) > max(len(held), 1) {
				t.Fatalf("%d words for %d offers", len(l.numbers), len(held))
			}
		}
	})
}

// An offer lives to the very end of its last millisecond, as package offer says.
func TestDeathIsExact(t *testing.T) {
	o := card("a", "cpu", 1, 1, 1)
	end := o.Beacon.Expires().Add(offer.Skew)
	for _, now := range []time.Time{end.Add(-1), end, end.Add(1), end.Add(time.Millisecond)} {
		if dead := len(slices.Collect(NewTable(&o).All(now, true))) == 1; dead != offer.Dead(o.Beacon, now) {
			t.Errorf("%v after the end: dead is %v", now.Sub(end), dead)
		}
	}
}
