// Package outer owns the outer step of a round: the weighted mean of the peers' updates, what it does to the weights that all
// peers share, and what each peer keeps of its own updates because the codec lost it. It refuses to know how updates travel
// and who chose them.
//
// Everything here gives the same bits on every machine: sums run in the caller's (canonical) order, element by element, and
// every product is rounded to float32 or float64 by an explicit conversion before it is added, so that no compiler may fuse
// the two.
package outer

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"

	"github.com/capacloud/capanode/trainer/codec"
)

// ErrShape reports updates that do not fit each other or the weights.
var ErrShape = errors.New("updates of different length")

// Settings are the outer optimiser's: the same on every peer of a run.
type Settings struct {
	LearningRate float32 // η; 0.7 suits dense updates
	Momentum     float32 // μ of Nesterov's method; 0 is plain SGD
}

// Update is one peer's contribution.
type Update struct {
	Delta  codec.Source // θ − φ after the local steps
	Tokens uint64       // weight of the update; callers cap it by what the plan allows
}

// forBlocks calls f for every block of a vector of n elements, on all cores.
func forBlocks(n int, f func(block int)) {
	const span = 64 // blocks that one piece of parallel work covers
	blocks := codec.Blocks(n)
	codec.ForEach((blocks+span-1)/span, func(s int) {
		for b := s * span; b < min((s+1)*span, blocks); b++ {
			f(b)
		}
	})
}

// sparse is a source that knows the sum of a block's squares without decoding what is zero: [codec.SumSquares] to the bit.
type sparse interface {
	Squares(block int) float64
}

var buffers = sync.Pool{New: func() any { return new([codec.Block]float32) }}

// Norm returns the Euclidean norm of a source: sums of squares of blocks, added in order.
func Norm(src codec.Source) float64 {
	sums := make([]float64, codec.Blocks(src.Len()))
	few, ok := src.(sparse)
	forBlocks(src.Len(), func(i int) {
		if ok {
			sums[i] = few.Squares(i)
			return
		}
		buf := buffers.Get().(*[codec.Block]float32)
		defer buffers.Put(buf)
		sums[i] = codec.SumSquares(buf[:src.Block(buf[:], i)])
	})
	var total float64
	for _, s := range sums {
		total += s
	}
	return math.Sqrt(total)
}

// Factors returns what each update is multiplied with in the mean: its share of the tokens, and with three updates or more
// also min(1, median norm / norm), so that no single peer can move the mean further than its mates do.
func Factors(updates []Update) []float32 {
	factors := make([]float32, len(updates))
	var total float64
	for _, u := range updates {
		total += float64(u.Tokens)
	}
	norms := make([]float64, len(updates))
	clip := len(updates) >= 3
	for i := range updates {
		if clip {
			norms[i] = Norm(updates[i].Delta)
		}
	}
	median := lowerMedian(norms)
	for i, u := range updates {
		f := float64(u.Tokens) / total
		if clip && norms[i] > median {
			f *= median / norms[i]
		}
		factors[i] = float32(f)
	}
	return factors
}

func lowerMedian(x []float64) float64 {
	if len(x) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(x))
	return sorted[(len(sorted)-1)/2]
}

// Mean writes the weighted, clipped mean of the updates to dst. The order of the updates decides the rounding: pass them in
// canonical order.
func Mean(dst []float32, updates []Update) error {
	if len(updates) == 0 {
		return fmt.Errorf("outer: mean of no updates: %w", ErrShape)
	}
	for i, u := range updates {
		if u.Delta.Len() != len(dst) {
			return fmt.Errorf("outer: update %d has %d elements, want %d: %w", i, u.Delta.Len(), len(dst), ErrShape)
		}
		if u.Tokens == 0 {
			return fmt.Errorf("outer: update %d has no tokens: %w", i, ErrShape)
		}
	}
	factors := Factors(updates)
	forBlocks(len(dst), func(i int) {
		acc := dst[i*codec.Block : min((i+1)*codec.Block, len(dst))]
		clear(acc)
		for k, u := range updates {
			u.Delta.Add(acc, i, factors[k])
		}
	})
	return nil
}

// Step applies the mean update to the shared weights φ by Nesterov's method with the pseudo-gradient g = −mean:
//
//	b ← μb + g,  φ ← φ − η(g + μb)
//
// (DiLoCo, arXiv 2311.08105.) With μ = 0 it is plain SGD.
func (s Settings) Step(weights, momentum, mean []float32) error {
	if len(weights) != len(mean) || len(momentum) != len(mean) {
		return fmt.Errorf("outer: %d weights, %d momenta, %d means: %w", len(weights), len(momentum), len(mean), ErrShape)
	}
	eta, mu := s.LearningRate, s.Momentum
	forBlocks(len(mean), func(i int) {
		lo, hi := i*codec.Block, min((i+1)*codec.Block, len(mean))
		w, b, m := weights[lo:hi], momentum[lo:hi], mean[lo:hi]
		for j := range m {
			g := -m[j]
			b[j] = float32(mu*b[j]) + g
			w[j] -= float32(eta * (g + float32(mu*b[j])))
		}
	})
	return nil
}

// Move adds share·delta to the weights: a step of the way to where delta ends.
func Move(weights []float32, delta codec.Source, share float32) error {
	if delta.Len() != len(weights) {
		return fmt.Errorf("outer: move %d weights by %d elements: %w", len(weights), delta.Len(), ErrShape)
	}
	forBlocks(len(weights), func(i int) {
		delta.Add(weights[i*codec.Block:min((i+1)*codec.Block, len(weights))], i, share)
	})
	return nil
}
