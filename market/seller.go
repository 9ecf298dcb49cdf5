package market

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/market/credit"
	"github.com/capacloud/capanode/market/lease"
	"github.com/capacloud/capanode/market/meter"
	"github.com/capacloud/capanode/market/offer"
	"github.com/capacloud/capanode/p2p"
)

// Prices is what a seller asks. A bid at or above both is taken, at the seller's own prices.
type Prices struct {
	PerHour  credit.Micro // micro-credits per slot and hour
	WorkRate credit.Micro // micro-credits per million work units
}

// SellerConfig configures a [Seller]. Callbacks run in their own goroutines and may be nil.
type SellerConfig struct {
	Net        p2p.Network
	DB         *DB
	Slots      int    // slots on sale
	Prices     Prices // can be changed later
	MaxSeconds uint32 // longest lease, in seconds
	OnePerRun  bool   // a run gets one slot at a time, as when its members are told apart by peer ID
	Now        func() time.Time
	Log        *slog.Logger

	// OnActive is called when a lease becomes active, and after a restart for each lease that still is. The context
	// ends when the lease is no longer live or the seller closes; the callback must then return.
	OnActive func(context.Context, lease.Lease)
	// OnDrain is called when a lease starts to drain or to be reclaimed: finish the step, settle, and close.
	OnDrain func(lease.Lease)
	// OnClose is called when a lease has closed. A last tick is accepted for [lease.SettleTime].
	OnClose func(lease.Lease)
	// OnFree is called when the number of free slots or the prices may have changed; [Seller.Free] tells.
	OnFree func()
}

// Seller sells slots. Each grant is durable before it is sent, and leases survive a restart.
type Seller struct {
	cfg    SellerConfig
	reg    *registry
	table  *lease.Table // guarded by reg.mu
	open   int          // slots on sale now; guarded by reg.mu
	prices Prices       // guarded by reg.mu
}

// NewSeller opens the seller's leases from the log. [Seller.Start] puts it to work.
func NewSeller(cfg SellerConfig) (*Seller, error) {
	if cfg.Net == nil || cfg.DB == nil || cfg.Slots < 1 || cfg.Slots > offer.MaxSlots || cfg.MaxSeconds == 0 {
		return nil, fmt.Errorf("market: seller needs a network, a database, 1 to %d slots and a longest lease: %w", offer.MaxSlots, ErrConfig)
	}
	s := &Seller{cfg: cfg, open: cfg.Slots, prices: cfg.Prices, table: lease.NewTable(cfg.Slots)}
	s.reg = newRegistry(lease.Seller, cfg.DB, cfg.Now, cfg.Log)
	s.reg.changed = s.changed
	if err := s.reg.load(); err != nil {
		return nil, fmt.Errorf("market: seller: %w", err)
	}
	slots, err := cfg.DB.Slots()
	if err != nil {
		return nil, fmt.Errorf("market: seller: %w", err)
	}
	for i, rec := range slots {
		bound := lease.ID{}
		if t := s.reg.leases[rec.Lease]; t != nil && binds(t.lease) {
			bound = rec.Lease
		}
		s.table.Restore(i, rec.Epoch, bound)
	}
	return s, nil
}

// binds tells whether a lease keeps its slot: from the grant until it is closed or disputed.
func binds(l lease.Lease) bool { return l.Phase == lease.Granted || l.Live() }

// Start serves the lease protocol and resumes the leases of an earlier life.
func (s *Seller) Start() {
	s.cfg.Net.Handle(lease.Protocol, p2p.Limits{}, s.serve)
	s.reg.mu.Lock()
	for id, t := range s.reg.leases {
		if !t.lease.Live() {
			continue
		}
		if s.second(t.lease) {
			s.reg.spawn(func() { s.closeSecond(id) })
			continue
		}
		s.activate(t)
	}
	s.reg.mu.Unlock()
	s.reg.start()
}

// sameRun refuses terms of a run that has a slot here already, when a run gets one at a time; reg.mu is held. Somebody else's
// lease in the name of the run is in nobody's way.
func (s *Seller) sameRun(want lease.Terms) error {
	if !s.cfg.OnePerRun {
		return nil
	}
	for id, t := range s.reg.leases {
		if binds(t.lease) && together(t.lease.Terms, want) {
			return fmt.Errorf("market: run %s has lease %s: %w", want.Run, id.Short(), lease.ErrSameRun)
		}
	}
	return nil
}

// together tells whether two leases are for the same run of the same requester.
func together(a, b lease.Terms) bool { return a.Requester == b.Requester && a.Run.Equals(b.Run.Cid) }

// second tells whether a live lease from the log is not the first of its run, when a run gets one slot at a time; reg.mu is
// held.
func (s *Seller) second(l lease.Lease) bool {
	if !s.cfg.OnePerRun {
		return false
	}
	for _, t := range s.reg.leases {
		other := t.lease
		earlier := other.ActiveMs < l.ActiveMs || other.ActiveMs == l.ActiveMs && bytes.Compare(other.ID[:], l.ID[:]) < 0
		if other.Live() && together(other.Terms, l.Terms) && earlier {
			return true
		}
	}
	return false
}

func (s *Seller) closeSecond(id lease.ID) {
	ctx, cancel := context.WithTimeout(s.reg.ctx, messageTimeout)
	defer cancel()
	err := s.CloseLease(ctx, id, lease.Capacity)
	s.reg.log.Warn("closed the second lease of a run", "lease", id.Short(), "err", err)
}

// Close stops the seller. Leases stay open in the log, so that the next process resumes them.
func (s *Seller) Close() { s.reg.close() }

// changed follows a change of phase; reg.mu is held.
func (s *Seller) changed(t *tracked, before lease.Lease) {
	l := t.lease
	if binds(before) && !binds(l) {
		s.table.Release(l.Terms.Slot, l.ID)
		s.freed()
	}
	switch {
	case l.Live() && !before.Live():
		s.activate(t)
	case l.Phase == lease.Draining || l.Phase == lease.Reclaiming:
		s.callback(s.cfg.OnDrain, l)
	case l.Phase == lease.Closed && l.ActiveMs > 0:
		s.callback(s.cfg.OnClose, l)
	}
}

func (s *Seller) activate(t *tracked) {
	l := t.lease
	if s.cfg.OnActive != nil {
		s.reg.spawn(func() { s.cfg.OnActive(t.ctx, l) })
	}
}

func (s *Seller) callback(f func(lease.Lease), l lease.Lease) {
	if f != nil {
		s.reg.spawn(func() { f(l) })
	}
}

func (s *Seller) freed() {
	if s.cfg.OnFree != nil {
		s.reg.spawn(s.cfg.OnFree)
	}
}

// Free is the number of slots that an offer may announce: on sale and not bound to a lease. Holds of a few seconds do
// not count.
func (s *Seller) Free() int {
	s.reg.mu.Lock()
	defer s.reg.mu.Unlock()
	return s.table.Unbound(s.open)
}

// SetOpen changes how many slots are on sale; 0 pauses selling. Running leases are not touched.
func (s *Seller) SetOpen(slots int) {
	s.reg.mu.Lock()
	defer s.reg.mu.Unlock()
	s.open = min(max(slots, 0), s.cfg.Slots)
	s.freed()
}

// SetPrices changes the prices of leases that are not yet accepted.
func (s *Seller) SetPrices(p Prices) {
	s.reg.mu.Lock()
	defer s.reg.mu.Unlock()
	s.prices = p
	s.freed()
}

// Leases lists every lease that was ever granted, with its timeline.
func (s *Seller) Leases() ([]lease.Lease, error) { return s.reg.list() }

// Get returns one lease.
func (s *Seller) Get(id lease.ID) (lease.Lease, error) { return s.reg.get(id) }

// CloseLease ends a lease and tells the requester. The close is recorded even when the requester cannot be told; then the
// error says so and the requester learns it from its next heartbeat.
func (s *Seller) CloseLease(ctx context.Context, id lease.ID, reason lease.Reason) error {
	req, l, err := closeLease(s.reg, s.cfg.Net.Key(), id, reason)
	if err != nil {
		return err
	}
	return s.notify(ctx, l, req)
}

// Drain asks for the end of a lease after the current step and tells the requester.
func (s *Seller) Drain(ctx context.Context, id lease.ID, reason lease.Reason) error {
	l, err := s.reg.apply(id, func(l lease.Lease) (lease.Lease, error) { return l.Drain(reason, s.reg.now()) })
	if err != nil {
		return err
	}
	return s.notify(ctx, l, lease.Request{Op: lease.OpDrain, Lease: id, Reason: reason})
}

// Reclaim takes the device back for its owner after a notice and tells the requester.
func (s *Seller) Reclaim(ctx context.Context, id lease.ID, reason lease.Reason, notice time.Duration) error {
	notice = min(max(notice, 0), lease.MaxNotice)
	l, err := s.reg.apply(id, func(l lease.Lease) (lease.Lease, error) { return l.Reclaim(reason, notice, s.reg.now()) })
	if err != nil {
		return err
	}
	return s.notify(ctx, l, lease.Request{Op: lease.OpReclaim, Lease: id, Reason: reason, WaitMs: uint32(notice.Milliseconds())})
}

func (s *Seller) notify(ctx context.Context, l lease.Lease, req lease.Request) error {
	var reply lease.Reply
	c := conversation{lease.NoticeProtocol, lease.MaxMessage, req, &reply}
	if err := call(ctx, s.cfg.Net, l.Terms.Requester, c); err != nil {
		return fmt.Errorf("market: lease %s: tell requester %s: %w", l.ID.Short(), req.Op, err)
	}
	return reply.Err()
}

// serve answers the requests of one stream. A hold that the stream asked for ends with the stream unless it was accepted.
func (s *Seller) serve(_ context.Context, st p2p.Stream) {
	var quoted *lease.Terms
	for {
		var req lease.Request
		if err := receive(st, lease.MaxMessage, requestTimeout, &req); err != nil {
			break // the other side is done, or gone, or broken
		}
		reply, err := s.answer(st.Remote(), req)
		if err != nil {
			s.reg.log.Debug("lease request refused", "peer", st.Remote(), "op", string(req.Op), "err", err)
			reply = lease.Refuse(err)
		}
		switch {
		case req.Op == lease.OpQuote && err == nil:
			quoted = reply.Terms
		case req.Op == lease.OpAccept && err == nil:
			quoted = nil
		}
		if send(st, reply) != nil {
			break
		}
	}
	if quoted != nil {
		s.reg.mu.Lock()
		s.table.Unhold(st.Remote(), quoted.Nonce)
		s.reg.mu.Unlock()
	}
	st.Reset()
}

// answer handles one request of an authenticated peer.
func (s *Seller) answer(from peer.ID, req lease.Request) (lease.Reply, error) {
	if s.reg.ctx.Err() != nil {
		return lease.Reply{}, fmt.Errorf("market: seller has stopped: %w", lease.ErrUnavailable)
	}
	switch req.Op {
	case lease.OpQuote:
		return s.quote(from, req)
	case lease.OpAccept:
		return s.accept(from, req)
	}
	l, err := s.reg.get(req.Lease)
	if err != nil {
		return lease.Reply{}, err
	}
	if l.Terms.Requester != from {
		return lease.Reply{}, fmt.Errorf("market: lease %s: request by %s: %w", l.ID.Short(), from, lease.ErrWrongPeer)
	}
	switch req.Op {
	case lease.OpAck:
		l, err = s.ack(l, req)
	case lease.OpBeat:
		l, err = s.reg.heard(l.ID)
	case lease.OpResume:
		l, err = s.resume(l, req)
	case lease.OpDrain:
		l, err = drained(s.reg, l.ID, req.Reason)
	case lease.OpClose:
		l, err = closed(s.reg, l, req.Envelope)
	default:
		return lease.Reply{}, fmt.Errorf("market: operation %q: %w", req.Op, lease.ErrMalformed)
	}
	if err != nil && !(errors.Is(err, lease.ErrTransition) && l.Phase == lease.Closed) {
		return lease.Reply{}, err
	}
	return status(s.reg, l)
}

func (s *Seller) quote(from peer.ID, req lease.Request) (lease.Reply, error) {
	if req.Terms == nil {
		return lease.Reply{}, fmt.Errorf("market: quote without terms: %w", lease.ErrMalformed)
	}
	want := *req.Terms
	if err := want.Validate(); err != nil {
		return lease.Reply{}, err
	}
	if want.Requester != from || want.Provider != s.cfg.Net.ID() {
		return lease.Reply{}, fmt.Errorf("market: quote for %s by %s: %w", want.Requester, from, lease.ErrWrongPeer)
	}
	s.reg.mu.Lock()
	defer s.reg.mu.Unlock()
	now := s.reg.now()
	switch {
	case s.open == 0:
		return lease.Reply{}, lease.ErrPaused
	case now.UnixMilli() > want.StartByMs:
		return lease.Reply{}, lease.ErrStartBy
	case want.MaxSeconds > s.cfg.MaxSeconds:
		return lease.Reply{}, fmt.Errorf("market: %d s, at most %d: %w", want.MaxSeconds, s.cfg.MaxSeconds, lease.ErrTooLong)
	case want.Price < s.prices.PerHour || want.WorkRate < s.prices.WorkRate:
		return lease.Reply{}, fmt.Errorf("market: bid %s an hour and %s per million units, price is %s and %s: %w",
			want.Price, want.WorkRate, s.prices.PerHour, s.prices.WorkRate, lease.ErrPrice)
	}
	if err := s.sameRun(want); err != nil {
		return lease.Reply{}, err
	}
	want.Price, want.WorkRate = s.prices.PerHour, s.prices.WorkRate
	terms, err := s.table.Hold(want, s.open, now)
	if err != nil {
		return lease.Reply{}, err
	}
	return lease.Reply{Terms: &terms, Phase: lease.Held}, nil
}

// accept grants a held slot: the grant and the slot's new epoch are on disk before the reply leaves.
func (s *Seller) accept(from peer.ID, req lease.Request) (lease.Reply, error) {
	a, err := lease.OpenAccept(req.Envelope, from)
	if err != nil {
		return lease.Reply{}, err
	}
	if a.Terms.Provider != s.cfg.Net.ID() {
		return lease.Reply{}, fmt.Errorf("market: accept for %s: %w", a.Terms.Provider, lease.ErrWrongPeer)
	}
	id, err := a.Terms.ID()
	if err != nil {
		return lease.Reply{}, err
	}
	s.reg.mu.Lock()
	defer s.reg.mu.Unlock()
	if t := s.reg.leases[id]; t != nil {
		if !binds(t.lease) {
			return lease.Reply{}, fmt.Errorf("market: lease %s is %s: %w", id.Short(), t.lease.Phase, lease.ErrTransition)
		}
		return lease.Reply{Envelope: t.lease.Grant, Phase: t.lease.Phase}, nil
	}
	if err := s.sameRun(a.Terms); err != nil { // two quotes may have been out at once
		return lease.Reply{}, err
	}
	now := s.reg.now()
	epoch, err := s.table.Check(a.Terms, id, now)
	if err != nil {
		return lease.Reply{}, err
	}
	grant := lease.GrantRecord{Lease: id, Slot: a.Terms.Slot, Epoch: epoch, FromMs: now.UnixMilli()}
	grant.UntilMs = now.Add(lease.AckTime + time.Duration(a.Terms.MaxSeconds)*time.Second).UnixMilli()
	env, err := lease.Seal(s.cfg.Net.Key(), lease.GrantDomain, grant)
	if err != nil {
		return lease.Reply{}, err
	}
	l, err := granted(a.Terms, req.Envelope, grantOf{env, epoch, now})
	if err != nil {
		return lease.Reply{}, err
	}
	if err := s.reg.add(l, s.cfg.DB.PutGrant); err != nil {
		return lease.Reply{}, err
	}
	if err := s.table.Bind(a.Terms.Slot, id, epoch); err != nil {
		return lease.Reply{}, err
	}
	s.freed()
	return lease.Reply{Envelope: env, Phase: l.Phase}, nil
}

type grantOf struct {
	env   []byte
	epoch uint64
	at    time.Time
}

// granted walks a new lease to GRANTED.
func granted(terms lease.Terms, accept []byte, g grantOf) (lease.Lease, error) {
	l, err := lease.New(lease.Seller, terms, g.at)
	if err == nil {
		l, err = l.Hold(g.at)
	}
	if err == nil {
		l, err = l.Accepted(accept, g.at)
	}
	if err == nil {
		l, err = l.Granted(g.env, g.epoch, g.at)
	}
	return l, err
}

func (s *Seller) ack(l lease.Lease, req lease.Request) (lease.Lease, error) {
	if _, err := lease.OpenAck(req.Envelope, l); err != nil {
		return l, err
	}
	return s.reg.apply(l.ID, func(l lease.Lease) (lease.Lease, error) {
		if l.Live() {
			return l, nil
		}
		return l.Activate(req.Envelope, s.reg.now())
	})
}

// resume takes in the requester's newest receipt, which may have been lost on the way.
func (s *Seller) resume(l lease.Lease, req lease.Request) (lease.Lease, error) {
	if len(req.Envelope) > 0 {
		t, err := s.reg.find(l.ID)
		if err != nil {
			return l, err
		}
		t.meter.Lock()
		_, err = s.takeReceipt(l, req.Envelope)
		t.meter.Unlock()
		if err != nil {
			return l, err
		}
	}
	return s.reg.heard(l.ID)
}

// Work is what a lease has done so far. All numbers are cumulative since the lease became active, across restarts.
type Work struct {
	Tokens uint64
	Units  uint64
	Rounds uint64
	State  []byte // commitment to the state that the work led to, at most [meter.MaxState] bytes
}

// Done is the newest work that was put into a tick, from which a restarted provider counts on. It is zero before the first.
func (s *Seller) Done(id lease.ID) (Work, error) {
	t, found, err := s.lastTick(id)
	if err != nil || !found {
		return Work{}, err
	}
	return Work{t.Tokens, t.Units, t.Rounds, t.State}, nil
}

func (s *Seller) lastTick(id lease.ID) (meter.Tick, bool, error) {
	env, found, err := s.cfg.DB.Tick(id)
	if err != nil || !found {
		return meter.Tick{}, false, err
	}
	t, err := meter.OpenTick(env, s.cfg.Net.ID())
	return t, err == nil, err
}

// SendTick claims the work of a lease and returns the requester's receipt for it. The slot time is the lease's own. A tick
// that was not answered is covered by the next one. Errors wrap [meter.ErrNoReceipt] when the requester could not be
// reached, else the requester's refusal, such as [meter.ErrBudget].
func (s *Seller) SendTick(ctx context.Context, id lease.ID, w Work) (meter.Receipt, error) {
	t, err := s.reg.find(id)
	if err != nil {
		return meter.Receipt{}, err
	}
	t.meter.Lock()
	defer t.meter.Unlock()
	l := s.reg.snapshot(t)
	if !l.Metered(s.reg.now()) {
		return meter.Receipt{}, fmt.Errorf("market: lease %s is %s: %w", id.Short(), l.Phase, meter.ErrNotMeter)
	}
	env, err := s.nextTick(l, w)
	if err != nil {
		return meter.Receipt{}, err
	}
	var reply meter.Reply
	c := conversation{meter.Protocol, meter.MaxMessage, meter.Message{Tick: env}, &reply}
	if err := call(ctx, s.cfg.Net, l.Terms.Requester, c); err != nil {
		return meter.Receipt{}, fmt.Errorf("market: lease %s: %w: %w", id.Short(), meter.ErrNoReceipt, err)
	}
	if err := reply.Err(); err != nil {
		s.ended(id, err)
		return meter.Receipt{}, fmt.Errorf("market: lease %s: tick refused: %w", id.Short(), err)
	}
	r, err := s.takeReceipt(l, reply.Receipt)
	if err != nil {
		return meter.Receipt{}, err
	}
	if l.Phase != lease.Closed {
		if _, err := s.reg.heard(id); err != nil {
			return meter.Receipt{}, err
		}
	}
	return r.Receipt, nil
}

// ended closes a lease that the requester says is over or unknown: its notice of the close was lost.
func (s *Seller) ended(id lease.ID, refusal error) {
	if !errors.Is(refusal, lease.ErrUnknown) && !errors.Is(refusal, lease.ErrTransition) {
		return
	}
	_, err := s.reg.apply(id, func(l lease.Lease) (lease.Lease, error) {
		if l.Phase == lease.Closed {
			return l, nil
		}
		return l.Close(lease.Unresponsive, nil, s.reg.now())
	})
	if err != nil {
		s.reg.log.Warn("lease is over for the requester", "lease", id.Short(), "err", err)
	}
}

// nextTick seals the tick for the work and records it, so that a restart never claims less or reuses a number.
func (s *Seller) nextTick(l lease.Lease, w Work) ([]byte, error) {
	last, found, err := s.lastTick(l.ID)
	if err != nil {
		return nil, err
	}
	next := meter.Tick{Lease: l.ID, Nonce: last.Nonce + 1, State: w.State}
	next.Counters = meter.Counters{Tokens: w.Tokens, Units: w.Units, Rounds: w.Rounds}
	next.SlotMs = max(uint64(l.Elapsed(s.reg.now()).Milliseconds()), last.SlotMs)
	if found && (w.Tokens < last.Tokens || w.Units < last.Units || w.Rounds < last.Rounds) {
		return nil, fmt.Errorf("market: lease %s: work is below that of tick %d: %w", l.ID.Short(), last.Nonce, meter.ErrRegress)
	}
	if len(w.State) > meter.MaxState {
		return nil, fmt.Errorf("market: lease %s: state of %d bytes: %w", l.ID.Short(), len(w.State), meter.ErrMalformed)
	}
	env, err := meter.SealTick(s.cfg.Net.Key(), next)
	if err != nil {
		return nil, err
	}
	return env, s.cfg.DB.PutTick(l.ID, env)
}

// takeReceipt checks a receipt and records it. The tracked lease's meter lock is held.
func (s *Seller) takeReceipt(l lease.Lease, env []byte) (meter.Signed, error) {
	r, err := meter.OpenReceipt(env, l.Terms.Requester)
	if err != nil {
		return r, err
	}
	last, _, err := s.lastTick(l.ID)
	if err != nil {
		return r, err
	}
	newest, err := s.cfg.DB.Newest(l)
	if err != nil {
		return r, err
	}
	if last.Lease != l.ID {
		return r, fmt.Errorf("market: lease %s: receipt without a tick: %w", l.ID.Short(), meter.ErrMalformed)
	}
	if err := meter.CheckReceipt(l.Terms, newest, last, r); err != nil {
		return r, err
	}
	return r, s.cfg.DB.PutReceipt(l.Terms, r, s.reg.now())
}
