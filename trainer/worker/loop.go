package worker

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/capacloud/capanode/p2p/wire"
	"github.com/capacloud/capanode/trainer/codec"
	"github.com/capacloud/capanode/trainer/outer"
	"github.com/capacloud/capanode/trainer/round"
)

// Run takes part in a run until all rounds are committed, until Config.Drain closes, or until the context ends. The result
// is valid in all three cases; the error is nil in the first two. A worker that is killed at any instant goes on from its
// last snapshot, or from its mates' state when they are ahead.
func Run(ctx context.Context, cfg Config) (Result, error) {
	if err := cfg.check(); err != nil {
		return Result{}, err
	}
	w, err := open(cfg)
	if err != nil {
		return Result{}, err
	}
	defer w.close()
	err = w.join(ctx)
	for over := false; err == nil && !over; {
		switch {
		case w.over():
			over, err = w.linger(ctx)
		case w.draining():
			over = true
		default:
			err = w.round(ctx)
		}
	}
	w.enter(round.PhaseLeaving)
	if w.components && w.saved != w.state.Round {
		w.snapshot(0, 0) // who leaves in good order loses no round
	}
	w.result.State = w.state
	return w.result, err
}

// round takes the worker one step further: usually from one committed state to the next. An attempt that comes to nothing
// leaves everything as it was, and the next call tries again.
func (w *worker) round(ctx context.Context) error {
	if w.listen && w.pace().finale != nil {
		return w.sitOut(ctx)
	}
	// A mate holds a state that beats ours: a fork to heal, or rounds that we missed.
	if claim, ok := w.beaten(); ok {
		return w.adopt(ctx, claim)
	}
	if !w.listen && w.own == nil {
		if err := w.contribute(ctx); err != nil || w.listen && w.pace().finale != nil {
			return err
		}
	}
	// Two halves of a swarm that met again each look best to themselves right after a commit of their own. Now, a round's work
	// later, the comparison is fair; only a mate that went on from our very state is no fork but merely faster.
	if claim, ok := w.beaten(); ok && !w.follows(claim) {
		return w.adopt(ctx, claim)
	}
	w.runAhead(ctx)
	end, blobs, err := w.exchange(ctx)
	if err != nil {
		return err
	}
	switch end := end.(type) {
	case round.Decide:
		return w.commit(ctx, end, blobs)
	case round.Heal:
		return w.heal(ctx, end.From)
	case round.Abort:
		if errors.Is(end.Why, round.ErrAlone) {
			w.listen, w.members = false, nil // nobody of the view is left
			return nil
		}
		w.retry++
		if !w.listen {
			w.warn(fmt.Errorf("worker: round %d, attempt %d: %w", w.state.Round, w.retry, end.Why))
		}
	}
	return nil
}

// contribute makes this peer's update of the round: what its local steps gave, or what its side of a fork had trained.
func (w *worker) contribute(ctx context.Context) error {
	if w.pace().finale != nil {
		w.lost = nil
		return w.offerWeights(ctx)
	}
	if w.lost != nil {
		if err := w.offerMerge(ctx); err != nil || w.own != nil {
			return err
		}
	}
	return w.train(ctx)
}

// own is this peer's update of the current round, kept until the round commits.
type own struct {
	round.Signed
	message []byte       // the sealed header
	decoded codec.Source // what the mates will decode from the blob
	slice   codec.Source // of the weights to be healed, as decoded; nil when there is none
	compute time.Duration
	lap     *lap // that it came of; nil for weights, merges and gradients, which leave moments as they are
	said    bool
}

// commit aggregates the decided set, steps the outer optimiser and announces the next state.
func (w *worker) commit(ctx context.Context, d round.Decide, blobs exchanged) error {
	began := time.Now()
	accepted := round.Accept(d.Headers)
	b := w.pace()
	own := w.own != nil && slices.ContainsFunc(accepted, func(h round.Signed) bool { return h.ID == w.own.ID })
	if b.finale != nil && !own {
		w.listen = true // the others go on without these weights
		return nil
	}
	report := w.report(accepted, blobs)
	from, to := w.fragment(b)
	since := w.state.Steps
	moved, err := w.advance(d.Headers, accepted, blobs, b)
	if err != nil {
		return fmt.Errorf("worker: round %d: %w", report.Round, err)
	}
	if err := w.credit(own); err != nil {
		return err
	}
	if moved { // a merge moves all of the weights
		w.dropLap()
		w.rewind()
	}
	w.settleLap(from, to, own)
	w.noticeMembers()
	report.Next, report.Total, report.Steps, report.Comm = w.hash, w.state.Tokens, w.state.Steps, blobs.comm+time.Since(began)
	if len(report.Contributors) > 1 || !w.cfg.Plan.gradients() { // who is alone learns nothing about the links
		w.noticeWait(report.Compute, blobs.wait+time.Since(began))
	}
	w.result.Rounds++
	w.publish(ctx, round.Commit{
		Version: round.Version, Run: wire.Link{Cid: w.cfg.Run}, Round: report.Round, Parent: report.Parent, Set: d.IDs,
		Next: report.Next, Total: report.Total, Steps: report.Steps, Tokens: report.Tokens, Loss: int64(math.Round(report.Loss * 1e6)),
		Up: report.Up, Down: report.Down, Compute: uint64(report.Compute.Milliseconds()), Comm: uint64(report.Comm.Milliseconds()),
	})
	w.settle(false)
	w.snapshotIfDue(from, to)
	if w.cfg.Hooks.OnRound != nil {
		w.cfg.Hooks.OnRound(report)
	}
	w.checkpoint(since)
	return nil
}

// credit closes the books of the own update. Error feedback is transactional: only what entered the state leaves the
// residual; otherwise the update is dropped whole, its samples are free again, and the residual stays what it was.
func (w *worker) credit(accepted bool) error {
	switch {
	case !accepted:
		w.feedback.Abort()
	case w.own.Merge != nil:
		w.lost = nil
	case w.own.Role == round.RoleWeights:
		w.feedback.Reset() // all is said
	default:
		if err := w.feedback.Commit(w.own.decoded); err != nil {
			return fmt.Errorf("worker: round %d: %w", w.own.Round, err)
		}
		w.restored = false
		w.result.Contributed++
		w.result.Tokens += w.own.Tokens
	}
	return nil
}

// advance moves the state; its readers are locked out meanwhile. Of the accepted updates those of the own group move the weights:
// what the losing side of a fork brings back first, then the outer step on the mean, then the healing slice. The ledger goes
// by those of all groups. whole reports whether all of the weights moved.
func (w *worker) advance(set, accepted []round.Signed, blobs exchanged, b pace) (whole bool, err error) {
	mates := slices.DeleteFunc(slices.Clone(accepted), func(h round.Signed) bool { return !blobs.mate(h) || h.Role == round.RoleHello })
	w.mu.Lock()
	defer w.mu.Unlock()
	if b.finale != nil {
		whole, err = true, w.assemble(mates, blobs, b)
	} else {
		whole, err = w.average(mates, blobs, b)
	}
	if err != nil {
		return whole, err
	}
	w.state.Advance(set, accepted, w.turn(b))
	w.hash = w.state.Key()
	w.lineage = w.lineage.Add(round.Ancestor{State: w.hash, Tokens: w.state.Tokens})
	return whole, nil
}

// average moves the weights by the updates of the own group. merged reports whether one brought back the losing side of a fork.
func (w *worker) average(mates []round.Signed, blobs exchanged, b pace) (merged bool, err error) {
	from, to := w.fragment(b)
	var updates []outer.Update
	for _, h := range mates {
		if h.Merge == nil {
			updates = append(updates, outer.Update{Delta: blobs.sources[h.ID], Tokens: h.Tokens})
			continue
		}
		if err := outer.Move(w.state.Weights, blobs.sources[h.ID], h.Merge.Share(w.state.Tokens, h.Tokens)); err != nil {
			return false, err
		}
		w.lineage = w.lineage.Add(round.Ancestor{State: h.Merge.State, Tokens: round.Merged})
		merged = true
	}
	if len(updates) == 0 {
		return merged, nil
	}
	mean := w.mean[:to-from]
	if err := outer.Mean(mean, updates); err != nil {
		return merged, err
	}
	if b.gradients {
		plan := w.cfg.Plan
		return merged, w.signs.Step(w.state.Weights, mean, plan.Schedule.At(w.state.Steps), plan.Inner.WeightDecay)
	}
	if err := b.outer.Step(w.state.Weights[from:to], w.state.Momentum[from:to], mean); err != nil {
		return merged, err
	}
	return merged, w.healSlice(mates, blobs, b)
}

// settle ends a round: the own update is void, and whoever just took the state from a mate listens for one round, so that
// nobody has to wait for it.
func (w *worker) settle(adopted bool) {
	w.own, w.retry, w.hellos, w.listen, w.members = nil, 0, nil, adopted, nil
	w.limit = normLimit(w.state.Weights)
	w.forget()
	if adopted {
		w.enter(round.PhaseListening)
	} else {
		w.enter(round.PhaseExchanging)
	}
}

// beaten returns the best claim among the live mates if it beats the own state.
func (w *worker) beaten() (round.Claim, bool) {
	var claims []round.Claim
	now := time.Now()
	for _, m := range w.board.mates(now) {
		if m.claim.Steps <= w.cfg.Plan.TotalSteps() && now.Sub(w.doubted[m.id]) > doubtTime {
			claims = append(claims, m.claim)
		}
	}
	return round.Best(w.claim(), claims, w.cfg.Plan.mostPerStep())
}

// follows reports whether the claimed state is the one after ours: its holder committed the round that we are in.
func (w *worker) follows(claim round.Claim) bool {
	c, ok := w.board.about(w.state.Round, w.hash).commits[claim.Peer]
	return ok && c.Next == claim.State
}
