package market

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/market/book"
	"github.com/capacloud/capanode/market/offer"
	"github.com/capacloud/capanode/p2p"
)

const (
	// OffersTopic carries beacons.
	OffersTopic = "/capanode/offers/1"
	// AdvertiseEvery is the time between two beacons of a provider that does not change, ± 20 %.
	AdvertiseEvery = 120 * time.Second
	// DefaultTTL is the life of a beacon in seconds: two and a half times AdvertiseEvery.
	DefaultTTL = 300

	// publishEvery is a little slower than the limit that others enforce, so that jitter on the way does no harm.
	publishEvery = offer.RateEvery + time.Second
	// partners is how many connected peers the book is kept in step with.
	partners = 8
	// firstSync and lastSync bound the time between two copies of a partner's book. It doubles while nothing new comes.
	firstSync, lastSync = 500 * time.Millisecond, 10 * time.Minute
	// lookEvery is how often new connections are looked for.
	lookEvery = 250 * time.Millisecond
	// syncTimeout bounds one copy of a book.
	syncTimeout = 30 * time.Second
)

// ExchangeConfig configures an [Exchange].
type ExchangeConfig struct {
	Net    p2p.Network
	Router p2p.Router // tells which peers are connected
	DB     *DB        // keeps the beacon's sequence; may be nil on a node that never advertises
	Log    *slog.Logger
}

// Exchange gathers offers into a book and announces this node's own. Beacons come by gossip; the books of connected peers
// are copied on joining, so that a newcomer sees all offers at once.
type Exchange struct {
	cfg    ExchangeConfig
	log    *slog.Logger
	book   *book.Book
	topic  p2p.Topic
	ctx    context.Context
	stop   context.CancelFunc
	wg     sync.WaitGroup
	change chan struct{}

	mu     sync.Mutex
	advert *offer.Beacon // what to announce; nil for nothing
}

// NewExchange joins the topic of offers and serves the book to others.
func NewExchange(cfg ExchangeConfig) (*Exchange, error) {
	x := &Exchange{cfg: cfg, log: cfg.Log, book: book.New(nil), change: make(chan struct{}, 1)}
	if x.log == nil {
		x.log = slog.Default()
	}
	x.ctx, x.stop = context.WithCancel(context.Background())
	var err error
	if x.topic, err = cfg.Net.Join(OffersTopic, x.judge); err != nil {
		x.stop()
		return nil, fmt.Errorf("market: exchange: %w", err)
	}
	cfg.Net.Handle(book.Protocol, p2p.Limits{}, func(_ context.Context, s p2p.Stream) {
		defer context.AfterFunc(x.ctx, func() { s.Reset() })()
		if err := x.book.Serve(s); err != nil {
			x.log.Debug("book request", "peer", s.Remote(), "err", err)
		}
	})
	x.wg.Go(x.drain)
	x.wg.Go(x.advertise)
	x.wg.Go(x.follow)
	return x, nil
}

// Book is the set of offers known so far.
func (x *Exchange) Book() *book.Book { return x.book }

// Advertise announces what this node sells, now and until the next call. Version, sequence, time and, if zero, TTL are
// filled in. Changes are announced at once, but no more often than others accept.
func (x *Exchange) Advertise(b offer.Beacon) error {
	b.Version, b.Seq, b.IssuedMs = offer.Version, 1, 0
	if b.TTL == 0 {
		b.TTL = DefaultTTL
	}
	if err := b.Validate(); err != nil {
		return fmt.Errorf("market: advertise: %w", err)
	}
	if x.cfg.DB == nil {
		return fmt.Errorf("market: advertise: exchange has no database for the beacon's sequence: %w", ErrConfig)
	}
	x.mu.Lock()
	same := x.advert != nil && *x.advert == b
	x.advert = &b
	x.mu.Unlock()
	if !same {
		select {
		case x.change <- struct{}{}:
		default:
		}
	}
	return nil
}

// Close withdraws the node's offer, leaves the topic and stops.
func (x *Exchange) Close() error {
	x.stop()
	x.wg.Wait()
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.advert != nil && x.advert.Free > 0 {
		x.advert.Free = 0
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := x.publish(ctx, *x.advert); err != nil {
			x.log.Debug("withdraw offer", "err", err)
		}
	}
	return x.topic.Close()
}

// judge validates a beacon from gossip by putting it in the book.
func (x *Exchange) judge(from peer.ID, data []byte) p2p.Verdict {
	o, err := x.book.Apply(data)
	if o.Peer != "" && o.Peer != from {
		return p2p.Reject // nobody speaks for another on this topic; copies travel as snapshots
	}
	if errors.Is(err, offer.ErrDuplicate) && from == x.cfg.Net.ID() {
		return p2p.Accept // our own beacon went into the book before it was published
	}
	if err != nil {
		x.log.Debug("beacon refused", "peer", from, "err", err)
	}
	return book.Verdict(err)
}

// drain empties the topic: the validator has done the work.
func (x *Exchange) drain() {
	for {
		if _, err := x.topic.Next(x.ctx); err != nil {
			return
		}
	}
}

// advertise publishes the node's beacon on change and at intervals.
func (x *Exchange) advertise() {
	var bucket offer.Bucket
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-x.ctx.Done():
			return
		case <-x.change:
		case <-timer.C:
		}
		if wait := bucket.Wait(time.Now(), publishEvery, offer.RateBurst); wait > 0 {
			timer.Reset(wait)
			continue
		}
		timer.Reset(AdvertiseEvery*4/5 + rand.N(AdvertiseEvery*2/5))
		x.mu.Lock()
		advert := x.advert
		x.mu.Unlock()
		if advert == nil {
			continue
		}
		bucket, _ = bucket.Take(time.Now(), publishEvery, offer.RateBurst)
		if err := x.publish(x.ctx, *advert); err != nil && x.ctx.Err() == nil {
			x.log.Warn("publish offer", "err", err)
			timer.Reset(publishEvery)
		}
	}
}

// publish signs and sends one beacon. Its sequence is on disk first.
func (x *Exchange) publish(ctx context.Context, b offer.Beacon) error {
	now := time.Now()
	seq, err := x.cfg.DB.NextSeq(now)
	if err != nil {
		return err
	}
	b.Seq, b.IssuedMs = seq, now.UnixMilli()
	env, err := offer.Seal(x.cfg.Net.Key(), b)
	if err != nil {
		return err
	}
	if _, err := x.book.Apply(env); err != nil {
		return err
	}
	if err := x.topic.Publish(ctx, env); err != nil {
		return fmt.Errorf("market: publish offer: %w", err)
	}
	return nil
}

// follow keeps the book in step with up to [partners] connected peers, chosen at random.
func (x *Exchange) follow() {
	known := make(map[peer.ID]context.CancelFunc)
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	for {
		connected := x.cfg.Router.Connected()
		for id, leave := range known {
			if !slices.Contains(connected, id) {
				leave()
				delete(known, id)
			}
		}
		for _, i := range rand.Perm(len(connected)) {
			id := connected[i]
			if len(known) >= partners || known[id] != nil || id == x.cfg.Net.ID() {
				continue
			}
			ctx, leave := context.WithCancel(x.ctx)
			known[id] = leave
			x.wg.Go(func() { x.keepUp(ctx, id) })
		}
		select {
		case <-x.ctx.Done():
			for _, leave := range known {
				leave()
			}
			return
		case <-ticker.C:
		}
	}
}

// keepUp copies the book of one connected peer: at once, soon again, and ever more rarely while it brings nothing new.
func (x *Exchange) keepUp(ctx context.Context, from peer.ID) {
	for wait := firstSync; ; wait = min(wait*2, lastSync) {
		added, err := x.Sync(ctx, from)
		if err != nil {
			x.log.Debug("copy of a book", "peer", from, "err", err)
		}
		if added > 0 {
			wait = firstSync
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait*4/5 + rand.N(wait*2/5)):
		}
	}
}

// Sync copies what the book lacks from one peer's book and returns the number of new offers.
func (x *Exchange) Sync(ctx context.Context, from peer.ID) (added int, err error) {
	ctx, cancel := context.WithTimeout(ctx, syncTimeout)
	defer cancel()
	s, err := x.cfg.Net.Open(ctx, from, book.Protocol)
	if err != nil {
		return 0, fmt.Errorf("market: copy the book of %s: %w", from, err)
	}
	defer context.AfterFunc(ctx, func() { s.Reset() })()
	return x.book.Fetch(s)
}
