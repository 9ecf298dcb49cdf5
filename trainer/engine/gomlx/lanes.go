package gomlx

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gomlx/compute"

	"github.com/capacloud/capanode/trainer/engine"
)

// chunkTokens is the least number of tokens that a chunk is cut down to: below it, adding a chunk's gradients to the
// accumulators starts to cost.
const chunkTokens = 256

// maxLanes returns how many lanes a model of that size may have: each costs one more copy of its parameters, and bounds
// the cores that one step can use.
func maxLanes(parameters int) int {
	switch {
	case parameters <= 4<<20:
		return 8
	case parameters <= 64<<20:
		return 4
	}
	return 2
}

// lane is a chain of executions on one set of accumulators.
type lane struct {
	sums  []compute.Buffer // gradient accumulators per parameter
	views [][]float32      // their memory
}

func (l *lane) reset() {
	for _, v := range l.views {
		clear(v)
	}
}

// job is one chunk of one batch: what to run, on which lane, and its result.
type job struct {
	exec    compute.Executable
	kind    kind
	lane    int
	columns []column
	batch   engine.Batch
	loss    float32   // summed over the chunk's targets
	logits  []float32 // of inference
}

// plan cuts the batches into jobs, in order, with their graphs compiled and their lanes allocated, after checking that
// everything fits. It returns the number of lanes in use.
func (e *executor) plan(batches []engine.Batch, k kind) (jobs []*job, lanes int, err error) {
	limit := maxLanes(len(e.state.Weights))
	for _, b := range batches {
		needs, err := e.needs.of(e.program, b.Shape(), k)
		if err != nil {
			return nil, 0, err
		}
		rows := b.Rows
		if !needs.All { // a loss over all rows cannot be cut
			rows = chunkRows(b.Rows, b.Context, limit)
		}
		lanes = max(lanes, (b.Rows+rows-1)/rows)
		for at, n := 0, 0; at < b.Rows; at, n = at+rows, n+1 {
			chunk := rowsOf(b, at, min(at+rows, b.Rows))
			exec, err := e.graph(shape{k, chunk.Shape()}, needs, lanes)
			if err != nil {
				return nil, 0, err
			}
			jobs = append(jobs, &job{exec: exec, kind: k, lane: n, columns: columns(needs, chunk.Shape(), k), batch: chunk})
		}
	}
	for k == training && len(e.lanes) < lanes {
		l := &lane{}
		if l.sums, l.views, err = e.buffers(e.state.Params); err != nil {
			return nil, 0, err
		}
		e.lanes = append(e.lanes, l)
	}
	return jobs, lanes, nil
}

// chunkRows returns the rows per chunk of a batch: the batch is halved while its pieces stay above chunkTokens and
// within the lanes.
func chunkRows(rows, context, lanes int) int {
	pieces := 1
	for 2*pieces <= lanes && 2*pieces <= rows && rows*context/(2*pieces) >= chunkTokens {
		pieces *= 2
	}
	return (rows + pieces - 1) / pieces
}

// run executes the jobs: those of one lane in order, lanes side by side. It returns the first error, which is the
// context's when it ended between two jobs, or [engine.ErrHung], after which the executor is broken.
func (e *executor) run(ctx context.Context, jobs []*job, lanes int) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	queue := make(chan []*job, lanes)
	for l := range lanes {
		var chain []*job
		for _, j := range jobs {
			if j.lane == l {
				chain = append(chain, j)
			}
		}
		queue <- chain
	}
	close(queue)
	workers := min(e.opts.Parallelism, lanes)
	beats := make(chan struct{}, len(jobs))
	results := make(chan error, workers) // both hold all that is ever sent, so that an abandoned worker can end
	for range workers {
		go func() { results <- e.work(ctx, queue, beats) }()
	}
	err := await(results, beats, workers, e.opts.Watchdog, stop)
	switch {
	case errors.Is(err, engine.ErrHung):
		e.broken = err
	case err != nil:
		e.lanes = nil // an execution that failed may have lost its accumulators
	}
	return err
}

// work takes chains from the queue until it is empty or something fails.
func (e *executor) work(ctx context.Context, queue <-chan []*job, beats chan<- struct{}) error {
	for chain := range queue {
		for _, j := range chain {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := e.execute(j); err != nil {
				return err
			}
			beats <- struct{}{}
		}
	}
	return nil
}

// await returns the first error of the workers once all have ended, calling stop at that error, or [engine.ErrHung] when
// nothing ends or beats for the watchdog's time.
func await(results <-chan error, beats <-chan struct{}, workers int, watchdog time.Duration, stop func()) error {
	timer := time.NewTimer(watchdog)
	defer timer.Stop()
	var first error
	for workers > 0 {
		select {
		case err := <-results:
			workers--
			if err != nil && first == nil {
				first = err
				stop()
			}
		case <-beats:
		case <-timer.C:
			return fmt.Errorf("no progress for %v: %w", watchdog, engine.ErrHung)
		}
		timer.Reset(watchdog)
	}
	return first
}

// execute runs one job and stores its result in it.
func (e *executor) execute(j *job) error {
	return guard("execute", func() error {
		inputs := append(make([]compute.Buffer, 0, 2*len(e.weights)+3), e.weights...)
		fed, err := upload(e.backend, j.columns, j.batch)
		if err != nil {
			return err
		}
		inputs = append(inputs, fed...)
		var donate []bool
		if j.kind == training {
			inputs = append(inputs, e.lanes[j.lane].sums...)
			donate = make([]bool, len(inputs))
			for i := len(e.weights) + len(fed); i < len(donate); i++ {
				donate[i] = true
			}
		}
		outputs, err := j.exec.Execute(inputs, donate, 0)
		if err != nil {
			return err
		}
		return e.collect(j, outputs)
	})
}

// collect takes over what an execution returned.
func (e *executor) collect(j *job, outputs []compute.Buffer) error {
	first, err := outputs[0].Data()
	if err != nil {
		return err
	}
	flat, ok := first.([]float32)
	if !ok {
		return fmt.Errorf("output of type %T", first)
	}
	if j.kind == inference {
		j.logits = flat
		return nil
	}
	j.loss = flat[0]
	if j.kind == evaluation {
		return nil
	}
	l := e.lanes[j.lane]
	for i, b := range outputs[1:] {
		flat, err := b.Data()
		if err != nil {
			return err
		}
		view, ok := flat.([]float32)
		if !ok || len(view) != len(l.views[i]) {
			return fmt.Errorf("gradient %d of type %T", i, flat)
		}
		l.sums[i], l.views[i] = b, view
	}
	return nil
}

// reduce sums the lanes in use, in order, into the flat gradient.
func (e *executor) reduce(lanes int) {
	for i, p := range e.state.Params {
		sum := e.grads[p.Offset : p.Offset+p.Size()]
		copy(sum, e.lanes[0].views[i])
		for _, l := range e.lanes[1:lanes] {
			for n, g := range l.views[i] {
				sum[n] += g
			}
		}
	}
}
