package market

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/capacloud/capanode/market/lease"
	"github.com/capacloud/capanode/market/meter"
	"github.com/capacloud/capanode/p2p/memnet"
)

// clock is a time that the test sets.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// A provider that floods its requester with ticks is refused, and costs it neither a write nor a word to whoever watches.
func TestTicksAreRateLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, at := memnet.New(), &clock{now: time.Now()}
		s := newShop(t, net, "provider", nil)
		var syncs, refused atomic.Int64
		db := openDB(t, errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
			if op.Kind == errorfs.OpFileSync || op.Kind == errorfs.OpFileSyncData || op.Kind == errorfs.OpFileWrite {
				syncs.Add(1)
			}
			return nil
		})))
		node := net.Node("requester")
		b, err := NewBuyer(BuyerConfig{
			Net: node, DB: db, Log: quietLog, Now: at.Now,
			Verify:   func(lease.Lease, meter.Tick) (uint64, error) { return 1 << 60, nil },
			OnRefuse: func(lease.Lease, error) { refused.Add(1) },
		})
		if err != nil {
			t.Fatal(err)
		}
		b.Start()
		defer func() { node.Close(); b.Close(); db.Close() }()
		l, err := b.Lease(t.Context(), s.offer(), ask())
		if err != nil {
			t.Fatal(err)
		}
		var units uint64
		flood := func(n int) (receipts int) {
			for range n {
				units++
				_, err := s.seller.SendTick(t.Context(), l.ID, Work{Units: units})
				if err == nil {
					receipts++
				} else if !errors.Is(err, meter.ErrPace) {
					t.Fatal(err)
				}
			}
			synctest.Wait()
			return receipts
		}
		if got := flood(2 * meter.Burst); got != meter.Burst {
			t.Errorf("%d receipts at once, want %d", got, meter.Burst)
		}
		before := syncs.Load()
		if got := flood(50); got != 0 || syncs.Load() != before || refused.Load() != 0 {
			t.Errorf("%d receipts, %d writes, %d calls for ticks that come too soon", got, syncs.Load()-before, refused.Load())
		}
		at.pass(time.Duration(l.Terms.TickSeconds) * time.Second)
		if got := flood(5); got != 1 || syncs.Load() == before {
			t.Errorf("%d receipts after an interval, want one; %d writes", got, syncs.Load()-before)
		}
		if p, _ := phase(t, b.Leases); p != lease.Active {
			t.Errorf("the lease is %s", p)
		}
	})
}
