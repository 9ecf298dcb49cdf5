package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/market/credit"
	"github.com/capacloud/capanode/market/lease"
	"github.com/capacloud/capanode/trainer/worker"
)

// Waits of the conductor.
const (
	settleWait  = 45 * time.Second // for last ticks and checkpoints after the last round
	desertWait  = 2 * time.Minute  // for a replacement when no member is left
	conductTick = 500 * time.Millisecond
)

// conduct leases, follows the rounds and ends the run.
func (r *requester) conduct(ctx context.Context) error {
	began := time.Now()
	r.heard = map[peer.ID]time.Time{}
	r.models = map[cid.Cid]*pulled{}
	if err := r.recall(); err != nil {
		return err
	}
	r.log.State, r.log.Reason = RunTraining, ""
	if err := r.runs.save(r.log); err != nil {
		return err
	}
	var err error
	r.observer, err = worker.Observe(worker.ObserveConfig{
		Run: r.run, Owner: r.id, MostTokens: r.worker.MostTokens(), Net: r.net, Log: r.Node.log,
		OnRound: func(report worker.Report) { r.tell(report) },
	})
	if err != nil {
		return err
	}
	r.onClose(func() error { r.hangUp(); return r.observer.Close() })
	if err := r.hire(ctx); err != nil {
		return err
	}
	if len(r.gang.leases) > 0 {
		if err := r.observer.SetMembers(r.members()); err != nil {
			return err
		}
	}
	why := r.follow(ctx)
	if ctx.Err() != nil {
		return context.Cause(ctx) // at once: leases and rounds go on without us
	}
	return r.end(ctx, began, why)
}

// follow lives through the rounds until the last one is committed (nil) or something ends the run early.
func (r *requester) follow(ctx context.Context) error {
	ticker := time.NewTicker(conductTick)
	defer ticker.Stop()
	var deserted time.Time
	for r.log.Step < r.rec.Steps() && !r.trained() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-r.o.Stop:
			return ErrInterrupted
		case news := <-r.news:
			if err := r.heed(ctx, news); err != nil {
				return err
			}
		case now := <-ticker.C:
			if err := r.abandoned(); err != nil {
				return err
			}
			r.silent(ctx)
			if err := r.refill(ctx, now); err != nil {
				return err
			}
			if len(r.gang.leases) > 0 {
				deserted = time.Time{}
				continue
			}
			if deserted.IsZero() {
				deserted = now
			}
			if now.Sub(deserted) > desertWait {
				return fmt.Errorf("%w: no member is left and none could be leased; run the same command again to continue", ErrTryLater)
			}
		}
	}
	return nil
}

// heed takes in one piece of news.
func (r *requester) heed(ctx context.Context, news any) error {
	switch n := news.(type) {
	case worker.Report:
		return r.committed(n)
	case tickSeen:
		r.claims[n.provider], r.heard[n.provider] = n.checkpoint, time.Now()
	case receiptMade:
		r.emit(ReceiptEvent{Type: "receipt", Run: r.run.String(), Lease: n.lease.ID.String(), Peer: n.lease.Terms.Provider.String(),
			Nonce: n.receipt.Nonce, Tokens: n.receipt.Tokens, Units: n.receipt.Units, Amount: credits(n.receipt.Amount)})
		if r.budget() > 0 && r.buyer.Spent(r.link()) >= r.budget() {
			return ErrBudget
		}
	case tickRefused:
		if isBudget(n.err) {
			return ErrBudget
		}
		r.emit(WarningEvent{Type: "warning", Run: r.run.String(), Warning: n.err.Error()})
	case leaseClosed:
		return r.left(ctx, n.lease)
	}
	return nil
}

// committed takes in a committed round: first onto the disk, since receipts rest on it, then to whoever watches.
func (r *requester) committed(report worker.Report) error {
	if err := r.verified.add(report); err != nil {
		return err
	}
	now := time.Now()
	took := now.Sub(r.lastRound)
	if r.lastRound.IsZero() {
		took = report.Compute + report.Comm
	}
	r.lastRound = now
	if report.Round+1 >= r.log.Round {
		r.log.Round, r.log.Tokens, r.log.Loss = report.Round+1, report.Total, report.Loss
	}
	steps := report.Steps - min(report.Steps, r.log.Step)
	r.countBytes(report, steps)
	r.log.Rounds = report.Round + 1 + r.worker.RoundsAfter(report.Steps)
	left := r.rec.Steps() - min(r.rec.Steps(), report.Steps)
	spent := r.buyer.Spent(r.link())
	r.log.Spent = credits(spent)
	if err := r.runs.save(r.log); err != nil {
		return err
	}
	r.emit(RoundEvent{
		Type: "round", Run: r.run.String(), Round: report.Round + 1, Rounds: r.log.Rounds, Step: report.Steps, Steps: r.rec.Steps(), Loss: report.Loss, Tokens: report.Total,
		TokensPerSecond: float64(report.Tokens) / max(took.Seconds(), 1e-3), Peers: report.Senders,
		BytesUp: report.Up * uint64(report.Senders), BytesDown: report.Down * uint64(report.Senders),
		CommSeconds: seconds(report.Comm), ComputeSeconds: seconds(report.Compute), Spent: credits(spent), State: report.Next.String(),
		ETASeconds: took.Seconds() * float64(left) / float64(max(steps, 1)),
	})
	return nil
}

// countBytes sums what the members fetched, and what data-parallel training would have moved: a ring all-reduce of fp32
// gradients sends 2(N−1)/N gradients to and from each of N members in every step.
func (r *requester) countBytes(report worker.Report, steps uint64) {
	members := uint64(report.Senders)
	r.log.Step = max(r.log.Step, report.Steps)
	if members == 0 || steps == 0 && report.Replaces { // a round that was reported before, in another version
		return
	}
	r.log.Bytes += report.Down * members
	r.log.RingBytes += 2 * (members - 1) * 4 * uint64(r.params) * steps
}

// end settles, fetches the model and reports. why is nil when all rounds are committed.
func (r *requester) end(ctx context.Context, began time.Time, why error) error {
	if why != nil {
		for id := range r.gang.leases {
			reason := lease.RequesterDone
			if errors.Is(why, ErrBudget) {
				reason = lease.OverBudget
			}
			if err := r.buyer.Drain(ctx, id, reason); err != nil {
				r.Node.log.Debug("drain", "lease", id.Short(), "err", err)
			}
		}
	}
	complete := why == nil
	if broke := r.settle(ctx, complete); complete {
		why = broke
	}
	if ctx.Err() != nil {
		return context.Cause(ctx) // at once: the next process goes on from here
	}
	model, err := r.collect(ctx, complete)
	why = errors.Join(why, err)
	r.dismiss(ctx, lease.RequesterDone)
	done := DoneEvent{Type: "done", Run: r.run.String(), FinalLoss: r.log.Loss, Tokens: r.log.Tokens, Rounds: r.log.Round,
		Seconds: seconds(time.Since(began)), Spent: credits(r.buyer.Spent(r.link())), Replaced: r.gang.replaced,
		Bytes: r.log.Bytes, RingBytes: r.log.RingBytes,
		FirstLease: float64(r.gang.first.Microseconds()) / 1e3}
	if done.WorkUnits, err = r.paidUnits(); err != nil {
		return errors.Join(why, err)
	}
	if model != nil {
		done.Checkpoint, done.ValLoss, done.Out = model.cid.String(), model.loss, r.o.Out
		if model.model.adapter != nil {
			done.Adapter = adapterDir(r.o.Out)
		}
		r.log.Checkpoint = done.Checkpoint
	}
	r.log.Spent, r.log.State = done.Spent, RunDone
	if why != nil {
		r.log.State, r.log.Reason = RunStopped, why.Error()
	}
	if err := r.runs.save(r.log); err != nil {
		return errors.Join(why, err)
	}
	if why == nil {
		r.emit(done)
	}
	return why
}

// settle waits until every member that is still there has been paid for all it did and, at the end of a run, has published
// the final model. The error is [ErrBudget] when the money ended before the work was paid.
func (r *requester) settle(ctx context.Context, whole bool) (broke error) {
	ctx, cancel := context.WithTimeout(ctx, settleWait)
	defer cancel()
	again := time.NewTicker(conductTick)
	defer again.Stop()
	stop := r.o.Stop
	for !r.settled(ctx, whole) {
		select {
		case <-again.C: // a silent member counts as gone in time
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				r.emit(WarningEvent{Type: "warning", Run: r.run.String(), Warning: "some members did not settle in time"})
			}
			return broke
		case <-stop:
			stop = nil // asked to end: that is what happens here
		case news := <-r.news:
			if refused, ok := news.(tickRefused); ok && isBudget(refused.err) {
				broke = ErrBudget
			}
			if closed, ok := news.(leaseClosed); ok { // a member that drained and left
				delete(r.gang.leases, closed.lease.ID)
				r.emit(r.leaseEvent(closed.lease))
			} else if err := r.heed(ctx, news); err != nil && !errors.Is(err, ErrBudget) {
				r.emit(WarningEvent{Type: "warning", Run: r.run.String(), Warning: err.Error()})
			}
		}
	}
	return broke
}

// settled tells whether nothing is left to wait for: at the end of a run, when every lease's newest receipt carries the
// same checkpoint and covers all that its member committed; after a stop, when every lease has closed. Members that are gone are not waited for.
func (r *requester) settled(ctx context.Context, whole bool) bool {
	if !whole {
		for _, l := range r.gang.leases {
			if !r.gone(l.Terms.Provider) {
				return false
			}
		}
		return true
	}
	var same cid.Cid
	waiting := false
	for _, l := range r.gang.leases {
		if r.gone(l.Terms.Provider) {
			continue
		}
		waiting = true
		newest, err := r.db.Newest(l)
		if err != nil || newest == nil {
			return false
		}
		c, err := cid.Cast(newest.State)
		if err != nil || same.Defined() && c != same {
			return false
		}
		same, r.claims[l.Terms.Provider] = c, c // the news of it may be on its way
		due, err := r.payable(l, newest.Tokens)
		if err != nil || newest.Units < due {
			return false
		}
	}
	return !waiting || same.Defined() && r.isFinal(ctx, same)
}

// goneAfter is how long a member may be silent before the end of a run no longer waits for it: long enough for one that
// has left the rounds in good order to send its last tick.
const goneAfter = 15 * time.Second

// gone tells whether a member has not been heard of for a while.
func (r *requester) gone(id peer.ID) bool {
	for _, m := range r.observer.Members() {
		if m.ID == id && m.Live {
			r.heard[id] = time.Now()
		}
	}
	return time.Since(r.heard[id]) > goneAfter || r.abandoned() != nil
}

// abandoned returns an error when the run is local and all its providers have ended: nobody else can ever take part.
func (r *requester) abandoned() error {
	if r.local == nil {
		return nil
	}
	return r.local.Lost(1)
}

// cap is the run's budget as the market wants it: the largest amount when there is none.
func (r *requester) cap() credit.Micro {
	if b := r.budget(); b > 0 {
		return b
	}
	return lease.MaxBudget
}
