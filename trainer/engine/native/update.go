package native

import (
	"context"
	"fmt"
	"math"

	"github.com/capacloud/capanode/trainer/engine"
)

// update is the optimiser's step as phases: the gradient's norm, then AdamW over ranges of the parameters. It computes
// what [engine.State.Update] does, without allocating.
type update struct {
	state        *engine.State
	grads        []float32
	sums         []float64 // squares of each range
	norm, apply  []*phase
	coefficients engine.Coefficients
}

func newUpdate(s *engine.State, grads []float32) *update {
	u := &update{state: s, grads: grads, norm: []*phase{{}}, apply: []*phase{{}}}
	u.sums = make([]float64, engine.UpdateRanges(len(grads)))
	u.norm[0].add(len(u.sums), func(w *worker, i int) {
		low, high := engine.UpdateRange(i, len(grads))
		u.sums[i] = w.SumSquares64(grads[low:high])
	})
	for _, p := range s.Params {
		p := p
		u.apply[0].add(engine.UpdateRanges(p.Size()), func(w *worker, i int) {
			low, high := engine.UpdateRange(i, p.Size())
			low, high = low+p.Offset, high+p.Offset
			keep := float32(1)
			if p.Decay {
				keep = u.coefficients.Keep
			}
			w.AdamW(s.Weights[low:high], s.M[low:high], s.V[low:high], grads[low:high], u.coefficients.Coefficients, keep)
		})
	}
	return u
}

// run takes the step. Until the norm is known to be finite nothing has changed.
func (u *update) run(ctx context.Context, e *executor, targets int64, step engine.Step) error {
	if err := e.run(ctx, u.norm); err != nil {
		return err
	}
	total := 0.0
	for _, s := range u.sums {
		total += s
	}
	k, err := step.Coefficients(math.Sqrt(total)/float64(targets), targets, u.state.Steps+1)
	if err != nil {
		return err
	}
	u.coefficients = k
	// Cancelled half-way, some parameters would have moved and others not.
	if err := e.run(context.Background(), u.apply); err != nil {
		return fmt.Errorf("update: %w", err)
	}
	u.state.Steps++
	return nil
}
