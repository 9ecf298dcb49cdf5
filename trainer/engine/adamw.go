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
	if !(norm <= maxGradient) {
		return norm, fmt.Errorf("gradient norm %g, at most %g: %w", norm, maxGradient, ErrNumerics)
	}
	scale := 1 / float64(tokens)
	if step.ClipNorm > 0 && norm > step.ClipNorm {
		scale = scale * (step.ClipNorm / norm)
	}
	t := s.Steps + 1
	k := coefficients{
		scale: float32(scale),
		beta1: float32(step.Beta1), rest1: float32(1 - step.Beta1),
		beta2: float32(step.Beta2), rest2: float32(1 - step.Beta2),
		rate:    float32(step.LearningRate / (1 - power(step.Beta1, t))),
		unbias2: float32(1 / (1 - power(step.Beta2, t))),
		epsilon: float32(step.Epsilon),
	}
	decay := float32(1 - float64(step.LearningRate*step.WeightDecay))
	var tasks []func()
	for _, p := range s.Params {
		keep := float32(1)
		if p.Decay {
			keep = decay
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

// coefficients are the scalars of one AdamW step.
type coefficients struct {
	scale                      float32 // multiplies the raw gradient: 1/tokens and clipping
	beta1, rest1, beta2, rest2 float32
	rate                       float32 // learning rate over the first bias correction
	unbias2                    float32 // the second bias correction, inverted
	epsilon                    float32
}

func (k coefficients) apply(w, m, v, grads []float32, keep float32) {
	w, m, v = w[:len(grads)], m[:len(grads)], v[:len(grads)]
	for i, g := range grads {
		g = float32(g * k.scale)
		m1 := float32(k.beta1*m[i]) + float32(k.rest1*g)
		v1 := float32(k.beta2*v[i]) + float32(k.rest2*float32(g*g))
		root := float32(math.Sqrt(float64(float32(v1 * k.unbias2))))
		move := float32(k.rate*m1) / (root + k.epsilon)
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
