package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/capacloud/capanode/market"
	"github.com/capacloud/capanode/market/credit"
	"github.com/capacloud/capanode/market/lease"
	"github.com/capacloud/capanode/market/meter"
	"github.com/capacloud/capanode/market/offer"
	"github.com/capacloud/capanode/market/query"
	"github.com/capacloud/capanode/p2p"
	"github.com/capacloud/capanode/p2p/wire"
)

const (
	sellers = 3
	slots   = 4 // of each seller: one is leased at a time, so that its offer never leaves the book
	price   = credit.PerCredit / 10
	// planned is a query such as the planner makes of a job.
	planned = "vram>=64MiB price<=1"

	meet         = 20 * time.Second // for all offers to reach the buyer
	echoProtocol = "/capanode/bench-echo/1.0.0"
)

// town is a whole market: a bootstrap node, sellers and a buyer, each with its own database.
type town struct {
	o       Options
	dir     string
	buyer   *market.Buyer
	node    Node // the buyer's
	book    *market.Exchange
	near    Node           // a seller's
	closers []func() error // in the order of opening
}

func (m *town) onClose(f func() error) { m.closers = append(m.closers, f) }

func (m *town) close() error {
	var errs []error
	for i := len(m.closers) - 1; i >= 0; i-- {
		errs = append(errs, m.closers[i]())
	}
	return errors.Join(errs...)
}

var quiet = slog.New(slog.DiscardHandler)

// join starts one node with its database and its book.
func (m *town) join(ctx context.Context, role p2p.Role, boot []string) (Node, *market.DB, *market.Exchange, error) {
	node, err := m.o.Start(ctx, role, boot)
	if err != nil {
		return nil, nil, nil, err
	}
	m.onClose(node.Close)
	db, err := market.OpenDB(filepath.Join(m.dir, fmt.Sprint("market-", len(m.closers))))
	if err != nil {
		return nil, nil, nil, err
	}
	m.onClose(db.Close)
	book, err := market.NewExchange(market.ExchangeConfig{Net: node, Router: node, DB: db, Log: quiet})
	if err != nil {
		return nil, nil, nil, err
	}
	m.onClose(book.Close)
	return node, db, book, nil
}

// build starts everyone and waits until the buyer knows all offers.
func (m *town) build(ctx context.Context) error {
	boot, _, _, err := m.join(ctx, p2p.Bootstrap, nil)
	if err != nil {
		return err
	}
	for range sellers {
		if err := m.sell(ctx, boot.Addrs()); err != nil {
			return err
		}
	}
	var db *market.DB
	if m.node, db, m.book, err = m.join(ctx, p2p.Researcher, boot.Addrs()); err != nil {
		return err
	}
	m.buyer, err = market.NewBuyer(market.BuyerConfig{
		Net: m.node, DB: db, Log: quiet, Verify: func(_ lease.Lease, t meter.Tick) (uint64, error) { return t.Units, nil },
	})
	if err != nil {
		return err
	}
	m.buyer.Start()
	m.onClose(func() error { m.buyer.Close(); return nil })
	ctx, cancel := context.WithTimeout(ctx, meet)
	defer cancel()
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for m.book.Book().Len() < sellers {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d of %d offers reached the buyer: %w", m.book.Book().Len(), sellers, ctx.Err())
		case <-ticker.C:
		}
	}
	return nil
}

// sell starts one seller that announces its slots as they become free.
func (m *town) sell(ctx context.Context, boot []string) error {
	node, db, book, err := m.join(ctx, p2p.Provider, boot)
	if err != nil {
		return err
	}
	m.near = node
	node.Handle(echoProtocol, p2p.Limits{}, func(_ context.Context, s p2p.Stream) {
		defer s.Close()
		_, _ = io.CopyN(s, s, 1) // the other side sees what is missing
	})
	var seller *market.Seller
	advertise := func() error {
		return book.Advertise(offer.Beacon{
			Class: "cpu", VRAMMiB: 4096, PerfMFLOPS: 50_000, Price: price, Rate: 5, Free: uint16(seller.Free()), Total: slots, MaxLease: 86_400,
		})
	}
	seller, err = market.NewSeller(market.SellerConfig{
		Net: node, DB: db, Slots: slots, Prices: market.Prices{PerHour: price, WorkRate: 5}, MaxSeconds: 86_400, Log: quiet,
		OnFree: func() { _ = advertise() }, // the first one below told whether it can
	})
	if err != nil {
		return err
	}
	seller.Start()
	m.onClose(func() error { seller.Close(); return nil })
	return advertise()
}

// candidates does what the planner does before it leases.
func (m *town) candidates() ([]offer.Offer, error) {
	q, err := query.Parse(planned)
	if err != nil {
		return nil, err
	}
	return market.Candidates(m.node.ID(), m.book.Book().Query(q).Offers), nil
}

func (m *town) ask() market.Ask {
	return market.Ask{
		Run: wire.Link{Cid: wire.RecordCID([]byte("benchmark"))}, MaxSeconds: 3600, TickSeconds: 10, Budget: credit.PerCredit, MaxPrice: credit.PerCredit,
	}
}

// release closes leases and waits until the sellers have their slots back.
func (m *town) release(ctx context.Context, leases []lease.Lease) error {
	errs := make([]error, len(leases))
	var wg sync.WaitGroup
	for i, l := range leases {
		wg.Go(func() { errs[i] = m.buyer.CloseLease(ctx, l.ID, lease.RequesterDone) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// gang plans and leases n providers, and releases them again.
func (m *town) gang(ctx context.Context, n int) func() (time.Time, error) {
	return func() (time.Time, error) {
		offers, err := m.candidates()
		if err != nil {
			return time.Time{}, err
		}
		leases, err := m.buyer.LeaseAll(ctx, offers, n, m.ask())
		end := time.Now()
		if err != nil {
			return end, err
		}
		return end, m.release(ctx, leases)
	}
}

// handshake leases providers in turn, without planning.
func (m *town) handshake(ctx context.Context, offers []offer.Offer) func() (time.Time, error) {
	next := 0
	return func() (time.Time, error) {
		o := offers[next%len(offers)]
		next++
		l, err := m.buyer.Lease(ctx, o, m.ask())
		end := time.Now()
		if err != nil {
			return end, err
		}
		return end, m.release(ctx, []lease.Lease{l})
	}
}

// echo opens a stream to a seller and sends one byte there and back.
func (m *town) echo(ctx context.Context) (end time.Time, err error) {
	s, err := m.node.Open(ctx, m.near.ID(), echoProtocol)
	if err != nil {
		return end, err
	}
	defer s.Close()
	if err := s.SetDeadline(time.Now().Add(meet)); err != nil {
		return end, err
	}
	if _, err := s.Write([]byte{1}); err != nil {
		return end, err
	}
	_, err = io.ReadFull(s, make([]byte, 1))
	return time.Now(), err
}

// measureLeases times leases of a running market, and the two things that they are made of.
func (f *Figures) measureLeases(ctx context.Context, m *town) (err error) {
	offers, err := m.candidates()
	if err != nil {
		return err
	}
	file, err := os.Create(filepath.Join(m.dir, "synced"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	for _, step := range []struct {
		n        int
		do       func() (time.Time, error)
		p50, top *float64
		p        float64
	}{
		{m.o.Repeat, m.gang(ctx, 1), &f.FirstLeaseP50, &f.FirstLeaseP95, 0.95},
		{m.o.Repeat, m.gang(ctx, sellers), &f.Gang3P50, &f.Gang3P95, 0.95},
		{m.o.Handshakes, m.handshake(ctx, offers), &f.HandshakeP50, &f.HandshakeP99, 0.99},
		{m.o.Handshakes, func() (time.Time, error) { return m.echo(ctx) }, &f.Baseline.RoundTrip, nil, 0},
		{m.o.Handshakes, func() (time.Time, error) {
			if _, err := file.Write(make([]byte, 512)); err != nil {
				return time.Time{}, err
			}
			err := file.Sync()
			return time.Now(), err
		}, &f.Baseline.Sync, nil, 0},
	} {
		times, err := repeat(ctx, step.n, step.do)
		if err != nil {
			return err
		}
		*step.p50 = percentile(times, 0.5)
		if step.top != nil {
			*step.top = percentile(times, step.p)
		}
	}
	return nil
}
