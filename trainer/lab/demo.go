package lab

import (
	"context"
	"fmt"
	"math"

	"github.com/capacloud/capanode/trainer/cosine"
	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/outer"
)

// DeMo exchanges, every step, the largest components of each peer's momentum after a discrete cosine transform of 64×64 tiles;
// what was sent leaves the momentum, and everybody steps by the sign of the mean (arXiv 2411.19870). A component costs 12 bits
// of position and 16 of value in an all-gather.
type DeMo struct {
	Keep  int     // components of each tile
	Decay float32 // of the momentum; 0.999 published
}

// Name implements [Method].
func (d DeMo) Name() string { return fmt.Sprintf("%d of 4096, decay %g", d.Keep, d.Decay) }

// Begin implements [Method].
func (d DeMo) Begin(s *Swarm) (Trial, error) {
	params := s.peers[0].state.Params
	m := &demo{Swarm: s, DeMo: d, tiles: cosine.Of(params), signs: outer.NewSigns(params), mean: make([]float32, s.Parameters())}
	for range s.Peers {
		m.momentum = append(m.momentum, make([]float32, s.Parameters()))
		m.sent = append(m.sent, make([]float32, s.Parameters()))
	}
	for _, t := range m.tiles {
		m.payload += math.Ceil(28 * float64(m.keep(t)) / 8)
	}
	return m, nil
}

type demo struct {
	*Swarm
	DeMo
	tiles          cosine.Tiles
	signs          *outer.Signs
	momentum, sent [][]float32
	mean           []float32
	payload        float64 // bytes of one peer's components
}

// keep returns how many components of a tile travel: its share of the elements, at least one.
func (m *demo) keep(t cosine.Tile) int { return max(1, (m.Keep*t.Rows*t.Columns+2048)/4096) }

func (m *demo) Step(ctx context.Context, t int) error {
	err := m.Each(func(p int) error {
		g, err := m.peers[p].Gradient(ctx, []engine.Batch{m.batch(p, t)})
		if err != nil {
			return err
		}
		m.extract(p, g)
		return nil
	})
	if err != nil {
		return err
	}
	h := m.at(t)
	clear(m.mean)
	for p := range m.Peers {
		for i, v := range m.sent[p] {
			m.mean[i] += v
		}
	}
	if err := m.signs.Step(m.Fast(0), m.mean, h.LearningRate, h.WeightDecay); err != nil {
		return err
	}
	for p := range m.Peers {
		copy(m.Fast(p), m.Fast(0))
	}
	m.Bytes += float64(m.Peers-1) * m.payload
	m.Rounds++
	return nil
}

// extract adds a gradient to a peer's momentum and moves the largest components out of it.
func (m *demo) extract(p int, g engine.Gradient) {
	momentum, sent := m.momentum[p], m.sent[p]
	scale := 1 / float32(g.Targets)
	for i, v := range g.Sum {
		momentum[i] = float32(m.Decay*momentum[i]) + float32(scale*v)
	}
	clear(sent)
	moved := append([]float32(nil), momentum...)
	for _, t := range m.tiles {
		t.Forward(moved)
		largest(t, moved, sent, m.keep(t))
	}
	copy(moved, sent)
	for _, t := range m.tiles {
		t.Inverse(moved)
	}
	for i, v := range moved {
		momentum[i] -= v
	}
}

func (m *demo) Shared(int) []float32 { return m.Fast(0) }

// largest copies the k components of largest magnitude of a tile from x to the same places of dst; ties go to the first.
func largest(t cosine.Tile, x, dst []float32, k int) {
	keys := make([]uint64, 0, t.Rows*t.Columns) // magnitude, then the place from the end
	for r := range t.Rows {
		for c := range t.Columns {
			i := t.Offset + r*t.Stride + c
			keys = append(keys, uint64(math.Float32bits(x[i])&^(1<<31))<<32|uint64(^uint32(i)))
		}
	}
	least := kth(keys, min(k, len(keys)))
	for _, key := range keys {
		if key >= least {
			i := ^uint32(key)
			dst[i] = x[i]
		}
	}
}

// kth returns the k-th largest of distinct keys, which it reorders (Hoare's selection).
func kth(keys []uint64, k int) uint64 {
	low, high := 0, len(keys)-1
	for low < high {
		pivot := keys[(low+high)/2]
		i, j := low, high
		for i <= j {
			for keys[i] > pivot {
				i++
			}
			for keys[j] < pivot {
				j--
			}
			if i <= j {
				keys[i], keys[j] = keys[j], keys[i]
				i, j = i+1, j-1
			}
		}
		switch {
		case k-1 <= j:
			high = j
		case k-1 >= i:
			low = i
		default:
			return keys[k-1]
		}
	}
	return keys[k-1]
}
