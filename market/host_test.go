package market

import (
	"context"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/capacloud/capanode/market/lease"
	"github.com/capacloud/capanode/market/meter"
	"github.com/capacloud/capanode/market/offer"
	"github.com/capacloud/capanode/market/query"
	"github.com/capacloud/capanode/p2p"
	"github.com/capacloud/capanode/p2p/nettest"
	"github.com/capacloud/capanode/p2p/peertest"
)

func startHost(t *testing.T, role p2p.Role, bootstrap []string) *p2p.Host {
	h, err := p2p.NewHost(t.Context(), p2p.Config{
		Identity: peertest.NewKey(t), Network: "test", Role: role, Listen: []string{"/ip4/127.0.0.1/tcp/0"}, Bootstrap: bootstrap, Logger: quietLog,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	if _, err := h.Bootstrap(t.Context()); err != nil {
		t.Fatal(err)
	}
	return h
}

func startExchange(t *testing.T, h *p2p.Host, db *DB) *Exchange {
	x, err := NewExchange(ExchangeConfig{Net: h, Router: h, DB: db, Log: quietLog})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.Close() })
	return x
}

// TestOverRealHosts runs the short way over libp2p and loopback: a requester that knows a bootstrap node only finds two
// providers, leases both, and pays for a tick of each.
func TestOverRealHosts(t *testing.T) {
	boot := startHost(t, p2p.Bootstrap, nil)
	startExchange(t, boot, nil)
	type provider struct {
		seller *Seller
		active chan lease.Lease
		db     *DB
	}
	var providers []provider
	for range 2 {
		h := startHost(t, p2p.Provider, boot.Addrs())
		p := provider{active: make(chan lease.Lease, 1), db: openDB(t, vfs.NewMem())}
		t.Cleanup(func() { p.db.Close() })
		var err error
		p.seller, err = NewSeller(SellerConfig{
			Net: h, DB: p.db, Slots: 1, Prices: Prices{PerHour: 100, WorkRate: 5}, MaxSeconds: 3600, Log: quietLog,
			OnActive: func(_ context.Context, l lease.Lease) { p.active <- l },
		})
		if err != nil {
			t.Fatal(err)
		}
		p.seller.Start()
		t.Cleanup(p.seller.Close)
		err = startExchange(t, h, p.db).Advertise(offer.Beacon{Class: "cpu", PerfMFLOPS: 1, Price: 100, Rate: 5, Free: 1, Total: 1, MaxLease: 3600})
		if err != nil {
			t.Fatal(err)
		}
		providers = append(providers, p)
	}
	began := time.Now()
	h := startHost(t, p2p.Researcher, boot.Addrs())
	db := openDB(t, vfs.NewMem())
	t.Cleanup(func() { db.Close() })
	buyer, err := NewBuyer(BuyerConfig{Net: h, DB: db, Log: quietLog, Verify: func(_ lease.Lease, tick meter.Tick) (uint64, error) { return tick.Units, nil }})
	if err != nil {
		t.Fatal(err)
	}
	buyer.Start()
	t.Cleanup(buyer.Close)
	x := startExchange(t, h, db)
	nettest.Eventually(t, "two offers", func() bool { return x.Book().Len() == 2 })
	found := time.Since(began)
	leases, err := buyer.LeaseAll(t.Context(), x.Book().Query(query.Query{}).Offers, 2, ask())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("offers after %v, gang of two after %v more", found, time.Since(began)-found)
	for _, p := range providers {
		l := <-p.active
		if r, err := p.seller.SendTick(t.Context(), l.ID, Work{Units: 1_000_000}); err != nil || r.Amount != 5 {
			t.Errorf("%+v, %v", r, err)
		}
	}
	for _, l := range leases {
		if err := buyer.CloseLease(t.Context(), l.ID, lease.RequesterDone); err != nil {
			t.Error(err)
		}
	}
	if totals := sound(t, db, providers[0].db, providers[1].db); totals[0] != totals[1]+totals[2] {
		t.Errorf("books %d", totals)
	}
}
