package transfer

import (
	"context"
	"sync"
	"time"

	"github.com/capacloud/capanode/storage/internal/pause"
)

// bucketBurst is how long a bucket that nobody used saves up.
const bucketBurst = 100 * time.Millisecond

// bucket is a token bucket over bytes. Its users wait until the rate allows what they take; a nil bucket never makes them.
type bucket struct {
	rate float64 // bytes per second

	mu     sync.Mutex
	tokens float64 // may be negative: taken in advance by those who wait
	last   time.Time
}

// newBucket returns nil for a rate of 0, which means no limit.
func newBucket(rate int64) *bucket {
	if rate <= 0 {
		return nil
	}
	b := &bucket{rate: float64(rate), last: time.Now()}
	b.tokens = b.burst()
	return b
}

func (b *bucket) burst() float64 { return b.rate * bucketBurst.Seconds() }

// wait takes n bytes and returns when they may move.
func (b *bucket) wait(ctx context.Context, n int) error {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	b.fill(time.Now())
	b.tokens -= float64(n)
	due := time.Duration(max(0, -b.tokens/b.rate) * float64(time.Second))
	b.mu.Unlock()
	return pause.For(ctx, due)
}

// full reports whether the bucket has nothing to remember.
func (b *bucket) full() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fill(time.Now())
	return b.tokens >= b.burst()
}

// fill is called with mu held.
func (b *bucket) fill(now time.Time) {
	b.tokens = min(b.burst(), b.tokens+now.Sub(b.last).Seconds()*b.rate)
	b.last = now
}
