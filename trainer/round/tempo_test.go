package round

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"
)

func TestPace(t *testing.T) {
	for name, c := range map[string]struct {
		own    uint64
		speeds []uint64
		want   uint64
	}{
		"alone":            {100, []uint64{100}, 20},
		"equal":            {100, []uint64{100, 110, 95}, 20},
		"unknown":          {100, []uint64{100, 0}, 20},
		"own unknown":      {0, []uint64{0, 5}, 20},
		"slow of two":      {100, []uint64{100, 1000}, 4},
		"fast of two":      {1000, []uint64{100, 1000}, 36},
		"ten times slower": {1, []uint64{1, 2, 4, 10}, 5},
		"fastest":          {10, []uint64{1, 2, 4, 10}, 47},
		"liar":             {100, []uint64{100, 100, 100, 1 << 60}, 4},
		"crawls":           {1, []uint64{1, 1000, 1000}, 1},
		"far ahead":        {1000, []uint64{1000, 1, 1, 1, 1, 1, 1}, 80},
	} {
		if got := Pace(20, c.own, c.speeds); got != c.want {
			t.Errorf("%s: %d steps, want %d", name, got, c.want)
		}
	}
}

// A round of unequal peers has about as many steps as one of equal peers, as long as nobody is at a limit.
func TestPaceKeepsTheTokens(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 5))
	for range 1000 {
		speeds := make([]uint64, 2+rng.IntN(30))
		for i := range speeds {
			speeds[i] = 1000 + rng.Uint64N(3000)
		}
		var sum uint64
		for _, s := range speeds {
			sum += Pace(100, s, speeds)
		}
		if got, want := float64(sum), float64(100*len(speeds)); got < 0.75*want || got > 1.25*want {
			t.Fatalf("%v: %g steps, want about %g", speeds, got, want)
		}
	}
}

func TestPulse(t *testing.T) {
	first := Pulse{}.After([]Header{{Loss: 400, Tokens: 1, Budget: 100}, {Loss: 0, Tokens: 3, Budget: 300}, {}, {Loss: 1 << 40, Tokens: 1 << 40, Budget: 1, Merge: &Merge{}}})
	if want := (Pulse{Loss: 100, Budget: 300}); first != want {
		t.Errorf("first pulse %+v, want %+v", first, want)
	}
	next := first.After([]Header{{Loss: 500, Tokens: 8, Budget: 700}})
	if want := (Pulse{Loss: 200, Budget: 400}); next != want {
		t.Errorf("next pulse %+v, want %+v", next, want)
	}
	if same := next.After([]Header{{Tokens: 5, Merge: &Merge{}}}); same != next {
		t.Errorf("a merge changed the pulse to %+v", same)
	}
	// One peer with a slow link does not slow down two with fast ones, and a limit that is gone is forgotten.
	for range 40 {
		next = next.After([]Header{{Tokens: 1}, {Tokens: 1}, {Tokens: 1, Budget: 5}})
	}
	if next.Budget != 0 {
		t.Errorf("the budget is still %d", next.Budget)
	}
	slow := Pulse{}
	for range 20 {
		slow = slow.After([]Header{{Tokens: 1, Least: 9}, {Tokens: 1, Least: 8}, {Tokens: 1}})
	}
	if slow.Least != 8 {
		t.Errorf("at least %d steps, the median peer needs 8", slow.Least)
	}
	for range 4 {
		slow = slow.After([]Header{{Tokens: 1, Least: 9}, {Tokens: 1}})
	}
	if slow.Least != 0 {
		t.Errorf("at least %d steps when exchanges are short", slow.Least)
	}
	if p := (Pulse{}).After([]Header{{Tokens: 1, Budget: 1 << 62}}); p.Budget != 0 {
		t.Errorf("a huge budget is a limit of %d", p.Budget)
	}
}

func TestMergeShare(t *testing.T) {
	m := Merge{Tokens: 1000}
	for _, c := range []struct {
		parent, lost uint64
		want         float32
	}{{2000, 1000, 0.5}, {4000, 1000, 0.25}, {1100, 1 << 60, 0.5}, {500, 10, 0.5}, {1000, 0, 0}} {
		if got := m.Share(c.parent, c.lost); got != c.want {
			t.Errorf("parent %d, lost %d: share %g, want %g", c.parent, c.lost, got, c.want)
		}
	}
}

func TestLineageMeets(t *testing.T) {
	var common Lineage
	for i := range uint64(200) {
		common = common.Add(Ancestor{testHash(string(rune('a' + i))), i})
	}
	if len(common) != MaxLineage {
		t.Fatalf("%d states, want %d", len(common), MaxLineage)
	}
	fork := common[len(common)-1]
	a, b := common, common
	for i := range uint64(5) {
		a = a.Add(Ancestor{testHash("left" + string(rune('a'+i))), 200 + i})
		b = b.Add(Ancestor{testHash("right" + string(rune('a'+i))), 300 + i})
	}
	if got, ok := a.Meet(b); !ok || got != fork {
		t.Errorf("met at %+v, %v, want %+v", got, ok, fork)
	}
	twice := Ancestor{testHash("merged by both"), Merged}
	if _, ok := a.Add(twice).Meet(b.Add(twice)); ok {
		t.Error("what both sides merged is to be merged again")
	}
	if !a.Add(twice).Knows(twice.State) || a.Knows(twice.State) {
		t.Error("the merged state is not known")
	}
	if _, ok := a.Meet(Lineage{{testHash("else"), 1}}); ok {
		t.Error("met a stranger")
	}
	if a[len(a)-6] != fork || common[len(common)-1] != fork {
		t.Error("adding changed the older lineage")
	}
}

// One merge of a state is enough, and what it brings back takes no shard from those who trained.
func TestAcceptMerges(t *testing.T) {
	lost := &Merge{State: testHash("lost")}
	var set []Signed
	for i, name := range []string{"a", "b", "c", "d"} {
		_, id := testKey(t, name)
		h := Header{Round: 3, Tokens: 10, Ranges: []Range{{uint32(i), 0, 5}}}
		if i >= 2 {
			h.Merge, h.Ranges = lost, []Range{{0, 0, 50}}
		}
		set = append(set, Signed{Header: h, Author: peer.ID(id), ID: testHash(name)})
	}
	accepted := Accept(set)
	merges := 0
	for _, h := range accepted {
		if h.Merge != nil {
			merges++
		}
	}
	if len(accepted) != 3 || merges != 1 {
		t.Errorf("%d accepted, %d merges, want 3 and 1", len(accepted), merges)
	}
	slices.Reverse(set)
	if again := Accept(set); len(again) != 3 || again[0].ID != accepted[0].ID || again[2].ID != accepted[2].ID {
		t.Error("the order of the set matters")
	}
	s := testState(t)
	s.Advance(nil, accepted[:3], Turn{Steps: 1})
	if s.Cursors[0] != 50 && s.Cursors[0] != 7 {
		t.Errorf("cursor %d", s.Cursors[0])
	}
}
