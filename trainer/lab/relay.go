package lab

import (
	"context"
	"fmt"

	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/outer"
)

// Relay is the program's method where each round is one step on gradients: the largest cosine components of each peer's momentum
// travel as two bits and a Rice-coded gap instead of DeMo's 28 bits, and what the codec's rounding leaves stays in the momentum.
// All take the same step by the sign of the mean, so peers share all their state but the momentum.
type Relay struct {
	Codec string
	Decay float32 // of the momentum, each step; what was sent leaves it
}

// Name implements [Method].
func (d Relay) Name() string { return fmt.Sprintf("gradients, %s, decay %g", d.Codec, d.Decay) }

// Begin implements [Method].
func (d Relay) Begin(s *Swarm) (Trial, error) {
	n := s.Parameters()
	m := &relay{Swarm: s, Relay: d, signs: outer.NewSigns(s.peers[0].state.Params), mean: make([]float32, n), blobs: make([][]byte, s.Peers), sizes: make([]float64, s.Peers)}
	for range s.Peers {
		m.feedback = append(m.feedback, outer.NewFeedback(n, d.Decay))
	}
	return m, nil
}

type relay struct {
	*Swarm
	Relay
	signs    *outer.Signs
	mean     []float32
	feedback []*outer.Feedback
	blobs    [][]byte
	sizes    []float64 // of the blobs, bytes
}

func (m *relay) Step(ctx context.Context, t int) error {
	updates := make([]outer.Update, m.Peers)
	err := m.Each(func(p int) (err error) {
		updates[p], err = m.encode(ctx, p, t)
		return err
	})
	if err != nil {
		return err
	}
	if err := outer.Mean(m.mean, updates); err != nil {
		return err
	}
	h := m.at(t)
	if err := m.signs.Step(m.Fast(0), m.mean, h.LearningRate, h.WeightDecay); err != nil {
		return err
	}
	for p := range m.Peers {
		if err := m.feedback[p].Commit(updates[p].Delta); err != nil {
			return err
		}
		copy(m.Fast(p), m.Fast(0))
		m.Bytes += m.sizes[p] * float64(m.Peers-1) / float64(m.Peers)
	}
	m.Rounds++
	return nil
}

// encode adds a peer's gradient to its momentum, both transformed, and compresses it.
func (m *relay) encode(ctx context.Context, p, t int) (u outer.Update, err error) {
	g, err := m.peers[p].Gradient(ctx, []engine.Batch{m.batch(p, t)})
	if err != nil {
		return u, err
	}
	if err := m.signs.Components(g.Sum, g.Targets, m.at(t).ClipNorm); err != nil {
		return u, err
	}
	pending, err := m.feedback[p].Pending(g.Sum)
	if err != nil {
		return u, err
	}
	src, bytes, err := pack(m.Codec, pending, &m.blobs[p])
	m.sizes[p] = bytes
	return outer.Update{Delta: src, Tokens: 1}, err
}

func (m *relay) Shared(int) []float32 { return m.Fast(0) }
