package lab

import (
	"context"
	"fmt"

	"github.com/capacloud/capanode/trainer/outer"
)

// DiLoCo is exact: every so many steps the updates of all peers meet in a float32 ring all-reduce and Nesterov's method
// applies their mean (arXiv 2311.08105).
type DiLoCo struct {
	Every int // H, steps between averages
	Outer outer.Settings
}

// Name implements [Method].
func (d DiLoCo) Name() string {
	return fmt.Sprintf("H %d, %s", d.Every, rates(d.Outer))
}

// rates writes an outer optimiser's settings.
func rates(o outer.Settings) string {
	if o.Momentum == 0 {
		return fmt.Sprintf("η %.3g", o.LearningRate)
	}
	return fmt.Sprintf("η %.3g, μ %.3g", o.LearningRate, o.Momentum)
}

// Begin implements [Method].
func (d DiLoCo) Begin(s *Swarm) (Trial, error) {
	if d.Every < 1 {
		return nil, fmt.Errorf("rounds of %d steps: %w", d.Every, ErrSetup)
	}
	n := s.Parameters()
	m := &diloco{Swarm: s, DiLoCo: d, slow: make([]float32, n), momentum: make([]float32, n), mean: make([]float32, n)}
	copy(m.slow, s.Fast(0))
	return m, nil
}

type diloco struct {
	*Swarm
	DiLoCo
	slow, momentum, mean []float32
}

func (m *diloco) Step(ctx context.Context, t int) error {
	if err := m.Local(ctx, t); err != nil || (t+1)%m.Every != 0 && t+1 < m.Steps {
		return err
	}
	m.meanFast(m.mean)
	for i, v := range m.slow {
		m.mean[i] -= v
	}
	if err := m.Outer.Step(m.slow, m.momentum, m.mean); err != nil {
		return err
	}
	for p := range m.Peers {
		copy(m.Fast(p), m.slow)
	}
	m.ring(4 * float64(len(m.slow)))
	return nil
}

func (m *diloco) Shared(int) []float32 { return m.slow }
