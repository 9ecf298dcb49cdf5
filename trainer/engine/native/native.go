// Package native owns the executor for processors: it trains and runs programs in float32 with the same bits on every
// machine, for any number of threads, on any instruction set. It refuses to know about devices, files and peers.
//
// A program is compiled once for each batch shape into phases of tasks that share one planned arena, so a step allocates
// nothing. Every number is defined by a fixed order of roundings (package kernel); work is cut where that order does not
// notice. Sums over the lines of a batch run in line order, so cutting a batch into micro-batches changes nothing in
// the gradients of matrices that one layer uses.
package native

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"time"

	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/engine/native/kernel"
)

// Numerics returns the numerics class of this executor: one for all machines. Its number changes with any change of a
// rounding order, here or in package kernel.
func Numerics() string { return fmt.Sprintf("native/%d", kernel.Version) }

// Options configure an executor. The zero value is usable.
type Options struct {
	Seed        uint64        // of the initial weights
	MemoryLimit int64         // bytes the executor may use; 0 means no limit
	Watchdog    time.Duration // longest time for one task of a step; 0 means DefaultWatchdog
	Parallelism int           // threads that compute; 0 means GOMAXPROCS. Results do not depend on it
	Recompute   bool          // keep only the inputs of layers for the backward pass: less memory, a third more time
}

// DefaultWatchdog is the time that one task may take when the options say nothing. A task is well below a second of
// arithmetic, so this leaves room for a machine that is busy or sleeps.
const DefaultWatchdog = 10 * time.Minute

// errClosed reports a use after Close.
var errClosed = errors.New("native: the engine is closed")

// executor implements [engine.Engine].
type executor struct {
	program engine.Program
	opts    Options
	state   *engine.State
	params  []engine.Param // the trained ones, then the frozen ones
	grads   []float32      // gradient sum of a step, layout of state.Weights
	weights *weights
	crew    *crew
	graphs  map[graphKey]*graph
	order   []graphKey // oldest first
	arena   []float32
	tables  int64 // elements that the graphs hold beside the arena
	update  *update
	broken  error // set when the executor must not be used any more
}

type graphKey struct {
	kind  kind
	shape engine.Shape
}

// New builds the executor of a program with freshly initialised state. Errors: [engine.ErrShape] for a program that is
// inconsistent, [engine.ErrMemory] when its parameters alone exceed the limit, [kernel.ErrPath] when the environment
// forces kernels that this processor does not run.
func New(program engine.Program, opts Options) (engine.Engine, error) {
	e, err := newExecutor(program, opts)
	if err != nil {
		return nil, fmt.Errorf("native: program %q: %w", program.Name, err)
	}
	return e, nil
}

func newExecutor(program engine.Program, opts Options) (*executor, error) {
	set, err := kernel.Select()
	if err != nil {
		return nil, err
	}
	opts = opts.defaults()
	trained, frozen, err := engine.Split(program.Params)
	if err != nil {
		return nil, err
	}
	plan := engine.Plan{}
	for _, p := range slices.Concat(trained, frozen) {
		plan.Tensors = append(plan.Tensors, engine.Tensor{Name: p.Name, Bytes: 4 * int64(p.Size())})
	}
	if err := plan.Sort().CheckMemory(stateBytes(trained, frozen), opts.MemoryLimit); err != nil {
		return nil, err
	}
	state, err := engine.NewState(program.Params, opts.Seed)
	if err != nil {
		return nil, err
	}
	e := &executor{program: program, opts: opts, state: state, grads: make([]float32, len(state.Weights)), graphs: map[graphKey]*graph{}}
	e.params = slices.Concat(state.Params, state.Frozen)
	e.weights = newWeights(state)
	e.crew = newCrew(set, opts.Parallelism, opts.Watchdog)
	e.update = newUpdate(state, e.grads)
	return e, nil
}

func (o Options) defaults() Options {
	if o.Parallelism < 1 {
		o.Parallelism = runtime.GOMAXPROCS(0)
	}
	if o.Watchdog <= 0 {
		o.Watchdog = DefaultWatchdog
	}
	return o
}

// State implements [engine.Engine].
func (e *executor) State() *engine.State { return e.state }

// Close implements [engine.Engine].
func (e *executor) Close() error {
	if e.broken == nil {
		e.broken = errClosed
	}
	e.graphs, e.order, e.arena, e.grads, e.weights, e.update = nil, nil, nil, nil, nil, nil
	return nil
}

// Train implements [engine.Engine].
func (e *executor) Train(ctx context.Context, batches []engine.Batch, step engine.Step) (float64, error) {
	loss, err := e.train(ctx, batches, step)
	if err != nil {
		return 0, fmt.Errorf("native: train: %w", err)
	}
	return loss, nil
}

func (e *executor) train(ctx context.Context, batches []engine.Batch, step engine.Step) (float64, error) {
	if err := step.Check(); err != nil {
		return 0, err
	}
	sum, targets, err := e.pass(ctx, batches, training)
	if err != nil {
		return 0, err
	}
	if err := e.update.run(ctx, e, targets, step); err != nil {
		return 0, err
	}
	return sum / float64(targets), nil
}

// Gradient implements [engine.Differentiating].
func (e *executor) Gradient(ctx context.Context, batches []engine.Batch) (engine.Gradient, error) {
	sum, targets, err := e.pass(ctx, batches, training)
	if err != nil {
		return engine.Gradient{}, fmt.Errorf("native: gradient: %w", err)
	}
	return engine.Gradient{Sum: e.grads, Targets: targets, Loss: sum / float64(targets)}, nil
}

// Evaluate implements [engine.Engine].
func (e *executor) Evaluate(ctx context.Context, batch engine.Batch) (float64, error) {
	one := [1]engine.Batch{batch}
	sum, targets, err := e.pass(ctx, one[:], evaluation)
	if err != nil {
		return 0, fmt.Errorf("native: evaluate: %w", err)
	}
	return sum / float64(targets), nil
}

// Score implements [engine.Scoring].
func (e *executor) Score(ctx context.Context, batch engine.Batch) (engine.Scores, error) {
	one := [1]engine.Batch{batch}
	if _, _, err := e.pass(ctx, one[:], evaluation); err != nil {
		return engine.Scores{}, fmt.Errorf("native: score: %w", err)
	}
	g, err := e.graph(evaluation, batch.Shape())
	if err != nil {
		return engine.Scores{}, fmt.Errorf("native: score: %w", err)
	}
	return engine.Scores{Losses: g.batch.losses, Hits: g.batch.hits}, nil
}

// pass runs all batches and returns the summed loss and the number of targets in it; when training it leaves their summed
// gradient in e.grads.
func (e *executor) pass(ctx context.Context, batches []engine.Batch, k kind) (sum float64, targets int64, err error) {
	if e.broken != nil {
		return 0, 0, e.broken
	}
	for i := range batches {
		g, err := e.graph(k, batches[i].Shape())
		if err != nil {
			return 0, 0, fmt.Errorf("batch %d: %w", i, err)
		}
		if err := batches[i].Check(e.program, g.plan.Needs, true); err != nil {
			return 0, 0, fmt.Errorf("batch %d: %w", i, err)
		}
		targets += int64(batches[i].TargetCount())
	}
	if targets == 0 {
		return 0, 0, fmt.Errorf("%d batches without a target: %w", len(batches), engine.ErrBatch)
	}
	if err := e.prepare(ctx, k == training); err != nil {
		return 0, 0, err
	}
	for i := range batches {
		g, err := e.graph(k, batches[i].Shape()) // kept, unless there are more shapes than graphs kept
		if err != nil {
			return 0, 0, err
		}
		if err := e.compute(ctx, g, batches[i]); err != nil {
			return 0, 0, err
		}
		for _, loss := range g.batch.losses {
			sum += loss
		}
	}
	if math.IsNaN(sum) || math.IsInf(sum, 0) {
		return 0, 0, fmt.Errorf("summed loss %g over %d targets: %w", sum, targets, engine.ErrNumerics)
	}
	return sum, targets, nil
}

// prepare lays out the weights, which the caller may have changed, and with training set clears the gradients.
func (e *executor) prepare(ctx context.Context, training bool) error {
	if training {
		clear(e.grads)
	}
	if e.weights.once != nil {
		if err := e.run(ctx, e.weights.once); err != nil {
			return err
		}
		e.weights.settle()
	}
	return e.run(ctx, e.weights.packing(training))
}

// compute runs one graph on one batch.
func (e *executor) compute(ctx context.Context, g *graph, b engine.Batch) error {
	e.bind(g)
	g.batch.Batch, g.batch.sums = b, e.grads
	err := e.run(ctx, g.phases)
	g.batch.Batch = engine.Batch{}
	return err
}

// run computes phases; after a hang the executor is broken.
func (e *executor) run(ctx context.Context, phases []*phase) error {
	err := e.crew.run(ctx, phases)
	if errors.Is(err, engine.ErrHung) {
		e.broken = err
	}
	return err
}

// bind gives a graph its memory, which all graphs share: one runs at a time.
func (e *executor) bind(g *graph) {
	if len(e.arena) < g.arena {
		e.arena = make([]float32, g.arena)
	}
	e.crew.reserve(g.scratch)
	g.bind(e.arena)
}

// Logits implements [engine.Engine].
func (e *executor) Logits(ctx context.Context, batch engine.Batch) ([]float32, error) {
	out, err := e.logits(ctx, batch)
	if err != nil {
		return nil, fmt.Errorf("native: logits: %w", err)
	}
	return out, nil
}

func (e *executor) logits(ctx context.Context, batch engine.Batch) ([]float32, error) {
	if e.broken != nil {
		return nil, e.broken
	}
	g, err := e.graph(inference, batch.Shape())
	if err != nil {
		return nil, err
	}
	if err := batch.Check(e.program, g.plan.Needs, false); err != nil {
		return nil, err
	}
	if err := e.prepare(ctx, false); err != nil {
		return nil, err
	}
	if err := e.compute(ctx, g, batch); err != nil {
		return nil, err
	}
	return g.result(nil), nil
}

// result appends the output, row-major without gaps.
func (g *graph) result(to []float32) []float32 {
	if to == nil {
		to = make([]float32, 0, g.output.lines*g.output.width)
	}
	for i := range g.output.lines {
		to = append(to, g.output.line(i)...)
	}
	return to
}

// maxGraphs bounds the compiled graphs kept: a run uses one or two shapes for training and one each for the rest.
const maxGraphs = 16

// graph returns the compiled graph of a shape, once it is known that it fits into memory.
func (e *executor) graph(k kind, shape engine.Shape) (*graph, error) {
	key := graphKey{k, shape}
	if g, ok := e.graphs[key]; ok {
		return g, nil
	}
	if shape.Rows < 1 || shape.Context < 1 || shape.Context > e.program.Context {
		return nil, fmt.Errorf("%d rows × %d tokens, the model takes 1 to %d tokens: %w", shape.Rows, shape.Context, e.program.Context, engine.ErrBatch)
	}
	wanted := e.weights.clone()
	g, err := compile(source{e.program, e.params, wanted, e.opts}, shape, k)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", engine.ErrBatch, err)
	}
	need := memory{state: stateBytes(e.state.Params, e.state.Frozen), packs: wanted.size(), arena: max(len(e.arena), g.arena),
		tables:  e.tables + g.tables,
		scratch: max(len(e.crew.workers[0].scratch), g.scratch), workers: len(e.crew.workers)}
	if err := g.plan.CheckMemory(need.bytes(), e.opts.MemoryLimit); err != nil {
		return nil, fmt.Errorf("%d rows × %d tokens: %w", shape.Rows, shape.Context, err)
	}
	e.weights.adopt(wanted)
	if len(e.order) == maxGraphs {
		e.tables -= e.graphs[e.order[0]].tables
		delete(e.graphs, e.order[0])
		e.order = e.order[1:]
	}
	e.tables += g.tables
	e.graphs[key] = g
	e.order = append(e.order, key)
	return g, nil
}
