package outer

import (
	"fmt"

	"github.com/capacloud/capanode/trainer/codec"
)

// The rules below are what a group smaller than the run, an overlapped round and a lone peer need besides [Settings.Step].
// A lone peer uses Settings.Step with its own update as the mean: Nesterov's method over its own rounds (SNOO, step-K Nesterov
// outer optimiser, arXiv 2510.15830). Plain SGD on the mean update is Settings.Step without momentum.

// Gossip are the coefficients of NoLoCo's outer step (arXiv 2506.10911) in groups that do not share their weights.
type Gossip struct {
	Alpha float32 // of the velocity δ; 0.5 published
	Beta  float32 // of the way to the group's mean; above Alpha, 0.7 published
}

// Step moves one peer's shared weights φ to the mean of the fast weights θ of its group:
//
//	δ ← αδ + β(mean θ − φ),  φ ← φ + δ
//
// It is NoLoCo's step where its γ, of the difference between the peers' φ, equals β, as in the released code: then
// β·mean(θ−φ) + γ(mean φ − φ) is β(mean θ − φ), and only θ travels. The paper prints the update with the opposite sign.
func (g Gossip) Step(weights, velocity, mean []float32) error {
	if len(weights) != len(mean) || len(velocity) != len(mean) {
		return fmt.Errorf("outer: %d weights, %d velocities, %d means: %w", len(weights), len(velocity), len(mean), ErrShape)
	}
	forBlocks(len(mean), func(i int) {
		lo, hi := i*codec.Block, min((i+1)*codec.Block, len(mean))
		w, d, m := weights[lo:hi], velocity[lo:hi], mean[lo:hi]
		for j := range m {
			d[j] = float32(g.Alpha*d[j]) + float32(g.Beta*(m[j]-w[j]))
			w[j] += d[j]
		}
	})
	return nil
}

// Merge mixes shared weights φ, which arrive while the local steps go on, into the fast weights θ:
//
//	θ ← αθ + (1−α)φ
//
// (Streaming DiLoCo, arXiv 2501.18512, α 0.5.) α = 0 takes the shared weights as they are.
func Merge(fast, shared []float32, alpha float32) error {
	if len(fast) != len(shared) {
		return fmt.Errorf("outer: merge %d shared weights into %d: %w", len(shared), len(fast), ErrShape)
	}
	rest := 1 - alpha
	forBlocks(len(fast), func(i int) {
		lo, hi := i*codec.Block, min((i+1)*codec.Block, len(fast))
		f, s := fast[lo:hi], shared[lo:hi]
		for j := range s {
			f[j] = float32(alpha*f[j]) + float32(rest*s[j])
		}
	})
	return nil
}

// Heal moves one peer's weights towards its mates' by the difference between the group's mean and its own copy, both as the
// mates saw them, that is after the codec:
//
//	φ ← φ + rate·(mean − own)
//
// The sum over the group stays what it was up to rounding, however coarse the codec: the differences add up to nothing.
// Peers with equal weights stay equal. (CHOCO-Gossip's form of the step, arXiv 1902.00340.)
func Heal(weights, mean, own []float32, rate float32) error {
	if len(weights) != len(mean) || len(own) != len(mean) {
		return fmt.Errorf("outer: heal %d weights with %d means and %d of its own: %w", len(weights), len(mean), len(own), ErrShape)
	}
	forBlocks(len(mean), func(i int) {
		lo, hi := i*codec.Block, min((i+1)*codec.Block, len(mean))
		w, m, o := weights[lo:hi], mean[lo:hi], own[lo:hi]
		for j := range m {
			w[j] += float32(rate * (m[j] - o[j]))
		}
	})
	return nil
}

// Average writes the plain mean of the sources to dst, summed in their order: the one that brings members of a grid to equal
// bits, where weights or clipping would let them differ.
func Average(dst []float32, sources []codec.Source) error {
	if len(sources) == 0 {
		return fmt.Errorf("outer: average of nothing: %w", ErrShape)
	}
	for i, s := range sources {
		if s.Len() != len(dst) {
			return fmt.Errorf("outer: source %d has %d elements, want %d: %w", i, s.Len(), len(dst), ErrShape)
		}
	}
	share := 1 / float32(len(sources))
	forBlocks(len(dst), func(i int) {
		acc := dst[i*codec.Block : min((i+1)*codec.Block, len(dst))]
		clear(acc)
		for _, s := range sources {
			s.Add(acc, i, share)
		}
	})
	return nil
}
