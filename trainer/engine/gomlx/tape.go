package gomlx

import (
	"fmt"
	"math"

	"github.com/gomlx/compute/dtypes"
	ml "github.com/gomlx/gomlx/core/graph"

	"github.com/capacloud/capanode/trainer/engine"
)

// tape implements [engine.Graph] over a GoMLX graph and records how to go back. The gradients are written by hand
// rather than taken from GoMLX's autodiff: each backward formula reuses what the forward pass kept, and each style puts
// it in the way that its backend runs well.
//
// All nodes are [lines, width] matrices unless a comment says otherwise.
type tape struct {
	style
	g             *ml.Graph
	rows, context int
	params        map[string]*ml.Node
	data          map[string]*ml.Node // what a batch feeds, by the names of columns

	values  []*ml.Node       // of Value i+1
	names   []string         // the parameter that a Value is, or ""
	grads   []*ml.Node       // adjoint of Value i+1; nil until something flows back
	back    []func()         // one per operation, run in reverse
	shared  map[any]*ml.Node // constants, tiles and transposes by what they are
	readers map[*ml.Node]int // linear layers that read a node
	mute    bool             // forward only: keep no backward closures
}

func (t *tape) add(n *ml.Node, back func(dy *ml.Node)) engine.Value {
	t.values = append(t.values, n)
	t.names = append(t.names, "")
	t.grads = append(t.grads, nil)
	at := len(t.values) - 1
	if back != nil && !t.mute {
		t.back = append(t.back, func() {
			if dy := t.grads[at]; dy != nil {
				back(dy)
			}
		})
	}
	return engine.Value(at + 1)
}

func (t *tape) node(v engine.Value) *ml.Node { return t.values[v-1] }

// flow adds an adjoint to a value. Adjoints of parameters are float32, others in the precision of results.
func (t *tape) flow(v engine.Value, dy *ml.Node) {
	if t.names[v-1] == "" {
		dy = t.narrow(dy)
	}
	if g := t.grads[v-1]; g != nil {
		dy = ml.Add(g, dy)
	}
	t.grads[v-1] = dy
}

// backward runs the tape in reverse from a scalar whose adjoint is one.
func (t *tape) backward(loss engine.Value) {
	t.grads[loss-1] = ml.ScalarOne(t.g, dtypes.Float32)
	for i := len(t.back) - 1; i >= 0; i-- {
		t.back[i]()
	}
}

// Param implements [engine.Graph].
func (t *tape) Param(name string) engine.Value {
	p, ok := t.params[name]
	if !ok {
		panic(fmt.Errorf("no parameter %q: %w", name, engine.ErrShape)) // unreachable after engine.NewPlan
	}
	v := t.add(p, nil)
	t.names[v-1] = name
	return v
}

// Embedding implements [engine.Graph]. Where a compiler has many threads, adding lines of one token in any order would
// change the last bits from run to run, so the gradient is a product with the lines' one-hot codes.
func (t *tape) Embedding(table engine.Value) engine.Value {
	w, inputs := t.node(table), t.data["inputs"]
	return t.add(t.narrow(ml.Gather(w, inputs)), func(dy *ml.Node) {
		if t.plain {
			t.flow(table, t.outer(indicator(ml.Equal(inputs, t.ids(w.Shape().Dim(0)))), dy))
			return
		}
		sum := t.grads[table-1] // of a tied output layer, which lies later in the model
		if sum == nil {
			sum = ml.ZerosLike(w)
		}
		t.grads[table-1] = ml.ScatterSum(sum, inputs, dy, false, false)
	})
}

// ids returns 0, 1, … n−1 as int32 [1, n].
func (t *tape) ids(n int) *ml.Node {
	type key struct{ ids int }
	return t.once(key{n}, func() *ml.Node { return ml.Iota(t.g, int32s(1, n), 1) })
}

// Linear implements [engine.Graph]. On the Go backend its weight gradient dyᵀ·x needs one transpose before the product:
// of dy, or of x, which all layers that read x share, at the price of transposing the small result.
func (t *tape) Linear(x, weight engine.Value) engine.Value {
	a, w := t.node(x), t.node(weight)
	dims := w.Shape().Dimensions
	out, in, lines := dims[0], a.Shape().Dim(1), a.Shape().Dim(0)
	if len(dims) > 2 {
		w = t.once(weight, func() *ml.Node { return ml.Reshape(w, out, in) })
	}
	flow := func(dw *ml.Node) {
		if len(dims) > 2 {
			dw = ml.Reshape(dw, dims...)
		}
		t.flow(weight, dw)
	}
	t.readers[a]++
	return t.add(t.product(a, w, transposed), func(dy *ml.Node) {
		t.flow(x, t.product(dy, w, plain))
		switch {
		case t.plain:
			flow(t.outer(dy, a))
		case lines*in/t.readers[a]+out*in < lines*out:
			turned := t.once(a, func() *ml.Node { return ml.TransposeAllAxes(a, 1, 0) })
			flow(ml.TransposeAllAxes(t.product(turned, dy, plain), 1, 0))
		default:
			flow(t.product(ml.TransposeAllAxes(dy, 1, 0), a, plain))
		}
	})
}

// RMSNorm implements [engine.Graph]. With n = x/rms: dx = (u − n·mean(u·n))/rms for u = dy·weight.
func (t *tape) RMSNorm(x, weight engine.Value, eps float64) engine.Value {
	a, w := wide(t.node(x)), t.node(weight)
	lines, width := a.Shape().Dim(0), a.Shape().Dim(1)
	mean := ml.MulScalar(t.rowSum(ml.Mul(a, a)), 1/float64(width))
	inverse := t.spread(ml.Rsqrt(ml.AddScalar(mean, eps)), width)
	normed := ml.Mul(a, inverse)
	scale := t.stack(ml.Reshape(w, 1, width), lines)
	return t.add(t.narrow(ml.Mul(normed, scale)), func(dy *ml.Node) {
		dy = wide(dy)
		t.flow(weight, ml.Reshape(t.columnSum(ml.Mul(dy, normed)), width))
		u := ml.Mul(dy, scale)
		along := t.spread(ml.MulScalar(t.rowSum(ml.Mul(u, normed)), 1/float64(width)), width)
		t.flow(x, ml.Mul(inverse, ml.Sub(u, ml.Mul(normed, along))))
	})
}

// Rotary implements [engine.Graph]: y = x·cos + (x·turn)·sin, where turn maps (a, b) to (−b, a) inside a head.
func (t *tape) Rotary(x engine.Value, head int, theta float64) engine.Value {
	a := t.node(x)
	lines, width := a.Shape().Dim(0), a.Shape().Dim(1)
	if t.plain {
		return t.rotaryByHalves(x, head, theta)
	}
	cos := t.angles("cos", lines, width, head, theta, math.Cos)
	sin := t.angles("sin", lines, width, head, theta, math.Sin)
	type key struct{ turn int }
	turn := t.once(key{head}, func() *ml.Node {
		return t.constant(head, head, func(r, c int) float32 {
			switch {
			case r == c+head/2:
				return -1
			case c == r+head/2:
				return 1
			}
			return 0
		})
	})
	rotate := func(n *ml.Node, layout bool) *ml.Node {
		heads := ml.Reshape(n, lines*width/head, head)
		return ml.Reshape(t.product(heads, turn, layout), lines, width)
	}
	return t.add(ml.Add(ml.Mul(a, cos), ml.Mul(rotate(a, plain), sin)), func(dy *ml.Node) {
		t.flow(x, ml.Add(ml.Mul(dy, cos), rotate(ml.Mul(dy, sin), transposed)))
	})
}

// angles returns f(position·theta^(−2i/head)) for every element of a [lines, width] value.
func (t *tape) angles(name string, lines, width, head int, theta float64, f func(float64) float64) *ml.Node {
	type key struct {
		name               string
		lines, width, head int
		theta              float64
	}
	return t.once(key{name, lines, width, head, theta}, func() *ml.Node {
		table := t.constant(lines/t.rows, width, func(position, c int) float32 {
			return float32(f(angle(position, c%head%(head/2), head, theta)))
		})
		return tile(table, t.rows)
	})
}

func angle(position, i, head int, theta float64) float64 {
	return float64(position) * math.Pow(theta, -2*float64(i)/float64(head))
}

// rotaryByHalves turns the halves (a, b) of each head to (a·cos − b·sin, b·cos + a·sin), and adjoints back.
func (t *tape) rotaryByHalves(x engine.Value, head int, theta float64) engine.Value {
	n := t.node(x)
	lines, width := n.Shape().Dim(0), n.Shape().Dim(1)
	each, half := lines/t.rows, head/2
	table := func(name string, f func(float64) float64) *ml.Node {
		type key struct {
			name       string
			each, head int
			theta      float64
		}
		return t.once(key{name, each, head, theta}, func() *ml.Node {
			return ml.Reshape(t.constant(each, half, func(position, i int) float32 {
				return float32(f(angle(position, i, head, theta)))
			}), 1, each, 1, 1, half)
		})
	}
	cos, sin := table("cos of half", math.Cos), table("sin of half", math.Sin)
	turn := func(n, sin *ml.Node) *ml.Node {
		n = ml.Reshape(wide(n), t.rows, each, width/head, 2, half)
		all := ml.AxisRange()
		a, b := ml.Slice(n, all, all, all, ml.AxisRange(0, 1)), ml.Slice(n, all, all, all, ml.AxisRange(1, 2))
		first := ml.Sub(ml.Mul(a, cos), ml.Mul(b, sin))
		second := ml.Add(ml.Mul(b, cos), ml.Mul(a, sin))
		return t.narrow(ml.Reshape(ml.Concatenate([]*ml.Node{first, second}, 3), lines, width))
	}
	return t.add(turn(n, sin), func(dy *ml.Node) { t.flow(x, turn(dy, ml.Neg(sin))) })
}

// SwiGLU implements [engine.Graph]. d silu(x)/dx = σ(x)·(1 + x·(1 − σ(x))) = σ(x) + silu(x) − silu(x)·σ(x).
func (t *tape) SwiGLU(gate, up engine.Value) engine.Value {
	a, b := wide(t.node(gate)), wide(t.node(up))
	sigmoid := ml.Logistic(a)
	silu := ml.Mul(a, sigmoid)
	return t.add(t.narrow(ml.Mul(silu, b)), func(dy *ml.Node) {
		dy = wide(dy)
		t.flow(up, ml.Mul(dy, silu))
		slope := ml.Add(sigmoid, ml.Sub(silu, ml.Mul(silu, sigmoid)))
		t.flow(gate, ml.Mul(ml.Mul(dy, b), slope))
	})
}

// Add implements [engine.Graph].
func (t *tape) Add(a, b engine.Value) engine.Value {
	return t.add(ml.Add(t.node(a), t.node(b)), func(dy *ml.Node) {
		t.flow(a, dy)
		t.flow(b, dy)
	})
}

var _ engine.Graph = (*tape)(nil)
