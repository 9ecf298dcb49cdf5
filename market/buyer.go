package market

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/market/credit"
	"github.com/capacloud/capanode/market/lease"
	"github.com/capacloud/capanode/market/meter"
	"github.com/capacloud/capanode/p2p"
	"github.com/capacloud/capanode/p2p/wire"
)

// BuyerConfig configures a [Buyer]. Callbacks other than Verify run in their own goroutines and may be nil.
type BuyerConfig struct {
	Net p2p.Network
	DB  *DB
	Now func() time.Time
	Log *slog.Logger

	// Verify returns the cumulative work units that this node itself computed for the lease, from the committed rounds
	// that it has seen. An error refuses the tick with [meter.ErrWork]. It must be quick.
	Verify func(lease.Lease, meter.Tick) (units uint64, err error)
	// OnReceipt is called after a receipt is recorded.
	OnReceipt func(lease.Lease, meter.Receipt)
	// OnRefuse is called when a tick was refused, other than for [meter.ErrPace]; [errors.Is] tells [meter.ErrBudget] and the other rules apart.
	OnRefuse func(lease.Lease, error)
	// OnDrain is called when a lease starts to drain or to be reclaimed: the provider will be gone soon.
	OnDrain func(lease.Lease)
	// OnClose is called when a lease that was active has closed.
	OnClose func(lease.Lease)
}

// Buyer leases slots, keeps the leases alive and signs receipts within the budgets. Leases and receipts survive a restart.
type Buyer struct {
	cfg   BuyerConfig
	reg   *registry
	money sync.Mutex                 // guards spent and the budget of each run while a receipt is made
	spent map[wire.Link]credit.Micro // sum of the newest receipts by run
}

// NewBuyer opens the buyer's leases from the log. [Buyer.Start] puts it to work.
func NewBuyer(cfg BuyerConfig) (*Buyer, error) {
	if cfg.Net == nil || cfg.DB == nil || cfg.Verify == nil {
		return nil, fmt.Errorf("market: buyer needs a network, a database and a way to verify work: %w", ErrConfig)
	}
	b := &Buyer{cfg: cfg, spent: make(map[wire.Link]credit.Micro)}
	b.reg = newRegistry(lease.Buyer, cfg.DB, cfg.Now, cfg.Log)
	b.reg.changed = b.changed
	if err := b.reg.load(); err != nil {
		return nil, fmt.Errorf("market: buyer: %w", err)
	}
	all, err := b.reg.list()
	if err != nil {
		return nil, fmt.Errorf("market: buyer: %w", err)
	}
	for _, l := range all {
		newest, err := cfg.DB.Newest(l)
		if err != nil {
			return nil, fmt.Errorf("market: buyer: %w", err)
		}
		if newest != nil {
			b.spent[l.Terms.Run] += newest.Amount
		}
	}
	return b, nil
}

// Start serves ticks and notices, and resumes the leases of an earlier life.
func (b *Buyer) Start() {
	b.cfg.Net.Handle(meter.Protocol, p2p.Limits{}, b.serveTick)
	b.cfg.Net.Handle(lease.NoticeProtocol, p2p.Limits{}, b.serveNotice)
	b.reg.mu.Lock()
	for _, t := range b.reg.leases {
		if t.lease.Live() {
			b.keepAlive(t, true)
		}
	}
	b.reg.mu.Unlock()
	b.reg.start()
}

// Close stops the buyer. Leases stay open in the log, so that the next process resumes them.
func (b *Buyer) Close() { b.reg.close() }

// changed follows a change of phase; reg.mu is held.
func (b *Buyer) changed(t *tracked, before lease.Lease) {
	l := t.lease
	var f func(lease.Lease)
	switch {
	case l.Live() && !before.Live():
		b.keepAlive(t, false)
	case l.Phase == lease.Draining || l.Phase == lease.Reclaiming:
		f = b.cfg.OnDrain
	case l.Phase == lease.Closed && l.ActiveMs > 0:
		f = b.cfg.OnClose
	}
	if f != nil {
		b.reg.spawn(func() { f(l) })
	}
}

// Leases lists every lease that was ever accepted, with its timeline.
func (b *Buyer) Leases() ([]lease.Lease, error) { return b.reg.list() }

// Get returns one lease.
func (b *Buyer) Get(id lease.ID) (lease.Lease, error) { return b.reg.get(id) }

// CloseLease ends a lease and tells the provider. The close is recorded even when the provider cannot be told; then the
// error says so, and no more receipts are signed after [lease.SettleTime].
func (b *Buyer) CloseLease(ctx context.Context, id lease.ID, reason lease.Reason) error {
	req, l, err := closeLease(b.reg, b.cfg.Net.Key(), id, reason)
	if err != nil {
		return err
	}
	_, err = b.ask(ctx, l, req)
	return err
}

// Drain asks for the end of a lease after the current step and tells the provider.
func (b *Buyer) Drain(ctx context.Context, id lease.ID, reason lease.Reason) error {
	l, err := drained(b.reg, id, reason)
	if err != nil {
		return err
	}
	_, err = b.ask(ctx, l, lease.Request{Op: lease.OpDrain, Lease: id, Reason: reason})
	return err
}

// SetBudget caps what all leases of a run may cost together, in micro-credits, durably.
func (b *Buyer) SetBudget(run wire.Link, micro credit.Micro) error {
	b.money.Lock()
	defer b.money.Unlock()
	return b.cfg.DB.SetBudget(run, micro)
}

// Spent is what the receipts of all leases of a run promise together.
func (b *Buyer) Spent(run wire.Link) credit.Micro {
	b.money.Lock()
	defer b.money.Unlock()
	return b.spent[run]
}

// ask sends one request about a lease to its provider.
func (b *Buyer) ask(ctx context.Context, l lease.Lease, req lease.Request) (lease.Reply, error) {
	var reply lease.Reply
	c := conversation{lease.Protocol, lease.MaxMessage, req, &reply}
	if err := call(ctx, b.cfg.Net, l.Terms.Provider, c); err != nil {
		return reply, fmt.Errorf("market: lease %s: %s: %w", l.ID.Short(), req.Op, err)
	}
	return reply, reply.Err()
}

// keepAlive sends heartbeats until the lease is no longer live; reg.mu is held. After a restart the first one brings the
// newest receipt.
func (b *Buyer) keepAlive(t *tracked, restarted bool) {
	id := t.lease.ID
	b.reg.spawn(func() {
		req := lease.Request{Op: lease.OpBeat, Lease: id}
		if restarted {
			req = b.resumeRequest(id)
		}
		for t.ctx.Err() == nil {
			if restarted && b.beat(t, req) {
				req, restarted = lease.Request{Op: lease.OpBeat, Lease: id}, false
			} else if !restarted {
				b.beat(t, req)
			}
			jitter := time.Duration(rand.Int64N(int64(lease.BeatEvery*2/5))) - lease.BeatEvery/5
			select {
			case <-t.ctx.Done():
			case <-time.After(lease.BeatEvery + jitter):
			}
		}
	})
}

func (b *Buyer) resumeRequest(id lease.ID) lease.Request {
	req := lease.Request{Op: lease.OpResume, Lease: id}
	if l, err := b.reg.get(id); err == nil {
		if newest, err := b.cfg.DB.Newest(l); err == nil && newest != nil {
			req.Envelope = newest.Envelope
		}
	}
	return req
}

// beat sends one heartbeat and follows what the provider says. It tells whether the provider answered.
func (b *Buyer) beat(t *tracked, req lease.Request) bool {
	l := b.reg.snapshot(t)
	reply, err := b.ask(t.ctx, l, req)
	if errors.Is(err, lease.ErrUnknown) {
		reply, err = lease.Reply{Phase: lease.Closed, Reason: lease.Unresponsive}, nil
	}
	if err != nil {
		b.reg.log.Debug("heartbeat", "lease", l.ID.Short(), "err", err)
		return false
	}
	_, err = b.reg.apply(l.ID, func(l lease.Lease) (lease.Lease, error) {
		now := b.reg.now()
		switch {
		case l.Phase == lease.Closed:
			return l, nil
		case reply.Phase == lease.Closed:
			return l.Close(knownReason(reply.Reason), nil, now)
		case reply.Phase == lease.Draining && l.Live() && l.Phase != lease.Draining:
			return l.Drain(knownReason(reply.Reason), now)
		}
		after, _ := l.Heard(now)
		return after, nil
	})
	if err != nil {
		b.reg.log.Warn("heartbeat", "lease", l.ID.Short(), "err", err)
	}
	return true
}

func knownReason(r lease.Reason) lease.Reason {
	if r.Known() {
		return r
	}
	return lease.Unresponsive
}

// serveNotice answers one notice of a provider.
func (b *Buyer) serveNotice(_ context.Context, st p2p.Stream) {
	var req lease.Request
	if err := receive(st, lease.MaxMessage, messageTimeout, &req); err != nil {
		st.Reset()
		return
	}
	reply, err := b.notice(st.Remote(), req)
	if err != nil {
		reply = lease.Refuse(err)
	}
	if send(st, reply) != nil {
		st.Reset()
		return
	}
	st.Close()
}

func (b *Buyer) notice(from peer.ID, req lease.Request) (lease.Reply, error) {
	l, err := b.reg.get(req.Lease)
	if err != nil {
		return lease.Reply{}, err
	}
	if l.Terms.Provider != from {
		return lease.Reply{}, fmt.Errorf("market: lease %s: notice by %s: %w", l.ID.Short(), from, lease.ErrWrongPeer)
	}
	switch req.Op {
	case lease.OpClose:
		l, err = closed(b.reg, l, req.Envelope)
	case lease.OpDrain:
		l, err = drained(b.reg, l.ID, req.Reason)
	case lease.OpReclaim:
		l, err = b.reg.apply(l.ID, func(l lease.Lease) (lease.Lease, error) {
			if l.Phase == lease.Reclaiming {
				return l, nil
			}
			return l.Reclaim(knownReason(req.Reason), time.Duration(req.WaitMs)*time.Millisecond, b.reg.now())
		})
	default:
		return lease.Reply{}, fmt.Errorf("market: notice %q: %w", req.Op, lease.ErrMalformed)
	}
	if err != nil && !(errors.Is(err, lease.ErrTransition) && l.Phase == lease.Closed) {
		return lease.Reply{}, err
	}
	return status(b.reg, l)
}

// serveTick answers one tick with a receipt or a refusal.
func (b *Buyer) serveTick(_ context.Context, st p2p.Stream) {
	var m meter.Message
	if err := receive(st, meter.MaxMessage, messageTimeout, &m); err != nil {
		st.Reset()
		return
	}
	var reply meter.Reply
	r, err := b.tick(st.Remote(), m.Tick)
	if err != nil {
		reply = meter.Refuse(err)
	} else {
		reply.Receipt = r.Envelope
	}
	if send(st, reply) != nil {
		st.Reset()
		return
	}
	st.Close()
}

// tick judges one tick. The receipt is on disk before it is returned.
func (b *Buyer) tick(from peer.ID, env []byte) (*meter.Signed, error) {
	if b.reg.ctx.Err() != nil {
		return nil, fmt.Errorf("market: buyer has stopped: %w", lease.ErrUnavailable)
	}
	tick, err := meter.OpenTick(env, from)
	if err != nil {
		return nil, err
	}
	t, err := b.reg.find(tick.Lease)
	if err != nil {
		return nil, err
	}
	l := b.reg.snapshot(t)
	if l.Terms.Provider != from {
		return nil, fmt.Errorf("market: lease %s: tick by %s: %w", l.ID.Short(), from, lease.ErrWrongPeer)
	}
	t.meter.Lock()
	defer t.meter.Unlock()
	// Before anything else: neither a receipt nor what a refusal leads to may be had as often as a provider likes.
	if t.pace, err = t.pace.Next(b.reg.now(), time.Duration(l.Terms.TickSeconds)*time.Second); err != nil {
		b.reg.log.Debug("tick refused", "lease", l.ID.Short(), "peer", from, "err", err)
		return nil, err
	}
	r, fresh, err := b.receipt(l, tick)
	if err != nil {
		b.reg.log.Warn("tick refused", "lease", l.ID.Short(), "peer", from, "err", err)
		b.callback(func() {
			if b.cfg.OnRefuse != nil {
				b.cfg.OnRefuse(l, err)
			}
		})
		return nil, err
	}
	if fresh {
		b.callback(func() {
			if b.cfg.OnReceipt != nil {
				b.cfg.OnReceipt(l, r.Receipt)
			}
		})
	}
	if l.Phase != lease.Closed {
		if _, err := b.reg.heard(l.ID); err != nil && !errors.Is(err, lease.ErrTransition) {
			return nil, err
		}
	}
	return r, nil
}

func (b *Buyer) callback(f func()) {
	b.reg.mu.Lock()
	defer b.reg.mu.Unlock()
	b.reg.spawn(f)
}

// receipt makes, records and returns the receipt for a tick; fresh is false for one that was made before.
func (b *Buyer) receipt(l lease.Lease, tick meter.Tick) (r *meter.Signed, fresh bool, err error) {
	newest, err := b.cfg.DB.Newest(l)
	if err != nil {
		return nil, false, err
	}
	now := b.reg.now()
	j := meter.Judgement{Terms: l.Terms, Newest: newest, Elapsed: l.Elapsed(now)}
	repeat, err := j.Precheck(tick)
	if err != nil || repeat != nil {
		return repeat, false, err
	}
	if l.Phase == lease.Closed && !l.Metered(now) {
		return nil, false, fmt.Errorf("market: lease %s is %s: %w", l.ID.Short(), l.Phase, lease.ErrTransition)
	}
	if !l.Metered(now) {
		return nil, false, fmt.Errorf("market: lease %s is %s: %w", l.ID.Short(), l.Phase, meter.ErrNotMeter)
	}
	if j.Verified, err = b.cfg.Verify(l, tick); err != nil {
		return nil, false, fmt.Errorf("market: lease %s: %w: %w", l.ID.Short(), meter.ErrWork, err)
	}
	b.money.Lock()
	defer b.money.Unlock()
	budget, capped, err := b.cfg.DB.Budget(l.Terms.Run)
	if err != nil {
		return nil, false, err
	}
	if !capped {
		budget = credit.Max
	}
	var paid credit.Micro
	if newest != nil {
		paid = newest.Amount
	}
	others := b.spent[l.Terms.Run] - paid
	j.Left = budget - min(budget, others)
	made, err := j.Receipt(tick)
	if err != nil {
		return nil, false, err
	}
	sealed, err := meter.SealReceipt(b.cfg.Net.Key(), made)
	if err != nil {
		return nil, false, err
	}
	if err := b.cfg.DB.PutReceipt(l.Terms, sealed, now); err != nil {
		return nil, false, err
	}
	b.spent[l.Terms.Run] += made.Amount - paid
	return &sealed, true, nil
}
