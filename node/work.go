package node

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/market"
	"github.com/capacloud/capanode/market/lease"
	"github.com/capacloud/capanode/market/meter"
	"github.com/capacloud/capanode/p2p/wire"
	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/dataset"
	"github.com/capacloud/capanode/storage/transfer"
	"github.com/capacloud/capanode/trainer/data"
	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/job"
	"github.com/capacloud/capanode/trainer/round"
	"github.com/capacloud/capanode/trainer/tokenizer"
	"github.com/capacloud/capanode/trainer/worker"
)

// cacheBytes is how much memory decoded shards may take on a provider.
const cacheBytes = 256 << 20

// task is the work of one lease: fetch the job and its shards, train, publish checkpoints, tick.
type task struct {
	p     *provider
	lease lease.Lease
	run   cid.Cid
	blobs blobs
	rec   job.Record
	tok   tokenizer.Tokenizer // of the dataset; the checkpoints carry it
	fixed frozen              // what the run does not train

	drain chan struct{} // closed to end after the round that is under way

	mu     sync.Mutex
	reason lease.Reason // why drain was closed
	work   market.Work  // cumulative
	log    Run
}

// work does what a lease is for. It returns when the lease is no longer live.
func (p *provider) work(ctx context.Context, l lease.Lease) {
	t := &task{
		p: p, lease: l, run: l.Terms.Run.Cid, drain: make(chan struct{}),
		blobs: blobs{store: p.store, fetch: p.fetch, class: storage.Cached, near: func() []peer.ID { return p.neighbours(l.Terms.Requester) }},
	}
	p.emit(ProviderEvent{State: "leased", Lease: l.ID.Short(), Run: t.run.String(), Free: p.seller.Free()})
	p.tasks.Store(l.ID, t)
	defer p.tasks.Delete(l.ID)
	if now, err := p.seller.Get(l.ID); err == nil && (now.Phase == lease.Draining || now.Phase == lease.Reclaiming) {
		t.stop(now.Reason) // before this process started, or a moment ago
	}
	reason, err := t.do(ctx)
	defer p.over(t)
	if ctx.Err() != nil {
		return // the lease is over, or the next process resumes it
	}
	detail := ""
	if err != nil {
		detail = err.Error()
		p.log.Error("work", "lease", l.ID.Short(), "err", err)
	}
	p.emit(ProviderEvent{State: "done", Lease: l.ID.Short(), Run: t.run.String(), Detail: detail})
	// The lease's context ends with the close, and the requester is to be told of it.
	if err := p.seller.CloseLease(context.WithoutCancel(ctx), l.ID, reason); err != nil {
		p.log.Debug("close", "lease", l.ID.Short(), "err", err)
	}
}

// do trains to the end of the run, or until the provider drains, and settles. It returns the reason to close the lease for.
func (t *task) do(ctx context.Context) (lease.Reason, error) {
	var err error
	if t.work, err = t.p.seller.Done(t.lease.ID); err != nil {
		return lease.BadWork, err
	}
	source, err := t.reach(ctx)
	if why, asked := t.draining(); asked && err != nil {
		return why, err
	}
	if err != nil {
		return closeReason(err), err
	}
	if err := t.train(ctx, source); err != nil {
		return closeReason(err), errors.Join(err, t.settle(ctx))
	}
	err = t.settle(ctx)
	if why, asked := t.draining(); asked {
		return why, err
	}
	// The run is over; the requester fetches the model and closes the lease. Bytes stay available meanwhile. Ticks go on, so
	// that a requester that was away for the end learns the model and pays for the last rounds when it comes back.
	waiting, cancel := context.WithCancel(ctx)
	defer cancel()
	var ticking sync.WaitGroup
	defer ticking.Wait()
	defer cancel()
	ticking.Go(func() { t.tickOn(waiting) })
	select {
	case <-ctx.Done():
	case <-t.drain:
		why, _ := t.draining()
		return why, err
	case <-t.p.quit:
	}
	return lease.Shutdown, err
}

// reachTime is how long a provider looks for a job that nobody delivers.
const reachTime = 2 * time.Minute

// reach fetches the job, and tries again while nobody can be reached who has it: a requester that restarts is not there for
// a moment.
func (t *task) reach(ctx context.Context) (*data.Source, error) {
	until := time.Now().Add(reachTime)
	for wait := time.Second; ; wait = min(2*wait, 15*time.Second) {
		source, err := t.fetch(ctx)
		if err == nil || !errors.Is(err, transfer.ErrNoProviders) || time.Now().After(until) {
			return source, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-t.drain:
			return nil, err
		case <-time.After(wait):
		}
	}
}

// closeReason tells the requester why its lease ends with an error: a job that is too large for this device, or that
// nobody delivers, is nobody's bad work.
func closeReason(err error) lease.Reason {
	switch {
	case errors.Is(err, ErrJob) || errors.Is(err, engine.ErrMemory):
		return lease.Capacity
	case errors.Is(err, transfer.ErrNoProviders):
		return lease.Unresponsive
	}
	return lease.BadWork
}

// memory is what one slot offers, in bytes.
func (p *provider) memory() int64 { return p.limit }

// fetch brings the job record and the dataset's manifest. Shards come when they are read.
func (t *task) fetch(ctx context.Context) (*data.Source, error) {
	raw, err := t.blobs.Get(ctx, t.run, nil, wire.MaxRecord)
	if err != nil {
		return nil, fmt.Errorf("fetch the job of run %s: %w", t.run, err)
	}
	if t.rec, err = job.Decode(raw); err != nil {
		return nil, fmt.Errorf("run %s: %w", t.run, err)
	}
	if !bytes.Equal(t.rec.Owner, []byte(t.lease.Terms.Requester)) {
		return nil, fmt.Errorf("run %s: %w: its owner is not who leased this slot", t.run, ErrNotAllowed)
	}
	if err := fits(t.rec, t.p.memory()); err != nil { // before anything else is fetched for it
		return nil, fmt.Errorf("run %s: %w", t.run, err)
	}
	source, err := openSource(ctx, t.blobs, t.rec)
	if err != nil {
		return nil, err
	}
	if t.tok, err = openTokenizer(ctx, t.blobs, t.rec.Tokenizer); err != nil {
		return nil, fmt.Errorf("run %s: %w", t.run, err)
	}
	if err := t.fetchBase(ctx); err != nil {
		return nil, err
	}
	t.log = Run{ID: t.run.String(), Name: t.rec.Name, Role: "provider", State: RunTraining, Started: time.Now().UTC(),
		Rounds: t.rec.Rounds, Steps: t.rec.Steps(), Dataset: t.rec.Dataset.String()}
	old, err := t.p.runs.load(t.log.ID)
	switch {
	case errors.Is(err, ErrNotFound):
	case err != nil:
		return nil, err
	default:
		t.log.Started = old.Started
		if old.Lease == t.lease.ID.String() { // rounds that an earlier process counted and did not live to claim
			t.log.Round, t.log.Step = old.Round, old.Step
			t.work.Tokens, t.work.Rounds = max(t.work.Tokens, old.OwnTokens), max(t.work.Rounds, old.OwnRounds)
		}
	}
	t.log.Lease, t.log.OwnTokens, t.log.OwnRounds = t.lease.ID.String(), t.work.Tokens, t.work.Rounds
	return source, t.p.runs.save(t.log)
}

// train runs the worker, and a tick now and then beside it.
func (t *task) train(ctx context.Context, source *data.Source) error {
	eng, err := buildEngine(t.rec, t.p.engine, t.p.memory(), t.p.o.Threads)
	if err != nil {
		return err
	}
	defer eng.Close()
	if err := t.start(ctx, eng); err != nil {
		return err
	}
	plan, err := workerPlan(t.rec)
	if err != nil {
		return err
	}
	dir, err := t.p.home.sub("runs", t.run.String(), snapshots)
	if err != nil {
		return err
	}
	var ticking sync.WaitGroup
	tickCtx, stopTicks := context.WithCancel(ctx)
	ticking.Go(func() { t.tickOn(tickCtx) })
	ticking.Go(func() { t.prefetch(tickCtx, source.Manifest()) })
	ticking.Go(func() {
		select {
		case <-t.p.quit:
			t.stop(lease.Shutdown)
		case <-tickCtx.Done():
		}
	})
	t.p.emit(ProviderEvent{State: "working", Lease: t.lease.ID.Short(), Run: t.run.String()})
	res, err := worker.Run(ctx, worker.Config{
		Run: t.run, Owner: t.lease.Terms.Requester, Plan: plan, Engine: eng, Numerics: numerics(t.p.engine),
		Net: t.p.net, Blobs: t.blobs, Data: source, SnapshotDir: dir, States: t.p.states, Drain: t.drain, Log: t.p.log,
		Hooks: worker.Hooks{
			OnRound:      t.onRound,
			OnCheckpoint: func(s *round.State) error { return t.checkpoint(ctx, s) },
			OnWarning:    func(err error) { t.p.log.Warn("run", "run", t.run, "err", err) },
		},
	})
	stopTicks()
	ticking.Wait()
	if why, asked := t.draining(); err == nil && asked && why != lease.Shutdown && res.Rounds > 0 && res.State.Steps < t.rec.Steps() {
		return t.checkpoint(ctx, res.State) // the requester ends the run early and keeps what there is
	}
	return err
}

// prefetch brings the shards before they are needed, so that the members together hold the dataset soon and the requester
// may go. Each starts at another shard. A dataset that would take more than half of the quota is read as it is needed.
func (t *task) prefetch(ctx context.Context, m dataset.Manifest) {
	var bytes uint64
	for _, s := range m.Shards {
		bytes += s.Bytes // a checked manifest bounds both
	}
	if bytes > uint64(t.p.cfg.Quota/2) || len(m.Shards) == 0 {
		return
	}
	sum := sha256.Sum256([]byte(t.p.id))
	first := int(binary.BigEndian.Uint32(sum[:4])) % len(m.Shards)
	for i := range m.Shards {
		s := m.Shards[(first+i)%len(m.Shards)]
		if err := t.p.fetch.FetchWithin(ctx, s.CID.Cid, int64(s.Bytes), t.blobs.near()); err != nil {
			t.p.log.Info("prefetch", "shard", s.CID, "err", err) // it is asked for again when it is needed
		}
		if ctx.Err() != nil {
			return
		}
	}
}

// stop ends the work after the round that is under way; the first reason counts.
func (t *task) stop(why lease.Reason) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.reason == "" {
		t.reason = why
		close(t.drain)
	}
}

// draining tells whether the task was asked to end, and why.
func (t *task) draining() (lease.Reason, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.reason, t.reason != ""
}

// onRound counts the own share of a committed round, durably: after a crash it is claimed by the next process. A round that
// is committed again because a fork healed is not counted twice.
func (t *task) onRound(r worker.Report) {
	own := r.Work[t.p.id]
	t.mu.Lock()
	if own > 0 && r.Round >= t.log.Round {
		t.work.Tokens += own
		t.work.Rounds++
	}
	t.log.Round, t.log.Step, t.log.Tokens, t.log.Loss = max(t.log.Round, r.Round+1), max(t.log.Step, r.Steps), r.Total, r.Loss
	t.log.OwnTokens, t.log.OwnRounds = t.work.Tokens, t.work.Rounds
	log := t.log
	t.mu.Unlock()
	if err := t.p.runs.save(log); err != nil {
		t.p.log.Warn("run record", "err", err)
	}
	t.p.emit(ProviderEvent{State: "round", Lease: t.lease.ID.Short(), Run: t.run.String(), Round: r.Round + 1, Loss: r.Loss, Tokens: own})
}

// checkpoint publishes the model of a committed state as a folder in the store. Equal states give equal CIDs, so members
// publish the same one; the next tick carries it.
func (t *task) checkpoint(ctx context.Context, s *round.State) error {
	c, err := publishModel(ctx, t, s)
	if err != nil {
		return err
	}
	t.mu.Lock()
	t.work.State = c.Bytes()
	t.log.Checkpoint = c.String()
	log := t.log
	t.mu.Unlock()
	return t.p.runs.save(log)
}

// creditLine is how many ticks in a row a provider works on without pay for new work, while the requester is there.
const creditLine = 12

// tickOn sends a tick at every interval of the lease.
func (t *task) tickOn(ctx context.Context) {
	ticker := time.NewTicker(time.Duration(t.lease.Terms.TickSeconds) * time.Second)
	defer ticker.Stop()
	var line tally
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		claimed, paid, err := t.tick(ctx)
		switch {
		case errors.Is(err, meter.ErrBudget):
			t.p.log.Warn("the requester's budget is exhausted; leaving after this round", "lease", t.lease.ID.Short())
			t.stop(lease.OverBudget)
		case ctx.Err() == nil && line.spent(claimed.Units, paid.Units, err) && t.heard():
			t.p.log.Warn("the requester does not pay for new work; leaving after this round", "lease", t.lease.ID.Short())
			t.stop(lease.Unpaid)
		}
	}
}

// heard tells whether the requester is there: its heartbeats come. While it is away the lease's own timers decide.
func (t *task) heard() bool {
	l, err := t.p.seller.Get(t.lease.ID)
	return err == nil && l.Phase == lease.Active
}

// tick claims the work so far and takes the receipt. It returns what was claimed and what was paid for.
func (t *task) tick(ctx context.Context) (claimed market.Work, paid meter.Receipt, err error) {
	t.mu.Lock()
	claimed = t.work
	t.mu.Unlock()
	if claimed.Units, err = t.rec.WorkUnits(claimed.Tokens); err != nil {
		return claimed, paid, err
	}
	paid, err = t.p.seller.SendTick(ctx, t.lease.ID, claimed)
	if err != nil && ctx.Err() == nil {
		t.p.log.Info("tick", "lease", t.lease.ID.Short(), "err", err)
	}
	return claimed, paid, err
}

// settle ticks until everything is paid for: the requester may hear of the last round a moment later than its members. It
// gives up after [lease.SettleTime]; what was not paid then stays visible in the ledger as the gap between tick and receipt.
func (t *task) settle(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, lease.SettleTime)
	defer cancel()
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		claimed, paid, err := t.tick(ctx)
		if err == nil && paid.Units >= claimed.Units {
			return nil
		}
		if errors.Is(err, meter.ErrBudget) || errors.Is(err, lease.ErrTransition) || errors.Is(err, lease.ErrUnknown) || errors.Is(err, meter.ErrNotMeter) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("last tick of lease %s: %w: %w", t.lease.ID.Short(), ctx.Err(), err)
		case <-time.After(wait):
		}
	}
}
