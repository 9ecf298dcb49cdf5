package data

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"
	"pgregory.net/rapid"

	"github.com/capacloud/capanode/trainer/round"
)

// The order in which the windows of each shard are trained on depends on the seed alone: not on how many peers there are, on who
// comes and goes, or on where a run was stopped and taken up again. In an epoch of what is committed, every window comes once.
func TestOrderIsElastic(t *testing.T) {
	_, c, store := built(t)
	source, err := Open(context.Background(), c, store.ReadAll, SourceOptions{Context: 16, Vocab: 257})
	if err != nil {
		t.Fatal(err)
	}
	windows := make([]uint64, source.Shards())
	for s := range windows {
		windows[s] = source.Windows(s)
	}
	const seed = 11
	alone := epoch(t, seed, windows, func(int) (int, int) { return 1, 3 })
	for s, order := range alone {
		sorted := slices.Clone(order)
		slices.Sort(sorted)
		for i, w := range sorted {
			if w != uint64(i) {
				t.Fatalf("shard %d: the epoch is no permutation of its %d windows", s, windows[s])
			}
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		got := epoch(t, seed, windows, func(int) (int, int) {
			return rapid.IntRange(1, 9).Draw(t, "members"), rapid.IntRange(1, 40).Draw(t, "windows each")
		})
		for s := range got {
			if !slices.Equal(got[s], alone[s]) {
				t.Fatalf("shard %d: order %v, one peer alone takes %v", s, got[s], alone[s])
			}
		}
	})
	if other := epoch(t, seed+1, windows, func(int) (int, int) { return 1, 3 }); slices.EqualFunc(other, alone, slices.Equal[[]uint64]) {
		t.Error("another seed gives the same order")
	}
}

// epoch deals rounds until every shard has been gone through once, and returns the order of each shard's windows. All that passes
// from round to round is the cursors, as in a state that is committed and taken up again.
func epoch(t interface{ Fatal(...any) }, seed uint64, windows []uint64, choose func(number int) (members, need int)) [][]uint64 {
	order := make([][]uint64, len(windows))
	cursors := make([]uint64, len(windows))
	for number := 0; ; number++ {
		members, need := choose(number)
		var ids []peer.ID
		for i := range members {
			ids = append(ids, peer.ID(fmt.Sprintf("peer %d of round %d", i, number)))
		}
		owner := round.Assign(seed, len(windows), ids)
		next := slices.Clone(cursors)
		for m := range ids {
			var own []int
			for s, o := range owner {
				if o == m {
					own = append(own, s)
				}
			}
			for _, r := range round.Take(own, windows, cursors, uint64(need)) {
				for _, w := range round.Windows(seed, []round.Range{r}, windows, 1) {
					if order[w.Shard] = append(order[w.Shard], w.Index); len(order[w.Shard]) > 1<<20 {
						t.Fatal("a shard is never finished")
					}
				}
				next[r.Shard] = r.To
			}
		}
		cursors = next
		done := true
		for s := range windows {
			done = done && cursors[s] >= windows[s]
		}
		if done {
			break
		}
	}
	for s := range order {
		order[s] = order[s][:windows[s]] // of the first epoch
	}
	return order
}
