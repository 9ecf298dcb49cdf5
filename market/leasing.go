package market

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/market/credit"
	"github.com/capacloud/capanode/market/lease"
	"github.com/capacloud/capanode/market/offer"
	"github.com/capacloud/capanode/p2p"
	"github.com/capacloud/capanode/p2p/wire"
)

// Ask is what a requester wants from every provider of a run.
type Ask struct {
	Run         wire.Link     // CID of the job record
	MaxSeconds  uint32        // longest time held; an offer of less is leased for that
	TickSeconds uint32        // time between two meter ticks
	Budget      credit.Micro  // cap of each single lease; [Buyer.SetBudget] caps the run
	MaxPrice    credit.Micro  // highest price per hour; 0 takes the offer's price
	MaxRate     credit.Micro  // highest price per million work units; 0 takes the offer's rate
	StartWithin time.Duration // how soon the lease must be active; 0 is a minute
}

// ErrGang reports that not enough providers could be leased. Nothing stays leased.
var ErrGang = errors.New("not enough offers could be leased")

// GangError says who refused and why. It wraps [ErrGang] and every refusal.
type GangError struct {
	Wanted   int
	Refusals []error // one per candidate that failed
}

// Error counts and lists the refusals.
func (e *GangError) Error() string {
	words := make([]string, len(e.Refusals))
	for i, err := range e.Refusals {
		words[i] = err.Error()
	}
	return fmt.Sprintf("market: %v: wanted %d; %d refused: %s", ErrGang, e.Wanted, len(e.Refusals), strings.Join(words, "; "))
}

// Unwrap makes the refusals visible to [errors.Is].
func (e *GangError) Unwrap() []error { return append([]error{ErrGang}, e.Refusals...) }

// Lease leases one slot of an offer.
func (b *Buyer) Lease(ctx context.Context, o offer.Offer, ask Ask) (lease.Lease, error) {
	h, err := b.quote(ctx, o, ask)
	if err != nil {
		return lease.Lease{}, err
	}
	return h.commit(ctx)
}

// LeaseAll leases one slot from each of n candidates, all or nothing. It holds n slots at once before it accepts any,
// trying candidates in their order, and fills the place of one that fails with the next. When the candidates run out,
// everything is released and the error is a [*GangError].
func (b *Buyer) LeaseAll(ctx context.Context, candidates []offer.Offer, n int, ask Ask) ([]lease.Lease, error) {
	gang := &GangError{Wanted: n}
	var got []lease.Lease
	for len(got) < n {
		held := b.holdSome(ctx, &candidates, holdPlan{n - len(got), ask, gang})
		if len(held) < n-len(got) {
			for _, h := range held {
				h.release()
			}
			b.abandon(got)
			return nil, gang
		}
		leases := make([]lease.Lease, len(held))
		errs := make([]error, len(held))
		var wg sync.WaitGroup
		for i, h := range held {
			wg.Go(func() { leases[i], errs[i] = h.commit(ctx) })
		}
		wg.Wait()
		for i, err := range errs {
			if err != nil {
				gang.Refusals = append(gang.Refusals, err)
			} else {
				got = append(got, leases[i])
			}
		}
	}
	return got, nil
}

// abandon closes leases of a gang that did not come together. It does not use the caller's context, which may be over.
func (b *Buyer) abandon(got []lease.Lease) {
	ctx, cancel := context.WithTimeout(b.reg.ctx, messageTimeout)
	defer cancel()
	var wg sync.WaitGroup
	for _, l := range got {
		wg.Go(func() {
			if err := b.CloseLease(ctx, l.ID, lease.Capacity); err != nil {
				b.reg.log.Warn("release of a gang", "lease", l.ID.Short(), "err", err)
			}
		})
	}
	wg.Wait()
}

type holdPlan struct {
	n    int
	ask  Ask
	gang *GangError
}

// holdSome takes candidates from the front of the list until n slots are held or none is left.
func (b *Buyer) holdSome(ctx context.Context, candidates *[]offer.Offer, p holdPlan) []*handshake {
	var held []*handshake
	for len(held) < p.n && len(*candidates) > 0 && ctx.Err() == nil {
		batch := (*candidates)[:min(p.n-len(held), len(*candidates))]
		*candidates = (*candidates)[len(batch):]
		quotes := make([]*handshake, len(batch))
		errs := make([]error, len(batch))
		var wg sync.WaitGroup
		for i, o := range batch {
			wg.Go(func() { quotes[i], errs[i] = b.quote(ctx, o, p.ask) })
		}
		wg.Wait()
		for i, err := range errs {
			if err != nil {
				p.gang.Refusals = append(p.gang.Refusals, err)
			} else {
				held = append(held, quotes[i])
			}
		}
	}
	return held
}

// handshake is a slot on hold: an open stream and the terms that both sides would sign.
type handshake struct {
	b      *Buyer
	stream p2p.Stream
	unhook func() bool // detaches the stream from the context
	bid    lease.Terms
	lease  lease.Lease
	heldAt time.Time
}

// quote asks for a slot and holds it.
func (b *Buyer) quote(ctx context.Context, o offer.Offer, ask Ask) (*handshake, error) {
	within := ask.StartWithin
	if within <= 0 {
		within = time.Minute
	}
	bid := lease.Terms{
		Version: lease.Version, Run: ask.Run, Requester: b.cfg.Net.ID(), Provider: o.Peer, Nonce: rand.Uint64(),
		Price: limit(o.Beacon.Price, ask.MaxPrice), WorkRate: limit(o.Beacon.Rate, ask.MaxRate),
		MaxSeconds: limit(ask.MaxSeconds, o.Beacon.MaxLease), Budget: ask.Budget, TickSeconds: ask.TickSeconds,
		StartByMs: b.reg.now().Add(within).UnixMilli(),
	}
	if err := bid.Validate(); err != nil {
		return nil, err
	}
	opening, cancel := context.WithTimeout(ctx, messageTimeout)
	defer cancel()
	s, err := b.cfg.Net.Open(opening, o.Peer, lease.Protocol)
	if err != nil {
		return nil, fmt.Errorf("market: open lease with %s: %w: %w", o.Peer, lease.ErrUnavailable, err)
	}
	h := &handshake{b: b, stream: s, bid: bid}
	h.unhook = context.AfterFunc(ctx, func() { s.Reset() })
	if err := h.hold(); err != nil {
		h.release()
		return nil, fmt.Errorf("market: quote of %s: %w", o.Peer, err)
	}
	return h, nil
}

// limit is what to bid: what is offered, but no more than the highest wanted; 0 is no limit.
func limit[T ~uint32 | ~uint64](offered, highest T) T {
	if highest == 0 {
		return offered
	}
	return min(offered, highest)
}

// hold sends the bid and checks that the quote differs from it only in the slot and in lower prices.
func (h *handshake) hold() error {
	reply, err := h.exchange(lease.Request{Op: lease.OpQuote, Terms: &h.bid})
	if err != nil {
		return err
	}
	if reply.Terms == nil {
		return fmt.Errorf("quote without terms: %w", lease.ErrMalformed)
	}
	terms := *reply.Terms
	same := h.bid
	same.Slot, same.Price, same.WorkRate = terms.Slot, terms.Price, terms.WorkRate
	if id, err := same.ID(); err != nil || !sameTerms(id, terms) || terms.Price > h.bid.Price || terms.WorkRate > h.bid.WorkRate {
		return fmt.Errorf("quote changes the terms: %w", lease.ErrMalformed)
	}
	now := h.b.reg.now()
	l, err := lease.New(lease.Buyer, terms, now)
	if err == nil {
		l, err = l.Hold(now)
	}
	h.lease, h.heldAt = l, now
	return err
}

func sameTerms(id lease.ID, t lease.Terms) bool {
	other, err := t.ID()
	return err == nil && other == id
}

func (h *handshake) exchange(req lease.Request) (lease.Reply, error) {
	var reply lease.Reply
	if err := send(h.stream, req); err != nil {
		return reply, fmt.Errorf("%w: %w", lease.ErrUnavailable, err)
	}
	if err := receive(h.stream, lease.MaxMessage, messageTimeout, &reply); err != nil {
		return reply, fmt.Errorf("%w: %w", lease.ErrUnavailable, err)
	}
	return reply, reply.Err()
}

// release gives the slot back: the provider drops the hold when the stream ends.
func (h *handshake) release() {
	h.unhook()
	h.stream.Reset()
}

// commit signs the terms, takes the grant and acknowledges it. Each step is on disk before the next message leaves. When
// a step fails after the signature, both sides close the lease.
func (h *handshake) commit(ctx context.Context) (lease.Lease, error) {
	defer h.release()
	if h.b.reg.now().Sub(h.heldAt) > lease.HoldTime/2 {
		if err := h.hold(); err != nil { // waiting for the rest of the gang took long: hold again
			return lease.Lease{}, fmt.Errorf("market: renew hold of %s: %w", h.bid.Provider, err)
		}
	}
	if err := h.accept(); err != nil {
		return lease.Lease{}, err
	}
	l, err := h.finish()
	if err == nil {
		return l, nil
	}
	id := h.lease.ID
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), messageTimeout)
	defer cancel()
	if cerr := h.b.CloseLease(undo, id, lease.NotCompleted); cerr != nil {
		h.b.reg.log.Debug("undo of a lease", "lease", id.Short(), "err", cerr)
	}
	return lease.Lease{}, fmt.Errorf("market: lease with %s: %w", h.bid.Provider, err)
}

// accept signs and records the terms.
func (h *handshake) accept() error {
	b, now := h.b, h.b.reg.now()
	env, err := lease.Seal(b.cfg.Net.Key(), lease.AcceptDomain, lease.AcceptRecord{Terms: h.lease.Terms, AtMs: now.UnixMilli()})
	if err != nil {
		return err
	}
	l, err := h.lease.Accepted(env, now)
	if err != nil {
		return err
	}
	h.lease = l
	b.reg.mu.Lock()
	defer b.reg.mu.Unlock()
	return b.reg.add(l, b.cfg.DB.PutLease)
}

// finish exchanges the accept for the grant and the ack for the provider's word that the lease is active.
func (h *handshake) finish() (lease.Lease, error) {
	b, id := h.b, h.lease.ID
	reply, err := h.exchange(lease.Request{Op: lease.OpAccept, Lease: id, Envelope: h.lease.Accept})
	if err != nil {
		return lease.Lease{}, err
	}
	grant, err := lease.OpenGrant(reply.Envelope, h.lease)
	if err != nil {
		return lease.Lease{}, err
	}
	l, err := b.reg.apply(id, func(l lease.Lease) (lease.Lease, error) {
		return l.Granted(reply.Envelope, grant.Epoch, b.reg.now())
	})
	if err != nil {
		return lease.Lease{}, err
	}
	ack, err := lease.Seal(b.cfg.Net.Key(), lease.AckDomain, lease.AckRecord{Lease: id, Epoch: l.Epoch, AtMs: b.reg.now().UnixMilli()})
	if err != nil {
		return lease.Lease{}, err
	}
	reply, err = h.exchange(lease.Request{Op: lease.OpAck, Lease: id, Envelope: ack})
	if err != nil {
		return lease.Lease{}, err
	}
	if reply.Phase == lease.Closed {
		return lease.Lease{}, fmt.Errorf("provider closed the lease for %q: %w", reply.Reason, lease.ErrTransition)
	}
	return b.reg.apply(id, func(l lease.Lease) (lease.Lease, error) { return l.Activate(ack, b.reg.now()) })
}

// Candidates drops the offers that this node cannot lease: its own, and repeated ones.
func Candidates(self peer.ID, offers []offer.Offer) []offer.Offer {
	seen := map[peer.ID]bool{self: true}
	var out []offer.Offer
	for _, o := range offers {
		if !seen[o.Peer] {
			seen[o.Peer] = true
			out = append(out, o)
		}
	}
	return out
}
