package node

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/market"
	"github.com/capacloud/capanode/market/lease"
	"github.com/capacloud/capanode/market/meter"
	"github.com/capacloud/capanode/market/offer"
)

// gang is the run's leases as the conductor sees them. Only the conductor's goroutine touches it.
type gang struct {
	candidates []offer.Offer
	leases     map[lease.ID]lease.Lease
	left       map[peer.ID]time.Time // who went, and when
	retry      time.Time             // when to look for somebody again
	replaced   int                   // members that were
	first      time.Duration         // from the planner's start to the first ACTIVE lease
}

// What the market's callbacks tell the conductor.
type (
	tickSeen struct { // a provider's claim about the newest checkpoint
		provider   peer.ID
		checkpoint cid.Cid
	}
	receiptMade struct {
		lease   lease.Lease
		receipt meter.Receipt
	}
	tickRefused struct {
		lease lease.Lease
		err   error
	}
	leaseClosed struct{ lease lease.Lease }
)

// openBuyer starts the buying side: it verifies ticks against the work log and resumes the leases of an earlier process.
func (r *requester) openBuyer() (err error) {
	if _, err := r.home.sub("runs", r.log.ID); err != nil {
		return err
	}
	if r.verified, err = openWorkLog(r.runs.path(r.log.ID, "work.jsonl"), r.rec.TokensPerPeerRound()); err != nil {
		return err
	}
	all, err := r.db.Leases()
	if err != nil {
		return err
	}
	r.history = map[peer.ID][]lease.Lease{}
	for _, l := range all {
		if l.Role == lease.Buyer && l.Terms.Run.Equals(r.run) {
			r.note(l)
		}
	}
	r.news = make(chan any, 256)
	r.over = make(chan struct{})
	r.buyer, err = market.NewBuyer(market.BuyerConfig{
		Net: r.net, DB: r.db, Log: r.Node.log, Verify: r.verify,
		OnReceipt: func(l lease.Lease, m meter.Receipt) { r.tell(receiptMade{l, m}) },
		OnRefuse:  func(l lease.Lease, err error) { r.tell(tickRefused{l, err}) },
		OnClose:   func(l lease.Lease) { r.tell(leaseClosed{l}) },
	})
	if err != nil {
		return err
	}
	if err := r.buyer.SetBudget(r.link(), r.cap()); err != nil {
		return err
	}
	r.buyer.Start()
	r.onClose(func() error { r.hangUp(); r.buyer.Close(); return nil })
	return nil
}

// hangUp releases whoever waits to tell news; nobody reads it any more.
func (r *requester) hangUp() { r.hung.Do(func() { close(r.over) }) }

// tell passes news to the conductor; nobody waits once the run is over.
func (r *requester) tell(news any) {
	select {
	case r.news <- news:
	case <-r.over:
	}
}

// verify returns the work units of a lease that this node itself saw committed, and notes the checkpoint that the tick names.
func (r *requester) verify(l lease.Lease, t meter.Tick) (uint64, error) {
	if !l.Terms.Run.Equals(r.run) {
		return 0, fmt.Errorf("lease %s belongs to run %s, not to %s: %w", l.ID.Short(), l.Terms.Run, r.run, ErrNotFound)
	}
	units, err := r.payable(l, t.Tokens)
	if err != nil {
		return 0, err
	}
	if c, err := cid.Cast(t.State); err == nil {
		r.tell(tickSeen{l.Terms.Provider, c})
	}
	return units, nil
}

// payable is the work units that a lease is due for the tokens that it claims. A provider that had other leases in this run
// is not paid twice for what those cover.
func (r *requester) payable(l lease.Lease, claimed uint64) (uint64, error) {
	all, paid := claimed, uint64(0)
	for _, other := range r.leasesOf(l.Terms.Provider) {
		if other.ID == l.ID {
			continue
		}
		newest, err := r.db.Newest(other)
		if err != nil {
			return 0, err
		}
		if newest != nil {
			all += min(newest.Tokens, math.MaxUint64-all)
			paid += newest.Units
		}
	}
	committed, err := r.verified.verified(l.Terms.Provider, all)
	if err != nil {
		return 0, err
	}
	due, err := r.rec.WorkUnits(committed)
	if err != nil {
		return 0, err
	}
	most, err := r.rec.WorkUnits(claimed)
	return min(due-min(due, paid), most), err
}

// note remembers a lease of this run, so that no tick has to search the market's log for it.
func (r *requester) note(l lease.Lease) {
	r.books.Lock()
	defer r.books.Unlock()
	r.history[l.Terms.Provider] = append(r.history[l.Terms.Provider], l)
}

// leasesOf lists the leases that a provider ever had in this run.
func (r *requester) leasesOf(id peer.ID) []lease.Lease {
	r.books.Lock()
	defer r.books.Unlock()
	return slices.Clone(r.history[id])
}

// hire leases the slots that the run needs, or takes up those that an earlier process left open.
func (r *requester) hire(ctx context.Context) error {
	r.gang.leases, r.gang.left = map[lease.ID]lease.Lease{}, map[peer.ID]time.Time{}
	open, err := r.openLeases()
	if err != nil {
		return err
	}
	for _, l := range open {
		r.took(l, true, "")
	}
	if len(open) > 0 || r.trained() {
		return nil
	}
	hired, err := r.buyer.LeaseAll(ctx, r.gang.candidates, int(r.rec.Peers), r.ask(r.guess))
	if err != nil {
		if errors.Is(err, market.ErrGang) {
			return fmt.Errorf("%w: %w", ErrNoOffers, err)
		}
		return err
	}
	for _, l := range hired {
		r.took(l, false, "")
	}
	return nil
}

// took notes and shows a lease that has become active.
func (r *requester) took(l lease.Lease, resumed bool, replaces string) {
	r.gang.leases[l.ID] = l
	r.heard[l.Terms.Provider] = time.Now()
	if !resumed {
		r.note(l)
	}
	after := time.Since(r.planned)
	if r.gang.first == 0 && !resumed {
		r.gang.first = time.UnixMilli(l.ActiveMs).Sub(r.planned)
	}
	e := r.leaseEvent(l)
	e.Resumed, e.Replaces = resumed, replaces
	if !resumed {
		e.Milliseconds = float64(after.Microseconds()) / 1e3
	}
	r.emit(e)
}

func (r *requester) leaseEvent(l lease.Lease) LeaseEvent {
	e := LeaseEvent{Type: "lease", Run: r.run.String(), Lease: l.ID.String(), Peer: l.Terms.Provider.String(), State: string(l.Phase),
		Reason: string(l.Reason), Price: credits(l.Terms.Price), Epoch: l.Epoch}
	if o, ok := r.exchange.Book().Get(l.Terms.Provider); ok {
		e.Device = o.Beacon.Class
	}
	if newest, err := r.db.Newest(l); err == nil && newest != nil {
		e.Spent = credits(newest.Amount)
	}
	return e
}

// members lists the providers that hold a lease now.
func (r *requester) members() []peer.ID {
	var ids []peer.ID
	for _, l := range r.gang.leases {
		ids = append(ids, l.Terms.Provider)
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// left handles a lease that closed before the run was over: the member is taken off the roster and replaced from the book.
func (r *requester) left(ctx context.Context, l lease.Lease) error {
	old, ours := r.gang.leases[l.ID]
	if !ours {
		return nil
	}
	delete(r.gang.leases, l.ID)
	if l.Reason != lease.TimeUp && !drainedBefore(old) { // else the same provider is welcome to a next lease
		r.gang.left[l.Terms.Provider] = time.Now()
	}
	r.emit(r.leaseEvent(l))
	r.replace(ctx, l.Terms.Provider)
	if len(r.gang.leases) == 0 {
		return nil // the conductor keeps looking for a replacement and gives up in time
	}
	return r.observer.SetMembers(r.members())
}

// drainedBefore tells whether an earlier process of this run had begun to end a lease before this one took it up.
func drainedBefore(taken lease.Lease) bool {
	return taken.Phase == lease.Draining && (taken.Reason == lease.RequesterDone || taken.Reason == lease.OverBudget)
}

const (
	// returnAfter is how long a provider whose lease closed is passed over.
	returnAfter = time.Minute
	// maxTries bounds how many providers are asked at once: nothing else is heeded meanwhile.
	maxTries = 3
	// refillEvery is how often a place that is empty is offered again.
	refillEvery = 5 * time.Second
)

// refill looks now and then for members in the places that nobody could be leased for at the time. For the last round
// alone, the members that there are suffice.
func (r *requester) refill(ctx context.Context, now time.Time) error {
	before := len(r.gang.leases)
	late := before > 0 && r.log.Round > 0 && r.log.Step+r.log.Step/r.log.Round >= r.rec.Steps()
	if before >= int(r.rec.Peers) || now.Before(r.gang.retry) || late {
		return nil
	}
	r.replace(ctx, "")
	r.gang.retry = time.Now().Add(refillEvery)
	if len(r.gang.leases) == before {
		return nil
	}
	return r.observer.SetMembers(r.members())
}

// replace leases one slot from somebody who is not a member, if the book has one.
func (r *requester) replace(ctx context.Context, gone peer.ID) {
	spare := r.idle()
	for _, o := range spare[:min(maxTries, len(spare))] {
		l, err := r.buyer.Lease(ctx, o, r.ask(r.guess))
		if err != nil {
			r.gang.left[o.Peer] = time.Now()
			r.Node.log.Info("replacement", "peer", o.Peer, "err", err)
			continue
		}
		replaces := ""
		if gone != "" {
			replaces = gone.String()
		}
		if o.Peer != gone {
			r.gang.replaced++
		}
		r.took(l, false, replaces)
		return
	}
}

// silent gives up members that have not been heard of for so long that waiting costs more than replacing them.
func (r *requester) silent(ctx context.Context) {
	now, connected := time.Now(), r.net.Connected()
	for _, m := range r.observer.Members() {
		if m.Live || r.heard[m.ID].IsZero() {
			r.heard[m.ID] = now
			continue
		}
		patience := replaceAfter
		if !slices.Contains(connected, m.ID) {
			patience = cutOffAfter
		}
		if now.Sub(r.heard[m.ID]) < patience || !r.spare(m.ID) {
			continue
		}
		for id, l := range r.gang.leases {
			if l.Terms.Provider == m.ID {
				r.emit(PeerEvent{Type: "peer", Run: r.run.String(), Peer: m.ID.String(), State: "lost", Detail: "silent, being replaced"})
				if err := r.buyer.CloseLease(ctx, id, lease.Unresponsive); err != nil {
					r.Node.log.Debug("close", "lease", id.Short(), "err", err) // it cannot be told, that is why
				}
			}
		}
		delete(r.heard, m.ID)
	}
}

const (
	// replaceAfter is how long a member may be silent before another is leased in its place.
	replaceAfter = 20 * time.Second
	// cutOffAfter is the same for a member with whom there is no connection either: it is not slow, its process or its
	// network is gone. It is long enough for a process that is restarted at once to come back to its lease.
	cutOffAfter = 8 * time.Second
)

// spare tells whether the book has somebody who could take the place of a member.
func (r *requester) spare(gone peer.ID) bool {
	return slices.ContainsFunc(r.idle(), func(o offer.Offer) bool { return o.Peer != gone })
}

// idle lists the offers of those who are no members and have not just left or refused.
func (r *requester) idle() []offer.Offer {
	q, err := r.query(r.memory)
	if err != nil {
		return nil
	}
	found := market.Candidates(r.id, r.exchange.Book().Query(q).Offers)
	return spares(found, r.members(), func(id peer.ID) bool { return time.Since(r.gang.left[id]) < returnAfter })
}

// spares are the offers of those who are no members of the run and are not passed over. A member never gets a second slot:
// the run's rounds tell members apart by peer ID.
func spares(found []offer.Offer, members []peer.ID, passed func(peer.ID) bool) []offer.Offer {
	return slices.DeleteFunc(found, func(o offer.Offer) bool { return slices.Contains(members, o.Peer) || passed(o.Peer) })
}

// dismiss drains or closes every lease.
func (r *requester) dismiss(ctx context.Context, reason lease.Reason) {
	for id := range r.gang.leases {
		if err := r.buyer.CloseLease(ctx, id, reason); err != nil {
			r.Node.log.Debug("close", "lease", id.Short(), "err", err)
		}
	}
}
