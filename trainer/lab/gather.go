package lab

import (
	"context"
	"fmt"
	"math"

	"github.com/capacloud/capanode/trainer/codec"
	"github.com/capacloud/capanode/trainer/outer"
	"github.com/capacloud/capanode/trainer/tempo"
)

// Gather is the program's own method where all peers form one group: everybody fetches everybody's compressed update, error
// feedback keeps what the codec dropped, and all compute the same mean and the same outer step.
//
// What was dropped is not lost to its peer meanwhile: the next local steps begin at φ + e, the shared weights and the own
// residual. So the difference θ − φ after them is the next update with its error feedback, and gradients are taken where the
// peer's knowledge is, not where the slow shared weights are.
type Gather struct {
	Label  string
	Pace   func(done uint64) tempo.Beat // of a run whose budget it knows
	Reset  bool                         // local steps begin at φ, and the residual is added to their update: published practice
	Forget float32                      // with Reset: share of the residual that is lost in a round, 0.05 in SparseLoCo
	Plain  bool                         // mean without clipping to the median norm
	Fixed  bool                         // positions of sparse updates cost 12 bits each, as SparseLoCo sends them
	Own    bool                         // the result is the mean loss of the peers' own fast weights, not of the shared ones
}

// Name implements [Method].
func (d Gather) Name() string { return d.Label }

// Begin implements [Method].
func (d Gather) Begin(s *Swarm) (Trial, error) {
	if d.Pace == nil {
		return nil, fmt.Errorf("no schedule: %w", ErrSetup)
	}
	n := s.Parameters()
	m := &gather{Swarm: s, Gather: d, slow: make([]float32, n), momentum: make([]float32, n), mean: make([]float32, n)}
	copy(m.slow, s.Fast(0))
	for range s.Peers {
		decay := float32(0) // the residual is in the fast weights already
		if d.Reset {
			decay = 1 - d.Forget
		}
		m.feedback = append(m.feedback, outer.NewFeedback(n, decay))
	}
	m.blobs, m.sizes = make([][]byte, s.Peers), make([]float64, s.Peers)
	return m, nil
}

type gather struct {
	*Swarm
	Gather
	slow, momentum, mean []float32
	feedback             []*outer.Feedback
	blobs                [][]byte
	sizes                []float64 // of the blobs, bytes
	beat                 tempo.Beat
	until                int // step that begins the next round
}

func (m *gather) Step(ctx context.Context, t int) error {
	if t == m.until {
		m.beat = m.Pace(uint64(t))
		m.until = t + max(1, m.beat.LocalSteps)
	}
	if err := m.Local(ctx, t); err != nil || t+1 < m.until && t+1 < m.Steps {
		return err
	}
	updates := make([]outer.Update, m.Peers)
	if err := m.Each(func(p int) (err error) { updates[p], err = m.encode(p); return err }); err != nil {
		return err
	}
	return m.apply(updates)
}

// encode compresses what a peer has to say: its update and what earlier rounds left unsaid.
func (m *gather) encode(p int) (u outer.Update, err error) {
	update := make([]float32, len(m.slow))
	for i, v := range m.Fast(p) {
		update[i] = v - m.slow[i]
	}
	pending, err := m.feedback[p].Pending(update)
	if err != nil {
		return u, err
	}
	src, bytes, err := pack(m.beat.Codec, pending, &m.blobs[p])
	if m.Fixed {
		bytes = fixedSize(m.beat.Codec, len(pending))
	}
	m.sizes[p] = bytes
	return outer.Update{Delta: src, Tokens: 1}, err
}

// apply takes the outer step and gives every peer its next weights.
func (m *gather) apply(updates []outer.Update) error {
	mean := outer.Mean
	if m.Plain {
		mean = plainMean
	}
	if err := mean(m.mean, updates); err != nil {
		return err
	}
	if err := m.beat.Outer.Step(m.slow, m.momentum, m.mean); err != nil {
		return err
	}
	for _, b := range m.sizes {
		m.Bytes += b * float64(m.Peers-1) / float64(m.Peers)
	}
	m.Rounds++
	return m.Each(func(p int) error {
		if err := m.feedback[p].Commit(updates[p].Delta); err != nil {
			return err
		}
		fast := m.Fast(p)
		copy(fast, m.slow)
		if !m.Reset {
			for i, e := range m.feedback[p].Residual() {
				fast[i] += e
			}
		}
		return nil
	})
}

func (m *gather) Shared(p int) []float32 {
	if m.Own {
		return m.Fast(p)
	}
	return m.slow
}

// fixedSize returns the bytes of a sparse update whose elements cost 12 bits of position and 2 of value, with four float16
// values for each block.
func fixedSize(id string, n int) float64 {
	total, k := 0.0, 0
	_, _ = fmt.Sscanf(id, "top%d", &k)
	for lo := 0; lo < n; lo += codec.Block {
		block := min(codec.Block, n-lo)
		total += 14*math.Ceil(float64(k*block)/codec.Block)/8 + 8
	}
	return total
}

// plainMean writes the mean of updates to dst without weights and clipping, summed in their order.
func plainMean(dst []float32, updates []outer.Update) error {
	clear(dst)
	for b := range codec.Blocks(len(dst)) {
		for _, u := range updates {
			u.Delta.Add(dst[b*codec.Block:min((b+1)*codec.Block, len(dst))], b, 1/float32(len(updates)))
		}
	}
	return nil
}

// pack encodes a vector and opens the blob again, as its mates do. The buffer grows as needed.
func pack(id string, x []float32, buf *[]byte) (src codec.Source, bytes float64, err error) {
	c, err := codec.Parse(id)
	if err != nil {
		return nil, 0, err
	}
	if n := c.Bound(len(x)); len(*buf) < n {
		*buf = make([]byte, n)
	}
	n, err := c.Encode(*buf, x)
	if err != nil {
		return nil, 0, err
	}
	src, err = c.Open((*buf)[:n], len(x))
	return src, float64(n), err
}
