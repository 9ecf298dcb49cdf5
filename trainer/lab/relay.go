package lab

import (
	"context"
	"fmt"

	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/outer"
)

// Relay is the program's own method for budgets that pay for an exchange in every step: peers exchange compressed gradients
// instead of updates, and all take the same AdamW step with their mean. What a codec drops stays with its peer and fades.
type Relay struct {
	Codec string
	Decay float32 // of what a peer has not yet said, each step
	Sign  bool    // step by the sign of the mean instead of AdamW, as DeMo does
}

// Name implements [Method].
func (d Relay) Name() string {
	rule := "AdamW"
	if d.Sign {
		rule = "sign"
	}
	return fmt.Sprintf("gradients in %s, decay %g, %s", d.Codec, d.Decay, rule)
}

// Begin implements [Method].
func (d Relay) Begin(s *Swarm) (Trial, error) {
	m := &relay{Swarm: s, Relay: d, mean: make([]float32, s.Parameters()), blobs: make([][]byte, s.Peers), sizes: make([]float64, s.Peers)}
	for range s.Peers {
		m.feedback = append(m.feedback, outer.NewFeedback(s.Parameters(), d.Decay))
	}
	return m, nil
}

type relay struct {
	*Swarm
	Relay
	mean     []float32
	feedback []*outer.Feedback
	blobs    [][]byte
	sizes    []float64
}

func (m *relay) Step(ctx context.Context, t int) error {
	updates := make([]outer.Update, m.Peers)
	err := m.Each(func(p int) error {
		g, err := m.peers[p].Gradient(ctx, []engine.Batch{m.batch(p, t)})
		if err != nil {
			return err
		}
		for i := range g.Sum {
			g.Sum[i] /= float32(g.Targets)
		}
		pending, err := m.feedback[p].Pending(g.Sum)
		if err != nil {
			return err
		}
		src, bytes, err := pack(m.Codec, pending, &m.blobs[p])
		updates[p], m.sizes[p] = outer.Update{Delta: src, Tokens: 1}, bytes
		return err
	})
	if err != nil {
		return err
	}
	if err := plainMean(m.mean, updates); err != nil {
		return err
	}
	if err := m.Each(func(p int) error { return m.feedback[p].Commit(updates[p].Delta) }); err != nil {
		return err
	}
	if m.Sign {
		signStep(m.peers[0].state, m.mean, m.at(t))
	} else if _, err := m.peers[0].state.Update(m.mean, 1, m.at(t), 1); err != nil {
		return err
	}
	for p := range m.Peers {
		copy(m.Fast(p), m.Fast(0))
	}
	for _, b := range m.sizes {
		m.Bytes += b * float64(m.Peers-1) / float64(m.Peers)
	}
	m.Rounds++
	return nil
}

func (m *relay) Shared(int) []float32 { return m.Fast(0) }

// signStep moves every weight by the learning rate against the sign of its gradient, after weight decay.
func signStep(s *engine.State, gradient []float32, h engine.Step) {
	for _, q := range s.Params {
		keep := float32(1)
		if q.Decay {
			keep = float32(1 - h.LearningRate*h.WeightDecay)
		}
		w := s.Weights[q.Offset : q.Offset+q.Size()]
		for i, v := range gradient[q.Offset : q.Offset+q.Size()] {
			w[i] = float32(w[i] * keep)
			if v > 0 {
				w[i] -= float32(h.LearningRate)
			} else if v < 0 {
				w[i] += float32(h.LearningRate)
			}
		}
	}
}
