package gomlx

import (
	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	ml "github.com/gomlx/gomlx/core/graph"
)

// style says how the tape puts its formulas to the backend at hand. The zero style is that of the Go backend, whose
// cost is far from proportional to the arithmetic: matrix products run in SIMD, equal-shape element-wise loops are
// fair, but reductions, broadcasts and transposes walk an index iterator per element. So rows are summed and spread by
// products with ones, and constants are tiled by copying.
type style struct {
	plain bool // write sums, broadcasts and transposes as such, for a compiler that fuses them
	half  bool // keep results and multiply matrices in bfloat16; norms, softmax, losses and sums stay in float32
	flash bool // take the backend's fused attention where it applies: half precision, heads of a multiple of 8
}

// wide returns x in float32, in which everything but matrix products is computed.
func wide(x *ml.Node) *ml.Node {
	if x.DType() == dtypes.Float32 {
		return x
	}
	return ml.ConvertDType(x, dtypes.Float32)
}

// narrow returns x in the precision that results are kept in.
func (t *tape) narrow(x *ml.Node) *ml.Node {
	if !t.half || x.DType() == dtypes.BFloat16 {
		return x
	}
	return ml.ConvertDType(x, dtypes.BFloat16)
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

// count returns 0, 1, … n−1 as float32 [1, n].
func (t *tape) count(n int) *ml.Node {
	type key struct{ count int }
	return t.once(key{n}, func() *ml.Node { return ml.Iota(t.g, float32s(1, n), 1) })
}

// rowSum sums each line: [m, n] → [m, 1].
func (t *tape) rowSum(x *ml.Node) *ml.Node {
	if t.plain {
		return ml.ReduceAndKeep(x, ml.ReduceSum, -1)
	}
	return t.product(x, t.ones(x.Shape().Dim(1)), transposed)
}

// columnSum sums each column: [m, n] → [1, n].
func (t *tape) columnSum(x *ml.Node) *ml.Node {
	if t.plain {
		return ml.ReduceAndKeep(x, ml.ReduceSum, 0)
	}
	return t.product(t.ones(x.Shape().Dim(0)), x, plain)
}

// spread repeats a column, [m, 1] → [m, n], or leaves that to the broadcast of whatever uses it.
func (t *tape) spread(x *ml.Node, n int) *ml.Node {
	if t.plain {
		return x
	}
	return t.product(x, t.ones(n), plain)
}

// stack repeats a line, [1, n] → [m, n], or leaves that to the broadcast of whatever uses it.
func (t *tape) stack(x *ml.Node, m int) *ml.Node {
	if t.plain {
		return x
	}
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
// that the Go backend's kernels read without a transpose.
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
	if t.plain {
		return t.contract(a, b, []int{rank - 1}, batch, []int{axis}, batch)
	}
	return t.settle(ml.DotGeneral(a, []int{rank - 1}, batch, b, []int{axis}, batch))
}

// contract is a general product in the precision of results, summed in float32.
func (t *tape) contract(a, b *ml.Node, aAxes, aBatch, bAxes, bBatch []int) *ml.Node {
	return ml.Dot(t.narrow(a), t.narrow(b)).General(aAxes, aBatch, bAxes, bBatch)
}

// outer returns aᵀ·b for matrices, the sum over their lines, in float32 whatever the precision of results.
func (t *tape) outer(a, b *ml.Node) *ml.Node {
	dot := ml.Dot(t.narrow(a), t.narrow(b))
	if t.half {
		dot = dot.WithOutputDType(dtypes.Float32)
	}
	return dot.General([]int{0}, nil, []int{0}, nil)
}

// settle orders a copy of half a kilobyte between a product and whatever uses it. The AVX kernels of the Go backend
// leave the upper halves of the vector registers in use, and on common CPUs every scalar SSE instruction that Go
// compiles float code to then waits for them: measured 2.5 times slower multiplications and 4 times slower
// exponentials. Go's copy ends by clearing the upper halves, from 257 bytes on.
func (t *tape) settle(x *ml.Node) *ml.Node {
	return ml.SchedulingBarrier(x, ml.SchedulingBarrier(t.ones(128), x))
}

// softmax over the last axis, in float32. On the Go backend always by its fused operation: GoMLX's own Softmax chooses
// by an environment variable, and the two differ in the last bits.
func (t *tape) softmax(x *ml.Node) *ml.Node {
	if !t.plain {
		return ml.BackendFusedSoftmax(x, x.Rank()-1)
	}
	e := ml.Exp(ml.Sub(x, ml.ReduceAndKeep(x, ml.ReduceMax, -1)))
	return ml.Div(e, ml.ReduceAndKeep(e, ml.ReduceSum, -1))
}

// indicator returns 1 where the condition holds, else 0, as float32.
func indicator(condition *ml.Node) *ml.Node { return ml.ConvertDType(condition, dtypes.Float32) }

func float32s(dims ...int) shapes.Shape { return shapes.Make(dtypes.Float32, dims...) }
func int32s(dims ...int) shapes.Shape   { return shapes.Make(dtypes.Int32, dims...) }
