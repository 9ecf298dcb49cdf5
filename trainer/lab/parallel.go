package lab

import (
	"context"

	"github.com/capacloud/capanode/trainer/engine"
)

// Parallel is data-parallel training: every step, the gradients of all peers are summed by a float32 ring all-reduce. Its
// loss is what the others are compared with, and its bytes are the unit of theirs.
type Parallel struct{}

// Name implements [Method].
func (Parallel) Name() string { return "data-parallel" }

// Begin implements [Method].
func (Parallel) Begin(s *Swarm) (Trial, error) {
	return &parallel{s, make([]float32, s.Parameters())}, nil
}

type parallel struct {
	*Swarm
	sum []float32
}

// Step sums the gradients in the order of the peers. One peer steps; the others take its weights.
func (m *parallel) Step(ctx context.Context, t int) error {
	grads := make([]engine.Gradient, m.Peers)
	err := m.Each(func(p int) (err error) {
		grads[p], err = m.peers[p].Gradient(ctx, []engine.Batch{m.batch(p, t)})
		return err
	})
	if err != nil {
		return err
	}
	clear(m.sum)
	targets := int64(0)
	for _, g := range grads {
		targets += g.Targets
		for i, v := range g.Sum {
			m.sum[i] += v
		}
	}
	if _, err := m.peers[0].state.Update(m.sum, targets, m.at(t), 1); err != nil {
		return err
	}
	for p := range m.Peers {
		copy(m.Fast(p), m.Fast(0))
	}
	m.ring(4 * float64(m.Parameters()))
	return nil
}

func (m *parallel) Shared(int) []float32 { return m.Fast(0) }

// Alone is one peer that trains on its own share of the samples: what a peer has when it does not talk.
type Alone struct{}

// Name implements [Method].
func (Alone) Name() string { return "one peer alone" }

// Begin implements [Method].
func (Alone) Begin(s *Swarm) (Trial, error) { return alone{s}, nil }

type alone struct{ *Swarm }

func (m alone) Step(ctx context.Context, t int) error {
	_, err := m.peers[0].Train(ctx, []engine.Batch{m.batch(0, t)}, m.at(t))
	return err
}

func (m alone) Shared(int) []float32 { return m.Fast(0) }

// Apart is peers that never average; the result is their mean loss, or the loss of the mean of their weights, which they
// exchange once, at the end.
type Apart struct{ Average bool }

// Name implements [Method].
func (a Apart) Name() string {
	if a.Average {
		return "averaged once, at the end"
	}
	return "never averaged"
}

// Begin implements [Method].
func (a Apart) Begin(s *Swarm) (Trial, error) { return &apart{s, a.Average}, nil }

type apart struct {
	*Swarm
	average bool
}

func (m *apart) Step(ctx context.Context, t int) error {
	if err := m.Local(ctx, t); err != nil || !m.average || t+1 < m.Steps {
		return err
	}
	mean := make([]float32, m.Parameters())
	m.meanFast(mean)
	for p := range m.Peers {
		copy(m.Fast(p), mean)
	}
	m.ring(4 * float64(len(mean)))
	return nil
}

func (m *apart) Shared(p int) []float32 { return m.Fast(p) }

// meanFast writes the plain mean of all fast weights to dst, summed in the order of the peers.
func (s *Swarm) meanFast(dst []float32) {
	clear(dst)
	f := 1 / float32(s.Peers)
	for p := range s.Peers {
		for i, v := range s.Fast(p) {
			dst[i] += float32(f * v)
		}
	}
}
