package gomlx

import (
	"math"

	ml "github.com/gomlx/gomlx/core/graph"

	"github.com/capacloud/capanode/trainer/engine"
)

// Positions implements [engine.Graph].
func (t *tape) Positions(x, table engine.Value) engine.Value {
	a, w := t.node(x), t.node(table)
	lines, width := a.Shape().Dim(0), a.Shape().Dim(1)
	each, all := lines/t.rows, w.Shape().Dim(0)
	byRow := ml.Reshape(wide(a), t.rows, each, width)
	used := ml.Reshape(ml.Slice(w, ml.AxisRange(0, each)), 1, each, width)
	return t.add(t.narrow(ml.Reshape(ml.Add(byRow, used), lines, width)), func(dy *ml.Node) {
		t.flow(x, dy)
		sum := ml.ReduceSum(ml.Reshape(wide(dy), t.rows, each, width), 0)
		if each < all {
			sum = ml.Concatenate([]*ml.Node{sum, ml.Zeros(t.g, float32s(all-each, width))}, 0)
		}
		t.flow(table, sum)
	})
}

// Types implements [engine.Graph]. On a device the gradient is a product with the lines' one-hot codes, as that of the
// embedding is.
func (t *tape) Types(x, table engine.Value) engine.Value {
	w, kinds := t.node(table), t.data["types"]
	return t.add(t.narrow(ml.Add(wide(t.node(x)), ml.Gather(w, kinds))), func(dy *ml.Node) {
		t.flow(x, dy)
		if t.plain {
			t.flow(table, t.outer(indicator(ml.Equal(kinds, t.ids(w.Shape().Dim(0)))), dy))
			return
		}
		t.flow(table, ml.ScatterSum(ml.ZerosLike(w), kinds, dy, false, false))
	})
}

// Features implements [engine.Graph].
func (t *tape) Features(width int) engine.Value {
	return t.add(t.narrow(ml.Reshape(t.data["features"], t.rows*t.context, width)), nil)
}

// Patches implements [engine.Graph].
func (t *tape) Patches(m engine.Image) engine.Value {
	count, elements := m.Patches()
	cut := ml.Reshape(t.data["features"], t.rows, m.Channels, m.Height/m.Patch, m.Patch, m.Width/m.Patch, m.Patch)
	return t.add(t.narrow(ml.Reshape(ml.TransposeAllAxes(cut, 0, 2, 4, 1, 3, 5), t.rows*count, elements)), nil)
}

// Bias implements [engine.Graph].
func (t *tape) Bias(x, bias engine.Value) engine.Value {
	a := wide(t.node(x))
	lines, width := a.Shape().Dim(0), a.Shape().Dim(1)
	return t.add(t.narrow(ml.Add(a, t.stack(ml.Reshape(t.node(bias), 1, width), lines))), func(dy *ml.Node) {
		t.flow(x, dy)
		t.flow(bias, ml.Reshape(t.columnSum(wide(dy)), width))
	})
}

// LayerNorm implements [engine.Graph]. With n = (x − mean)/deviation: dx = (u − mean(u) − n·mean(u·n))/deviation for
// u = dy·weight.
func (t *tape) LayerNorm(x, weight, bias engine.Value, eps float64) engine.Value {
	a := wide(t.node(x))
	lines, width := a.Shape().Dim(0), a.Shape().Dim(1)
	mean := func(n *ml.Node) *ml.Node { return ml.MulScalar(t.rowSum(n), 1/float64(width)) }
	line := func(v engine.Value) *ml.Node { return t.stack(ml.Reshape(t.node(v), 1, width), lines) }
	centred := ml.Sub(a, t.spread(mean(a), width))
	inverse := t.spread(ml.Rsqrt(ml.AddScalar(mean(ml.Mul(centred, centred)), eps)), width)
	normed, scale := ml.Mul(centred, inverse), line(weight)
	return t.add(t.narrow(ml.Add(ml.Mul(normed, scale), line(bias))), func(dy *ml.Node) {
		dy = wide(dy)
		t.flow(weight, ml.Reshape(t.columnSum(ml.Mul(dy, normed)), width))
		t.flow(bias, ml.Reshape(t.columnSum(dy), width))
		u := ml.Mul(dy, scale)
		along := ml.Add(t.spread(mean(u), width), ml.Mul(normed, t.spread(mean(ml.Mul(u, normed)), width)))
		t.flow(x, ml.Mul(inverse, ml.Sub(u, along)))
	})
}

// GELU implements [engine.Graph]. d GELU(x)/dx = Φ(x) + x·φ(x).
func (t *tape) GELU(x engine.Value) engine.Value {
	a := wide(t.node(x))
	below := ml.MulScalar(ml.AddScalar(ml.Erf(ml.MulScalar(a, 1/math.Sqrt2)), 1), 0.5)
	return t.add(t.narrow(ml.Mul(a, below)), func(dy *ml.Node) {
		density := ml.MulScalar(ml.Exp(ml.MulScalar(ml.Mul(a, a), -0.5)), 1/math.Sqrt(2*math.Pi))
		t.flow(x, ml.Mul(wide(dy), ml.Add(below, ml.Mul(a, density))))
	})
}

// GELUTanh implements [engine.Graph]. With h = tanh(c·(x + k·x³)): dy/dx = (1 + h)/2 + x·(1 − h²)·c·(1 + 3k·x²)/2.
func (t *tape) GELUTanh(x engine.Value) engine.Value {
	const k = 0.044715
	c := math.Sqrt(2 / math.Pi)
	a := wide(t.node(x))
	square := ml.Mul(a, a)
	h := ml.Tanh(ml.MulScalar(ml.Mul(a, ml.AddScalar(ml.MulScalar(square, k), 1)), c))
	share := ml.MulScalar(ml.AddScalar(h, 1), 0.5)
	return t.add(t.narrow(ml.Mul(a, share)), func(dy *ml.Node) {
		inner := ml.AddScalar(ml.MulScalar(square, 3*k*c/2), c/2)
		slope := ml.Mul(ml.Mul(a, inner), ml.AddScalar(ml.Neg(ml.Mul(h, h)), 1))
		t.flow(x, ml.Mul(wide(dy), ml.Add(share, slope)))
	})
}

// Scale implements [engine.Graph].
func (t *tape) Scale(x engine.Value, factor float64) engine.Value {
	return t.add(t.narrow(ml.MulScalar(wide(t.node(x)), factor)), func(dy *ml.Node) { t.flow(x, ml.MulScalar(wide(dy), factor)) })
}

// Pool implements [engine.Graph].
func (t *tape) Pool(x engine.Value, mask engine.Mask) engine.Value {
	a := wide(t.node(x))
	lines, width := a.Shape().Dim(0), a.Shape().Dim(1)
	each := lines / t.rows
	shares := func(n *ml.Node) *ml.Node { return ml.MulScalar(n, 1/float64(each)) } // [rows, each or 1, width]
	if mask == engine.Padded {
		seen := ml.AddScalar(ml.Neg(t.padding(each)), 1)
		share := ml.Reshape(ml.Div(seen, ml.BroadcastToDims(ml.ReduceAndKeep(seen, ml.ReduceSum, -1), t.rows, each)), t.rows, each, 1)
		shares = func(n *ml.Node) *ml.Node { return ml.Mul(n, share) }
	}
	return t.add(t.narrow(ml.ReduceSum(shares(ml.Reshape(a, t.rows, each, width)), 1)), func(dy *ml.Node) {
		all := ml.BroadcastToDims(ml.Reshape(wide(dy), t.rows, 1, width), t.rows, each, width)
		t.flow(x, ml.Reshape(shares(all), lines, width))
	})
}

// Gather implements [engine.Graph].
func (t *tape) Gather(x engine.Value) engine.Value {
	a, picks := t.node(x), t.data["picks"]
	return t.add(ml.Gather(a, picks), func(dy *ml.Node) { t.flow(x, ml.ScatterSum(ml.ZerosLike(a), picks, dy, true, true)) })
}

// Scatter implements [engine.Graph].
func (t *tape) Scatter(x, fill, like engine.Value) engine.Value {
	a, picks := wide(t.node(x)), t.data["picks"]
	lines, width := t.node(like).Shape().Dim(0), a.Shape().Dim(1)
	put := func(n *ml.Node) *ml.Node {
		return ml.ScatterSum(ml.Zeros(t.g, float32s(lines, n.Shape().Dim(1))), picks, n, true, true)
	}
	left := ml.AddScalar(ml.Neg(put(ml.Ones(t.g, float32s(a.Shape().Dim(0), 1)))), 1) // 1 for lines without a pick
	rest := t.spread(left, width)
	filled := ml.Mul(t.stack(ml.Reshape(t.node(fill), 1, width), lines), rest)
	return t.add(t.narrow(ml.Add(put(a), filled)), func(dy *ml.Node) {
		dy = wide(dy)
		t.flow(x, ml.Gather(dy, picks))
		t.flow(fill, ml.Reshape(t.columnSum(ml.Mul(dy, rest)), width))
	})
}

// Layer implements [engine.Graph]. Nothing is recomputed on purpose: XLA does by itself what memory asks for.
func (t *tape) Layer(x engine.Value) engine.Value { return x }
