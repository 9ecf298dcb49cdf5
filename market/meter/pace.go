package meter

import (
	"fmt"
	"time"
)

// Burst is how many ticks of a lease may come at once. A provider that settles asks again and again for [lease.SettleTime],
// which takes 18 ticks, however long the interval of the lease is.
const Burst = 24

// Pace bounds how often a lease's ticks are judged: one per interval in the long run, and [Burst] at once after a quiet
// time. The zero value has been quiet. It is the leaky bucket as a virtual schedule, ITU-T I.371, section A.1: a single time
// says how much is left.
type Pace struct {
	due time.Time // when the next tick would come from a provider that never hurries
}

// Next is the pace after a tick at a time; interval is that of the lease's terms. A tick that comes too soon is [ErrPace]
// and leaves the pace as it was.
func (p Pace) Next(now time.Time, interval time.Duration) (Pace, error) {
	if early := p.due.Sub(now); early > (Burst-1)*interval {
		return p, fmt.Errorf("meter: %d ticks at once, one every %s is agreed: %w", Burst, interval, ErrPace)
	}
	if p.due.Before(now) {
		p.due = now
	}
	return Pace{p.due.Add(interval)}, nil
}
