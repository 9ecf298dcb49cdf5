// Package gomlx owns the executors that run programs through GoMLX: on its pure-Go backend, and through XLA on a device
// whose PJRT plugin is named by a path. It refuses to download anything and to let GoMLX show: its types stay inside, its
// panics become errors, and a hung computation becomes [engine.ErrHung].
//
// On the Go backend a batch is cut into chunks of rows by its shape alone. Each chunk is one execution of a compiled graph
// that adds its gradients to the accumulators of the chunk's lane; lanes run on as many goroutines as the options allow,
// and are summed in order. So the result has the same bits for every number of goroutines. On a device each micro-batch is
// one execution, and all state stays in the device's memory.
package gomlx

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/gomlx/compute"

	"github.com/capacloud/capanode/trainer/engine"
)

// executor implements [engine.Engine].
type executor struct {
	program engine.Program
	needs   needs
	opts    Options
	backend compute.Backend
	state   *engine.State
	params  []engine.Param   // the trained ones, then the frozen ones
	weights []compute.Buffer // what graphs read: a copy of state.Weights and state.Fixed per parameter
	views   [][]float32      // the memory of weights
	grads   []float32        // gradient sum of a step, layout of state.Weights
	lanes   []*lane
	graphs  graphs
	broken  error // set when the executor must not be used any more
}

// New builds the executor of a program with freshly initialised state: on the device of the options, or on processors.
// Errors: [engine.ErrShape] for a program that is inconsistent, [engine.ErrMemory] when its parameters alone exceed the
// limit, [engine.ErrPlugin] for a device that cannot compute.
func New(program engine.Program, opts Options) (engine.Engine, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	if opts.Device.Plugin != "" {
		return newAccelerator(program, opts, openXLA)
	}
	plan, err := engine.NewPlan(program, engine.Shape{Rows: 1, Context: 1, Picks: 1}) // one token, so that what does not fit is the parameters
	if err != nil {
		return nil, fmt.Errorf("gomlx: program %q: %w", program.Name, err)
	}
	if err := plan.CheckMemory(fixedBytes(plan), opts.MemoryLimit); err != nil {
		return nil, fmt.Errorf("gomlx: program %q: %w", program.Name, err)
	}
	backend, err := newBackend()
	if err != nil {
		return nil, err
	}
	state, err := engine.NewState(program.Params, opts.Seed)
	if err != nil {
		return nil, fmt.Errorf("gomlx: program %q: %w", program.Name, err)
	}
	e := &executor{program: program, needs: needs{}, opts: opts, backend: backend, state: state}
	e.params = slices.Concat(state.Params, state.Frozen)
	e.grads = make([]float32, len(state.Weights))
	if e.weights, e.views, err = e.buffers(e.params); err != nil {
		return nil, err
	}
	if SlowKernels() {
		opts.Log.Warn("matrix products run without SIMD: build with GOEXPERIMENT=simd on amd64 for about four times the speed")
	}
	return e, nil
}

// buffers allocates one tensor per parameter and returns them with their memory.
func (e *executor) buffers(params []engine.Param) (tensors []compute.Buffer, views [][]float32, err error) {
	for _, p := range params {
		b, flat, err := e.backend.NewSharedBuffer(0, float32s(p.Shape...))
		if err != nil {
			return nil, nil, fmt.Errorf("gomlx: allocate %s: %w", p.Name, err)
		}
		view, ok := flat.([]float32)
		if !ok || len(view) != p.Size() {
			return nil, nil, fmt.Errorf("gomlx: allocate %s: the backend gave %T", p.Name, flat)
		}
		tensors, views = append(tensors, b), append(views, view)
	}
	return tensors, views, nil
}

// publish copies the weights, which the caller may have changed, to where graphs read them.
func (e *executor) publish() {
	for i, p := range e.params {
		from := e.state.Weights
		if p.Frozen {
			from = e.state.Fixed
		}
		copy(e.views[i], from[p.Offset:])
	}
}

// State implements [engine.Engine].
func (e *executor) State() *engine.State { return e.state }

// Close implements [engine.Engine]. After a hang it leaves the backend alone, which the stuck goroutine still uses.
func (e *executor) Close() error {
	if e.broken == nil {
		e.broken = fmt.Errorf("gomlx: the engine is closed")
		e.graphs = graphs{}
		e.backend.Finalize()
	}
	e.lanes, e.weights, e.views, e.grads = nil, nil, nil, nil
	return nil
}

// Train implements [engine.Engine].
func (e *executor) Train(ctx context.Context, batches []engine.Batch, step engine.Step) (float64, error) {
	if err := step.Check(); err != nil {
		return 0, fmt.Errorf("gomlx: train: %w", err)
	}
	sum, targets, err := e.accumulate(ctx, batches, training)
	if err != nil {
		return 0, fmt.Errorf("gomlx: train: %w", err)
	}
	if _, err := e.state.Update(e.grads, targets, step, e.opts.Parallelism); err != nil {
		return 0, fmt.Errorf("gomlx: train: %w", err)
	}
	return sum / float64(targets), nil
}

// Gradient implements [engine.Differentiating].
func (e *executor) Gradient(ctx context.Context, batches []engine.Batch) (engine.Gradient, error) {
	sum, targets, err := e.accumulate(ctx, batches, training)
	if err != nil {
		return engine.Gradient{}, fmt.Errorf("gomlx: gradient: %w", err)
	}
	return engine.Gradient{Sum: e.grads, Targets: targets, Loss: sum / float64(targets)}, nil
}

// Evaluate implements [engine.Engine].
func (e *executor) Evaluate(ctx context.Context, batch engine.Batch) (float64, error) {
	sum, targets, err := e.accumulate(ctx, []engine.Batch{batch}, evaluation)
	if err != nil {
		return 0, fmt.Errorf("gomlx: evaluate: %w", err)
	}
	return sum / float64(targets), nil
}

// accumulate runs all chunks of the batches and returns the summed loss and the number of targets in it; when training it
// leaves their summed gradient in e.grads.
func (e *executor) accumulate(ctx context.Context, batches []engine.Batch, k kind) (sum float64, targets int64, err error) {
	if e.broken != nil {
		return 0, 0, e.broken
	}
	for i, b := range batches {
		if err := e.check(b, true); err != nil {
			return 0, 0, fmt.Errorf("batch %d: %w", i, err)
		}
		targets += int64(b.TargetCount())
	}
	if targets == 0 {
		return 0, 0, fmt.Errorf("%d batches without a target: %w", len(batches), engine.ErrBatch)
	}
	jobs, lanes, err := e.plan(batches, k)
	if err != nil {
		return 0, 0, err
	}
	e.publish()
	if k == training {
		for _, l := range e.lanes[:lanes] {
			l.reset()
		}
	}
	if err := e.run(ctx, jobs, lanes); err != nil {
		return 0, 0, err
	}
	if k == training {
		e.reduce(lanes)
	}
	for _, j := range jobs {
		sum += float64(j.loss)
	}
	if math.IsNaN(sum) || math.IsInf(sum, 0) {
		return 0, 0, fmt.Errorf("summed loss %g over %d targets: %w", sum, targets, engine.ErrNumerics)
	}
	return sum, targets, nil
}

// check refuses a batch that the program cannot take.
func (e *executor) check(b engine.Batch, withTargets bool) error {
	return e.needs.check(e.program, b, withTargets)
}

// Logits implements [engine.Engine].
func (e *executor) Logits(ctx context.Context, batch engine.Batch) ([]float32, error) {
	if e.broken != nil {
		return nil, e.broken
	}
	if err := e.check(batch, false); err != nil {
		return nil, fmt.Errorf("gomlx: logits: %w", err)
	}
	jobs, lanes, err := e.plan([]engine.Batch{batch}, inference)
	if err != nil {
		return nil, fmt.Errorf("gomlx: logits: %w", err)
	}
	e.publish()
	if err := e.run(ctx, jobs, lanes); err != nil {
		return nil, fmt.Errorf("gomlx: logits: %w", err)
	}
	out := make([]float32, 0, len(batch.Inputs)*e.program.Vocab)
	for _, j := range jobs {
		out = append(out, j.logits...)
	}
	return out, nil
}

// fixedBytes is what an executor holds whatever the batch: weights and the graphs' copy, and of what is trained both moments
// and the gradient.
func fixedBytes(p engine.Plan) int64 { return 4 * (2*p.Parameters + 3*p.Trained) }
