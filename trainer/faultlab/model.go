package faultlab

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"

	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/engine/native"
	"github.com/capacloud/capanode/trainer/model"
	"github.com/capacloud/capanode/trainer/outer"
	"github.com/capacloud/capanode/trainer/round"
	"github.com/capacloud/capanode/trainer/tempo"
	"github.com/capacloud/capanode/trainer/worker"
)

// Quadratic is a tiny real engine: its loss is the squared distance to a point that every window shifts a little, so that
// different data give different gradients. Its optimiser is the program's own AdamW.
type Quadratic struct {
	state *engine.State
	point []float32
	grads []float32
	pace  func(rows int)
}

// NewQuadratic returns a quadratic of n parameters. Each optimiser step calls pace with the rows of its first micro-batch:
// where a test makes a peer slow. It may be nil.
func NewQuadratic(n int, pace func(rows int)) *Quadratic {
	params := []engine.Param{{Name: "w", Shape: []int{n}, Init: engine.Init{Std: 0.5}}}
	state, err := engine.NewState(params, 7)
	if err != nil {
		panic(err) // one tensor is always a layout
	}
	q := &Quadratic{state: state, point: make([]float32, n), grads: make([]float32, n), pace: pace}
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range q.point {
		q.point[i] = float32(rng.NormFloat64())
	}
	return q
}

var _ engine.Differentiating = (*Quadratic)(nil)

// Train implements [engine.Engine].
func (q *Quadratic) Train(ctx context.Context, batches []engine.Batch, step engine.Step) (float64, error) {
	g, err := q.Gradient(ctx, batches)
	if err == nil {
		_, err = q.state.Update(g.Sum, g.Targets, step, 1)
	}
	return g.Loss, err
}

// Gradient implements [engine.Differentiating].
func (q *Quadratic) Gradient(_ context.Context, batches []engine.Batch) (engine.Gradient, error) {
	if q.pace != nil {
		q.pace(batches[0].Rows)
	}
	clear(q.grads)
	var loss float64
	rows := 0
	for _, b := range batches {
		for r := range b.Rows {
			rng := rand.New(rand.NewPCG(uint64(b.Inputs[r*b.Context]), 9))
			shift := float32(rng.NormFloat64())
			for i, w := range q.state.Weights {
				d := w - q.point[i] + shift*q.point[(i+1)%len(q.point)]*0.3
				q.grads[i] += d
				loss += float64(d) * float64(d)
			}
			rows++
		}
	}
	return engine.Gradient{Sum: q.grads, Targets: int64(rows), Loss: loss / float64(rows*len(q.point))}, nil
}

// Evaluate implements [engine.Engine]: the mean squared distance to the point.
func (q *Quadratic) Evaluate(context.Context, engine.Batch) (float64, error) {
	var sum float64
	for i, w := range q.state.Weights {
		d := float64(w - q.point[i])
		sum += d * d
	}
	return sum / float64(len(q.point)), nil
}

// Logits implements [engine.Engine]; there are none.
func (q *Quadratic) Logits(context.Context, engine.Batch) ([]float32, error) {
	return nil, errors.New("a quadratic has no logits")
}

// State implements [engine.Engine].
func (q *Quadratic) State() *engine.State { return q.state }

// Close implements [engine.Engine].
func (q *Quadratic) Close() error { return nil }

// Llama returns a tiny real transformer on the native engine: two layers of width 32, for 32 tokens. The seed decides its
// initial weights.
func Llama(seed uint64) (engine.Engine, error) {
	program, err := model.Spec{
		Family: model.FamilyLlama, Vocab: 32, Width: 32, Layers: 2, Heads: 2, KVHeads: 1, FeedForward: 64, Context: 16,
		RopeTheta: 10000, NormEps: 1e-5, TieEmbeddings: true,
	}.Program()
	if err != nil {
		return nil, fmt.Errorf("faultlab: %w", err)
	}
	return native.New(program, native.Options{Seed: seed, Parallelism: 1})
}

// Plan is a run of so many rounds for a [Quadratic] on [Numbers]: four steps of four rows, int8 updates.
func Plan(rounds uint64) worker.Plan {
	return worker.Plan{
		Rounds: rounds, LocalSteps: 4, BatchRows: 4, MicroRows: 2, Context: 8, Seed: 3, Codec: "int8",
		Outer:    outer.Settings{LearningRate: 0.7, Momentum: 0.3},
		Inner:    engine.Step{Beta1: 0.9, Beta2: 0.95, Epsilon: 1e-8, ClipNorm: 1},
		Schedule: worker.Schedule{Peak: 0.1, Floor: 0.01, Warmup: 2, Total: 4 * rounds},
	}
}

// GradientPlan is a run of so many rounds of gradients on the model of a lab: each is one step of four rows. With a step's pace of
// four seconds its rounds take as long as those of [Plan].
func GradientPlan(rounds uint64) worker.Plan {
	p := Plan(rounds)
	p.LocalSteps, p.Params, p.Schedule.Total = 1, defaultParams, rounds
	p.Tempo = &tempo.Plan{Steps: rounds, Mates: 3, Gradients: true}
	return p
}

// defaultParams is the size of the model of a lab whose options name no other.
const defaultParams = 256

// LlamaPlan is a run of so many rounds for [Llama] on [Text]: four steps of eight rows, int8 updates, a constant inner rate,
// so that the loss at some number of tokens does not depend on the length of the run.
func LlamaPlan(rounds uint64) worker.Plan {
	p := Plan(rounds)
	p.BatchRows, p.MicroRows, p.Context = 8, 8, 16
	p.Inner.WeightDecay = 0.1
	p.Schedule = worker.Schedule{Peak: 5e-3, Floor: 5e-3, Warmup: 8, Total: 4 * rounds}
	return p
}

// Numbers is a data set of numbered windows: each token tells its shard and window.
type Numbers struct {
	Count   int    // of shards
	Length  uint64 // windows of each shard
	Context int    // tokens of a window
}

var _ worker.Data = Numbers{}

// Shards implements [worker.Data].
func (d Numbers) Shards() int { return d.Count }

// Windows implements [worker.Data].
func (d Numbers) Windows(int) uint64 { return d.Length }

// Batch implements [worker.Data].
func (d Numbers) Batch(_ context.Context, windows []round.Window) (engine.Batch, error) {
	b := engine.Batch{Rows: len(windows), Context: d.Context}
	for _, w := range windows {
		for range d.Context {
			b.Inputs = append(b.Inputs, int32(w.Shard*1000)+int32(w.Index))
			b.Targets = append(b.Targets, 0)
		}
	}
	return b, nil
}

// Text is a language of 32 tokens, each of which has four successors with the chances 0.55, 0.25, 0.15 and 0.05: 1.11 nats
// per token are left to whoever knows it. Windows of different shards and indices differ.
type Text struct{ Numbers }

// Batch implements [worker.Data].
func (d Text) Batch(_ context.Context, windows []round.Window) (engine.Batch, error) {
	b := engine.Batch{Rows: len(windows), Context: d.Context}
	for _, w := range windows {
		rng := rand.New(rand.NewPCG(uint64(w.Shard)+1, w.Index+1))
		token := int32(rng.IntN(32))
		for range d.Context {
			b.Inputs = append(b.Inputs, token)
			token = successor(token, rng.Float64())
			b.Targets = append(b.Targets, token)
		}
	}
	return b, nil
}

func successor(token int32, luck float64) int32 {
	for i, share := range []float64{0.55, 0.8, 0.95, 1} {
		if luck < share {
			return (5*token + 9*int32(i) + 3) % 32
		}
	}
	return 0
}

// HeldOut is a batch of windows that no run of fewer than 1<<20 windows trains on.
func (d Text) HeldOut(rows int) engine.Batch {
	windows := make([]round.Window, rows)
	for i := range windows {
		windows[i] = round.Window{Shard: i % d.Count, Index: 1<<20 + uint64(i)}
	}
	b, _ := d.Batch(context.Background(), windows) // text never fails
	return b
}
