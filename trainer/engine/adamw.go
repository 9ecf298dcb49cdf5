package engine

import (
	"errors"
	"fmt"
	"math"
	"sync"
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

// Update takes one AdamW step (Loshchilov and Hutter, 2019) with the gradient grads/tokens, clipped to the step's
// global norm, and returns that norm before clipping. grads has the layout of Weights and is left unchanged. A norm
// that is not finite is [ErrNumerics], and then nothing has changed.
//
// The result does not depend on the number of workers nor, given equal inputs, on the machine: every product is rounded
// to float32 by a conversion, which forbids fused multiply-adds, and sums run in one fixed order.
func (s *State) Update(grads []float32, tokens int64, step Step, workers int) (norm float64, err error) {
	if err := step.Check(); err != nil {
		return 0, err
	}
	if len(grads) != len(s.Weights) || tokens < 1 {
		return 0, fmt.Errorf("%d gradients for %d weights, %d tokens: %w", len(grads), len(s.Weights), tokens, ErrShape)
	}
	norm = gradientNorm(grads, workers) / float64(tokens)
	t := s.Steps + 1
	k, err := step.Coefficients(norm, tokens, t)
	if err != nil {
		return norm, err
	}
	var tasks []func()
	for _, p := range s.Params {
		keep := float32(1)
		if p.Decay {
			keep = k.Keep
		}
		for at, end := p.Offset, p.Offset+p.Size(); at < end; at += updateChunk {
			from, to := at, min(at+updateChunk, end)
			tasks = append(tasks, func() { k.apply(s.Weights[from:to], s.M[from:to], s.V[from:to], grads[from:to], keep) })
		}
	}
	parallel(workers, len(tasks), func(i int) { tasks[i]() })
	s.Steps = t
	return norm, nil
}

// Coefficients are the scalars of one AdamW step, rounded to what every executor computes with.
type Coefficients struct {
	Scale        float32 // multiplies the raw gradient: 1/tokens and clipping
	Beta1, Rest1 float32 // Rest1 is 1 − Beta1
	Beta2, Rest2 float32
	Rate         float32 // learning rate over the first bias correction
	Unbias2      float32 // the second bias correction, inverted
	Epsilon      float32
	Keep         float32 // multiplies weights with Decay set
}

// Coefficients returns the scalars of step number t, counted from 1, whose mean gradient over the tokens has that norm. A
// norm that is too large or not finite is [ErrNumerics].
func (s Step) Coefficients(norm float64, tokens int64, t uint64) (Coefficients, error) {
	if !(norm <= maxGradient) {
		return Coefficients{}, fmt.Errorf("gradient norm %g, at most %g: %w", norm, maxGradient, ErrNumerics)
	}
	scale := 1 / float64(tokens)
	if s.ClipNorm > 0 && norm > s.ClipNorm {
		scale = scale * (s.ClipNorm / norm)
	}
	return Coefficients{
		Scale: float32(scale),
		Beta1: float32(s.Beta1), Rest1: float32(1 - s.Beta1),
		Beta2: float32(s.Beta2), Rest2: float32(1 - s.Beta2),
		Rate:    float32(s.LearningRate / (1 - power(s.Beta1, t))),
		Unbias2: float32(1 / (1 - power(s.Beta2, t))),
		Epsilon: float32(s.Epsilon),
		Keep:    float32(1 - float64(s.LearningRate*s.WeightDecay)),
	}, nil
}

func (k Coefficients) apply(w, m, v, grads []float32, keep float32) {
	w, m, v = w[:len(grads)], m[:len(grads)], v[:len(grads)]
	for i, g := range grads {
		g = float32(g * k.Scale)
		m1 := float32(k.Beta1*m[i]) + float32(k.Rest1*g)
		v1 := float32(k.Beta2*v[i]) + float32(k.Rest2*float32(g*g))
		root := float32(math.Sqrt(float64(float32(v1 * k.Unbias2))))
		move := float32(k.Rate*m1) / (root + k.Epsilon)
		m[i], v[i] = m1, v1
		w[i] = float32(w[i]*keep) - move
	}
}

// gradientNorm returns the Euclidean norm: squares summed in float64 inside fixed chunks, chunks in order.
func gradientNorm(grads []float32, workers int) float64 {
	chunks := (len(grads) + updateChunk - 1) / updateChunk
	sums := make([]float64, chunks)
	parallel(workers, chunks, func(i int) {
		sum := 0.0
		for _, g := range grads[i*updateChunk : min((i+1)*updateChunk, len(grads))] {
			sum += float64(float64(g) * float64(g))
		}
		sums[i] = sum
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
