// Package pause owns waiting that a context can end. It refuses to know what is waited for.
package pause

import (
	"context"
	"time"
)

// For waits, or returns early with the context's error. Without a time to wait it only looks at the context.
func For(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
