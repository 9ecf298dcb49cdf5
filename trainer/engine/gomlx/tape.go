package gomlx

import (
	"fmt"
	"math"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	ml "github.com/gomlx/gomlx/core/graph"

	"github.com/capacloud/capanode/trainer/engine"
)

// tape implements [engine.Graph] over a GoMLX graph and records how to go back. The gradients are written by hand
// rather than taken from GoMLX's autodiff, because the Go backend's cost is far from proportional to the arithmetic:
// matrix products run in SIMD, equal-shape element-wise loops are fair, but reductions, broadcasts and transposes walk
// an index iterator per element. So rows are summed and spread by products with ones, constants are tiled by copying,
// and each backward formula reuses what the forward pass kept.
//
// All nodes are [tokens, width] matrices unless a comment says otherwise.
type tape struct {
	g             *ml.Graph
	rows, context int
	tokens        int
	params        map[string]*ml.Node
	inputs        *ml.Node // [tokens, 1] int32
	targets       *ml.Node // [tokens, 2] int32: (token, target), target 0 where ignored
	wanted        *ml.Node // [tokens, 1]: 1 where the target counts, else 0

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

// flow adds an adjoint to a value.
func (t *tape) flow(v engine.Value, dy *ml.Node) {
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

// once returns the node that build made the first time it was asked for under this key.
func (t *tape) once(key any, build func() *ml.Node) *ml.Node {
	n, ok := t.shared[key]
	if !ok {
		n = build()
		t.shared[key] = n
	}
	return n
}

// constant puts a float32 matrix into the graph.
func (t *tape) constant(rows, cols int, at func(r, c int) float32) *ml.Node {
	m := make([][]float32, rows)
	for r := range m {
		m[r] = make([]float32, cols)
		for c := range m[r] {
			m[r][c] = at(r, c)
		}
	}
	return ml.Const(t.g, m)
}

// ones returns [1, n] of ones.
func (t *tape) ones(n int) *ml.Node {
	type key struct{ n int }
	return t.once(key{n}, func() *ml.Node { return t.constant(1, n, func(int, int) float32 { return 1 }) })
}

// rowSum sums each line: [m, n] → [m, 1].
func (t *tape) rowSum(x *ml.Node) *ml.Node {
	return t.product(x, t.ones(x.Shape().Dim(1)), transposed)
}

// columnSum sums each column: [m, n] → [1, n].
func (t *tape) columnSum(x *ml.Node) *ml.Node {
	return t.product(t.ones(x.Shape().Dim(0)), x, plain)
}

// spread repeats a column: [m, 1] → [m, n].
func (t *tape) spread(x *ml.Node, n int) *ml.Node { return t.product(x, t.ones(n), plain) }

// stack repeats a line: [1, n] → [m, n].
func (t *tape) stack(x *ml.Node, m int) *ml.Node {
	return t.product(ml.Reshape(t.ones(m), m, 1), x, plain)
}

// tile repeats x n times along its first axis, by copies that double.
func tile(x *ml.Node, n int) *ml.Node {
	if n == 1 {
		return x
	}
	half := tile(x, n/2)
	parts := []*ml.Node{half, half}
	if n%2 == 1 {
		parts = append(parts, x)
	}
	return ml.Concatenate(parts, 0)
}

const (
	plain      = false // a·b
	transposed = true  // a·bᵀ
)

// product multiplies matrices, or equal batches of matrices when there is a leading third axis. Both layouts are ones
// that the backend's kernels read without a transpose.
func (t *tape) product(a, b *ml.Node, bTransposed bool) *ml.Node {
	rank := a.Rank()
	axis := rank - 2
	if bTransposed {
		axis = rank - 1
	}
	var batch []int
	if rank == 3 {
		batch = []int{0}
	}
	return t.settle(ml.DotGeneral(a, []int{rank - 1}, batch, b, []int{axis}, batch))
}

// settle orders a copy of half a kilobyte between a product and whatever uses it. The AVX kernels of the backend leave
// the upper halves of the vector registers in use, and on common CPUs every scalar SSE instruction that Go compiles
// float code to then waits for them: measured 2.5 times slower multiplications and 4 times slower exponentials. Go's
// copy ends by clearing the upper halves, from 257 bytes on.
func (t *tape) settle(x *ml.Node) *ml.Node {
	return ml.SchedulingBarrier(x, ml.SchedulingBarrier(t.ones(128), x))
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

// Embedding implements [engine.Graph].
func (t *tape) Embedding(table engine.Value) engine.Value {
	w := t.node(table)
	return t.add(ml.Gather(w, t.inputs), func(dy *ml.Node) {
		sum := t.grads[table-1] // of a tied output layer, which lies later in the model
		if sum == nil {
			sum = ml.ZerosLike(w)
		}
		t.grads[table-1] = ml.ScatterSum(sum, t.inputs, dy, false, false)
	})
}

// Linear implements [engine.Graph]. Its weight gradient dyᵀ·x needs one transpose before the product: of dy, or of x,
// which all layers that read x share, at the price of transposing the small result.
func (t *tape) Linear(x, weight engine.Value) engine.Value {
	a, w := t.node(x), t.node(weight)
	out, in := w.Shape().Dim(0), w.Shape().Dim(1)
	t.readers[a]++
	return t.add(t.product(a, w, transposed), func(dy *ml.Node) {
		t.flow(x, t.product(dy, w, plain))
		if t.tokens*in/t.readers[a]+out*in < t.tokens*out {
			turned := t.once(a, func() *ml.Node { return ml.TransposeAllAxes(a, 1, 0) })
			t.flow(weight, ml.TransposeAllAxes(t.product(turned, dy, plain), 1, 0))
			return
		}
		t.flow(weight, t.product(ml.TransposeAllAxes(dy, 1, 0), a, plain))
	})
}

// RMSNorm implements [engine.Graph]. With n = x/rms: dx = (u − n·mean(u·n))/rms for u = dy·weight.
func (t *tape) RMSNorm(x, weight engine.Value, eps float64) engine.Value {
	a, w := t.node(x), t.node(weight)
	width := a.Shape().Dim(1)
	mean := ml.MulScalar(t.rowSum(ml.Mul(a, a)), 1/float64(width))
	inverse := t.spread(ml.Rsqrt(ml.AddScalar(mean, eps)), width)
	normed := ml.Mul(a, inverse)
	scale := t.stack(ml.Reshape(w, 1, width), t.tokens)
	return t.add(ml.Mul(normed, scale), func(dy *ml.Node) {
		t.flow(weight, ml.Reshape(t.columnSum(ml.Mul(dy, normed)), width))
		u := ml.Mul(dy, scale)
		along := t.spread(ml.MulScalar(t.rowSum(ml.Mul(u, normed)), 1/float64(width)), width)
		t.flow(x, ml.Mul(inverse, ml.Sub(u, ml.Mul(normed, along))))
	})
}

// Rotary implements [engine.Graph]: y = x·cos + (x·turn)·sin, where turn maps (a, b) to (−b, a) inside a head.
func (t *tape) Rotary(x engine.Value, head int, theta float64) engine.Value {
	a := t.node(x)
	width := a.Shape().Dim(1)
	cos := t.angles("cos", width, head, theta, math.Cos)
	sin := t.angles("sin", width, head, theta, math.Sin)
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
		heads := ml.Reshape(n, t.tokens*width/head, head)
		return ml.Reshape(t.product(heads, turn, layout), t.tokens, width)
	}
	return t.add(ml.Add(ml.Mul(a, cos), ml.Mul(rotate(a, plain), sin)), func(dy *ml.Node) {
		t.flow(x, ml.Add(ml.Mul(dy, cos), rotate(ml.Mul(dy, sin), transposed)))
	})
}

// angles returns f(position·theta^(−2i/head)) for every element of a [tokens, width] value.
func (t *tape) angles(name string, width, head int, theta float64, f func(float64) float64) *ml.Node {
	type key struct {
		name        string
		width, head int
		theta       float64
	}
	return t.once(key{name, width, head, theta}, func() *ml.Node {
		table := t.constant(t.context, width, func(position, c int) float32 {
			i := c % head % (head / 2)
			return float32(f(float64(position) * math.Pow(theta, -2*float64(i)/float64(head))))
		})
		return tile(table, t.rows)
	})
}

// Attention implements [engine.Graph]. Query heads that share a key head are stacked below each other, so that all
// products run over one batch of rows × key heads and keys are never repeated. Keys and values are kept transposed:
// then each product with an output of context × context, the large ones, has the layout of the faster kernel.
func (t *tape) Attention(q, k, v engine.Value, head int, mask engine.Mask) engine.Value {
	if mask != engine.Causal {
		return t.missing("attention without a causal mask")
	}
	keyHeads := t.node(k).Shape().Dim(1) / head
	group := t.node(q).Shape().Dim(1) / head / keyHeads
	batch, lines := t.rows*keyHeads, group*t.context

	// [tokens, keyHeads·group·head] ↔ [batch, group·context, head]
	split := func(n *ml.Node) *ml.Node {
		n = ml.Reshape(n, t.rows, t.context, keyHeads*group, head)
		return ml.Reshape(ml.TransposeAllAxes(n, 0, 2, 1, 3), batch, lines, head)
	}
	merge := func(n *ml.Node) *ml.Node {
		n = ml.Reshape(n, t.rows, keyHeads*group, t.context, head)
		return ml.Reshape(ml.TransposeAllAxes(n, 0, 2, 1, 3), t.tokens, keyHeads*group*head)
	}
	// [tokens, keyHeads·head] ↔ [batch, head, context]
	turn := func(n *ml.Node) *ml.Node {
		n = ml.Reshape(n, t.rows, t.context, keyHeads, head)
		return ml.Reshape(ml.TransposeAllAxes(n, 0, 2, 3, 1), batch, head, t.context)
	}
	unturn := func(n *ml.Node) *ml.Node {
		n = ml.Reshape(n, t.rows, keyHeads, head, t.context)
		return ml.Reshape(ml.TransposeAllAxes(n, 0, 3, 1, 2), t.tokens, keyHeads*head)
	}
	flip := func(n *ml.Node) *ml.Node { return ml.TransposeAllAxes(n, 0, 2, 1) }

	scale := 1 / math.Sqrt(float64(head))
	qs, kt, vt := split(ml.MulScalar(t.node(q), scale)), turn(t.node(k)), turn(t.node(v))
	weights := softmax(ml.Add(t.product(qs, kt, plain), t.causal(batch, group)))
	out := t.product(weights, vt, transposed)

	return t.add(merge(out), func(dy *ml.Node) {
		d := split(dy)
		t.flow(v, unturn(t.product(flip(d), weights, plain)))
		// softmax: ds = w·(dw − Σ w·dw), and Σ w·dw over the keys is Σ out·d over the head.
		sum := t.rowSum(ml.Reshape(ml.Mul(out, d), batch*lines, head))
		sum = ml.Reshape(t.spread(sum, t.context), batch, lines, t.context)
		ds := ml.Mul(weights, ml.Sub(t.product(d, vt, plain), sum))
		t.flow(q, ml.MulScalar(merge(t.product(ds, kt, transposed)), scale))
		t.flow(k, unturn(t.product(flip(qs), ds, plain)))
	})
}

// softmax over the last axis, always by the backend's fused operation: GoMLX's own Softmax chooses by an environment
// variable, and the two differ in the last bits.
func softmax(x *ml.Node) *ml.Node { return ml.BackendFusedSoftmax(x, x.Rank()-1) }

// masked is added to scores that must not count: exp underflows to zero, and sums stay finite.
const masked = -1e30

// causal returns [batch, group·context, context]: 0 where key ≤ query, else masked.
func (t *tape) causal(batch, group int) *ml.Node {
	type key struct{ batch, group int }
	return t.once(key{batch, group}, func() *ml.Node {
		one := t.constant(t.context, t.context, func(q, k int) float32 {
			if k <= q {
				return 0
			}
			return masked
		})
		return ml.Reshape(tile(one, batch*group), batch, group*t.context, t.context)
	})
}

// SwiGLU implements [engine.Graph]. d silu(x)/dx = σ(x)·(1 + x·(1 − σ(x))) = σ(x) + silu(x) − silu(x)·σ(x).
func (t *tape) SwiGLU(gate, up engine.Value) engine.Value {
	a, b := t.node(gate), t.node(up)
	sigmoid := ml.Logistic(a)
	silu := ml.Mul(a, sigmoid)
	return t.add(ml.Mul(silu, b), func(dy *ml.Node) {
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

// CrossEntropy implements [engine.Graph]. log Σ exp = max(logits) − log(max(softmax)), which stays finite where the
// target's own probability underflows.
func (t *tape) CrossEntropy(logits engine.Value) engine.Value {
	a := t.node(logits)
	vocab := a.Shape().Dim(1)
	p := softmax(a)
	total := ml.Sub(ml.ReduceMax(a, -1), ml.Log(ml.ReduceMax(p, -1)))
	each := ml.Reshape(ml.Sub(total, ml.Gather(a, t.targets)), t.tokens, 1)
	loss := ml.Reshape(t.columnSum(ml.Mul(each, t.wanted)))
	return t.add(loss, func(*ml.Node) { // the adjoint of the loss is one
		d := ml.Mul(p, t.spread(t.wanted, vocab))
		t.flow(logits, ml.ScatterSum(d, t.targets, ml.Neg(ml.Reshape(t.wanted, t.tokens)), true, true))
	})
}

var _ engine.Graph = (*tape)(nil)

func float32s(dims ...int) shapes.Shape { return shapes.Make(dtypes.Float32, dims...) }
func int32s(dims ...int) shapes.Shape   { return shapes.Make(dtypes.Int32, dims...) }
