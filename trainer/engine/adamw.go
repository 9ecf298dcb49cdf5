package engine

import (
	"errors"
	"fmt"
	"math"
	"sync"

	"github.com/capacloud/capanode/trainer/engine/native/kernel"
)

// ErrStep reports hyper-parameters outside their range.
var ErrStep = errors.New("invalid optimiser step")

// updateChunk is the number of elements that one task of an update works on. It fixes the order of the gradient norm's
// sum, so changing it changes results in the last bit.
const updateChunk = 1 << 16

// maxGradient is the largest gradient norm whose square still fits a float32 second moment with room to spare.
const maxGradient = 1e18

// Check returns an error wrapping [ErrStep] unless every hyper-parameter is finite and in range.
func (s Step) Check() error {
	limits := []struct {
		name          string
		value         float64
		low, high     float64
		lowOK, highOK bool // whether the bound itself is allowed
	}{
		{"learning rate", s.LearningRate, 0, 1e3, true, true},
		{"beta1", s.Beta1, 0, 1, true, false},
		{"beta2", s.Beta2, 0, 1, true, false},
		{"epsilon", s.Epsilon, 1e-30, 1, true, true},
		{"weight decay", s.WeightDecay, 0, 1e3, true, true},
		{"clip norm", s.ClipNorm, 0, 1e18, true, true},
	}
	for _, l := range limits {
		inside := l.value > l.low && l.value < l.high || l.lowOK && l.value == l.low || l.highOK && l.value == l.high
		if !inside {
			return fmt.Errorf("%s is %g, allowed are %g to %g: %w", l.name, l.value, l.low, l.high, ErrStep)
		}
	}
	return nil
}

// Coefficients are the scalars of one AdamW step (Loshchilov and Hutter, 2019), rounded to what every executor computes
// with.
type Coefficients struct {
	kernel.Coefficients
	Keep float32 // multiplies weights that decay
}

// Coefficients returns the scalars of step t, counted from one, for a gradient that is a sum over that many targets and
// whose mean has that norm. A norm that is not finite is [ErrNumerics].
func (s Step) Coefficients(norm float64, targets int64, t uint64) (k Coefficients, err error) {
	if !(norm <= maxGradient) {
		return k, fmt.Errorf("gradient norm %g, at most %g: %w", norm, maxGradient, ErrNumerics)
	}
	scale := 1 / float64(targets)
	if s.ClipNorm > 0 && norm > s.ClipNorm {
		scale = scale * (s.ClipNorm / norm)
	}
	k.Keep = float32(1 - float64(s.LearningRate*s.WeightDecay))
	k.Coefficients = kernel.Coefficients{
		Scale: float32(scale),
		Beta1: float32(s.Beta1), Rest1: float32(1 - s.Beta1),
		Beta2: float32(s.Beta2), Rest2: float32(1 - s.Beta2),
		Rate:    float32(s.LearningRate / (1 - power(s.Beta1, t))),
		Unbias2: float32(1 / (1 - power(s.Beta2, t))),
		Epsilon: float32(s.Epsilon),
	}
	return k, nil
}

// UpdateRanges returns the number of ranges that an update cuts that many elements into.
func UpdateRanges(elements int) int { return (elements + updateChunk - 1) / updateChunk }

// UpdateRange returns the i-th range.
func UpdateRange(i, elements int) (low, high int) {
	return i * updateChunk, min((i+1)*updateChunk, elements)
}

// Update takes one AdamW step with the gradient grads/targets, clipped to the step's global norm, and returns that norm
// before clipping. grads has the layout of Weights and is left unchanged. A norm that is not finite is [ErrNumerics], and
// then nothing has changed.
//
// The result does not depend on the number of workers nor, given equal inputs, on the machine.
func (s *State) Update(grads []float32, targets int64, step Step, workers int) (norm float64, err error) {
	if err := step.Check(); err != nil {
		return 0, err
	}
	if len(grads) != len(s.Weights) || targets < 1 {
		return 0, fmt.Errorf("%d gradients for %d weights, %d targets: %w", len(grads), len(s.Weights), targets, ErrShape)
	}
	set, err := kernel.Select()
	if err != nil {
		return 0, err
	}
	norm = gradientNorm(set, grads, workers) / float64(targets)
	k, err := step.Coefficients(norm, targets, s.Steps+1)
	if err != nil {
		return norm, err
	}
	type span struct {
		low, high int
		keep      float32
	}
	var spans []span
	for _, p := range s.Params {
		keep := float32(1)
		if p.Decay {
			keep = k.Keep
		}
		for i := range UpdateRanges(p.Size()) {
			low, high := UpdateRange(i, p.Size())
			spans = append(spans, span{p.Offset + low, p.Offset + high, keep})
		}
	}
	parallel(workers, len(spans), func(i int) {
		low, high := spans[i].low, spans[i].high
		set.AdamW(s.Weights[low:high], s.M[low:high], s.V[low:high], grads[low:high], k.Coefficients, spans[i].keep)
	})
	s.Steps++
	return norm, nil
}

// gradientNorm returns the Euclidean norm: squares summed inside fixed ranges, ranges in order.
func gradientNorm(set kernel.Set, grads []float32, workers int) float64 {
	sums := make([]float64, UpdateRanges(len(grads)))
	parallel(workers, len(sums), func(i int) {
		low, high := UpdateRange(i, len(grads))
		sums[i] = set.SumSquares64(grads[low:high])
	})
	total := 0.0
	for _, s := range sums {
		total += s
	}
	return math.Sqrt(total)
}

// power returns x^n by squaring: rounded products alone, so the same bits everywhere, which math.Pow does not promise.
func power(x float64, n uint64) float64 {
	result := 1.0
	for ; n > 0; n >>= 1 {
		if n&1 == 1 {
			result = float64(result * x)
		}
		x = float64(x * x)
	}
	return result
}

// parallel runs work(0) … work(n−1) on up to workers goroutines and returns when all are done.
func parallel(workers, n int, work func(i int)) {
	workers = min(workers, n)
	if workers <= 1 {
		for i := range n {
			work(i)
		}
		return
	}
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := w; i < n; i += workers {
				work(i)
			}
		})
	}
	wg.Wait()
}
