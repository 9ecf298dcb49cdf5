package round

import (
	"math"
	"slices"
)

// Merge marks an update that brings back what the losing side of a fork has trained: the round that applies it has two
// parents. Its blob holds φ of the losing state minus φ of the header's parent; its tokens are those that the losing side
// committed since the fork.
type Merge struct {
	Base   Hash   `cbor:"base"`   // the last state that both sides held
	Tokens uint64 `cbor:"tokens"` // committed in it
	State  Hash   `cbor:"state"`  // the losing side's last
}

// Share returns the weight of the losing side in the token-weighted mean of two states, given the tokens of the parent state
// that wins and those that the losing side brings:
//
//	φ ← φ + share·(φ of the losing side − φ),  share = lost / (won + lost)
//
// where won are the winner's tokens since the fork. A side with more tokens would have won, so the share is at most a half.
func (m Merge) Share(parent, lost uint64) float32 {
	won := float64(parent - min(m.Tokens, parent))
	return float32(min(float64(lost)/max(won+float64(lost), 1), 0.5))
}

// MaxLineage is how many of its last states a peer remembers: forks older than that are not merged but lost.
const MaxLineage = 128

// Ancestor is one state on the way to the present one, or one that was merged into it.
type Ancestor struct {
	State  Hash   `cbor:"state"`
	Tokens uint64 `cbor:"tokens"` // committed in it; [Merged] for one that was merged
}

// Merged stands for the tokens of a lost state on the lineage of the winner: it is no point where sides can part.
const Merged = math.MaxUint64

// Lineage is the way to the present state, newest last: what a fork is measured by.
type Lineage []Ancestor

// Add returns the lineage with one more state; the oldest beyond [MaxLineage] is forgotten.
func (l Lineage) Add(a Ancestor) Lineage {
	if len(l) >= MaxLineage {
		l = l[len(l)-MaxLineage+1:]
	}
	return append(slices.Clone(l), a)
}

// Has reports whether the state lies on the lineage with these tokens.
func (l Lineage) Has(a Ancestor) bool { return slices.Contains(l, a) }

// Knows reports whether the state lies on the lineage or was merged into it.
func (l Lineage) Knows(state Hash) bool {
	return slices.ContainsFunc(l, func(a Ancestor) bool { return a.State == state })
}

// Meet returns the newest state that both lineages passed through; false when there is none, or when both have merged the
// same lost state since, which must not be counted twice.
func (l Lineage) Meet(o Lineage) (Ancestor, bool) {
	for _, a := range slices.Backward(l) {
		if o.Has(a) {
			return a, a.Tokens != Merged
		}
	}
	return Ancestor{}, false
}
