package round

import (
	"slices"
	"time"
)

// history is how many arrivals a deadline remembers.
const history = 64

// Arrivals is the history behind one adaptive deadline: how long after the own message the mates' messages came.
// The zero value has no history. No user sets a timeout anywhere: the deadline is
//
//	median + max(3·MAD, median/2) of the history, but at least Floor and at most Ceiling,
//
// where Floor is a tenth of the own compute time and at least MinWait, and Ceiling four times the own compute time and at
// least MaxWait. Without history the deadline is the ceiling.
type Arrivals struct {
	late []time.Duration // newest last
}

// MinWait and MaxWait bound the deadlines of rounds whose local steps take no time worth mentioning.
const (
	MinWait = time.Second
	MaxWait = 10 * time.Second
)

// Add records an arrival; a message that came before the own counts as zero.
func (a Arrivals) Add(late time.Duration) Arrivals {
	kept := a.late
	if len(kept) >= history {
		kept = kept[len(kept)-history+1:]
	}
	return Arrivals{append(slices.Clone(kept), max(late, 0))}
}

// Deadline returns how long to wait after the own message, given the time that the own local steps took.
func (a Arrivals) Deadline(compute time.Duration) time.Duration {
	ceiling := max(MaxWait, 4*compute)
	if len(a.late) == 0 {
		return ceiling
	}
	mid := median(a.late)
	spread := make([]time.Duration, len(a.late))
	for i, d := range a.late {
		spread[i] = (d - mid).Abs()
	}
	floor := max(MinWait, compute/10)
	return min(max(mid+max(3*median(spread), mid/2), floor), ceiling)
}

// median returns the upper median.
func median(d []time.Duration) time.Duration {
	sorted := slices.Sorted(slices.Values(d))
	return sorted[len(sorted)/2]
}
