package faultlab_test

import (
	"slices"
	"time"

	"github.com/capacloud/capanode/trainer/faultlab"
	"github.com/capacloud/capanode/trainer/round"
)

// spans lists how long the peers took from one committed round to the next, for rounds that both are theirs, those of the
// first two rounds left out: deadlines have no history yet.
func spans(lives []faultlab.Life) []time.Duration {
	var all []time.Duration
	for _, l := range lives {
		for i := 1; i < len(l.Commits); i++ {
			if l.Commits[i].Round >= 2 && l.Commits[i].Round == l.Commits[i-1].Round+1 {
				all = append(all, l.Commits[i].At.Sub(l.Commits[i-1].At))
			}
		}
	}
	return all
}

// quantile returns the smallest duration that a share of all does not exceed.
func quantile(all []time.Duration, share float64) time.Duration {
	if len(all) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(all))
	return sorted[min(int(share*float64(len(sorted))), len(sorted)-1)]
}

// forks counts the rounds in which peers committed different states.
func forks(lives []faultlab.Life) int {
	next := map[uint64]map[round.Hash]bool{}
	for _, l := range lives {
		for _, c := range l.Commits {
			if next[c.Round] == nil {
				next[c.Round] = map[round.Hash]bool{}
			}
			next[c.Round][c.Next] = true
		}
	}
	count := 0
	for _, states := range next {
		if len(states) > 1 {
			count++
		}
	}
	return count
}

// gaps returns the longest time that a live peer went without a commit, from its first commit to its end.
func longestGap(lives []faultlab.Life) (longest time.Duration) {
	for _, l := range lives {
		for i, c := range l.Commits {
			next := l.Died
			if i+1 < len(l.Commits) {
				next = l.Commits[i+1].At
			}
			if !next.IsZero() {
				longest = max(longest, next.Sub(c.At))
			}
		}
	}
	return longest
}
