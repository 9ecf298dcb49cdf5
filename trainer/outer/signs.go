package outer

import (
	"fmt"
	"math"

	"github.com/capacloud/capanode/trainer/codec"
	"github.com/capacloud/capanode/trainer/cosine"
	"github.com/capacloud/capanode/trainer/engine"
)

// Signs is the outer rule of a round of gradients (DeMo, arXiv 2411.19870). Each peer's gradient is turned into its cosine
// components and added to what its codec has left of earlier ones, its momentum; the mean of what all have sent is turned back,
// and every weight moves by the learning rate against its sign:
//
//	p ← decay·e + T(gradient), e ← p − decoded     [Feedback]
//	φ ← keep·φ − η·sign(T⁻¹(mean of decoded)),  keep = 1 − η·weight decay, 1 for parameters that do not decay
//
// A Signs is made for one model's layout, holds no state, and is safe for concurrent use.
type Signs struct {
	tiles cosine.Tiles
	spans []span
	n     int
}

// span is a part of one parameter, small enough to spread over the cores.
type span struct {
	from, to int
	decays   bool
}

// NewSigns returns the rule for a model's parameters.
func NewSigns(params []engine.Param) *Signs {
	const most = 64 * codec.Block
	s := &Signs{tiles: cosine.Of(params)}
	for _, p := range params {
		end := p.Offset + p.Size()
		for from := p.Offset; from < end; from += most {
			s.spans = append(s.spans, span{from, min(from+most, end), p.Decay})
		}
		s.n = max(s.n, end)
	}
	return s
}

// Components replaces a gradient, summed over so many targets, by the cosine components of its mean. Where the mean's norm is above
// clip it is scaled down to it; 0 is no limit. A norm that is not finite is [engine.ErrNumerics].
func (s *Signs) Components(gradient []float32, targets int64, clip float64) error {
	if len(gradient) != s.n || targets < 1 {
		return fmt.Errorf("outer: gradient of %d elements over %d targets for %d weights: %w", len(gradient), targets, s.n, ErrShape)
	}
	norm := blockNorm(gradient) / float64(targets)
	if math.IsNaN(norm) || math.IsInf(norm, 0) {
		return fmt.Errorf("outer: gradient of norm %g: %w", norm, engine.ErrNumerics)
	}
	scale := 1 / float64(targets)
	if clip > 0 && norm > clip {
		scale *= clip / norm
	}
	f := float32(scale)
	forBlocks(len(gradient), func(i int) {
		part := gradient[i*codec.Block : min((i+1)*codec.Block, len(gradient))]
		for j := range part {
			part[j] *= f
		}
	})
	s.tiles.Forward(gradient)
	return nil
}

// blockNorm returns the Euclidean norm of a vector: sums of squares of blocks, added in order.
func blockNorm(x []float32) float64 {
	sums := make([]float64, codec.Blocks(len(x)))
	forBlocks(len(x), func(i int) { sums[i] = codec.SumSquares(x[i*codec.Block : min((i+1)*codec.Block, len(x))]) })
	total := 0.0
	for _, sum := range sums {
		total += sum
	}
	return math.Sqrt(total)
}

// Step moves the weights by the mean of the peers' components, which it turns back into elements. rate is the learning rate η,
// decay the weight decay. Elements of the mean that are zero leave their weights to the decay alone.
func (s *Signs) Step(weights, mean []float32, rate, decay float64) error {
	if len(mean) != s.n || len(weights) != s.n {
		return fmt.Errorf("outer: %d components of a mean, %d weights, the model has %d: %w", len(mean), len(weights), s.n, ErrShape)
	}
	s.tiles.Inverse(mean)
	step, decayed := float32(rate), float32(1-float64(rate*decay))
	codec.ForEach(len(s.spans), func(i int) {
		part, keep := s.spans[i], float32(1)
		if part.decays {
			keep = decayed
		}
		w, m := weights[part.from:part.to], mean[part.from:part.to]
		for j, v := range m {
			kept := float32(w[j] * keep)
			switch {
			case v > 0:
				kept -= step
			case v < 0:
				kept += step
			}
			w[j] = kept
		}
	})
	return nil
}
