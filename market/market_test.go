package market

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/goleak"

	"github.com/capacloud/capanode/market/credit"
	"github.com/capacloud/capanode/market/journal"
	"github.com/capacloud/capanode/market/lease"
	"github.com/capacloud/capanode/market/ledger"
	"github.com/capacloud/capanode/market/meter"
	"github.com/capacloud/capanode/market/offer"
	"github.com/capacloud/capanode/market/query"
	"github.com/capacloud/capanode/p2p"
	"github.com/capacloud/capanode/p2p/memnet"
	"github.com/capacloud/capanode/p2p/nettest"
	"github.com/capacloud/capanode/p2p/wire"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		goleak.IgnoreAnyFunction("github.com/libp2p/go-flow-metrics.(*sweeper).run")) // one for the process, by design
}

var quietLog = slog.New(slog.NewTextHandler(io.Discard, nil))

var run = wire.Link{Cid: wire.RecordCID([]byte{0xa0})}

func ask() Ask {
	return Ask{Run: run, MaxSeconds: 3600, TickSeconds: 15, Budget: 50 * credit.PerCredit}
}

func openDB(t testing.TB, fs vfs.FS) *DB {
	t.Helper()
	db, err := journal.OpenFS("market", fs)
	if err != nil {
		t.Fatal(err)
	}
	return db
}

// machine is a node and its database, and what runs on them.
type machine struct {
	t       testing.TB
	net     *memnet.Net
	name    string
	fs      *vfs.MemFS
	node    *memnet.Node
	db      *DB
	start   func() interface{ Close() } // begins what runs
	running interface{ Close() }
}

func (m *machine) open() {
	m.node, m.db = m.net.Node(m.name), openDB(m.t, m.fs)
	m.running = m.start()
}

func (m *machine) close() {
	m.node.Close()
	m.running.Close()
	m.db.Close()
}

// crash kills the process and what it had not synced, and starts it again.
func (m *machine) crash() {
	after := m.fs.CrashClone(vfs.CrashCloneCfg{})
	m.close()
	m.fs = after
	m.open()
}

// shop is one provider: node, database and seller.
type shop struct {
	machine
	seller *Seller
	active chan lease.Lease
	drains chan lease.Lease
	closes chan lease.Lease
	change func(*SellerConfig)
}

func newShop(t testing.TB, net *memnet.Net, name string, change func(*SellerConfig)) *shop {
	s := &shop{machine: machine{t: t, net: net, name: name, fs: vfs.NewCrashableMem()}, change: change}
	s.start = s.sell
	s.open()
	t.Cleanup(s.close)
	return s
}

func (s *shop) sell() interface{ Close() } {
	s.active, s.drains, s.closes = make(chan lease.Lease, 64), make(chan lease.Lease, 64), make(chan lease.Lease, 64)
	cfg := SellerConfig{
		Net: s.node, DB: s.db, Slots: 1, Prices: Prices{PerHour: 360_000, WorkRate: 5}, MaxSeconds: 86400, Log: quietLog,
		OnActive: func(ctx context.Context, l lease.Lease) { s.active <- l },
		OnDrain:  func(l lease.Lease) { s.drains <- l },
		OnClose:  func(l lease.Lease) { s.closes <- l },
	}
	if s.change != nil {
		s.change(&cfg)
	}
	var err error
	if s.seller, err = NewSeller(cfg); err != nil {
		s.t.Fatal(err)
	}
	s.seller.Start()
	return s.seller
}

func (s *shop) offer() offer.Offer {
	return offer.Offer{Peer: s.node.ID(), Beacon: offer.Beacon{Price: 400_000, Rate: 10, Free: 1, Total: 1}}
}

// released waits until no slot is on hold.
func (s *shop) released() {
	nettest.Eventually(s.t, "released hold", func() bool {
		s.seller.reg.mu.Lock()
		defer s.seller.reg.mu.Unlock()
		return s.seller.table.Free(1, time.Now()) == s.seller.table.Unbound(1)
	})
}

// client is one requester.
type client struct {
	machine
	buyer  *Buyer
	seen   atomic.Uint64 // work units that it has verified
	refuse atomic.Bool
	closes chan lease.Lease
}

func newClient(t testing.TB, net *memnet.Net, name string) *client {
	c := &client{machine: machine{t: t, net: net, name: name, fs: vfs.NewCrashableMem()}}
	c.start = c.buy
	c.seen.Store(1 << 60)
	c.open()
	t.Cleanup(c.close)
	return c
}

func (c *client) buy() interface{ Close() } {
	c.closes = make(chan lease.Lease, 64)
	var err error
	c.buyer, err = NewBuyer(BuyerConfig{
		Net: c.node, DB: c.db, Log: quietLog,
		Verify: func(lease.Lease, meter.Tick) (uint64, error) {
			if c.refuse.Load() {
				return 0, errors.New("no such round")
			}
			return c.seen.Load(), nil
		},
		OnClose: func(l lease.Lease) { c.closes <- l },
	})
	if err != nil {
		c.t.Fatal(err)
	}
	c.buyer.Start()
	return c.buyer
}

// leased starts a provider and a requester that leases from it.
func leased(t testing.TB) (net *memnet.Net, s *shop, c *client, l lease.Lease) {
	t.Helper()
	net = memnet.New()
	s, c = newShop(t, net, "provider", nil), newClient(t, net, "requester")
	l, err := c.buyer.Lease(t.Context(), s.offer(), ask())
	if err != nil {
		t.Fatal(err)
	}
	return net, s, c, l
}

func sound(t testing.TB, dbs ...*DB) (totals []credit.Micro) {
	t.Helper()
	for _, db := range dbs {
		rep, err := ledger.Verify(db)
		if err != nil {
			t.Errorf("books: %v", err)
		}
		totals = append(totals, rep.Total)
	}
	return totals
}

// TestGangFromOffersToBooks is the whole way: beacons, snapshot, query, a gang of three, ticks, closing, equal books.
func TestGangFromOffersToBooks(t *testing.T) {
	net := memnet.New()
	shops := make([]*shop, 3)
	for i := range shops {
		shops[i] = newShop(t, net, fmt.Sprint("provider ", i), nil)
		x, err := NewExchange(ExchangeConfig{Net: shops[i].node, Router: shops[i].node, DB: shops[i].db, Log: quietLog})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { x.Close() })
		err = x.Advertise(offer.Beacon{Class: "cpu", VRAMMiB: 1024, PerfMFLOPS: 1000, Price: 400_000, Floor: 1, Rate: 10, Free: 1, Total: 1, MaxLease: 3600})
		if err != nil {
			t.Fatal(err)
		}
		own := func() bool { return x.Book().Len() > 0 }
		nettest.Eventually(t, "the provider's own offer", own)
	}
	c := newClient(t, net, "requester") // joins after all beacons have gone by
	x, err := NewExchange(ExchangeConfig{Net: c.node, Router: c.node, Log: quietLog})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.Close() })
	nettest.Eventually(t, "three offers by snapshot", func() bool { return x.Book().Len() == 3 })
	q, err := query.Parse("class=cpu price<=0.4")
	if err != nil {
		t.Fatal(err)
	}
	offers := Candidates(c.node.ID(), x.Book().Query(q).Offers)
	leases, err := c.buyer.LeaseAll(t.Context(), offers, 3, ask())
	if err != nil {
		t.Fatal(err)
	}
	if err := c.buyer.SetBudget(run, 100*credit.PerCredit); err != nil {
		t.Fatal(err)
	}
	for _, l := range leases {
		if l.Terms.Price != 360_000 || l.Terms.WorkRate != 5 || l.Phase != lease.Active {
			t.Errorf("leased at %d and %d in %s", l.Terms.Price, l.Terms.WorkRate, l.Phase)
		}
	}
	sum := credit.Micro(0)
	for _, s := range shops {
		l := <-s.active
		if s.seller.Free() != 0 {
			t.Error("a leased slot is offered")
		}
		for n := range uint64(3) {
			r, err := s.seller.SendTick(t.Context(), l.ID, Work{Tokens: 100 * n, Units: 1_234_567 * n, Rounds: n, State: []byte{byte(n)}})
			if err != nil || r.Units != 1_234_567*n {
				t.Fatalf("%+v, %v", r, err)
			}
			if n == 2 {
				sum += r.Amount
			}
		}
	}
	for _, l := range leases {
		if err := c.buyer.CloseLease(t.Context(), l.ID, lease.RequesterDone); err != nil {
			t.Error(err)
		}
	}
	for _, s := range shops {
		if l := <-s.closes; l.Reason != lease.RequesterDone || s.seller.Free() != 1 || len(l.History) < 5 {
			t.Errorf("closed for %q with timeline %v", l.Reason, l.History)
		}
		total := sound(t, s.db)[0]
		sums, _ := c.db.Balances()
		if account := ledger.Earned(s.node.ID()); sums[account] != int64(total) || total < 12 {
			t.Errorf("requester owes %d, provider has earned %d", sums[account], total)
		}
	}
	if totals := sound(t, c.db); totals[0] != sum || c.buyer.Spent(run) != sum {
		t.Errorf("requester's total %d, receipts %d", totals[0], sum)
	}
}

func TestGangIsAllOrNothing(t *testing.T) {
	net := memnet.New()
	a, b := newShop(t, net, "a", nil), newShop(t, net, "b", nil)
	dear := newShop(t, net, "dear", func(c *SellerConfig) { c.Prices.PerHour = 400_001 })
	c := newClient(t, net, "requester")
	gone := offer.Offer{Peer: "\x00\x01x", Beacon: a.offer().Beacon}
	_, err := c.buyer.LeaseAll(t.Context(), []offer.Offer{a.offer(), dear.offer(), gone, b.offer()}, 3, ask())
	var gang *GangError
	if !errors.As(err, &gang) || !errors.Is(err, ErrGang) || !errors.Is(err, lease.ErrPrice) || !errors.Is(err, lease.ErrUnavailable) || len(gang.Refusals) != 2 {
		t.Fatalf("got %v", err)
	}
	for _, s := range []*shop{a, b} {
		s.released()
		if all, err := s.seller.Leases(); err != nil || len(all) != 0 {
			t.Errorf("%d leases of a gang that failed: %v", len(all), err)
		}
	}
	got, err := c.buyer.LeaseAll(t.Context(), []offer.Offer{dear.offer(), gone, a.offer(), b.offer()}, 2, ask())
	if err != nil || len(got) != 2 {
		t.Errorf("the next candidates were not tried: %v", err)
	}
}

// TestGangUndoesItsGrants has one provider that holds a slot and then refuses the accept: the others are let go.
func TestGangUndoesItsGrants(t *testing.T) {
	net := memnet.New()
	s, c := newShop(t, net, "provider", nil), newClient(t, net, "requester")
	liar := net.Node("liar")
	t.Cleanup(func() { liar.Close() })
	liar.Handle(lease.Protocol, p2p.Limits{}, func(_ context.Context, st p2p.Stream) {
		defer st.Reset()
		for {
			var req lease.Request
			if receive(st, lease.MaxMessage, messageTimeout, &req) != nil {
				return
			}
			reply := lease.Refuse(lease.ErrNoSlot)
			if req.Op == lease.OpQuote {
				reply = lease.Reply{Terms: req.Terms}
			}
			if send(st, reply) != nil {
				return
			}
		}
	})
	candidates := []offer.Offer{s.offer(), {Peer: liar.ID(), Beacon: s.offer().Beacon}}
	if _, err := c.buyer.LeaseAll(t.Context(), candidates, 2, ask()); !errors.Is(err, ErrGang) || !errors.Is(err, lease.ErrNoSlot) {
		t.Fatalf("got %v", err)
	}
	all, err := c.buyer.Leases()
	if err != nil || len(all) != 2 {
		t.Fatalf("%d leases: %v", len(all), err)
	}
	for _, l := range all {
		want := map[peer.ID]lease.Reason{s.node.ID(): lease.Capacity, liar.ID(): lease.NotCompleted}[l.Other()]
		if l.Phase != lease.Closed || l.Reason != want {
			t.Errorf("%s for %q, want %q", l.Phase, l.Reason, want)
		}
	}
	if l := <-s.closes; l.Reason != lease.Capacity || s.seller.Free() != 1 {
		t.Errorf("provider: %s for %q", l.Phase, l.Reason)
	}
}

func TestRefusalsOfAQuote(t *testing.T) {
	net := memnet.New()
	s := newShop(t, net, "provider", nil)
	c := newClient(t, net, "requester")
	lend := func(change func(*Ask)) error {
		a := ask()
		change(&a)
		_, err := c.buyer.Lease(t.Context(), s.offer(), a)
		return err
	}
	for name, want := range map[string]struct {
		change func(*Ask)
		err    error
	}{
		"price":    {func(a *Ask) { a.MaxPrice = 359_999 }, lease.ErrPrice},
		"rate":     {func(a *Ask) { a.MaxRate = 4 }, lease.ErrPrice},
		"too long": {func(a *Ask) { a.MaxSeconds = 86401 }, lease.ErrTooLong},
		"no run":   {func(a *Ask) { a.Run = wire.Link{} }, lease.ErrMalformed},
	} {
		if err := lend(want.change); !errors.Is(err, want.err) {
			t.Errorf("%s: got %v, want %v", name, err, want.err)
		}
		s.released()
	}
	late := lease.Terms{
		Version: 1, Run: run, Requester: c.node.ID(), Provider: s.node.ID(), Price: 400_000, WorkRate: 10, MaxSeconds: 60, TickSeconds: 15,
		StartByMs: time.Now().Add(-time.Second).UnixMilli(),
	}
	if _, err := s.seller.answer(c.node.ID(), lease.Request{Op: lease.OpQuote, Terms: &late}); !errors.Is(err, lease.ErrStartBy) {
		t.Errorf("start by: %v", err)
	}
	s.seller.SetOpen(0)
	if err := lend(func(*Ask) {}); !errors.Is(err, lease.ErrPaused) {
		t.Errorf("paused: %v", err)
	}
	s.seller.SetOpen(1)
	s.seller.SetPrices(Prices{PerHour: 300_000, WorkRate: 1})
	if err := lend(func(*Ask) {}); err != nil {
		t.Error(err)
	}
	if err := lend(func(*Ask) {}); !errors.Is(err, lease.ErrNoSlot) {
		t.Errorf("no slot: %v", err)
	}
}

// TestOneSlotManyAccepts lets a thousand accepts race for one slot: those of the peer that holds it, repeated, and those
// of others who sign terms that were never quoted to them.
func TestOneSlotManyAccepts(t *testing.T) {
	const racers = 1000
	net := memnet.New()
	s := newShop(t, net, "provider", nil)
	holder := net.Node("holder")
	t.Cleanup(func() { holder.Close() })
	terms := func(node *memnet.Node) lease.Terms {
		return lease.Terms{
			Version: 1, Run: run, Requester: node.ID(), Provider: s.node.ID(), Nonce: 7, Price: 360_000, WorkRate: 5, MaxSeconds: 60, TickSeconds: 15,
			Budget: 1, StartByMs: time.Now().Add(time.Minute).UnixMilli(),
		}
	}
	quoteOf := func(node *memnet.Node) (lease.Terms, error) {
		want := terms(node)
		reply, err := s.seller.answer(node.ID(), lease.Request{Op: lease.OpQuote, Terms: &want})
		if err != nil {
			return want, err
		}
		return *reply.Terms, nil
	}
	held, err := quoteOf(holder)
	if err != nil {
		t.Fatal(err)
	}
	type racer struct {
		id  peer.ID
		env []byte
	}
	var all []racer
	for i := range racers {
		node, want := holder, held
		if i%4 != 0 {
			node = net.Node(fmt.Sprint("racer ", i%40))
			t.Cleanup(func() { node.Close() })
			want = terms(node)
			if _, err := quoteOf(node); !errors.Is(err, lease.ErrNoSlot) {
				t.Fatalf("second hold: %v", err)
			}
		}
		env, err := lease.Seal(node.Key(), lease.AcceptDomain, lease.AcceptRecord{Terms: want})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, racer{node.ID(), env})
	}
	var granted, refused atomic.Int64
	var mu sync.Mutex
	grants := map[string]bool{}
	var wg sync.WaitGroup
	for _, r := range all {
		wg.Go(func() {
			reply, err := s.seller.answer(r.id, lease.Request{Op: lease.OpAccept, Envelope: r.env})
			switch {
			case err == nil:
				granted.Add(1)
				mu.Lock()
				grants[string(reply.Envelope)] = true
				mu.Unlock()
			case errors.Is(err, lease.ErrNotHeld) || errors.Is(err, lease.ErrNoSlot):
				refused.Add(1)
			default:
				t.Errorf("untyped refusal: %v", err)
			}
		})
	}
	wg.Wait()
	if len(grants) != 1 || granted.Load() != racers/4 || refused.Load() != racers*3/4 {
		t.Errorf("%d different grants, %d granted, %d refused", len(grants), granted.Load(), refused.Load())
	}
	if leases, err := s.seller.Leases(); err != nil || len(leases) != 1 || leases[0].Epoch != 1 {
		t.Errorf("%d leases: %v", len(leases), err)
	}
}

// TestManyBuyersOneSlot lets buyers race over the network.
func TestManyBuyersOneSlot(t *testing.T) {
	net := memnet.New()
	s := newShop(t, net, "provider", nil)
	var won atomic.Int64
	var wg sync.WaitGroup
	for i := range 20 {
		c := newClient(t, net, fmt.Sprint("buyer ", i))
		wg.Go(func() {
			_, err := c.buyer.Lease(t.Context(), s.offer(), ask())
			if err == nil {
				won.Add(1)
			} else if !errors.Is(err, lease.ErrNoSlot) {
				t.Errorf("untyped refusal: %v", err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Errorf("%d buyers won one slot", won.Load())
	}
}

func TestConfigsAreChecked(t *testing.T) {
	node := memnet.New().Node("node")
	t.Cleanup(func() { node.Close() })
	db := openDB(t, vfs.NewMem())
	t.Cleanup(func() { db.Close() })
	for _, cfg := range []SellerConfig{{}, {Net: node, DB: db, MaxSeconds: 1}, {Net: node, DB: db, Slots: 5000, MaxSeconds: 1}, {Net: node, DB: db, Slots: 1}} {
		if _, err := NewSeller(cfg); !errors.Is(err, ErrConfig) {
			t.Errorf("seller %+v: %v", cfg, err)
		}
	}
	if _, err := NewBuyer(BuyerConfig{Net: node, DB: db}); !errors.Is(err, ErrConfig) {
		t.Errorf("buyer that cannot verify: %v", err)
	}
}

func TestMeteringRules(t *testing.T) {
	_, s, c, l := leased(t)
	tick := func(units uint64) (meter.Receipt, error) {
		return s.seller.SendTick(t.Context(), l.ID, Work{Units: units})
	}
	c.seen.Store(500)
	if r, err := tick(1000); err != nil || r.Units != 500 {
		t.Errorf("half verified: %d, %v", r.Units, err)
	}
	c.seen.Store(1000)
	if r, err := tick(1000); err != nil || r.Units != 1000 || r.PrevNonce != 1 {
		t.Errorf("caught up: %+v, %v", r, err)
	}
	if _, err := tick(999); !errors.Is(err, meter.ErrRegress) {
		t.Errorf("less work: %v", err)
	}
	c.refuse.Store(true)
	if _, err := tick(1001); !errors.Is(err, meter.ErrWork) {
		t.Errorf("refused work: %v", err)
	}
	c.refuse.Store(false)
	c.seen.Store(1 << 60)
	if err := c.buyer.SetBudget(run, 10_000); err != nil {
		t.Fatal(err)
	}
	if _, err := tick(3_000_000_000); !errors.Is(err, meter.ErrBudget) {
		t.Errorf("over the run's budget: %v", err)
	}
	c.crash()
	nettest.Eventually(t, "lease after the crash", func() bool { all, err := c.buyer.Leases(); return err == nil && len(all) == 1 && all[0].Live() })
	if _, err := tick(3_000_000_001); !errors.Is(err, meter.ErrBudget) {
		t.Errorf("over the run's budget after a crash: %v", err)
	}
	if err := c.buyer.SetBudget(run, 20_000); err != nil {
		t.Fatal(err)
	}
	r, err := tick(3_000_000_002)
	if err != nil || r.Units != 3_000_000_002 || r.Amount < 15_000 {
		t.Errorf("within the budget: %+v, %v", r, err)
	}
	if totals := sound(t, s.db, c.db); totals[0] != totals[1] || totals[0] != r.Amount {
		t.Errorf("books differ: %d", totals)
	}
}

// TestCrashesKeepLeasesAndReceipts kills either end, again and again, between ticks.
func TestCrashesKeepLeasesAndReceipts(t *testing.T) {
	_, s, c, l := leased(t)
	<-s.active
	var last meter.Receipt
	for n := range uint64(6) {
		done, err := s.seller.Done(l.ID)
		if err != nil || done.Units != 1000*n {
			t.Fatalf("restarted at %d units, want %d: %v", done.Units, 1000*n, err)
		}
		if last, err = s.seller.SendTick(t.Context(), l.ID, Work{Units: 1000 * (n + 1)}); err != nil {
			t.Fatal(err)
		}
		if n%3 != 1 {
			s.crash()
			if got := <-s.active; got.ID != l.ID || s.seller.Free() != 0 {
				t.Fatalf("resumed %s with %d free slots", got.ID, s.seller.Free())
			}
		}
		if n%3 != 0 {
			c.crash()
		}
	}
	for name, list := range map[string]func() ([]lease.Lease, error){"seller": s.seller.Leases, "buyer": c.buyer.Leases} {
		all, err := list()
		if err != nil || len(all) != 1 || all[0].Phase != lease.Active {
			t.Errorf("%s lists %d leases: %v", name, len(all), err)
		}
	}
	if totals := sound(t, s.db, c.db); totals[0] != last.Amount || totals[1] != last.Amount {
		t.Errorf("books %d, newest receipt %d", totals, last.Amount)
	}
	if _, err := c.buyer.Lease(t.Context(), s.offer(), ask()); !errors.Is(err, lease.ErrNoSlot) {
		t.Errorf("a slot was sold again after a crash: %v", err)
	}
	if err := s.seller.CloseLease(t.Context(), l.ID, lease.OwnerPreempt); err != nil {
		t.Fatal(err)
	}
	if got := <-c.closes; got.Reason != lease.OwnerPreempt {
		t.Errorf("requester was told %q", got.Reason)
	}
}

// TestLostReceiptComesBackOnResume cuts the provider off between the requester's promise and its arrival.
func TestLostReceiptComesBackOnResume(t *testing.T) {
	_, s, c, l := leased(t)
	env, err := s.seller.nextTick(l, Work{Units: 5_000_000})
	if err != nil {
		t.Fatal(err)
	}
	r, err := c.buyer.tick(s.node.ID(), env) // the receipt is made, and then the line is cut
	if err != nil {
		t.Fatal(err)
	}
	again, err := c.buyer.tick(s.node.ID(), env)
	if err != nil || again.Hash != r.Hash {
		t.Errorf("the same tick got another receipt: %v", err)
	}
	c.crash()
	nettest.Eventually(t, "the receipt at the provider", func() bool {
		newest, err := s.db.Newest(l)
		return err == nil && newest != nil && newest.Hash == r.Hash
	})
	sound(t, s.db, c.db)
}

func TestDrainAndReclaimReachTheOtherSide(t *testing.T) {
	net := memnet.New()
	s, c := newShop(t, net, "provider", func(c *SellerConfig) { c.Slots = 2 }), newClient(t, net, "requester")
	a, err := c.buyer.Lease(t.Context(), s.offer(), ask())
	if err != nil {
		t.Fatal(err)
	}
	b, err := c.buyer.Lease(t.Context(), s.offer(), ask())
	if err != nil || a.Terms.Slot == b.Terms.Slot {
		t.Fatalf("slots %d and %d: %v", a.Terms.Slot, b.Terms.Slot, err)
	}
	if err := c.buyer.Drain(t.Context(), a.ID, lease.RequesterDone); err != nil {
		t.Fatal(err)
	}
	if l := <-s.drains; l.ID != a.ID || l.Phase != lease.Draining {
		t.Errorf("drain of %s: %s", l.ID, l.Phase)
	}
	if _, err := s.seller.SendTick(t.Context(), a.ID, Work{Units: 9}); err != nil {
		t.Errorf("tick while draining: %v", err)
	}
	if err := s.seller.CloseLease(t.Context(), a.ID, lease.RequesterDone); err != nil {
		t.Error(err)
	}
	if _, err := s.seller.SendTick(t.Context(), a.ID, Work{Units: 10}); err != nil {
		t.Errorf("last tick after the close: %v", err)
	}
	if err := s.seller.Reclaim(t.Context(), b.ID, lease.Thermal, time.Minute); err != nil {
		t.Fatal(err)
	}
	if l, err := c.buyer.Get(b.ID); err != nil || l.Phase != lease.Reclaiming || l.Reason != lease.Thermal {
		t.Errorf("requester sees %s for %q: %v", l.Phase, l.Reason, err)
	}
	if err := s.seller.CloseLease(t.Context(), b.ID, "whim"); !errors.Is(err, lease.ErrMalformed) {
		t.Errorf("close for an unknown reason: %v", err)
	}
	for range 2 { // closing twice is refused here and harmless there
		err = c.buyer.CloseLease(t.Context(), b.ID, lease.RequesterDone)
	}
	if !errors.Is(err, lease.ErrTransition) {
		t.Errorf("second close: %v", err)
	}
}
