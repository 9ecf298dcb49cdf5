package worker

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/trainer/engine"
)

// A round of gradients has no local steps. Each member takes the gradient of its own share of samples at the committed weights φ,
// and says the largest of its cosine components, with what its codec has left of earlier ones; all step by the sign of the mean
// (package outer, Signs). The inner optimiser's moments stay as they are, nothing runs beside the exchange, and no slice is healed.
// Who is faster takes more samples into its gradient, and the mean goes by tokens. package tempo says when such a round is due.

// hold makes the residual one of the round's kind. What a codec has left of weights is a way that this peer has gone and the others
// have not; what it has left of gradients is a momentum in another space and unit. Neither can be brought over to the other without
// inventing a scale, so a switch drops what is left, on every peer for itself, before it adds to it. The next round does not depend
// on it: only own updates do.
func (w *worker) hold(p pace) {
	if w.components != p.gradients {
		w.log.Info("the kind of round changes; what the codec left of the last kind is dropped", "round", w.state.Round, "gradients", p.gradients)
		w.feedback.Reset()
		w.components = p.gradients
		w.rewind()
	}
	decay := float32(0) // the fast weights carry the residual
	if p.gradients {
		decay = p.decay
	}
	w.feedback.SetDecay(decay)
}

// differentiate takes the gradient of the lap's samples at φ and leaves its components in the worker's scratch.
func (l *lap) differentiate(ctx context.Context, w *worker) {
	defer close(l.done)
	began := time.Now()
	if l.err = ctx.Err(); l.err == nil {
		l.err = l.components(ctx, w)
	}
	if l.err != nil {
		l.err = fmt.Errorf("worker: round %d: gradient: %w", l.number, l.err)
		return
	}
	l.compute = time.Since(began)
}

func (l *lap) components(ctx context.Context, w *worker) error {
	batches, err := w.batches(ctx, l.windows)
	if err != nil {
		return err
	}
	inner := w.cfg.Engine.State()
	if !w.still {
		w.moments, w.still = momentsHash(inner), true
	}
	l.before, l.after = w.moments, w.moments
	copy(inner.Weights, w.state.Weights)
	eng, ok := w.cfg.Engine.(engine.Differentiating)
	if !ok {
		return ErrConfig // Config.check has seen to it
	}
	// A gradient that has begun is finished even when the run is told to stop.
	g, err := eng.Gradient(context.WithoutCancel(ctx), batches)
	if err != nil {
		return err
	}
	l.loss = g.Loss
	copy(w.mean, g.Sum)
	if err := w.signs.Components(w.mean, g.Targets, w.clip(l.pace)); err != nil {
		return err
	}
	if w.cfg.Hooks.OnStep != nil {
		w.cfg.Hooks.OnStep(Step{Round: l.number, Loss: g.Loss, Tokens: uint64(len(l.windows) * w.cfg.Plan.Context)})
	}
	return nil
}

// clip returns the norm that a gradient is clipped to: the job's, and at most as much as keeps the sum of all earlier ones, decayed,
// within what mates accept of an update.
func (w *worker) clip(p pace) float64 {
	most := w.limit * float64(1-p.decay) / 2
	if c := w.cfg.Plan.Inner.ClipNorm; c > 0 {
		return min(c, most)
	}
	return most
}

const (
	// catchUp is for how many rounds a live mate may be behind before rounds become longer for it. One that comes to a run, or fell out
	// of step, needs two where links are quick.
	catchUp = 8
	// longRounds is how many steps a round takes then.
	longRounds = 16
)

// leavesBehind reports whether a live mate has been behind for many rounds: it fetches states that are old when they arrive. One step
// together is soon over, and who is left out says nothing that would slow the run down.
func (w *worker) leavesBehind() bool {
	if w.behind == nil {
		w.behind = map[peer.ID]uint64{}
	}
	live, left := w.board.mates(time.Now()), false
	for _, m := range live {
		since, known := w.behind[m.id]
		switch {
		case m.claim.Round+1 >= w.state.Round:
			delete(w.behind, m.id)
		case !known:
			w.behind[m.id] = w.state.Round
		default:
			left = left || w.state.Round >= since+catchUp
		}
	}
	maps.DeleteFunc(w.behind, func(id peer.ID, _ uint64) bool {
		return !slices.ContainsFunc(live, func(m mate) bool { return m.id == id })
	})
	return left
}
