package lab

import (
	"context"
	"fmt"
	"math"
	"strings"

	"github.com/capacloud/capanode/trainer/outer"
)

// Streaming is Streaming DiLoCo (arXiv 2501.18512): fragments of the model are averaged in turn, in four bits, while the local
// steps go on; what comes back is mixed into weights that have moved on. A fragment's updates are rounded to E3M0 before the
// ring's sum in float32, and the mean once more before it is handed round. Fragments are layers, and the embedding.
type Streaming struct {
	Every   int // H, steps between two averages of one fragment
	Overlap int // τ, steps that an exchange takes
	Alpha   float32
	Outer   outer.Settings
}

// Name implements [Method].
func (d Streaming) Name() string {
	return fmt.Sprintf("H %d, %s, τ %d", d.Every, rates(d.Outer), d.Overlap)
}

// Begin implements [Method].
func (d Streaming) Begin(s *Swarm) (Trial, error) {
	fragments := fragmentsOf(s)
	if d.Every < 1 || d.Overlap < 0 || d.Overlap >= d.Every {
		return nil, fmt.Errorf("averages every %d steps, each under way for %d: %w", d.Every, d.Overlap, ErrSetup)
	}
	n := s.Parameters()
	m := &streaming{Swarm: s, Streaming: d, fragments: fragments, due: make([]int, len(fragments)),
		slow: make([]float32, n), momentum: make([]float32, n), mean: make([]float32, n), last: make([]int, len(fragments))}
	for f := range m.due {
		m.due[f] = -1
	}
	copy(m.slow, s.Fast(0))
	return m, nil
}

// fragmentsOf cuts the parameters, which are sorted by name, into the embedding and the layers; the last norm joins the last
// layer.
func fragmentsOf(s *Swarm) (bounds [][2]int) {
	start := 0
	params := s.peers[0].state.Params
	for i, p := range params {
		if i > 0 && layerOf(p.Name) != layerOf(params[i-1].Name) && layerOf(p.Name) != "" {
			bounds = append(bounds, [2]int{start, p.Offset})
			start = p.Offset
		}
	}
	return append(bounds, [2]int{start, s.Parameters()})
}

func layerOf(name string) string {
	if rest, ok := strings.CutPrefix(name, "model.layers."); ok {
		number, _, _ := strings.Cut(rest, ".")
		return number
	}
	return ""
}

type streaming struct {
	*Swarm
	Streaming
	fragments            [][2]int
	due                  []int // step after which a fragment's mean arrives; -1: none is under way
	last                 []int
	slow, momentum, mean []float32
}

func (m *streaming) Step(ctx context.Context, t int) error {
	if err := m.Local(ctx, t); err != nil {
		return err
	}
	end := t+1 == m.Steps
	for f := range m.fragments {
		offset := f * m.Every / len(m.fragments)
		if m.due[f] < 0 && ((t+1+offset)%m.Every == 0 || end) {
			m.send(f)
			m.due[f] = t + m.Overlap
		}
		if m.due[f] == t || m.due[f] >= 0 && end {
			if err := m.receive(f, end); err != nil {
				return err
			}
			m.due[f] = -1
		}
	}
	return nil
}

// send leaves the rounded mean of a fragment's updates in m.mean.
func (m *streaming) send(f int) {
	lo, hi := m.fragments[f][0], m.fragments[f][1]
	mean, own := m.mean[lo:hi], make([]float32, hi-lo)
	clear(mean)
	for p := range m.Peers {
		for i, v := range m.Fast(p)[lo:hi] {
			own[i] = v - m.slow[lo+i]
		}
		e3m0(own)
		for i, v := range own {
			mean[i] += v / float32(m.Peers)
		}
	}
	e3m0(mean)
	m.ring(float64(hi-lo) * e3m0Bits / 8)
}

// receive steps a fragment's shared weights and mixes them into the fast ones; at the end they take their place.
func (m *streaming) receive(f int, end bool) error {
	lo, hi := m.fragments[f][0], m.fragments[f][1]
	if err := m.Outer.Step(m.slow[lo:hi], m.momentum[lo:hi], m.mean[lo:hi]); err != nil {
		return err
	}
	alpha := m.Alpha
	if end {
		alpha = 0
	}
	return m.Each(func(p int) error { return outer.Merge(m.Fast(p)[lo:hi], m.slow[lo:hi], alpha) })
}

func (m *streaming) Shared(int) []float32 { return m.slow }

// e3m0Block elements share a scale of two bytes.
const (
	e3m0Block = 256
	e3m0Bits  = 4 + 16.0/e3m0Block // per element
)

// e3m0 rounds numbers to a sign and a power of two times the largest of their block, from 1 to 1/64, or to zero.
func e3m0(x []float32) {
	for len(x) > 0 {
		n := min(e3m0Block, len(x))
		largest := 0.0
		for _, v := range x[:n] {
			largest = max(largest, math.Abs(float64(v)))
		}
		for i, v := range x[:n] {
			if v == 0 {
				continue
			}
			share := math.Abs(float64(v)) / largest
			fraction, exponent := math.Frexp(share) // fraction in [1/2, 1)
			if fraction >= 0.75 {
				exponent++ // nearest of 2^(exponent−1) and 2^exponent
			}
			level := math.Ldexp(0.5, max(exponent, -5))
			if share < 1.0/128 {
				level = 0
			}
			x[i] = float32(math.Copysign(level*largest, float64(v)))
		}
		x = x[n:]
	}
}
