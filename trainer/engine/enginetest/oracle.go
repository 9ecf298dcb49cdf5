// Package enginetest owns the proof that an executor computes what the operations of package engine mean: a slow forward
// pass in plain float64, and a suite that holds any executor to it. It refuses to share code with an executor.
package enginetest

import (
	"math"

	"github.com/capacloud/capanode/trainer/engine"
)

// Forward evaluates a program in float64, straight from the formulas. weights are all parameters in canonical order. It
// returns the logits [tokens, Vocab], row-major, and the summed loss over the batch's targets.
func Forward(p engine.Program, weights []float64, b engine.Batch) (logits []float64, loss float64, err error) {
	params, _, err := engine.Layout(p.Params)
	if err != nil {
		return nil, 0, err
	}
	o := &oracle{batch: b, params: map[string]matrix{}}
	for _, q := range params {
		m := matrix{width: q.Shape[len(q.Shape)-1], data: weights[q.Offset : q.Offset+q.Size()]}
		o.params[q.Name] = m
	}
	logits = o.values[p.Logits(o)-1].data
	loss = o.values[p.Loss(o)-1].data[0]
	return logits, loss, nil
}

// matrix is row-major with that many columns.
type matrix struct {
	width int
	data  []float64
}

func (m matrix) row(i int) []float64 { return m.data[i*m.width : (i+1)*m.width] }

// oracle implements [engine.Graph] by computing each value at once.
type oracle struct {
	batch  engine.Batch
	params map[string]matrix
	values []matrix
}

func (o *oracle) add(m matrix) engine.Value {
	o.values = append(o.values, m)
	return engine.Value(len(o.values))
}

func (o *oracle) get(v engine.Value) matrix { return o.values[v-1] }

// result allocates [tokens, width] and fills it row by row.
func (o *oracle) result(width int, fill func(token int, row []float64)) engine.Value {
	m := matrix{width, make([]float64, len(o.batch.Inputs)*width)}
	for i := range o.batch.Inputs {
		fill(i, m.row(i))
	}
	return o.add(m)
}

func dot(a, b []float64) float64 {
	sum := 0.0
	for i, x := range a {
		sum += x * b[i]
	}
	return sum
}

// Param implements [engine.Graph].
func (o *oracle) Param(name string) engine.Value { return o.add(o.params[name]) }

// Embedding implements [engine.Graph].
func (o *oracle) Embedding(table engine.Value) engine.Value {
	w := o.get(table)
	return o.result(w.width, func(t int, row []float64) { copy(row, w.row(int(o.batch.Inputs[t]))) })
}

// Linear implements [engine.Graph].
func (o *oracle) Linear(x, weight engine.Value) engine.Value {
	a, w := o.get(x), o.get(weight)
	return o.result(len(w.data)/w.width, func(t int, row []float64) {
		for i := range row {
			row[i] = dot(a.row(t), w.row(i))
		}
	})
}

// RMSNorm implements [engine.Graph].
func (o *oracle) RMSNorm(x, weight engine.Value, eps float64) engine.Value {
	a, w := o.get(x), o.get(weight)
	return o.result(a.width, func(t int, row []float64) {
		in := a.row(t)
		rms := math.Sqrt(dot(in, in)/float64(len(in)) + eps)
		for i := range row {
			row[i] = w.data[i] * in[i] / rms
		}
	})
}

// Rotary implements [engine.Graph].
func (o *oracle) Rotary(x engine.Value, head int, theta float64) engine.Value {
	a := o.get(x)
	return o.result(a.width, func(t int, row []float64) {
		position := float64(t % o.batch.Context)
		in := a.row(t)
		for start := 0; start < a.width; start += head {
			for i := range head / 2 {
				angle := position * math.Pow(theta, -2*float64(i)/float64(head))
				first, second := in[start+i], in[start+i+head/2]
				row[start+i] = first*math.Cos(angle) - second*math.Sin(angle)
				row[start+i+head/2] = second*math.Cos(angle) + first*math.Sin(angle)
			}
		}
	})
}

// Attention implements [engine.Graph].
func (o *oracle) Attention(q, k, v engine.Value, head int) engine.Value {
	a, b, c := o.get(q), o.get(k), o.get(v)
	group := a.width / b.width
	return o.result(a.width, func(t int, row []float64) {
		first := t - t%o.batch.Context // of this token's row
		for h := range a.width / head {
			at := h / group * head
			weights := make([]float64, t-first+1)
			for i := range weights {
				weights[i] = dot(a.row(t)[h*head:(h+1)*head], b.row(first + i)[at:at+head]) / math.Sqrt(float64(head))
			}
			total := logSumExp(weights)
			for i, s := range weights {
				for d := range head {
					row[h*head+d] += math.Exp(s-total) * c.row(first + i)[at+d]
				}
			}
		}
	})
}

func logSumExp(x []float64) float64 {
	top := math.Inf(-1)
	for _, v := range x {
		top = max(top, v)
	}
	sum := 0.0
	for _, v := range x {
		sum += math.Exp(v - top)
	}
	return top + math.Log(sum)
}

// SwiGLU implements [engine.Graph].
func (o *oracle) SwiGLU(gate, up engine.Value) engine.Value {
	a, b := o.get(gate), o.get(up)
	return o.result(a.width, func(t int, row []float64) {
		for i, x := range a.row(t) {
			row[i] = x / (1 + math.Exp(-x)) * b.row(t)[i]
		}
	})
}

// Add implements [engine.Graph].
func (o *oracle) Add(x, y engine.Value) engine.Value {
	a, b := o.get(x), o.get(y)
	return o.result(a.width, func(t int, row []float64) {
		for i := range row {
			row[i] = a.row(t)[i] + b.row(t)[i]
		}
	})
}

// CrossEntropy implements [engine.Graph].
func (o *oracle) CrossEntropy(logits engine.Value) engine.Value {
	a := o.get(logits)
	sum := 0.0
	for i, target := range o.batch.Targets {
		if target != engine.Ignore {
			sum += logSumExp(a.row(i)) - a.row(i)[target]
		}
	}
	return o.add(matrix{1, []float64{sum}})
}
