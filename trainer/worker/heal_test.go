package worker

import (
	"testing"

	"github.com/capacloud/capanode/trainer/round"
)

// A donor may tell any past of its state; what cannot be is not believed.
func TestLineageOfADonor(t *testing.T) {
	tip := round.Ancestor{State: round.Hash{9}, Tokens: 100}
	res := func(l ...round.Ancestor) stateResponse {
		return stateResponse{State: tip.State, Tokens: tip.Tokens, Lineage: l}
	}
	past := round.Ancestor{State: round.Hash{1}, Tokens: 50}
	for name, c := range map[string]struct {
		res  stateResponse
		want int
	}{
		"good":          {res(past, tip), 2},
		"with a merge":  {res(past, round.Ancestor{State: round.Hash{2}, Tokens: round.Merged}, tip), 3},
		"none":          {res(), 1},
		"without tip":   {res(past), 1},
		"from the end":  {res(round.Ancestor{State: round.Hash{1}, Tokens: 101}, tip), 1},
		"endless":       {res(append(make([]round.Ancestor, round.MaxLineage), tip)...), 1},
		"longest there": {res(append(make([]round.Ancestor, round.MaxLineage-1), tip)...), round.MaxLineage},
	} {
		got := lineageOf(c.res)
		if len(got) != c.want || !got.Has(tip) {
			t.Errorf("%s: %d states, want %d with the newest", name, len(got), c.want)
		}
	}
}

// A header that brings back a lost side is checked against this peer's own past.
func TestMergeable(t *testing.T) {
	n := 5000
	state := round.NewState(testSnapshot(1).state.Run, 2, make([]float32, n))
	state.Tokens, state.Cursors = 1000, []uint64{4, 7}
	base := round.Ancestor{State: round.Hash{3}, Tokens: 600}
	w := &worker{
		state: state, windows: []uint64{10, 10},
		lineage: round.Lineage{base, {State: round.Hash{8}, Tokens: round.Merged}, {State: round.Hash{5}, Tokens: 1000}},
	}
	good := round.Header{
		Codec: mergeCodec.ID(), Size: uint64(mergeCodec.Bound(n)), Tokens: 400, Ranges: []round.Range{{Shard: 1, From: 7, To: 9}},
		Merge: &round.Merge{Base: base.State, Tokens: base.Tokens, State: round.Hash{7}},
	}
	if err := w.mergeable(round.Signed{Header: good}); err != nil {
		t.Errorf("a good one: %v", err)
	}
	for name, change := range map[string]func(*round.Header, *round.Merge){
		"another codec":       func(h *round.Header, _ *round.Merge) { h.Codec = "top64/1" },
		"a short blob":        func(h *round.Header, _ *round.Merge) { h.Size-- },
		"an unknown base":     func(_ *round.Header, m *round.Merge) { m.Base = round.Hash{4} },
		"other tokens":        func(_ *round.Header, m *round.Merge) { m.Tokens = 1 },
		"more than was won":   func(h *round.Header, _ *round.Merge) { h.Tokens = 401 },
		"a merge as base":     func(_ *round.Header, m *round.Merge) { m.Base, m.Tokens = round.Hash{8}, round.Merged },
		"merged before":       func(_ *round.Header, m *round.Merge) { m.State = round.Hash{8} },
		"a state of our past": func(_ *round.Header, m *round.Merge) { m.State = base.State },
		"other cursors":       func(h *round.Header, _ *round.Merge) { h.Ranges = []round.Range{{Shard: 1, From: 6, To: 9}} },
		"no such shard":       func(h *round.Header, _ *round.Merge) { h.Ranges = []round.Range{{Shard: 2, From: 0, To: 9}} },
	} {
		h, m := good, *good.Merge
		h.Merge = &m
		change(&h, &m)
		if err := w.mergeable(round.Signed{Header: h}); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}
