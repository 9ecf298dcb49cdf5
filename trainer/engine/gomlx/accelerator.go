package gomlx

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/gomlx/compute"
	ml "github.com/gomlx/gomlx/core/graph"

	"github.com/capacloud/capanode/trainer/engine"
)

// driver is a backend and what only its library can tell.
type driver struct {
	compute.Backend
	style     style
	alias     func(input *ml.Node, output int)       // lets an output take over a donated input's memory; may be nil
	footprint func(compute.Executable) (bytes int64) // device memory that an execution holds; 0 when unknown; may be nil
}

// accelerator implements [engine.Engine] on a device with memory of its own. Each micro-batch is one execution. Weights,
// moments and gradient sums stay on the device; the host's copy is brought up to date when somebody asks for it, and then
// counts as changed.
type accelerator struct {
	program engine.Program
	needs   needs
	opts    Options
	driver  driver
	state   *engine.State

	weights, m, v []compute.Buffer // per trained parameter; nil where the host's values are to be uploaded first
	fixed         []compute.Buffer // per frozen parameter; nil until they are uploaded
	ahead         bool             // the device's state is newer than the host's
	graphs        map[graphKey]compute.Executable
	order         []graphKey // of graphs, the oldest first
	update        compute.Executable
	grads         []float32 // the last gradient that was asked for; nil before
	broken        error     // set when the executor must not be used any more
}

// graphKey identifies a compiled graph of the device.
type graphKey struct {
	shape
	more bool // training that adds to the sums of earlier micro-batches
}

// newAccelerator builds the executor of a program on the device that open starts.
func newAccelerator(program engine.Program, opts Options, open func(Options) (driver, error)) (engine.Engine, error) {
	plan, err := engine.NewPlan(program, engine.Shape{Rows: 1, Context: 1, Picks: 1}) // one token: the parameters alone
	if err != nil {
		return nil, fmt.Errorf("gomlx: program %q: %w", program.Name, err)
	}
	const copies = 3 // two moments, gradients
	if err := plan.CheckMemory(4*(plan.Parameters+copies*plan.Trained), opts.MemoryLimit); err != nil {
		return nil, fmt.Errorf("gomlx: program %q: %w", program.Name, err)
	}
	state, err := engine.NewState(program.Params, opts.Seed)
	if err != nil {
		return nil, fmt.Errorf("gomlx: program %q: %w", program.Name, err)
	}
	a := &accelerator{program: program, needs: needs{}, opts: opts, state: state, graphs: map[graphKey]compute.Executable{}}
	err = a.watched("start the device", func() (err error) {
		a.driver, err = open(opts)
		return err
	})
	if err != nil {
		return nil, err
	}
	return a, nil
}

// watched runs f on a goroutine of its own, with GoMLX's panics as errors, and gives up after the watchdog's time.
func (a *accelerator) watched(doing string, f func() error) error {
	done := make(chan error, 1)
	go func() { done <- guard(doing, f) }()
	timer := time.NewTimer(a.opts.Watchdog)
	defer timer.Stop()
	select {
	case err := <-done:
		if err != nil && outOfMemory(err) {
			err = fmt.Errorf("%w: %w", engine.ErrMemory, err)
		}
		return err
	case <-timer.C:
		a.broken = fmt.Errorf("gomlx: %s: no end after %v: %w", doing, a.opts.Watchdog, engine.ErrHung)
		return a.broken
	}
}

// outOfMemory tells whether an error of XLA, which has no types, is about memory.
func outOfMemory(err error) bool {
	text := err.Error()
	return strings.Contains(text, "RESOURCE_EXHAUSTED") || strings.Contains(strings.ToLower(text), "out of memory")
}

// Train implements [engine.Engine].
func (a *accelerator) Train(ctx context.Context, batches []engine.Batch, step engine.Step) (float64, error) {
	loss, err := a.train(ctx, batches, step)
	if err != nil {
		return 0, fmt.Errorf("gomlx: train: %w", err)
	}
	return loss, nil
}

func (a *accelerator) train(ctx context.Context, batches []engine.Batch, step engine.Step) (float64, error) {
	if err := step.Check(); err != nil {
		return 0, err
	}
	execs, targets, err := a.trainers(batches)
	if err != nil {
		return 0, err
	}
	if err := errors.Join(a.compileUpdate(), a.send(&a.m, a.state.Params, a.state.M), a.send(&a.v, a.state.Params, a.state.V)); err != nil {
		return 0, err
	}
	p, err := a.pass(ctx, execs, batches)
	if err != nil {
		return 0, err
	}
	k, err := step.Coefficients(math.Sqrt(p.squares)/float64(targets), targets, a.state.Steps+1)
	if err != nil {
		release(p.sums)
		return 0, err
	}
	return p.loss / float64(targets), a.apply(k, p.sums)
}

// trainers returns the compiled graphs that train on the batches, and the number of their targets.
func (a *accelerator) trainers(batches []engine.Batch) (execs []compute.Executable, targets int64, err error) {
	if targets, err = a.check(batches, true); err != nil {
		return nil, 0, err
	}
	for i, b := range batches {
		exec, err := a.graph(graphKey{shape{training, b.Shape()}, i > 0})
		if err != nil {
			return nil, 0, err
		}
		execs = append(execs, exec)
	}
	return execs, targets, nil
}

// passed is what a pass over batches leaves.
type passed struct {
	loss, squares float64          // summed over targets; of the norm of the sums
	sums          []compute.Buffer // of gradients, one for each parameter; the caller releases them
}

// pass sums the gradients over the batches, at the weights that the host has unless the device's are newer.
func (a *accelerator) pass(ctx context.Context, execs []compute.Executable, batches []engine.Batch) (p passed, err error) {
	defer func() {
		if err != nil {
			release(p.sums)
		}
	}()
	if err := a.sendWeights(); err != nil {
		return p, err
	}
	for i, b := range batches {
		if err := ctx.Err(); err != nil {
			return p, err
		}
		report := make([]float32, 2) // loss, squared norm of the sums
		next, err := a.run(execs[i], b, training, p.sums, report)
		if err != nil {
			return p, err
		}
		p.sums = next
		p.loss, p.squares = p.loss+float64(report[0]), float64(report[1])
	}
	if math.IsNaN(p.loss) || math.IsInf(p.loss, 0) {
		return p, fmt.Errorf("summed loss %g: %w", p.loss, engine.ErrNumerics)
	}
	return p, nil
}

// Gradient implements [engine.Differentiating]. Only weights are uploaded, and only the sums come back.
func (a *accelerator) Gradient(ctx context.Context, batches []engine.Batch) (engine.Gradient, error) {
	g, err := a.gradient(ctx, batches)
	if err != nil {
		return g, fmt.Errorf("gomlx: gradient: %w", err)
	}
	return g, nil
}

func (a *accelerator) gradient(ctx context.Context, batches []engine.Batch) (g engine.Gradient, err error) {
	execs, targets, err := a.trainers(batches)
	if err != nil {
		return g, err
	}
	p, err := a.pass(ctx, execs, batches)
	if err != nil {
		return g, err
	}
	defer release(p.sums)
	if a.grads == nil {
		a.grads = make([]float32, len(a.state.Weights))
	}
	if err := a.watched("download the gradient", func() error { return a.receive(p.sums, a.grads) }); err != nil {
		return g, err
	}
	return engine.Gradient{Sum: a.grads, Targets: targets, Loss: p.loss / float64(targets)}, nil
}

// check refuses batches that the program cannot take and counts their targets.
func (a *accelerator) check(batches []engine.Batch, withTargets bool) (targets int64, err error) {
	if a.broken != nil {
		return 0, a.broken
	}
	for i, b := range batches {
		if err := a.needs.check(a.program, b, withTargets); err != nil {
			return 0, fmt.Errorf("batch %d: %w", i, err)
		}
		targets += int64(b.TargetCount())
	}
	if withTargets && targets == 0 {
		return 0, fmt.Errorf("%d batches without a target: %w", len(batches), engine.ErrBatch)
	}
	return targets, nil
}

// run executes a graph on one batch. It takes over sums and returns all outputs but the first, which it reads into first.
func (a *accelerator) run(exec compute.Executable, b engine.Batch, k kind, sums []compute.Buffer, first []float32) (rest []compute.Buffer, err error) {
	needs, err := a.needs.of(a.program, b.Shape(), k)
	if err != nil {
		return nil, err
	}
	err = a.watched("execute", func() error {
		fed, err := upload(a.driver, columns(needs, b.Shape(), k), b)
		if err != nil {
			return err
		}
		defer release(fed)
		inputs := slices.Concat(a.weights, a.fixed, fed, sums)
		donate := make([]bool, len(inputs))
		for i := len(inputs) - len(sums); i < len(inputs); i++ {
			donate[i] = true
		}
		outputs, err := exec.Execute(inputs, donate, 0)
		if err != nil {
			return err
		}
		rest = outputs[1:]
		defer release(outputs[:1])
		return outputs[0].ToFlatData(first)
	})
	return rest, err
}

// release frees buffers of the device now: Go's collector does not know what they cost.
func release(buffers []compute.Buffer) {
	for _, b := range buffers {
		_ = b.Finalize() // a buffer of a device that failed may be gone already
	}
}

// Evaluate implements [engine.Engine].
func (a *accelerator) Evaluate(ctx context.Context, batch engine.Batch) (float64, error) {
	targets, err := a.check([]engine.Batch{batch}, true)
	if err != nil {
		return 0, fmt.Errorf("gomlx: evaluate: %w", err)
	}
	loss := make([]float32, 1)
	if err := a.forward(ctx, batch, evaluation, loss); err != nil {
		return 0, fmt.Errorf("gomlx: evaluate: %w", err)
	}
	if sum := float64(loss[0]); !math.IsNaN(sum) && !math.IsInf(sum, 0) {
		return sum / float64(targets), nil
	}
	return 0, fmt.Errorf("gomlx: evaluate: summed loss %g over %d targets: %w", loss[0], targets, engine.ErrNumerics)
}

// Logits implements [engine.Engine].
func (a *accelerator) Logits(ctx context.Context, batch engine.Batch) ([]float32, error) {
	if _, err := a.check([]engine.Batch{batch}, false); err != nil {
		return nil, fmt.Errorf("gomlx: logits: %w", err)
	}
	exec, err := a.graph(graphKey{shape{inference, batch.Shape()}, false})
	if err != nil {
		return nil, fmt.Errorf("gomlx: logits: %w", err)
	}
	out := make([]float32, exec.Outputs()[0].Size())
	if err := a.forward(ctx, batch, inference, out); err != nil {
		return nil, fmt.Errorf("gomlx: logits: %w", err)
	}
	return out, nil
}

// forward runs a graph that changes nothing and reads its only output.
func (a *accelerator) forward(ctx context.Context, b engine.Batch, k kind, out []float32) error {
	exec, err := a.graph(graphKey{shape{k, b.Shape()}, false})
	if err == nil {
		err = errors.Join(ctx.Err(), a.sendWeights())
	}
	if err == nil {
		_, err = a.run(exec, b, k, nil, out)
	}
	return err
}
