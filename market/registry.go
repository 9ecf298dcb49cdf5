package market

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/capacloud/capanode/market/journal"
	"github.com/capacloud/capanode/market/lease"
	"github.com/capacloud/capanode/market/meter"
)

// registry keeps one side's leases: it applies pure transitions, records each change of phase before it takes effect, runs
// the timers and re-arms them from the log. Leases that closed more than [lease.SettleTime] ago live in the log only.
type registry struct {
	role lease.Role
	db   *journal.DB
	now  func() time.Time
	log  *slog.Logger

	// changed is called with mu held after each change of phase; it must not block.
	changed func(t *tracked, before lease.Lease)

	mu     sync.Mutex
	leases map[lease.ID]*tracked
	kick   chan struct{} // wakes the timer loop

	ctx  context.Context // ends when the shell closes
	stop context.CancelFunc
	wg   sync.WaitGroup
}

// tracked is a lease with what must not be written down. ctx ends when the lease is no longer live.
type tracked struct {
	lease  lease.Lease
	ctx    context.Context
	cancel context.CancelFunc
	meter  sync.Mutex // one tick at a time
	pace   meter.Pace // of the ticks that came; guarded by meter
}

func newRegistry(role lease.Role, db *journal.DB, now func() time.Time, log *slog.Logger) *registry {
	if now == nil {
		now = steadyClock()
	}
	if log == nil {
		log = slog.Default()
	}
	r := &registry{role: role, db: db, now: now, log: log.With("role", string(role))}
	r.leases = make(map[lease.ID]*tracked)
	r.kick = make(chan struct{}, 1)
	r.ctx, r.stop = context.WithCancel(context.Background())
	return r
}

// load reads the leases of this role that are not over and re-arms their timers.
func (r *registry) load() error {
	all, err := r.db.Leases()
	if err != nil {
		return err
	}
	now := r.now()
	for _, l := range all {
		if l.Role != r.role || l.Phase == lease.Closed && !l.Metered(now) {
			continue
		}
		t := &tracked{lease: l.Rearm(now)}
		t.ctx, t.cancel = context.WithCancel(r.ctx)
		if l.Phase == lease.Closed {
			t.cancel()
		}
		r.leases[l.ID] = t
	}
	return nil
}

// start runs the timer loop.
func (r *registry) start() { r.wg.Go(r.loop) }

// close stops the loop, ends every lease's context and waits for all callbacks.
func (r *registry) close() {
	r.mu.Lock()
	r.stop()
	r.mu.Unlock()
	r.wg.Wait()
}

// spawn runs a callback; mu must be held. Nothing is started once the shell closes.
func (r *registry) spawn(f func()) {
	if r.ctx.Err() == nil {
		r.wg.Go(f)
	}
}

// add takes in a new lease after record has written it.
func (r *registry) add(l lease.Lease, record func(lease.Lease) error) error {
	if err := record(l); err != nil {
		return fmt.Errorf("market: record lease %s: %w", l.ID.Short(), err)
	}
	t := &tracked{lease: l}
	t.ctx, t.cancel = context.WithCancel(r.ctx)
	r.leases[l.ID] = t
	r.wake()
	return nil
}

// apply changes one lease. The change is recorded before it is visible when it changes the phase.
func (r *registry) apply(id lease.ID, change func(lease.Lease) (lease.Lease, error)) (lease.Lease, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := r.leases[id]
	if t == nil {
		return r.old(id)
	}
	return r.applyLocked(t, change)
}

func (r *registry) applyLocked(t *tracked, change func(lease.Lease) (lease.Lease, error)) (lease.Lease, error) {
	before := t.lease
	after, err := change(before)
	if err != nil {
		return before, err
	}
	if after.Phase == before.Phase {
		t.lease = after
		r.wake()
		return after, nil
	}
	if err := r.db.PutLease(after); err != nil {
		return before, fmt.Errorf("market: lease %s: %w", after.ID.Short(), err)
	}
	t.lease = after
	if after.Phase == lease.Closed || before.Live() && !after.Live() {
		t.cancel()
	}
	r.log.Info("lease", "id", after.ID.Short(), "peer", after.Other(), "phase", string(after.Phase), "was", string(before.Phase), "reason", string(after.Reason))
	r.changed(t, before)
	r.wake()
	return after, nil
}

// old answers for a lease that is in the log only: it is closed and does not change.
func (r *registry) old(id lease.ID) (lease.Lease, error) {
	l, found, err := r.db.Lease(id)
	if err != nil {
		return lease.Lease{}, err
	}
	if !found || l.Role != r.role {
		return lease.Lease{}, fmt.Errorf("market: lease %s: %w", id.Short(), lease.ErrUnknown)
	}
	return l, fmt.Errorf("market: lease %s is %s: %w", id.Short(), l.Phase, lease.ErrTransition)
}

// get returns one lease, from the log if need be.
func (r *registry) get(id lease.ID) (lease.Lease, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if t := r.leases[id]; t != nil {
		return t.lease, nil
	}
	l, err := r.old(id)
	if l.ID == id {
		return l, nil
	}
	return l, err
}

// find returns a tracked lease.
func (r *registry) find(id lease.ID) (*tracked, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if t := r.leases[id]; t != nil {
		return t, nil
	}
	_, err := r.old(id)
	return nil, err
}

// snapshot is the lease of a tracked record as it is now.
func (r *registry) snapshot(t *tracked) lease.Lease {
	r.mu.Lock()
	defer r.mu.Unlock()
	return t.lease
}

// list returns every lease of this role, closed ones included, in the order of their IDs.
func (r *registry) list() ([]lease.Lease, error) {
	all, err := r.db.Leases()
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []lease.Lease
	for _, l := range all {
		if l.Role != r.role {
			continue
		}
		if t := r.leases[l.ID]; t != nil {
			l = t.lease
		}
		out = append(out, l)
	}
	return out, nil
}

// heard notes a sign of life of the other side of a lease.
func (r *registry) heard(id lease.ID) (lease.Lease, error) {
	return r.apply(id, func(l lease.Lease) (lease.Lease, error) {
		after, _ := l.Heard(r.now())
		return after, nil
	})
}

func (r *registry) wake() {
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

// loop fires the timers.
func (r *registry) loop() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-r.ctx.Done():
			return
		case <-r.kick:
		case <-timer.C:
		}
		timer.Reset(r.expire())
	}
}

// expire applies every timer that has fired and returns the time until the next one.
func (r *registry) expire() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	now, wait := r.now(), time.Hour
	for id, t := range r.leases {
		if t.lease.Phase == lease.Closed && !t.lease.Metered(now) {
			delete(r.leases, id)
			continue
		}
		_, err := r.applyLocked(t, func(l lease.Lease) (lease.Lease, error) {
			after, _ := l.Expire(now)
			return after, nil
		})
		if err != nil {
			r.log.Error("lease timer", "id", id.Short(), "err", err)
			wait = min(wait, time.Second)
			continue
		}
		due, armed := t.lease.Due()
		if t.lease.Phase == lease.Closed {
			due, armed = time.UnixMilli(t.lease.ClosedMs).Add(lease.SettleTime), true
		}
		if armed {
			wait = min(wait, max(due.Sub(now), 0)+time.Millisecond)
		}
	}
	// applyLocked woke the loop that is running right now.
	select {
	case <-r.kick:
	default:
	}
	return wait
}
