package worker

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/p2p/wire"
	"github.com/capacloud/capanode/trainer/codec"
	"github.com/capacloud/capanode/trainer/engine"
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
		case w.state.Round >= cfg.Plan.Rounds:
			over, err = w.linger(ctx)
		case w.draining():
			over = true
		default:
			err = w.round(ctx)
		}
	}
	w.enter(round.PhaseLeaving)
	w.result.State = w.state
	return w.result, err
}

// round takes the worker one step further: usually from one committed state to the next. An attempt that comes to nothing
// leaves everything as it was, and the next call tries again.
func (w *worker) round(ctx context.Context) error {
	// A mate holds a state that beats ours: a fork to heal, or rounds that we missed.
	if claim, ok := w.beaten(); ok {
		return w.adopt(ctx, claim)
	}
	if !w.listen && w.own == nil {
		if err := w.train(ctx); err != nil {
			return err
		}
	}
	// Two halves of a swarm that met again each look best to themselves right after a commit of their own. Now, a round's work
	// later, the comparison is fair; only a mate that went on from our very state is no fork but merely faster.
	if claim, ok := w.beaten(); ok && !w.follows(claim) {
		return w.adopt(ctx, claim)
	}
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
			w.listen = false
			return nil
		}
		w.retry++
		if !w.listen {
			w.warn(fmt.Errorf("worker: round %d, attempt %d: %w", w.state.Round, w.retry, end.Why))
		}
	}
	return nil
}

// errData marks samples that could not be read now. Whoever has the shard may be back for the next round.
var errData = errors.New("samples are out of reach")

// own is this peer's update of the current round, kept until the round commits.
type own struct {
	round.Signed
	message []byte       // the sealed header
	decoded codec.Source // what the mates will decode from the blob
	compute time.Duration
}

// train runs the local steps from the committed state and publishes nothing yet: θ starts at φ, the update is θ − φ plus
// what earlier rounds lost to the codec.
func (w *worker) train(ctx context.Context) error {
	w.enter(round.PhaseTraining)
	plan, began := w.cfg.Plan, time.Now()
	members := w.trainers()
	ranges := w.deal(members)
	if ranges == nil {
		w.warn(fmt.Errorf("worker: round %d: %d shards leave none for this peer among %d: listening", w.state.Round, len(w.windows), len(members)))
		w.listen = true
		return nil
	}
	windows := round.Windows(plan.Seed, ranges, w.windows, plan.LocalSteps)
	inner := w.cfg.Engine.State()
	copy(inner.Weights, w.state.Weights)
	before := momentsHash(inner)
	var total float64
	for step := range plan.LocalSteps {
		if err := ctx.Err(); err != nil {
			return err
		}
		loss, err := w.step(ctx, step, windows[step*plan.BatchRows:][:plan.BatchRows])
		if errors.Is(err, engine.ErrNumerics) || errors.Is(err, errData) && ctx.Err() == nil {
			w.warn(fmt.Errorf("worker: round %d, step %d: sitting this round out: %w", w.state.Round, step, err))
			w.listen = true
			return nil
		}
		if err != nil {
			return fmt.Errorf("worker: round %d, step %d: %w", w.state.Round, step, err)
		}
		total += loss
	}
	loss := total / float64(plan.LocalSteps)
	inner = w.cfg.Engine.State()
	for i, theta := range inner.Weights {
		w.pending[i] = float32(theta-w.state.Weights[i]) + w.residual[i]
	}
	compute := time.Since(began)
	w.setSpeed(plan.RoundTokens(), compute)
	header := round.Header{
		Version: round.Version, Run: wire.Link{Cid: w.cfg.Run}, Round: w.state.Round, Parent: w.hash,
		View: round.HashView(members), Codec: w.codec.ID(), Ranges: ranges, Seed: plan.Seed,
		Steps: uint32(plan.LocalSteps), Tokens: plan.RoundTokens(), Loss: int64(math.Round(loss * 1e6)),
		Before: before, After: momentsHash(inner), Precision: w.cfg.Numerics,
	}
	return w.encode(ctx, header, compute)
}

// step runs one optimiser step over its windows.
func (w *worker) step(ctx context.Context, step int, windows []round.Window) (float64, error) {
	plan := w.cfg.Plan
	rows := plan.MicroRows
	if rows == 0 {
		rows = plan.BatchRows
	}
	var batches []engine.Batch
	for micro := range slices.Chunk(windows, rows) {
		b, err := w.cfg.Data.Batch(ctx, micro)
		if err != nil {
			return 0, fmt.Errorf("%w: %w", errData, err)
		}
		batches = append(batches, b)
	}
	hyper := plan.Inner
	hyper.LearningRate = plan.Schedule.At(w.state.Round*uint64(plan.LocalSteps) + uint64(step))
	// A step that has begun is finished even when the run is told to stop.
	loss, err := w.cfg.Engine.Train(context.WithoutCancel(ctx), batches, hyper)
	if err == nil && w.cfg.Hooks.OnStep != nil {
		tokens := uint64(plan.BatchRows * plan.Context)
		w.cfg.Hooks.OnStep(Step{Round: w.state.Round, Step: step, Loss: loss, Tokens: tokens})
	}
	return loss, err
}

// encode turns the pending update into a blob that mates can fetch and a signed header.
func (w *worker) encode(ctx context.Context, header round.Header, compute time.Duration) error {
	size, err := w.codec.Encode(w.blob, w.pending)
	if err != nil {
		return fmt.Errorf("worker: round %d: %w", header.Round, err)
	}
	blob := w.blob[:size]
	decoded, err := w.codec.Open(blob, len(w.pending))
	if err != nil {
		return fmt.Errorf("worker: round %d: own blob: %w", header.Round, err)
	}
	link, err := w.cfg.Blobs.Put(ctx, blob)
	if err != nil {
		return fmt.Errorf("worker: round %d: store own blob: %w", header.Round, err)
	}
	w.keep(header.Round, link)
	header.Blob, header.Size = wire.Link{Cid: link}, uint64(size)
	message, err := round.Seal(w.cfg.Net.Key(), header)
	if err != nil {
		return fmt.Errorf("worker: round %d: %w", header.Round, err)
	}
	// Opening the own message gives the hash that the mates will compute.
	m, err := round.Open(w.cfg.Run, message)
	if err != nil {
		return fmt.Errorf("worker: round %d: own header: %w", header.Round, err)
	}
	w.own = &own{round.Signed{Header: header, Author: w.self, ID: m.Hash}, message, decoded, compute}
	w.result.Up += header.Size
	return nil
}

// commit aggregates the decided set, steps the outer optimiser and announces the next state.
func (w *worker) commit(ctx context.Context, d round.Decide, blobs exchanged) error {
	began := time.Now()
	accepted := round.Accept(d.Headers)
	updates := make([]outer.Update, len(accepted))
	headers := make([]round.Header, len(accepted))
	for i, h := range accepted {
		updates[i] = outer.Update{Delta: blobs.sources[h.ID], Tokens: h.Tokens}
		headers[i] = h.Header
	}
	if err := outer.Mean(w.mean, updates); err != nil {
		return fmt.Errorf("worker: round %d: %w", w.state.Round, err)
	}
	report := w.report(accepted, blobs)
	if err := w.advance(d.IDs, headers); err != nil {
		return fmt.Errorf("worker: round %d: %w", w.state.Round, err)
	}
	// Error feedback is transactional: only what entered the state leaves the residual; otherwise the update is dropped
	// whole, its samples are free again, and the residual stays what it was.
	if w.own != nil && slices.ContainsFunc(accepted, func(h round.Signed) bool { return h.ID == w.own.ID }) {
		codec.Decode(w.mean, w.own.decoded)
		for i, p := range w.pending {
			w.residual[i] = p - w.mean[i]
		}
		w.result.Contributed++
		w.result.Tokens += w.own.Tokens
	}
	report.Next, report.Total, report.Comm = w.hash, w.state.Tokens, blobs.comm+time.Since(began)
	w.result.Rounds++
	w.publish(ctx, round.Commit{
		Version: round.Version, Run: wire.Link{Cid: w.cfg.Run}, Round: report.Round, Parent: report.Parent, Set: d.IDs,
		Next: report.Next, Total: report.Total, Tokens: report.Tokens, Loss: int64(math.Round(report.Loss * 1e6)),
		Up: report.Up, Down: report.Down, Compute: uint64(report.Compute.Milliseconds()), Comm: uint64(report.Comm.Milliseconds()),
	})
	w.settle(false)
	w.snapshot()
	if w.cfg.Hooks.OnRound != nil {
		w.cfg.Hooks.OnRound(report)
	}
	w.checkpoint()
	return nil
}

// advance moves the replicated state; the state's readers are locked out meanwhile.
func (w *worker) advance(set []round.Hash, accepted []round.Header) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.cfg.Plan.Outer.Step(w.state.Weights, w.state.Momentum, w.mean); err != nil {
		return err
	}
	w.state.Advance(set, accepted)
	w.hash = w.state.Hash()
	return nil
}

// settle ends a round: the own update is void, and whoever just took the state from a mate listens for one round, so that
// nobody has to wait for it.
func (w *worker) settle(adopted bool) {
	w.own, w.retry, w.listen = nil, 0, adopted
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
		if m.claim.Round <= w.cfg.Plan.Rounds && now.Sub(w.doubted[m.id]) > doubtTime {
			claims = append(claims, m.claim)
		}
	}
	return round.Best(w.claim(), claims, round.MaxMembers*w.cfg.Plan.RoundTokens())
}

// follows reports whether the claimed state is the one after ours: its holder committed the round that we are in.
func (w *worker) follows(claim round.Claim) bool {
	c, ok := w.board.about(w.state.Round, w.hash).commits[claim.Peer]
	return ok && c.Next == claim.State
}

// adopt takes over the claimed state from whichever live mate hands it out.
func (w *worker) adopt(ctx context.Context, claim round.Claim) error {
	donors := []peer.ID{claim.Peer}
	for _, m := range w.board.mates(time.Now()) {
		if m.claim.State == claim.State && m.id != claim.Peer {
			donors = append(donors, m.id)
		}
	}
	return w.heal(ctx, donors)
}

// heal fetches a state that beats the own one from the donors, in order; one that dies in the middle is followed by the
// next. When none delivers, the worker stays as it is and the caller's loop looks again.
func (w *worker) heal(ctx context.Context, donors []peer.ID) error {
	w.enter(round.PhaseJoining)
	var failed error
	for _, donor := range donors {
		state, size, err := w.fetchState(ctx, donor, donors)
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			failed = errors.Join(failed, err)
			w.doubted[donor] = time.Now()
			continue
		}
		w.mu.Lock()
		w.state, w.hash = state, state.Hash()
		w.mu.Unlock()
		clear(w.residual) // what it corrected is not in this state
		w.result.Healed++
		w.result.Down += size
		w.settle(true)
		w.snapshot()
		w.log.Info("took over the state of a mate", "donor", donor, "round", state.Round, "state", w.hash.Short())
		return nil
	}
	w.retry++
	w.warn(fmt.Errorf("worker: round %d: %w: %w", w.state.Round, ErrNoDonor, failed))
	w.enter(round.PhaseExchanging)
	return nil
}

// fetchState asks the donor where its state is and fetches it from any of the donors.
func (w *worker) fetchState(ctx context.Context, donor peer.ID, donors []peer.ID) (*round.State, uint64, error) {
	res, err := ask(ctx, w.cfg.Net, donor, w.cfg.Run)
	if err != nil {
		return nil, 0, err
	}
	claim := round.Claim{Peer: donor, Round: res.Round, Tokens: res.Tokens, State: res.State}
	if _, better := round.Best(w.claim(), []round.Claim{claim}, round.MaxMembers*w.cfg.Plan.RoundTokens()); !better {
		return nil, 0, fmt.Errorf("worker: state of %s at round %d does not beat ours: %w", donor, res.Round, ErrNoDonor)
	}
	shape := w.state.Shape()
	ctx, cancel := context.WithTimeout(ctx, fetchTime(shape.Size()))
	defer cancel()
	raw, err := w.cfg.Blobs.Get(ctx, res.Blob.Cid, donors, shape.Size())
	if err != nil {
		return nil, 0, fmt.Errorf("worker: fetch the state of %s: %w", donor, err)
	}
	defer w.cfg.Blobs.Drop(context.WithoutCancel(ctx), res.Blob.Cid)
	state, err := round.DecodeState(raw, shape)
	if err != nil {
		return nil, 0, fmt.Errorf("worker: state of %s: %w", donor, err)
	}
	if state.Hash() != res.State || state.Round != res.Round || state.Tokens != res.Tokens || state.Round > w.cfg.Plan.Rounds {
		return nil, 0, fmt.Errorf("worker: state of %s is not the one it announced: %w", donor, round.ErrState)
	}
	return state, uint64(len(raw)), nil
}

// momentsHash identifies the inner optimiser's state.
func momentsHash(s *engine.State) round.Hash {
	h := sha256.New()
	_ = binary.Write(h, binary.LittleEndian, s.Steps) // a hash takes every write
	_, _ = round.WriteFloats(h, s.M)
	_, _ = round.WriteFloats(h, s.V)
	return round.Hash(h.Sum(nil))
}
