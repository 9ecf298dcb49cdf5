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
		o.params[q.Name] = matrix{width: q.Size() / q.Shape[0], data: weights[q.Offset : q.Offset+q.Size()]}
		if len(q.Shape) == 1 {
			o.params[q.Name] = matrix{width: q.Size(), data: weights[q.Offset : q.Offset+q.Size()]}
		}
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

// lines returns the number of lines of a matrix.
func (m matrix) lines() int { return len(m.data) / m.width }

// result allocates [lines, width] and fills it line by line.
func (o *oracle) result(lines, width int, fill func(line int, row []float64)) engine.Value {
	m := matrix{width, make([]float64, lines*width)}
	for i := range lines {
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
	return o.result(len(o.batch.Inputs), w.width, func(t int, row []float64) { copy(row, w.row(int(o.batch.Inputs[t]))) })
}

// Linear implements [engine.Graph].
func (o *oracle) Linear(x, weight engine.Value) engine.Value {
	a, w := o.get(x), o.get(weight)
	return o.result(a.lines(), w.lines(), func(t int, row []float64) {
		for i := range row {
			row[i] = dot(a.row(t), w.row(i))
		}
	})
}

// RMSNorm implements [engine.Graph].
func (o *oracle) RMSNorm(x, weight engine.Value, eps float64) engine.Value {
	a, w := o.get(x), o.get(weight)
	return o.result(a.lines(), a.width, func(t int, row []float64) {
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
	each := a.lines() / o.batch.Rows
	return o.result(a.lines(), a.width, func(t int, row []float64) {
		position := float64(t % each)
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
func (o *oracle) Attention(q, k, v engine.Value, head int, mask engine.Mask) engine.Value {
	a, b, c := o.get(q), o.get(k), o.get(v)
	group, each := a.width/b.width, a.lines()/o.batch.Rows
	return o.result(a.lines(), a.width, func(t int, row []float64) {
		first := t - t%each // of this line's row
		for h := range a.width / head {
			at := h / group * head
			weights := make([]float64, o.seen(t, each, mask))
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

// seen returns how many lines of its row the mask lets a line see, where a row has each lines.
func (o *oracle) seen(line, each int, mask engine.Mask) int {
	switch {
	case mask == engine.Causal:
		return line%each + 1
	case mask == engine.Padded && o.batch.Lengths != nil:
		return int(o.batch.Lengths[line/each])
	}
	return each
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
	return o.result(a.lines(), a.width, func(t int, row []float64) {
		for i, x := range a.row(t) {
			row[i] = x / (1 + math.Exp(-x)) * b.row(t)[i]
		}
	})
}

// Add implements [engine.Graph].
func (o *oracle) Add(x, y engine.Value) engine.Value {
	a, b := o.get(x), o.get(y)
	return o.result(a.lines(), a.width, func(t int, row []float64) {
		for i := range row {
			row[i] = a.row(t)[i] + b.row(t)[i]
		}
	})
}

// CrossEntropy implements [engine.Graph].
func (o *oracle) CrossEntropy(logits engine.Value) engine.Value {
	return o.SmoothCrossEntropy(logits, 0)
}

// SmoothCrossEntropy implements [engine.Graph].
func (o *oracle) SmoothCrossEntropy(logits engine.Value, smoothing float64) engine.Value {
	a := o.get(logits)
	sum := 0.0
	for i, target := range o.batch.Targets {
		if target == engine.Ignore {
			continue
		}
		for class, x := range a.row(i) {
			weight := smoothing / float64(a.width)
			if class == int(target) {
				weight += 1 - smoothing
			}
			sum += weight * (logSumExp(a.row(i)) - x)
		}
	}
	return o.add(matrix{1, []float64{sum}})
}
