package node

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/capacloud/capanode/gpu"
	"github.com/capacloud/capanode/gpu/fake"
	"github.com/capacloud/capanode/market"
	"github.com/capacloud/capanode/market/lease"
	"github.com/capacloud/capanode/market/meter"
	"github.com/capacloud/capanode/market/offer"
	"github.com/capacloud/capanode/p2p/memnet"
	"github.com/capacloud/capanode/p2p/wire"
)

// onMemory opens a home on the in-memory network.
func onMemory(t *testing.T, net *memnet.Net, name string) *Node {
	t.Helper()
	n, err := openNode(context.Background(), t.TempDir(), localConfig(t), nil)
	if err == nil {
		twin := net.Node(name)
		n.key, n.id = twin.Key(), twin.ID()
		n.onClose(twin.Close) // as a host: after the services, before what they read
		err = n.attach(twin)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// A device that grows hot leaves the market, and who leases it gets notice; a cool one comes back.
func TestGovernorReclaimsSlots(t *testing.T) {
	ctx := context.Background()
	start := time.Date(2026, 11, 2, 12, 0, 0, 0, time.UTC)
	frame := func(minute int, celsius float64) fake.Frame {
		return fake.Frame{Telemetry: gpu.Telemetry{Time: start.Add(time.Duration(minute) * time.Minute), Temperature: gpu.Reading{Value: celsius, Known: true}}}
	}
	net := memnet.New()
	n, said := onMemory(t, net, "provider"), newEvents()
	p := &provider{Node: n, quit: make(chan struct{}), o: ProvideOptions{Slots: 2, Price: 100, MaxTemp: 80, Emit: said.emit}}
	p.device = fake.New(fake.Script{Info: fake.Card("RTX 3090", 0), Frames: []fake.Frame{
		frame(0, 60), frame(1, 85), {Err: errors.New("no answer")}, frame(2, 78), frame(3, 60), frame(4, 60), frame(5, 60),
	}})
	p.beacon = offer.Beacon{Class: "rtx3090", VRAMMiB: 1000, PerfMFLOPS: 1, Price: 100, Total: 2, MaxLease: 3600}
	if err := p.open(); err != nil {
		t.Fatal(err)
	}
	q := onMemory(t, net, "requester")
	over := make(chan lease.Lease, 1)
	buyer, err := market.NewBuyer(market.BuyerConfig{Net: q.net, DB: q.db, Log: slog.New(slog.DiscardHandler),
		Verify:  func(lease.Lease, meter.Tick) (uint64, error) { return 0, nil },
		OnClose: func(l lease.Lease) { over <- l }})
	if err != nil {
		t.Fatal(err)
	}
	buyer.Start()
	q.onClose(func() error { buyer.Close(); return nil })
	run := wire.Link{Cid: wire.RecordCID([]byte("a job that nobody has"))}
	l, err := buyer.Lease(ctx, offer.Offer{Peer: n.id, Beacon: p.beacon}, market.Ask{Run: run, MaxSeconds: 3600, TickSeconds: 10, Budget: 1000})
	if err != nil {
		t.Fatal(err)
	}
	g := p.governor()
	for i, free := range []int{1, 0, 0, 0, 0, 2, 2} {
		if i == 5 { // the lease is over by then
			await(t, said, func(e ProviderEvent) bool { return e.State == "closed" })
		}
		if g = p.govern(ctx, g); p.seller.Free() != free {
			t.Errorf("measurement %d: %d slots are free, want %d", i, p.seller.Free(), free)
		}
	}
	select {
	case got := <-over:
		if got.ID != l.ID || got.Reason != lease.Thermal {
			t.Errorf("the requester's lease closed for %s, want for heat", got.Reason)
		}
	case <-time.After(10 * time.Second):
		t.Error("the requester was not told that its lease is over")
	}
	var states []string
	for _, e := range of[ProviderEvent](said) {
		if e.State == "paused" || e.State == "ready" {
			states = append(states, e.State)
		}
	}
	if len(states) != 2 || states[0] != "paused" || states[1] != "ready" {
		t.Errorf("the provider said %v", states)
	}
}
