package gomlx

import (
	"fmt"
	"reflect"

	"github.com/gomlx/compute"
	"github.com/gomlx/compute/gobackend"
	ml "github.com/gomlx/gomlx/core/graph"

	"github.com/capacloud/capanode/trainer/engine"
)

// newBackend returns GoMLX's Go backend with its own parallelism switched off: nodes in sequence, each matrix product
// on the calling goroutine. Left to itself its worker pool can deadlock (nodes that hold a worker wait for workers), and
// one product split over cores scales worse than our split of the batch.
func newBackend() (compute.Backend, error) {
	b, err := gobackend.New("ops_sequential,creation_order")
	if err != nil {
		return nil, fmt.Errorf("gomlx: start the Go backend: %w", err)
	}
	// The option "parallelism=0" would do the same, but it prints a line to standard output.
	workers := reflect.Indirect(reflect.ValueOf(b)).FieldByName("Workers")
	if workers.IsValid() && workers.CanInterface() {
		if pool, ok := workers.Interface().(interface{ SetMaxParallelism(int) }); ok {
			pool.SetMaxParallelism(0)
			return b, nil
		}
	}
	b.Finalize()
	return nil, fmt.Errorf("gomlx: this version of the Go backend has no worker pool to switch off")
}

// guard runs f and turns GoMLX's panics, which are how it reports errors, into errors. It is the only recover.
func guard(doing string, f func() error) (err error) {
	defer func() {
		switch r := recover().(type) {
		case nil:
		case error:
			err = fmt.Errorf("gomlx: %s: %w", doing, r)
		default:
			err = fmt.Errorf("gomlx: %s: %v", doing, r)
		}
	}()
	if err := f(); err != nil {
		return fmt.Errorf("gomlx: %s: %w", doing, err)
	}
	return nil
}

// kind is what a compiled graph computes.
type kind int

const (
	training   kind = iota // loss, and gradients added to donated accumulators
	evaluation             // loss
	inference              // logits
)

// shape identifies a compiled graph.
type shape struct {
	kind  kind
	batch engine.Shape
}

// compile builds the graph of a program for one shape on the Go backend. Its inputs are, in this order: the parameters
// in order, the columns of the batch, and for training one accumulator per trained parameter. Its outputs are the
// logits, or the loss and the new accumulators.
func compile(b compute.Backend, p engine.Program, params []engine.Param, needs engine.Needs, s shape) (exec compute.Executable, err error) {
	err = guard(fmt.Sprintf("compile %d rows × %d tokens", s.batch.Rows, s.batch.Context), func() error {
		t := newTape(ml.NewGraph(b, ""), style{}, params, needs, s)
		if s.kind == inference {
			return finish(t.g, &exec, t.node(p.Logits(t)))
		}
		loss := p.Loss(t)
		outputs := []*ml.Node{t.node(loss)}
		if s.kind == training {
			t.backward(loss)
			outputs = append(outputs, t.accumulate(params)...)
		}
		return finish(t.g, &exec, outputs...)
	})
	return exec, err
}

// newTape starts a graph with its parameters and the columns of the batch as inputs.
func newTape(g *ml.Graph, st style, params []engine.Param, needs engine.Needs, s shape) *tape {
	t := &tape{
		style: st, g: g, rows: s.batch.Rows, context: s.batch.Context,
		params: map[string]*ml.Node{}, data: map[string]*ml.Node{}, shared: map[any]*ml.Node{},
		readers: map[*ml.Node]int{}, mute: s.kind != training,
	}
	for i, q := range params { // numbered, since backends fold the characters of names
		t.params[q.Name] = ml.Parameter(g, fmt.Sprintf("parameter %d", i), float32s(q.Shape...))
	}
	for _, c := range columns(needs, s.batch, s.kind) {
		t.data[c.name] = ml.Parameter(g, "batch "+c.name, c.shape)
	}
	return t
}

// gradients returns, by parameter name, the sum of all adjoints that reached it.
func (t *tape) gradients() map[string]*ml.Node {
	sums := map[string]*ml.Node{}
	for i, name := range t.names {
		if grad := t.grads[i]; name != "" && grad != nil {
			if sums[name] != nil {
				grad = ml.Add(sums[name], grad)
			}
			sums[name] = grad
		}
	}
	return sums
}

// accumulate returns, for each trained parameter, its accumulator plus its gradient.
func (t *tape) accumulate(params []engine.Param) []*ml.Node {
	sums := t.gradients()
	outputs := make([]*ml.Node, 0, len(params))
	for i, q := range params {
		if q.Frozen {
			continue
		}
		sum := ml.Parameter(t.g, fmt.Sprintf("sum %d", i), float32s(q.Shape...))
		if grad := sums[q.Name]; grad != nil {
			sum = ml.Add(grad, sum) // this order: the backend then adds in place
		}
		outputs = append(outputs, sum)
	}
	return outputs
}

func finish(g *ml.Graph, exec *compute.Executable, outputs ...*ml.Node) error {
	if err := g.Compile(outputs...); err != nil {
		return err
	}
	*exec = g.Executable()
	return nil
}

// maxGraphs bounds the compiled graphs kept: a run uses one or two shapes for training and one each for the rest.
const maxGraphs = 8

// graphs is the cache of compiled graphs; the oldest gives way.
type graphs struct {
	byShape map[shape]compute.Executable
	order   []shape
}

func (c *graphs) put(s shape, exec compute.Executable) {
	if c.byShape == nil {
		c.byShape = map[shape]compute.Executable{}
	}
	if len(c.order) == maxGraphs {
		delete(c.byShape, c.order[0]) // not finalised: a job of the batch at hand may hold it
		c.order = c.order[1:]
	}
	c.byShape[s] = exec
	c.order = append(c.order, s)
}

// graph returns the compiled graph of a shape. A new one is compiled only if the executor's memory, with that many
// lanes, then stays within the limit.
func (e *executor) graph(s shape, needs engine.Needs, lanes int) (compute.Executable, error) {
	if exec, ok := e.graphs.byShape[s]; ok {
		return exec, nil
	}
	plan, err := newPlan(e.program, s)
	if err != nil {
		return nil, err
	}
	workers := int64(min(lanes, e.opts.Parallelism))
	bytes := fixedBytes(plan) + workers*overhead*plan.ActivationBytes
	if s.kind == training {
		bytes += (int64(lanes) + workers) * 4 * plan.Trained
	}
	if err := plan.CheckMemory(bytes, e.opts.MemoryLimit); err != nil {
		return nil, fmt.Errorf("%d rows × %d tokens: %w", s.batch.Rows, s.batch.Context, err)
	}
	exec, err := compile(e.backend, e.program, e.params, needs, s)
	if err != nil {
		return nil, err
	}
	e.graphs.put(s, exec)
	return exec, nil
}

// overhead is a safe ratio of what one execution holds to the plan's activations, which leave out adjoints, tiles,
// transposed copies and the rounding of buffer sizes, but count some results that are freed early. Measured: 0.8 to 1.1.
const overhead = 2
