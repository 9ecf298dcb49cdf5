package market

import (
	"errors"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/market/lease"
	"github.com/capacloud/capanode/market/offer"
	"github.com/capacloud/capanode/p2p/memnet"
	"github.com/capacloud/capanode/p2p/nettest"
	"github.com/capacloud/capanode/p2p/wire"
)

// A run gets one slot of a provider with several, even when two quotes are out at once; other runs and requesters do not suffer.
func TestOneSlotPerRun(t *testing.T) {
	net := memnet.New()
	s := newShop(t, net, "provider", func(c *SellerConfig) { c.Slots, c.OnePerRun = 4, true })
	c, d := newClient(t, net, "requester"), newClient(t, net, "another")
	one, err := c.buyer.quote(t.Context(), s.offer(), ask())
	if err != nil {
		t.Fatal(err)
	}
	two, err := c.buyer.quote(t.Context(), s.offer(), ask())
	if err != nil {
		t.Fatal(err)
	}
	l, err := one.commit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := two.commit(t.Context()); !errors.Is(err, lease.ErrSameRun) {
		t.Errorf("second accept: %v", err)
	}
	if _, err := c.buyer.Lease(t.Context(), s.offer(), ask()); !errors.Is(err, lease.ErrSameRun) {
		t.Errorf("quote beside a lease: %v", err)
	}
	other := ask()
	other.Run = wire.Link{Cid: wire.RecordCID([]byte("another run"))}
	if _, err := c.buyer.Lease(t.Context(), s.offer(), other); err != nil {
		t.Errorf("another run: %v", err)
	}
	if _, err := d.buyer.Lease(t.Context(), s.offer(), ask()); err != nil {
		t.Errorf("another requester: %v", err)
	}
	if err := c.buyer.CloseLease(t.Context(), l.ID, lease.RequesterDone); err != nil {
		t.Fatal(err)
	}
	if _, err := c.buyer.Lease(t.Context(), s.offer(), ask()); err != nil {
		t.Errorf("after the close: %v", err)
	}
	for range 4 {
		<-s.active
	}
	if len(s.active) > 0 {
		t.Errorf("%d refused leases were worked for", len(s.active))
	}
}

// A provider that comes back with two leases of a run goes on with the first and closes the other before it works for it.
func TestSecondLeaseOfARunIsClosedOnReturn(t *testing.T) {
	net, only := memnet.New(), false
	s := newShop(t, net, "provider", func(c *SellerConfig) { c.Slots, c.OnePerRun = 2, only })
	c := newClient(t, net, "requester")
	first, err := c.buyer.Lease(t.Context(), s.offer(), ask())
	if err != nil {
		t.Fatal(err)
	}
	nettest.Eventually(t, "a later millisecond", func() bool { return time.Now().UnixMilli() > first.ActiveMs })
	second, err := c.buyer.Lease(t.Context(), s.offer(), ask())
	if err != nil {
		t.Fatal(err)
	}
	only = true
	s.crash()
	if l := <-s.active; l.ID != first.ID {
		t.Errorf("went on with %s", l.ID.Short())
	}
	if l := <-c.closes; l.ID != second.ID || l.Reason != lease.Capacity {
		t.Errorf("the requester learnt that %s closed for %s", l.ID.Short(), l.Reason)
	}
	if l, err := s.seller.Get(first.ID); err != nil || !l.Live() || s.seller.Free() != 1 || len(s.active) > 0 {
		t.Errorf("the first is %s, %v; %d free slots, %d more at work", l.Phase, err, s.seller.Free(), len(s.active))
	}
}

// Whatever the book says, a provider is a candidate once, so that a gang never takes two of its slots.
func TestCandidatesNameEachProviderOnce(t *testing.T) {
	var offers []offer.Offer
	for _, id := range []peer.ID{"a", "b", "a", "self", "c", "b"} {
		offers = append(offers, offer.Offer{Peer: id})
	}
	var got string
	for _, o := range Candidates("self", offers) {
		got += string(o.Peer)
	}
	if got != "abc" {
		t.Errorf("candidates %q", got)
	}
}
