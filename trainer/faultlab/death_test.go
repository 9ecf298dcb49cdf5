package faultlab_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/capacloud/capanode/p2p/memnet"
	"github.com/capacloud/capanode/trainer/faultlab"
)

var home = memnet.Link{Latency: 30 * time.Millisecond, Jitter: 20 * time.Millisecond, Bandwidth: 12 << 20}

// A peer dies at a step of the protocol; what it said last reached all, or only half of its mates.
func TestDeathAtEveryStep(t *testing.T) {
	base := seed(t)
	var total, forked int
	var worst time.Duration
	sizes := []int{3}
	if long() {
		sizes = []int{2, 3, 4}
	}
	for _, point := range faultlab.Points() {
		for _, half := range []bool{false, true} {
			if half && !strings.HasPrefix(string(point), "after its") {
				continue
			}
			for _, peers := range sizes {
				total++
				name := fmt.Sprintf("%s/%d peers/half %v", point, peers, half)
				t.Run(name, func(t *testing.T) {
					forks, delay := deathAt(t, localSteps(6, base), point, peers, half)
					forked += forks
					worst = max(worst, delay)
					if delay > 8*time.Second {
						t.Errorf("survivors were held up for %v, want at most two rounds of 4 s", delay)
					}
				})
			}
		}
	}
	t.Logf("C4: %d deaths at every step among %v peers, %d forked, longest delay %v in rounds of 4 s", total, sizes, forked, worst)
}

// deathAt kills the last peer at the point of round 3 and returns the number of forked rounds and the longest delay of the
// survivors.
func deathAt(t *testing.T, o faultlab.Options, point faultlab.Point, peers int, half bool) (forked int, delay time.Duration) {
	faultlab.Virtual(t, 20*time.Minute, func(ctx context.Context, t *testing.T) {
		names := faultlab.Names(peers)
		victim, others := names[peers-1], names[:peers-1]
		l := faultlab.New(ctx, t, o, names...)
		defer l.Close()
		died := false
		l.Script(func(e faultlab.Event) {
			if e.Peer != victim || e.Round != 3 || died {
				return
			}
			if half && strings.Replace(string(e.Point), "before", "after", 1) == string(point) {
				l.Mute(victim, others[:(len(others)+1)/2]...)
			}
			if e.Point == point {
				died = true
				l.Kill(victim)
			}
		})
		for _, name := range names {
			l.Start(name)
		}
		ends := l.Finish(others...)
		if !died {
			t.Error("the peer never reached the point")
		}
		lives := l.Lives()
		forked = forks(lives)
		delay = quantile(spans(lives[:peers-1]), 1) - quantile(spans(lives[:peers-1]), 0.5)
		for _, o := range ends {
			if o.Healed > 0 && forked == 0 {
				t.Errorf("a survivor took a state from a mate %d times without a fork", o.Healed)
			}
		}
	})
	return forked, delay
}

// Round after round a peer dies at a random step and comes back a little later.
func TestDeathInEveryRound(t *testing.T) {
	s, rounds := seed(t), uint64(60)
	if long() {
		rounds = 10_000
	}
	deathInEveryRound(t, localSteps(rounds+10, s), rounds, s)
}

func deathInEveryRound(t *testing.T, o faultlab.Options, rounds, s uint64) {
	faultlab.Virtual(t, time.Duration(rounds)*time.Minute, func(ctx context.Context, t *testing.T) {
		names := faultlab.Names(4)
		l := faultlab.New(ctx, t, o, names...)
		defer l.Close()
		injected := dieOften(l, rand.New(rand.NewPCG(s, 4)), rounds+5)
		for _, name := range names {
			l.Start(name)
		}
		l.Finish(names...)
		lives := l.Lives()
		all := spans(lives)
		median, p99, most := quantile(all, 0.5), quantile(all, 0.99), longestGap(lives)
		t.Logf("C4: %d rounds injected, 0 hangs, p99 delay %.2f median rounds, longest wait for a commit %.1f, %d rounds forked",
			len(injected), float64(p99-median)/float64(median), float64(most)/float64(median), forks(lives))
		if uint64(len(injected)) < rounds/2 {
			t.Errorf("only %d of %d rounds were injected", len(injected), rounds)
		}
		// A peer that trains alone among listeners and dies right after its commit leaves a state that nobody else has.
		if n := forks(lives); uint64(n) > max(rounds/30, 1) {
			t.Errorf("%d of %d rounds forked", n, rounds)
		}
		if p99 > 3*median {
			t.Errorf("p99 of a round is %v, the median %v", p99, median)
		}
		if most > 10*median {
			t.Errorf("a live peer committed nothing for %v", most)
		}
	})
}

// dieOften has the first peer that reaches a random point of the round die there, round after round until the last, as long as
// two others live. The dead come back within three seconds. It returns the rounds in which somebody died.
func dieOften(l *faultlab.Lab, rng *rand.Rand, last uint64) map[uint64]bool {
	points := faultlab.Points()
	next, point := uint64(3), points[0]
	injected := map[uint64]bool{}
	l.Script(func(e faultlab.Event) {
		if e.Round < next || e.Point != point || e.Round >= last || len(l.Alive()) < 3 {
			return
		}
		injected[e.Round] = true
		next, point = e.Round+1, points[rng.IntN(len(points))]
		l.Crash(e.Peer, time.Duration(rng.IntN(3000))*time.Millisecond)
	})
	return injected
}
