package lab

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"sync"

	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/engine/native"
	"github.com/capacloud/capanode/trainer/model"
	"github.com/capacloud/capanode/trainer/round"
)

// ErrSetup reports an experiment that cannot be run.
var ErrSetup = errors.New("invalid experiment")

// Setup is what all methods of a comparison share.
type Setup struct {
	Model   model.Spec
	Text    Text
	Peers   int     // N
	Rows    int     // sequences of one step of one peer
	Steps   int     // optimiser steps of each peer
	Seed    uint64  // of the weights, the order of the samples, and the groups
	Scale   float32 // of the fresh matrices, times what the model asks for; 0 means 1
	Rate    float64 // peak learning rate of the inner AdamW
	Points  int     // measurements of the loss during a run, evenly spaced; the last is the result. At least 1
	Windows int     // held-out windows that a measurement reads; 0 means 256
	Frozen  int     // elements of the weights, from the first on, that local steps leave as they began
}

// inner are the inner optimiser's constants. Warm-up takes a twentieth of the steps, then a cosine falls to a tenth of the peak.
var inner = engine.Step{Beta1: 0.9, Beta2: 0.95, Epsilon: 1e-8, WeightDecay: 0.1, ClipNorm: 1}

// at returns the hyper-parameters of a step, counted from 0.
func (s Setup) at(step int) engine.Step {
	h := inner
	warm := max(1, s.Steps/20)
	if step < warm {
		h.LearningRate = s.Rate * float64(step+1) / float64(warm)
		return h
	}
	share := float64(step-warm) / float64(max(1, s.Steps-warm))
	h.LearningRate = s.Rate * (0.1 + 0.45*(1+math.Cos(math.Pi*share)))
	return h
}

// Point is one measurement.
type Point struct {
	Tokens float64 `json:"tokens"` // trained by all peers together
	Bytes  float64 `json:"bytes"`  // downloaded by one peer so far
	Loss   float64 `json:"loss"`   // validation, nats per token
}

// Result is what a method gave.
type Result struct {
	Loss   float64 // validation loss at the end, nats per token
	Bytes  float64 // downloaded by one peer
	Bits   float64 // the same per parameter and step
	Rounds int     // that ended in an exchange
	Curve  []Point
}

// Method is a way to train together. A value holds settings alone; Begin makes what runs.
type Method interface {
	// Name says what the method is, with its settings.
	Name() string
	// Begin returns the state of one experiment over the swarm's peers, all of which have equal weights.
	Begin(s *Swarm) (Trial, error)
}

// Trial is a method at work.
type Trial interface {
	// Step takes optimiser step t, counted from 0, on every peer, and whatever exchange follows it.
	Step(ctx context.Context, t int) error
	// Shared returns the weights that peer p would answer with now. Equal slices mean equal weights.
	Shared(p int) []float32
}

// Swarm is the peers of one experiment.
type Swarm struct {
	Setup
	Bytes   float64 // downloaded by one peer so far
	Rounds  int     // exchanges so far
	peers   []peer
	judge   engine.Engine
	heldOut []engine.Batch
	frozen  []float32 // what the frozen weights are
}

// peer is one simulated peer. Its fast weights θ and its moments are its executor's state.
type peer struct {
	engine.Differentiating
	state *engine.State
}

// Run trains with one method and measures it.
func Run(ctx context.Context, setup Setup, m Method) (result Result, err error) {
	s, err := newSwarm(setup)
	if err != nil {
		return result, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	trial, err := m.Begin(s)
	if err != nil {
		return result, fmt.Errorf("lab: %s: %w", m.Name(), err)
	}
	points := max(1, s.Points)
	for t := range s.Steps {
		if err := trial.Step(ctx, t); err != nil {
			return result, fmt.Errorf("lab: %s: step %d: %w", m.Name(), t, err)
		}
		if (t+1)*points/s.Steps == t*points/s.Steps {
			continue
		}
		loss, err := s.measure(ctx, trial)
		if err != nil {
			return result, fmt.Errorf("lab: %s: after step %d: %w", m.Name(), t, err)
		}
		tokens := float64((t + 1) * s.Peers * s.Rows * s.Model.Context)
		result.Curve = append(result.Curve, Point{Tokens: tokens, Bytes: s.Bytes, Loss: loss})
	}
	result.Loss = result.Curve[len(result.Curve)-1].Loss
	result.Bytes, result.Rounds = s.Bytes, s.Rounds
	result.Bits = 8 * s.Bytes / float64(s.Parameters()) / float64(s.Steps)
	return result, nil
}

func newSwarm(setup Setup) (*Swarm, error) {
	if setup.Peers < 1 || setup.Rows < 1 || setup.Steps < 1 {
		return nil, fmt.Errorf("lab: %d peers, %d rows, %d steps: %w", setup.Peers, setup.Rows, setup.Steps, ErrSetup)
	}
	if setup.Windows == 0 {
		setup.Windows = 256
	}
	s := &Swarm{Setup: setup}
	program, err := setup.Model.Program()
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	for range setup.Peers {
		e, err := native.New(program, native.Options{Seed: setup.Seed, Parallelism: 1})
		if err != nil {
			return nil, errors.Join(fmt.Errorf("lab: %w", err), s.close())
		}
		d, ok := e.(engine.Differentiating)
		if !ok {
			return nil, fmt.Errorf("lab: the executor gives no gradients: %w", ErrSetup)
		}
		s.peers = append(s.peers, peer{d, e.State()})
		setup.scale(e.State())
	}
	if n := s.Parameters(); setup.Frozen < 0 || setup.Frozen > n {
		return nil, errors.Join(fmt.Errorf("lab: %d of %d weights frozen: %w", setup.Frozen, n, ErrSetup), s.close())
	}
	s.frozen = append(s.frozen, s.Fast(0)[:setup.Frozen]...)
	if s.judge, err = native.New(program, native.Options{Parallelism: runtime.GOMAXPROCS(0)}); err != nil {
		return nil, errors.Join(fmt.Errorf("lab: %w", err), s.close())
	}
	if s.heldOut, err = setup.Text.heldOut(setup.Windows, setup.Model.Context); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, setup.Text.check(setup.Model.Context)
}

// scale widens the fresh matrices.
func (s Setup) scale(state *engine.State) {
	for _, p := range state.Params {
		if s.Scale == 0 || p.Init.Std == 0 {
			continue
		}
		for i := range p.Size() {
			state.Weights[p.Offset+i] *= s.Scale
		}
	}
}

func (s *Swarm) close() (err error) {
	for _, p := range s.peers {
		err = errors.Join(err, p.Close())
	}
	if s.judge != nil {
		err = errors.Join(err, s.judge.Close())
	}
	return err
}

// Parameters returns the number of elements of the model.
func (s *Swarm) Parameters() int { return len(s.peers[0].state.Weights) }

// Fast returns the fast weights θ of a peer, which its local steps move.
func (s *Swarm) Fast(p int) []float32 { return s.peers[p].state.Weights }

// Each runs f for every peer, spread over the cores.
func (s *Swarm) Each(f func(p int) error) error {
	errs := make([]error, s.Peers)
	var wg sync.WaitGroup
	lanes := min(runtime.GOMAXPROCS(0), s.Peers)
	for lane := range lanes {
		wg.Go(func() {
			for p := lane; p < s.Peers; p += lanes {
				errs[p] = f(p)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Local takes one inner step on every peer.
func (s *Swarm) Local(ctx context.Context, t int) error {
	return s.Each(func(p int) error {
		_, err := s.peers[p].Train(ctx, []engine.Batch{s.batch(p, t)}, s.at(t))
		copy(s.Fast(p), s.frozen)
		return err
	})
}

// batch returns the samples of one peer's step: the next ones of a permutation of all windows of the text, so that no window
// comes twice before all came once, and all peers together read what one peer with their joint batch would.
func (s *Swarm) batch(p, t int) engine.Batch {
	n := s.Text.windows(s.Model.Context)
	first := uint64((t*s.Peers + p) * s.Rows)
	b := engine.Batch{Rows: s.Rows, Context: s.Model.Context}
	for i := first; i < first+uint64(s.Rows); i++ {
		s.Text.window(&b, round.Permute(s.Seed^i/n, n, i%n))
	}
	return b
}

// measure returns the mean validation loss of the peers' weights.
func (s *Swarm) measure(ctx context.Context, trial Trial) (float64, error) {
	total := 0.0
	var last []float32
	loss := 0.0
	for p := range s.Peers {
		w := trial.Shared(p)
		if !slices.Equal(w, last) {
			last = w
			copy(s.judge.State().Weights, w)
			loss = 0
			for _, b := range s.heldOut {
				l, err := s.judge.Evaluate(ctx, b)
				if err != nil {
					return 0, err
				}
				loss += l / float64(len(s.heldOut))
			}
		}
		total += loss
	}
	return total / float64(s.Peers), nil
}

// ring counts an all-reduce among all peers of a payload of so many bytes.
func (s *Swarm) ring(payload float64) {
	s.Bytes += payload * 2 * float64(s.Peers-1) / float64(s.Peers)
	s.Rounds++
}
