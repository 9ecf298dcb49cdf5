package lab

import (
	"context"
	"fmt"

	"github.com/capacloud/capanode/trainer/round"
)

// NoLoCo is as released: every so many steps random pairs exchange their slow weights and their updates, two float32 tensors
// (arXiv 2506.10911, with the sign of the code). Peers end with different weights; the result is their mean loss.
type NoLoCo struct {
	Every              int     // steps between exchanges
	Alpha, Beta, Gamma float32 // 0.5, 0.7, 0.7 as released
}

// Name implements [Method].
func (d NoLoCo) Name() string {
	return fmt.Sprintf("H %d", d.Every)
}

// Begin implements [Method].
func (d NoLoCo) Begin(s *Swarm) (Trial, error) {
	if d.Every < 1 || s.Peers%2 != 0 {
		return nil, fmt.Errorf("pairs of %d peers every %d steps: %w", s.Peers, d.Every, ErrSetup)
	}
	m := &noloco{Swarm: s, NoLoCo: d}
	for p := range s.Peers {
		m.slow = append(m.slow, append([]float32(nil), s.Fast(p)...))
		m.velocity = append(m.velocity, make([]float32, s.Parameters()))
	}
	return m, nil
}

type noloco struct {
	*Swarm
	NoLoCo
	slow, velocity [][]float32
}

func (m *noloco) Step(ctx context.Context, t int) error {
	if err := m.Local(ctx, t); err != nil || (t+1)%m.Every != 0 && t+1 < m.Steps {
		return err
	}
	n := uint64(m.Peers)
	for i := uint64(0); i < n; i += 2 {
		key := m.Seed ^ uint64(m.Rounds)<<32
		m.mix(int(round.Permute(key, n, i)), int(round.Permute(key, n, i+1)))
	}
	m.Bytes += 8 * float64(m.Parameters())
	m.Rounds++
	return nil
}

// mix is the exchange of one pair.
func (m *noloco) mix(a, b int) {
	pair := [2]int{a, b}
	for i := range m.Parameters() {
		drift := (m.Fast(a)[i] - m.slow[a][i] + m.Fast(b)[i] - m.slow[b][i]) / 2
		middle := (m.slow[a][i] + m.slow[b][i]) / 2
		for _, p := range pair {
			v := float32(m.Alpha*m.velocity[p][i]) + float32(m.Beta*drift) + float32(m.Gamma*(middle-m.slow[p][i]))
			m.velocity[p][i] = v
			m.slow[p][i] += v
		}
	}
	copy(m.Fast(a), m.slow[a])
	copy(m.Fast(b), m.slow[b])
}

func (m *noloco) Shared(p int) []float32 { return m.slow[p] }
