package market

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/market/lease"
	"github.com/capacloud/capanode/market/meter"
	"github.com/capacloud/capanode/market/offer"
	"github.com/capacloud/capanode/p2p/memnet"
)

// phase waits for the timers of both ends to settle and returns the phases of the lease there.
func phase(t *testing.T, list func() ([]lease.Lease, error)) (lease.Phase, lease.Reason) {
	t.Helper()
	synctest.Wait()
	all, err := list()
	if err != nil || len(all) != 1 {
		t.Fatalf("%d leases: %v", len(all), err)
	}
	return all[0].Phase, all[0].Reason
}

// TestHeartbeatsKeepALease lets an hour pass: the heartbeats keep both ends active until the leased time is over.
func TestHeartbeatsKeepALease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, s, c, _ := leased(t)
		for range 59 {
			time.Sleep(time.Minute)
			for name, list := range map[string]func() ([]lease.Lease, error){"seller": s.seller.Leases, "buyer": c.buyer.Leases} {
				if p, _ := phase(t, list); p != lease.Active {
					t.Fatalf("%s became %s", name, p)
				}
			}
		}
		time.Sleep(2 * time.Minute)
		for name, list := range map[string]func() ([]lease.Lease, error){"seller": s.seller.Leases, "buyer": c.buyer.Leases} {
			if p, r := phase(t, list); p != lease.Closed || r != lease.TimeUp {
				t.Errorf("%s: %s for %q", name, p, r)
			}
		}
		if s.seller.Free() != 1 {
			t.Error("the slot is not free again")
		}
	})
}

// TestSilentRequester kills the requester for good: the provider suspects it, detaches, and closes after the autonomy time.
func TestSilentRequester(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, s, c, l := leased(t)
		net.Kill(c.node.ID())
		for _, step := range []struct {
			after time.Duration
			want  lease.Phase
		}{
			{lease.SilenceTime + 6*time.Second, lease.Suspect},
			{lease.SuspectTime, lease.Detached},
			{lease.AutonomyTime - 10*time.Second, lease.Detached},
		} {
			time.Sleep(step.after)
			if p, _ := phase(t, s.seller.Leases); p != step.want {
				t.Fatalf("provider is %s, want %s", p, step.want)
			}
		}
		if _, err := s.seller.SendTick(t.Context(), l.ID, Work{Units: 1}); !errors.Is(err, meter.ErrNoReceipt) {
			t.Errorf("tick to a dead requester: %v", err)
		}
		time.Sleep(20 * time.Second)
		if p, r := phase(t, s.seller.Leases); p != lease.Closed || r != lease.Unresponsive || s.seller.Free() != 1 {
			t.Errorf("provider is %s for %q with %d free slots", p, r, s.seller.Free())
		}
	})
}

// TestRequesterComesBack restarts the requester nine minutes later: the lease goes on.
func TestRequesterComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, s, c, l := leased(t)
		c.close()
		time.Sleep(9 * time.Minute)
		if p, _ := phase(t, s.seller.Leases); p != lease.Detached {
			t.Fatalf("provider is %s", p)
		}
		c.open()
		time.Sleep(time.Second)
		if p, _ := phase(t, s.seller.Leases); p != lease.Active {
			t.Errorf("provider is %s after the return", p)
		}
		r, err := s.seller.SendTick(t.Context(), l.ID, Work{Units: 5})
		if err != nil || r.SlotMs < 540_000 {
			t.Errorf("the time in between is not paid: %+v, %v", r, err)
		}
	})
}

// TestProviderDisappears closes the lease on the requester's side too.
func TestProviderDisappears(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, s, c, _ := leased(t)
		net.Kill(s.node.ID())
		time.Sleep(lease.SilenceTime + lease.SuspectTime + lease.AutonomyTime + time.Minute)
		if p, r := phase(t, c.buyer.Leases); p != lease.Closed || r != lease.Unresponsive {
			t.Errorf("requester is %s for %q", p, r)
		}
	})
}

// TestLostCloseIsLearned closes while the line is cut: each side learns it from the other when the line is back.
func TestLostCloseIsLearned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, s, c, l := leased(t)
		net.Partition([]peer.ID{s.node.ID()}, []peer.ID{c.node.ID()})
		if err := s.seller.CloseLease(t.Context(), l.ID, lease.Schedule); err == nil {
			t.Error("the requester was told over a cut line")
		}
		net.Heal()
		time.Sleep(2 * lease.BeatEvery)
		if p, r := phase(t, c.buyer.Leases); p != lease.Closed || r != lease.Schedule {
			t.Errorf("requester is %s for %q", p, r)
		}
	})
}

// TestHoldsAndGrantsLapse leaves a hold and a grant without an answer.
func TestHoldsAndGrantsLapse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := memnet.New()
		s, c := newShop(t, net, "provider", nil), newClient(t, net, "requester")
		h, err := c.buyer.quote(t.Context(), s.offer(), ask())
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(lease.HoldTime)
		env, err := lease.Seal(c.node.Key(), lease.AcceptDomain, lease.AcceptRecord{Terms: h.lease.Terms})
		if err != nil {
			t.Fatal(err)
		}
		req := lease.Request{Op: lease.OpAccept, Envelope: env}
		if _, err := s.seller.answer(c.node.ID(), req); !errors.Is(err, lease.ErrNotHeld) {
			t.Errorf("accept after the hold: %v", err)
		}
		if err := h.hold(); err != nil { // the same request again renews the hold
			t.Fatal(err)
		}
		if _, err := s.seller.answer(c.node.ID(), req); err != nil {
			t.Fatal(err)
		}
		h.release()
		if s.seller.Free() != 0 {
			t.Error("a granted slot is free")
		}
		time.Sleep(lease.AckTime + time.Second)
		if p, r := phase(t, s.seller.Leases); p != lease.Closed || r != lease.NotCompleted || s.seller.Free() != 1 {
			t.Errorf("grant without ack: %s for %q", p, r)
		}
	})
}

// TestAdvertising watches a provider's beacons for half an hour.
func TestAdvertising(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := memnet.New()
		s := newShop(t, net, "provider", nil)
		other := net.Node("watcher")
		t.Cleanup(func() { other.Close() })
		x, err := NewExchange(ExchangeConfig{Net: s.node, Router: s.node, DB: s.db, Log: quietLog})
		if err != nil {
			t.Fatal(err)
		}
		y, err := NewExchange(ExchangeConfig{Net: other, Router: other, Log: quietLog})
		if err != nil {
			t.Fatal(err)
		}
		seqs := map[uint64]bool{}
		look := func(d time.Duration) {
			for range int(d / time.Second) {
				time.Sleep(time.Second)
				if o, found := y.Book().Get(s.node.ID()); found {
					seqs[o.Beacon.Seq] = true
				}
			}
		}
		advert := offer.Beacon{Class: "cpu", PerfMFLOPS: 1, Price: 100, Free: 1, Total: 1, MaxLease: 60}
		if err := x.Advertise(advert); err != nil {
			t.Fatal(err)
		}
		look(30 * time.Minute)
		if n := len(seqs); n < 30*60/144 || n > 30*60/96+1 {
			t.Errorf("%d beacons in half an hour", n)
		}
		for i := range 6 { // faster than anyone accepts: the last word still arrives
			advert.MaxLease = uint32(60 + i)
			if err := x.Advertise(advert); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		time.Sleep(40 * time.Second)
		if o, found := y.Book().Get(s.node.ID()); !found || o.Beacon.MaxLease != 65 {
			t.Errorf("the newest change has not arrived: %+v", o.Beacon)
		}
		if err := x.Close(); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if o, found := y.Book().Get(s.node.ID()); !found || o.Beacon.Free != 0 {
			t.Errorf("the offer was not withdrawn: %+v", o.Beacon)
		}
		if err := x.Advertise(offer.Beacon{Class: "cpu"}); !errors.Is(err, offer.ErrRange) {
			t.Errorf("invalid advert: %v", err)
		}
		if err := y.Advertise(advert); !errors.Is(err, ErrConfig) {
			t.Errorf("advertised without a database for the sequence: %v", err)
		}
		y.Close()
	})
}
