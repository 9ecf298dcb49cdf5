package round

import "slices"

// Pulse is what a run measures about itself: smoothed over the committed rounds, in whole numbers, and part of the state, so
// that every peer draws the same conclusions from it.
type Pulse struct {
	Loss   int64  // training loss in micronats per token
	Budget uint64 // bytes that a peer's link affords to fetch for each optimiser step; 0 where links are no limit
	Least  uint64 // steps that take as long as an exchange, so that it can hide behind them; 0 where exchanges are short
}

// unlimited is the budget above which a link is no limit any more.
const unlimited = 1 << 40

// After returns the pulse after a round with the accepted updates. The loss moves a quarter of the way to the round's. Budget
// and least steps go by the lower median of what the peers say, so that a few liars do not move them: a quarter of the way
// down or up; while the median peer sees no limit the budget doubles each round, and the least steps halve. Runs on fast
// networks thus keep both at 0, whatever the times that were measured, and repeat to the bit.
func (p Pulse) After(accepted []Header) Pulse {
	var loss, tokens float64
	var budgets, leasts []uint64
	for _, h := range accepted {
		if h.Merge != nil || !h.Trains() {
			continue
		}
		loss, tokens = loss+float64(float64(h.Loss)*float64(h.Tokens)), tokens+float64(h.Tokens)
		if h.Budget == 0 || h.Budget > unlimited {
			h.Budget = unlimited
		}
		budgets, leasts = append(budgets, h.Budget), append(leasts, uint64(h.Least))
	}
	if tokens == 0 {
		return p
	}
	slices.Sort(budgets)
	slices.Sort(leasts)
	if mid := leasts[(len(leasts)-1)/2]; mid == 0 {
		p.Least /= 2
	} else {
		p.Least = (3*p.Least + mid + 3) / 4
	}
	switch mid := budgets[(len(budgets)-1)/2]; {
	case mid == unlimited:
		p.Budget *= 2
	case p.Budget == 0:
		p.Budget = mid
	default:
		p.Budget = (3*p.Budget + mid) / 4
	}
	if p.Budget >= unlimited {
		p.Budget = 0
	}
	if mean := int64(loss / tokens); p.Loss == 0 {
		p.Loss = mean
	} else {
		p.Loss += (mean - p.Loss) / 4
	}
	return p
}

// Pace returns the steps that a peer runs in a round of h nominal steps, so that unequal peers end at about the same time
// and the round has as many tokens as with equal ones:
//
//	h · own speed / mean speed, at least 1 and at most [MaxPace]·h
//
// Speeds are in tokens per second, the own one among them. A speed counts for at most 16 times the lower median, whatever
// its owner says. Peers within a fifth of the mean run exactly h, so that the noise of a measurement changes nothing.
func Pace(h, own uint64, speeds []uint64) uint64 {
	if own == 0 || len(speeds) < 2 || slices.Contains(speeds, 0) {
		return h
	}
	sorted := slices.Sorted(slices.Values(speeds))
	most := sorted[(len(sorted)-1)/2] * 16
	var sum float64
	for _, s := range speeds {
		sum += float64(min(s, most))
	}
	share := float64(own) * float64(len(speeds)) / sum
	if share > 0.8 && share < 1.25 {
		return h
	}
	return min(max(uint64(share*float64(h)+0.5), 1), MaxPace*h)
}

// MaxPace is how many times the nominal steps of a round a fast peer may run.
const MaxPace = 4
