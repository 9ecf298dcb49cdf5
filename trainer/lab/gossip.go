package lab

import (
	"context"
	"fmt"

	"github.com/capacloud/capanode/trainer/codec"
	"github.com/capacloud/capanode/trainer/outer"
	"github.com/capacloud/capanode/trainer/round"
	"github.com/capacloud/capanode/trainer/tempo"
)

// Gossip is the program's method in groups smaller than the run: every peer has shared weights φ of its own. It takes the mean
// update of its group, and heals one slice of φ a round towards the group's mean. The last step is a finale: everybody meets
// everybody in as many rounds as that takes, and all end with equal weights.
type Gossip struct {
	Label   string
	Pace    func(done uint64) tempo.Beat
	Size    int     // G, members of a group
	Heal    int     // slices that φ is healed in, one a round; 0: none
	Rate    float32 // of healing
	Codec   string  // of the healing slice
	Weights bool    // exchange θ less the first weights instead of updates: NoLoCo's one-tensor form
	Finale  string  // codec of the last rounds; "": none, and the result is the peers' mean loss
}

// Name implements [Method].
func (d Gossip) Name() string { return d.Label }

// Begin implements [Method].
func (d Gossip) Begin(s *Swarm) (Trial, error) {
	if d.Pace == nil {
		return nil, fmt.Errorf("no schedule: %w", ErrSetup)
	}
	m := &gossip{Swarm: s, Gossip: d, first: append([]float32(nil), s.Fast(0)...), grouping: round.Grouping{Seed: s.Seed, Size: d.Size}}
	decay := float32(0) // the residual is in the fast weights
	if d.Weights {
		decay = 1
	}
	for range s.Peers {
		m.members = append(m.members, &member{
			slow: append([]float32(nil), m.first...), momentum: make([]float32, len(m.first)),
			scratch: make([]float32, len(m.first)), mean: make([]float32, len(m.first)),
			feedback: outer.NewFeedback(len(m.first), decay),
		})
	}
	return m, nil
}

// member is what a peer keeps between rounds.
type member struct {
	slow, momentum, mean, scratch []float32
	feedback                      *outer.Feedback
	blob                          []byte
	source                        codec.Source
	bytes                         float64 // of the blob
}

type gossip struct {
	*Swarm
	Gossip
	first    []float32 // weights that all began with
	grouping round.Grouping
	members  []*member
	beat     tempo.Beat
	until    int
}

func (m *gossip) Step(ctx context.Context, t int) error {
	if t == m.until {
		m.beat = m.Pace(uint64(t))
		m.until = t + max(1, m.beat.LocalSteps)
	}
	if err := m.Local(ctx, t); err != nil || t+1 < m.until && t+1 < m.Steps {
		return err
	}
	groups := m.grouping.Groups(uint64(m.Rounds), m.Peers)
	for _, step := range []func([][]int) error{m.exchange, m.heal} {
		if err := step(groups); err != nil {
			return err
		}
	}
	m.Rounds++
	if t+1 == m.Steps && m.Finale != "" {
		if err := m.finale(); err != nil {
			return err
		}
	}
	return m.Each(func(p int) error {
		e := m.members[p]
		copy(m.Fast(p), e.slow)
		if !m.Weights {
			for i, v := range e.feedback.Residual() {
				m.Fast(p)[i] += v
			}
		}
		return nil
	})
}

// share encodes a vector of every member and leaves each one's group mean in member.mean[:n], summed in the group's order.
func (m *gossip) share(groups [][]int, id string, mean func([]float32, []outer.Update) error, vector func(p int) ([]float32, error)) error {
	err := m.Each(func(p int) (err error) {
		e := m.members[p]
		x, err := vector(p)
		if err != nil {
			return err
		}
		e.source, e.bytes, err = pack(id, x, &e.blob)
		return err
	})
	if err != nil {
		return err
	}
	for _, group := range groups {
		var updates []outer.Update
		for _, p := range group {
			updates = append(updates, outer.Update{Delta: m.members[p].source, Tokens: 1})
			m.Bytes += m.members[p].bytes * float64(len(group)-1) / float64(m.Peers)
		}
		n := updates[0].Delta.Len()
		first := m.members[group[0]].mean[:n]
		if err := mean(first, updates); err != nil {
			return err
		}
		for _, p := range group[1:] {
			copy(m.members[p].mean[:n], first)
		}
	}
	return nil
}

// exchange is the round's average and outer step.
func (m *gossip) exchange(groups [][]int) error {
	err := m.share(groups, m.beat.Codec, outer.Mean, func(p int) ([]float32, error) {
		e := m.members[p]
		base := e.slow
		if m.Weights {
			base = m.first
		}
		for i, v := range m.Fast(p) {
			e.scratch[i] = v - base[i]
		}
		return e.feedback.Pending(e.scratch)
	})
	if err != nil {
		return err
	}
	return m.Each(func(p int) error {
		e := m.members[p]
		if err := e.feedback.Commit(e.source); err != nil {
			return err
		}
		if !m.Weights {
			return m.beat.Outer.Step(e.slow, e.momentum, e.mean)
		}
		for i, v := range m.first {
			e.mean[i] += v
		}
		return outer.Gossip{Alpha: m.beat.Outer.Momentum, Beta: m.beat.Outer.LearningRate}.Step(e.slow, e.momentum, e.mean)
	})
}

// heal moves a slice of everybody's shared weights to its group's mean.
func (m *gossip) heal(groups [][]int) error {
	if m.Heal == 0 {
		return nil
	}
	from, to := round.Slice(uint64(m.Rounds), len(m.first), codec.Block, m.Heal)
	if from == to {
		return nil
	}
	return m.meet(groups, m.Codec, from, to, func(e *member, own []float32) error {
		return outer.Heal(e.slow[from:to], e.mean[:to-from], own, m.Rate)
	})
}

// meet shares a range of the weights, as their difference from the first ones, and hands each member what its mates saw of it.
func (m *gossip) meet(groups [][]int, id string, from, to int, f func(e *member, own []float32) error) error {
	err := m.share(groups, id, plainMean, func(p int) ([]float32, error) {
		e := m.members[p]
		for i := from; i < to; i++ {
			e.scratch[i-from] = e.slow[i] - m.first[i]
		}
		return e.scratch[:to-from], nil
	})
	if err != nil {
		return err
	}
	return m.Each(func(p int) error {
		e := m.members[p]
		codec.Decode(e.scratch, e.source)
		return f(e, e.scratch[:to-from])
	})
}

// finale takes everybody to the mean of all: the mean replaces the weights, so equal blobs leave equal bits.
func (m *gossip) finale() error {
	grouping := m.grouping
	if grouping.Rounds(m.Peers) == 0 {
		grouping.Size = 0
	}
	for range grouping.Rounds(m.Peers) {
		err := m.meet(grouping.Groups(uint64(m.Rounds), m.Peers), m.Finale, 0, len(m.first), func(e *member, _ []float32) error {
			for i, v := range m.first {
				e.slow[i] = v + e.mean[i]
			}
			return nil
		})
		if err != nil {
			return err
		}
		m.Rounds++
	}
	return nil
}

// Shared implements [Trial].
func (m *gossip) Shared(p int) []float32 { return m.members[p].slow }
