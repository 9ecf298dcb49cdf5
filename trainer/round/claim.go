package round

import "github.com/libp2p/go-libp2p/core/peer"

// Claim is a state that a peer says it holds.
type Claim struct {
	Peer   peer.ID
	Round  uint64 // rounds committed
	Steps  uint64 // nominal local steps committed
	Tokens uint64 // tokens committed
	State  Hash
}

// Beats orders states: more committed tokens win, then more rounds, then the larger hash. It is a strict total order, so of
// two forks exactly one yields.
func (c Claim) Beats(o Claim) bool {
	if c.Tokens != o.Tokens {
		return c.Tokens > o.Tokens
	}
	if c.Round != o.Round {
		return c.Round > o.Round
	}
	return c.State.Compare(o.State) > 0
}

// Best returns the claim that beats the own state and all other claims; false when the own state stands. A claim whose
// tokens exceed perStep per nominal step is a lie and is skipped.
func Best(own Claim, claims []Claim, perStep uint64) (Claim, bool) {
	best, found := own, false
	for _, c := range claims {
		if c.Round > MaxRounds || c.Steps > MaxSteps || c.Tokens > c.Steps*perStep || !c.Beats(best) {
			continue
		}
		best, found = c, true
	}
	return best, found
}
