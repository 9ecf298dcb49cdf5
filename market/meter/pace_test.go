package meter

import (
	"errors"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestPace(t *testing.T) {
	const every = 10 * time.Second
	var p Pace
	now := time.UnixMilli(1_800_000_000_000)
	allowed := func(n int) (got int) {
		for range n {
			next, err := p.Next(now, every)
			if err != nil {
				if !errors.Is(err, ErrPace) || next != p {
					t.Fatalf("refused with %v, pace %+v became %+v", err, p, next)
				}
				continue
			}
			p = next
			got++
		}
		return got
	}
	for _, step := range []struct {
		after  time.Duration
		sent   int
		passed int
	}{
		{0, 1000, Burst}, {every - time.Millisecond, 5, 0}, {time.Millisecond, 5, 1}, {3 * every, 5, 3}, {-time.Hour, 5, 0},
		{time.Hour + Burst*every, 1000, Burst}, {1000 * every, 1000, Burst},
	} {
		now = now.Add(step.after)
		if got := allowed(step.sent); got != step.passed {
			t.Errorf("%s later %d of %d ticks pass, want %d", step.after, got, step.sent, step.passed)
		}
	}
}

// Whoever keeps to the interval is never refused, and nobody gets more than one tick per interval and a burst.
func TestPaceInTheLongRun(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const every = time.Second
		start := time.UnixMilli(1_800_000_000_000)
		var p, steady Pace
		now, passed := start, 0
		for range rapid.IntRange(1, 300).Draw(t, "ticks") {
			now = now.Add(time.Duration(rapid.IntRange(0, 1500).Draw(t, "ms")) * time.Millisecond)
			if next, err := p.Next(now, every); err == nil {
				p = next
				passed++
			}
			if most := int(now.Sub(start)/every) + Burst; passed > most {
				t.Fatalf("%d ticks in %s", passed, now.Sub(start))
			}
		}
		for i := range 300 {
			var err error
			if steady, err = steady.Next(start.Add(time.Duration(i)*every), every); err != nil {
				t.Fatalf("tick %d in good time: %v", i, err)
			}
		}
	})
}
