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
	sellers = 8
	slots   = 4 // of each seller: one is leased at a time, so that its offer never leaves the book
	price   = credit.PerCredit / 10
	// planned is a query such as the planner makes of a job. It matches the sellers and none of the generated offers.
	planned = "vram>=64MiB (class=cpu) price<=1"

	meet         = time.Minute // for all offers to reach a node
	echoProtocol = "/capanode/bench-echo/1.0.0"
)

// town is a whole market: a bootstrap node whose book is full of offers, sellers and a buyer, each with its own database.
type town struct {
	o       Options
	dir     string
	offers  [][]byte // of providers that are not there, to fill the book with
	boot    []string // addresses of the bootstrap node
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

// build starts everyone and waits until all know all offers.
func (m *town) build(ctx context.Context) error {
	boot, _, book, err := m.join(ctx, p2p.Bootstrap, nil)
	if err != nil {
		return err
	}
	m.boot = boot.Addrs()
	for _, env := range m.offers {
		if _, err := book.Book().Apply(env); err != nil {
			return err
		}
	}
	books := []*market.Exchange{book}
	for range sellers {
		book, err := m.sell(ctx)
		if err != nil {
			return err
		}
		books = append(books, book)
	}
	if err := m.buy(ctx); err != nil {
		return err
	}
	for _, x := range append(books, m.book) {
		if err := until(ctx, func() bool { return x.Book().Len() == len(m.offers)+sellers }); err != nil {
			return fmt.Errorf("%d of %d offers in a book: %w", x.Book().Len(), len(m.offers)+sellers, err)
		}
	}
	return nil
}

// until waits for a condition for at most [meet].
func until(ctx context.Context, f func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, meet)
	defer cancel()
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for !f() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
	return nil
}

// buy starts a buyer.
func (m *town) buy(ctx context.Context) (err error) {
	var db *market.DB
	if m.node, db, m.book, err = m.join(ctx, p2p.Researcher, m.boot); err != nil {
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
	return nil
}

// sell starts one seller that announces its slots as they become free.
func (m *town) sell(ctx context.Context) (*market.Exchange, error) {
	node, db, book, err := m.join(ctx, p2p.Provider, m.boot)
	if err != nil {
		return nil, err
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
		return nil, err
	}
	seller.Start()
	m.onClose(func() error { seller.Close(); return nil })
	return book, advertise()
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

// cold starts a buyer that knows one address, and leases one provider as soon as the copied book has one.
func (m *town) cold(ctx context.Context) func() (time.Time, error) {
	n := 0
	return func() (end time.Time, err error) {
		n++
		c := &town{o: m.o, dir: filepath.Join(m.dir, fmt.Sprint("cold-", n)), boot: m.boot}
		defer func() { err = errors.Join(err, c.close(), os.RemoveAll(c.dir)) }()
		if err := os.Mkdir(c.dir, 0o700); err != nil {
			return end, err
		}
		if err := c.buy(ctx); err != nil {
			return end, err
		}
		var offers []offer.Offer
		var failed error
		err = until(ctx, func() bool {
			offers, failed = c.candidates()
			return failed != nil || len(offers) > 0
		})
		if err = errors.Join(err, failed); err != nil {
			return end, err
		}
		leases, err := c.buyer.LeaseAll(ctx, offers, 1, c.ask())
		end = time.Now()
		if err != nil {
			return end, err
		}
		return end, c.release(ctx, leases)
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
		{m.o.Repeat, m.gang(ctx, 3), &f.Gang3P50, &f.Gang3P95, 0.95},
		{m.o.Repeat, m.gang(ctx, sellers), &f.Gang8P50, &f.Gang8P95, 0.95},
		{m.o.Handshakes, m.handshake(ctx, offers), &f.HandshakeP50, &f.HandshakeP99, 0.99},
		{m.o.Handshakes, func() (time.Time, error) { return m.echo(ctx) }, &f.Baseline.RoundTrip, nil, 0},
		{m.o.Handshakes, func() (time.Time, error) {
			if _, err := file.Write(make([]byte, 512)); err != nil {
				return time.Time{}, err
			}
			err := file.Sync()
			return time.Now(), err
		}, &f.Baseline.Sync, nil, 0},
		{m.o.Cold, m.cold(ctx), &f.ColdLeaseP50, &f.ColdLeaseP95, 0.95},
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
