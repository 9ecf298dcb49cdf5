package gomlx

import (
	"errors"
	"fmt"
	"slices"

	"github.com/gomlx/compute"
	ml "github.com/gomlx/gomlx/core/graph"

	"github.com/capacloud/capanode/trainer/engine"
)

// graph returns the compiled graph for a key; a new one only if its execution stays within the memory limit.
func (a *accelerator) graph(key graphKey) (compute.Executable, error) {
	if exec, ok := a.graphs[key]; ok {
		return exec, nil
	}
	plan, err := newPlan(a.program, key.shape)
	if err != nil {
		return nil, err
	}
	var exec compute.Executable
	build := func() error {
		return a.watched(fmt.Sprintf("compile %d rows × %d tokens", key.batch.Rows, key.batch.Context), func() (err error) {
			exec, err = a.compile(key, plan.Needs)
			return err
		})
	}
	if err = build(); err != nil && a.driver.style.flash && a.broken == nil {
		a.opts.Log.Warn("fused attention does not compile here; going on without it", "err", err)
		a.driver.style.flash = false
		err = build()
	}
	if err != nil {
		return nil, err
	}
	if err := plan.CheckMemory(a.bytes(plan, exec, key.kind), a.opts.MemoryLimit); err != nil {
		exec.Finalize()
		return nil, fmt.Errorf("%d rows × %d tokens: %w", key.batch.Rows, key.batch.Context, err)
	}
	if len(a.order) == maxGraphs {
		delete(a.graphs, a.order[0]) // not finalised: the step at hand may hold it
		a.order = a.order[1:]
	}
	a.graphs[key], a.order = exec, append(a.order, key)
	return exec, nil
}

// bytes estimates the device memory in use while a graph runs: what the compiler says of the execution, inputs and outputs
// included, and the moments beside it. Without the compiler's word the plan's activations stand in.
func (a *accelerator) bytes(plan engine.Plan, exec compute.Executable, k kind) int64 {
	moments := int64(0)
	if k == training {
		moments = 2 * 4 * plan.Trained
	}
	if a.driver.footprint != nil {
		if bytes := a.driver.footprint(exec); bytes > 0 {
			return bytes + moments
		}
	}
	return 4*(plan.Parameters+plan.Trained) + moments + overhead*plan.ActivationBytes
}

// compile builds one graph. Its inputs are the trained parameters, the frozen ones, the columns of the batch and, with more, the
// sums so far. Its outputs are the logits; the loss; or (loss, squared norm of the sums) and the sums.
func (a *accelerator) compile(key graphKey, needs engine.Needs) (exec compute.Executable, err error) {
	t := newTape(ml.NewGraph(a.driver.Backend, "model"), a.driver.style, slices.Concat(a.state.Params, a.state.Frozen), needs, key.shape)
	if key.kind == inference {
		return exec, finish(t.g, &exec, wide(t.node(a.program.Logits(t))))
	}
	loss := a.program.Loss(t)
	if key.kind == evaluation {
		return exec, finish(t.g, &exec, t.node(loss))
	}
	t.backward(loss)
	grads, squares := t.gradients(), ml.ScalarZero(t.g, t.node(loss).DType())
	outputs := []*ml.Node{nil}
	for i, p := range a.state.Params {
		sum := grads[p.Name]
		if sum == nil {
			sum = ml.ZerosLike(t.params[p.Name])
		}
		if key.more {
			before := ml.Parameter(t.g, fmt.Sprintf("sum %d", i), float32s(p.Shape...))
			a.alias(before, len(outputs))
			sum = ml.Add(sum, before)
		}
		squares = ml.Add(squares, ml.ReduceAllSum(ml.Mul(sum, sum)))
		outputs = append(outputs, sum)
	}
	outputs[0] = ml.Concatenate([]*ml.Node{ml.Reshape(t.node(loss), 1), ml.Reshape(squares, 1)}, 0)
	return exec, finish(t.g, &exec, outputs...)
}

func (a *accelerator) alias(input *ml.Node, output int) {
	if a.driver.alias != nil {
		a.driver.alias(input, output)
	}
}

// compileUpdate builds the AdamW step on the device, the formula of [engine.State.Update]. Its inputs are the scalars of
// coefficients, then all weights, first moments, second moments and gradient sums; its outputs the new ones of the first
// three.
func (a *accelerator) compileUpdate() error {
	if a.update != nil {
		return nil
	}
	return a.watched("compile the optimiser step", func() error {
		g := ml.NewGraph(a.driver.Backend, "update")
		scalars := ml.Parameter(g, "coefficients", float32s(len(coefficients(engine.Coefficients{}))))
		var k [9]*ml.Node
		for i := range k {
			k[i] = ml.Reshape(ml.Slice(scalars, ml.AxisRange(i, i+1)))
		}
		scale, beta1, rest1, beta2, rest2, rate, unbias2, epsilon, keep := k[0], k[1], k[2], k[3], k[4], k[5], k[6], k[7], k[8]
		n := len(a.state.Params)
		inputs, outputs := make([]*ml.Node, 4*n), make([]*ml.Node, 3*n)
		for i := range inputs {
			inputs[i] = ml.Parameter(g, fmt.Sprintf("input %d", i), float32s(a.state.Params[i%n].Shape...))
			if i < len(outputs) {
				a.alias(inputs[i], i)
			}
		}
		for i, p := range a.state.Params {
			w, m, v := inputs[i], inputs[n+i], inputs[2*n+i]
			grad := ml.Mul(inputs[3*n+i], scale)
			m = ml.Add(ml.Mul(m, beta1), ml.Mul(grad, rest1))
			v = ml.Add(ml.Mul(v, beta2), ml.Mul(ml.Mul(grad, grad), rest2))
			move := ml.Div(ml.Mul(m, rate), ml.Add(ml.Sqrt(ml.Mul(v, unbias2)), epsilon))
			if p.Decay {
				w = ml.Mul(w, keep)
			}
			outputs[i], outputs[n+i], outputs[2*n+i] = ml.Sub(w, move), m, v
		}
		return finish(g, &a.update, outputs...)
	})
}

// coefficients lists the scalars in the order that the update's graph reads them.
func coefficients(k engine.Coefficients) []float32 {
	return []float32{k.Scale, k.Beta1, k.Rest1, k.Beta2, k.Rest2, k.Rate, k.Unbias2, k.Epsilon, k.Keep}
}

// apply takes the optimiser step and takes over the sums.
func (a *accelerator) apply(k engine.Coefficients, sums []compute.Buffer) error {
	n := len(a.state.Params)
	inputs := append(append(append(append(make([]compute.Buffer, 0, 4*n+1), a.weights...), a.m...), a.v...), sums...)
	a.weights, a.m, a.v = nil, nil, nil // donated
	var outputs []compute.Buffer
	err := a.watched("take the optimiser step", func() error {
		values := coefficients(k)
		scalars, err := a.driver.BufferFromFlatData(0, values, float32s(len(values)))
		if err != nil {
			return err
		}
		defer release([]compute.Buffer{scalars})
		donate := make([]bool, len(inputs)+1)
		for i := range inputs {
			donate[i+1] = true
		}
		outputs, err = a.update.Execute(append([]compute.Buffer{scalars}, inputs...), donate, 0)
		return err
	})
	if err != nil {
		if a.ahead && a.broken == nil {
			a.broken = fmt.Errorf("gomlx: the state was lost with a failed step: %w", err)
		}
		return err
	}
	a.weights, a.m, a.v = outputs[:n:n], outputs[n:2*n:2*n], outputs[2*n:]
	a.state.Steps++
	a.ahead = true
	return nil
}

// send uploads one of the state's views unless the device has it.
func (a *accelerator) send(to *[]compute.Buffer, params []engine.Param, flat []float32) error {
	if *to != nil {
		return nil
	}
	var all []compute.Buffer
	err := a.watched("upload the state", func() error {
		for _, p := range params {
			b, err := a.driver.BufferFromFlatData(0, flat[p.Offset:p.Offset+p.Size()], float32s(p.Shape...))
			if err != nil {
				return fmt.Errorf("%s: %w", p.Name, err)
			}
			all = append(all, b)
		}
		return nil
	})
	if err != nil {
		if a.broken == nil {
			release(all)
		}
		return err
	}
	*to = all
	return nil
}

// sendWeights uploads the weights, and the frozen ones once.
func (a *accelerator) sendWeights() error {
	return errors.Join(a.send(&a.weights, a.state.Params, a.state.Weights), a.send(&a.fixed, a.state.Frozen, a.state.Fixed))
}

// receive downloads one of the state's views.
func (a *accelerator) receive(from []compute.Buffer, flat []float32) error {
	for i, p := range a.state.Params {
		if err := from[i].ToFlatData(flat[p.Offset : p.Offset+p.Size()]); err != nil {
			return fmt.Errorf("%s: %w", p.Name, err)
		}
	}
	return nil
}

// State implements [engine.Engine]. A state that cannot be fetched breaks the executor: the caller sees an older one, and
// every later step fails.
func (a *accelerator) State() *engine.State {
	if a.broken != nil {
		return a.state
	}
	if a.ahead {
		err := a.watched("download the state", func() error {
			return errors.Join(a.receive(a.weights, a.state.Weights), a.receive(a.m, a.state.M), a.receive(a.v, a.state.V))
		})
		if err != nil {
			a.broken = err
			a.opts.Log.Error("the device's state is lost", "err", err)
			return a.state
		}
		a.ahead = false
	}
	for _, view := range []*[]compute.Buffer{&a.weights, &a.m, &a.v} {
		release(*view)
		*view = nil // the caller may write
	}
	return a.state
}

// Close implements [engine.Engine]. After a hang it leaves the device alone, which the stuck goroutine still uses.
func (a *accelerator) Close() error {
	if a.broken == nil || !errors.Is(a.broken, engine.ErrHung) && a.driver.Backend != nil {
		release(a.weights)
		release(a.fixed)
		release(a.m)
		release(a.v)
		for _, exec := range a.graphs {
			exec.Finalize()
		}
		if a.update != nil {
			a.update.Finalize()
		}
		a.driver.Finalize()
	}
	a.broken = fmt.Errorf("gomlx: the engine is closed")
	a.weights, a.fixed, a.m, a.v, a.graphs, a.update, a.driver.Backend = nil, nil, nil, nil, nil, nil, nil
	return nil
}
