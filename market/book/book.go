// Package book owns the set of offers that this node knows: in memory, bounded, concurrent, expiring. It also owns the
// protocol by which a newcomer copies the book of another node. It refuses to trust anyone's copy: each beacon is
// verified where it arrives.
package book

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/market/offer"
	"github.com/capacloud/capanode/market/query"
	"github.com/capacloud/capanode/p2p"
)

const (
	// MaxOffers is the largest number of peers that a book holds.
	MaxOffers = 1 << 17
	// MaxEvidence is the largest number of proofs of equivocation that a book keeps.
	MaxEvidence = 64
)

// ErrFull reports a beacon of an unknown peer that arrives when the book holds [MaxOffers] live offers.
var ErrFull = errors.New("book is full")

// entry is what the book keeps of a peer beside its offer.
type entry struct {
	bucket offer.Bucket
	digest [sha256.Size]byte // of the envelope
}

// Book is a set of offers, at most one per peer. It is safe for concurrent use.
type Book struct {
	now      func() time.Time
	mu       sync.RWMutex
	offers   *query.Table // never changed, only replaced
	entries  map[peer.ID]entry
	known    map[[sha256.Size]byte]struct{} // digests of the envelopes held, to skip verifying them again
	evidence []*offer.Equivocation
	skewed   map[peer.ID]time.Duration // whose beacons were refused for their times, and how far ahead their clocks are
	swept    time.Time
}

// New returns an empty book that reads the given clock; nil is the wall clock.
func New(now func() time.Time) *Book {
	if now == nil {
		now = time.Now
	}
	return &Book{now: now, offers: query.NewTable(), entries: make(map[peer.ID]entry), known: make(map[[sha256.Size]byte]struct{}),
		skewed: make(map[peer.ID]time.Duration)}
}

// Apply verifies a beacon envelope and puts it in the book. The errors are those of package offer, [ErrFull], and a
// [*offer.Equivocation], which the book also keeps as evidence.
func (b *Book) Apply(env []byte) (offer.Offer, error) {
	if len(env) > offer.MaxEnvelope {
		return offer.Offer{}, fmt.Errorf("book: %d bytes: %w", len(env), offer.ErrOversize)
	}
	digest := sha256.Sum256(env)
	b.mu.RLock()
	_, dup := b.known[digest]
	b.mu.RUnlock()
	if dup {
		return offer.Offer{}, offer.ErrDuplicate
	}
	o, err := offer.Open(env)
	if err != nil {
		return offer.Offer{}, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	b.sweep(now)
	known := b.offers.Get(o.Peer)
	if err := offer.Check(known, o, now); err != nil {
		if known == nil {
			b.doubt(o, now)
		}
		b.remember(err)
		return o, err
	}
	if known == nil && b.offers.Len() >= MaxOffers {
		return o, fmt.Errorf("book: %d offers: %w", b.offers.Len(), ErrFull)
	}
	delete(b.skewed, o.Peer)
	e := b.entries[o.Peer]
	bucket, ok := e.bucket.Take(now, offer.RateEvery, offer.RateBurst)
	if !ok {
		return o, fmt.Errorf("book: from %s: %w", o.Peer, offer.ErrRate)
	}
	delete(b.known, e.digest)
	b.entries[o.Peer] = entry{bucket, digest}
	b.known[digest] = struct{}{}
	b.offers.Put(&o)
	return o, nil
}

// remember keeps a proof of equivocation, one per peer.
func (b *Book) remember(err error) {
	var proof *offer.Equivocation
	if !errors.As(err, &proof) || len(b.evidence) >= MaxEvidence {
		return
	}
	same := func(e *offer.Equivocation) bool { return e.Peer == proof.Peer }
	if !slices.ContainsFunc(b.evidence, same) {
		b.evidence = append(b.evidence, proof)
	}
}

// maxSkewed is the largest number of peers whose clocks a book remembers.
const maxSkewed = 256

// doubt notes a beacon that was refused for its time. One that has just died says nothing about a clock: who passes it on
// may have swept its book a moment later.
func (b *Book) doubt(o offer.Offer, now time.Time) {
	ahead := o.Beacon.Issued().Sub(now)
	if now.Sub(o.Beacon.Expires()) > 2*offer.Skew || ahead > offer.Skew {
		if _, known := b.skewed[o.Peer]; known || len(b.skewed) < maxSkewed {
			b.skewed[o.Peer] = ahead
		}
	}
}

// Skewed tells of how many peers no beacon is accepted because its time is too far from the local clock, and how far ahead
// the one in the middle is; that is negative when the local clock is ahead.
func (b *Book) Skewed() (peers int, ahead time.Duration) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	if len(b.skewed) == 0 {
		return 0, 0
	}
	all := slices.Sorted(maps.Values(b.skewed))
	return len(all), all[len(all)/2]
}

// sweep forgets dead offers, at most once per second.
func (b *Book) sweep(now time.Time) {
	if since := now.Sub(b.swept); since >= 0 && since < time.Second {
		return
	}
	b.swept = now
	for _, o := range slices.Collect(b.offers.All(now, true)) {
		delete(b.known, b.entries[o.Peer].digest)
		delete(b.entries, o.Peer)
		b.offers.Remove(o.Peer)
	}
}

// live lists the live offers; they must not be changed.
func (b *Book) live() []*offer.Offer {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return slices.Collect(b.offers.All(b.now(), false))
}

// Offers lists the live offers, withdrawn ones included, in no particular order.
func (b *Book) Offers() []offer.Offer {
	live := b.live()
	out := make([]offer.Offer, len(live))
	for i, o := range live {
		out[i] = *o
	}
	return out
}

// Len is the number of live offers, withdrawn ones included.
func (b *Book) Len() (n int) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	for range b.offers.All(b.now(), false) {
		n++
	}
	return n
}

// Get returns the live offer of a peer.
func (b *Book) Get(id peer.ID) (offer.Offer, bool) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	o := b.offers.Get(id)
	if o == nil || offer.Dead(o.Beacon, b.now()) {
		return offer.Offer{}, false
	}
	return *o, true
}

// Query runs a query over the live offers.
func (b *Book) Query(q query.Query) query.Result {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return q.Run(b.offers, b.now())
}

// Explain lists each live offer that a query rejects, with the reason.
func (b *Book) Explain(q query.Query) []query.Rejection {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return q.Explain(b.offers, b.now())
}

// Evidence lists the proofs of equivocation found so far.
func (b *Book) Evidence() []*offer.Equivocation {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return slices.Clone(b.evidence)
}

// Verdict maps the error of [Book.Apply] to what gossip does with the message: provable garbage is rejected and blamed on
// the forwarder, everything that an honest forwarder could have sent is ignored.
func Verdict(err error) p2p.Verdict {
	switch {
	case err == nil:
		return p2p.Accept
	case errors.Is(err, offer.ErrOversize), errors.Is(err, offer.ErrMalformed), errors.Is(err, offer.ErrRange), errors.Is(err, offer.ErrTTL):
		return p2p.Reject
	default:
		return p2p.Ignore
	}
}
