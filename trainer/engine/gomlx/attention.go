package gomlx

import (
	"math"

	"github.com/gomlx/compute"
	"github.com/gomlx/compute/dtypes"
	ml "github.com/gomlx/gomlx/core/graph"

	"github.com/capacloud/capanode/trainer/engine"
)

// masked is added to scores that must not count: exp underflows to zero, and sums stay finite.
const masked = -1e30

// Attention implements [engine.Graph].
func (t *tape) Attention(q, k, v engine.Value, head int, mask engine.Mask) engine.Value {
	switch {
	case t.flash && t.half && head%8 == 0 && head <= 128 && mask != engine.Padded:
		return t.flashAttention(q, k, v, head, mask)
	case t.plain:
		return t.plainAttention(q, k, v, head, mask)
	}
	return t.stackedAttention(q, k, v, head, mask)
}

// flashAttention leaves both passes to the backend's fused operation: no score is ever stored.
func (t *tape) flashAttention(q, k, v engine.Value, head int, mask engine.Mask) engine.Value {
	split := func(v engine.Value) *ml.Node {
		n := t.node(v)
		return ml.Reshape(n, t.rows, n.Shape().Dim(0)/t.rows, n.Shape().Dim(1)/head, head)
	}
	a, b, c := split(q), split(k), split(v)
	out, _ := ml.BackendFusedScaledDotProductAttention(a, b, c, compute.AttentionAxesLayoutBSHD,
		&compute.ScaledDotProductAttentionConfig{Scale: 1 / math.Sqrt(float64(head)), Causal: mask == engine.Causal})
	shape := t.node(q).Shape().Dimensions
	return t.add(ml.Reshape(out, shape...), func(dy *ml.Node) {
		// The fused backward operation is reachable through autodiff alone: the gradient of Σ out·dy.
		grads := ml.Gradient(ml.ReduceAllSum(ml.Mul(out, ml.StopGradient(ml.Reshape(dy, out.Shape().Dimensions...)))), a, b, c)
		for i, v := range []engine.Value{q, k, v} {
			t.flow(v, ml.Reshape(grads[i], t.node(v).Shape().Dimensions...))
		}
	})
}

// plainAttention writes the products over rows × key heads, the scores as [rows, key heads, lines, group, keys].
func (t *tape) plainAttention(q, k, v engine.Value, head int, mask engine.Mask) engine.Value {
	lines, width := t.node(q).Shape().Dim(0), t.node(q).Shape().Dim(1)
	keyHeads := t.node(k).Shape().Dim(1) / head
	each, group := lines/t.rows, width/head/keyHeads
	split := func(n *ml.Node) *ml.Node { return ml.Reshape(n, t.rows, each, keyHeads, group, head) }
	keys := func(v engine.Value) *ml.Node { return ml.Reshape(t.node(v), t.rows, each, keyHeads, head) }
	// [rows, key heads, lines, group, head] and [rows, key heads, keys, head] → matrices
	merge := func(n *ml.Node) *ml.Node { return ml.Reshape(ml.TransposeAllAxes(n, 0, 2, 1, 3, 4), lines, width) }
	mergeKeys := func(n *ml.Node) *ml.Node {
		return ml.Reshape(ml.TransposeAllAxes(n, 0, 2, 1, 3), lines, keyHeads*head)
	}
	byHead, firstTwo := []int{0, 2}, []int{0, 1}
	scale := 1 / math.Sqrt(float64(head))
	a, b, c := split(t.node(q)), keys(k), keys(v)
	scores := ml.MulScalar(wide(t.contract(a, b, []int{4}, byHead, []int{3}, byHead)), scale)
	if m := t.mask(mask, each); m != nil {
		scores = ml.Add(scores, m)
	}
	weights := t.softmax(scores)
	out := t.contract(weights, c, []int{4}, firstTwo, []int{1}, byHead)
	return t.add(merge(out), func(dy *ml.Node) {
		d := split(dy)
		t.flow(v, mergeKeys(t.contract(weights, d, []int{2, 3}, firstTwo, []int{1, 3}, byHead)))
		// softmax: ds = w·(dw − Σ w·dw)
		dw := ml.Mul(weights, wide(t.contract(d, c, []int{4}, byHead, []int{3}, byHead)))
		ds := ml.MulScalar(ml.Sub(dw, ml.Mul(weights, ml.ReduceAndKeep(dw, ml.ReduceSum, -1))), scale)
		t.flow(q, merge(t.contract(ds, b, []int{4}, firstTwo, []int{1}, byHead)))
		t.flow(k, mergeKeys(t.contract(ds, a, []int{2, 3}, firstTwo, []int{1, 3}, byHead)))
	})
}

// mask returns what is added to scores [rows, key heads, lines, group, keys], of a shape that broadcasts to it, or nil.
func (t *tape) mask(mask engine.Mask, each int) *ml.Node {
	type key struct {
		mask engine.Mask
		each int
	}
	build := func() *ml.Node {
		if mask == engine.Padded {
			return ml.Reshape(ml.MulScalar(t.padding(each), masked), t.rows, 1, 1, 1, each)
		}
		late := ml.LessThan(ml.Reshape(t.count(each), each, 1), t.count(each))
		return ml.Reshape(ml.MulScalar(indicator(late), masked), 1, 1, each, 1, each)
	}
	if mask == engine.Full {
		return nil
	}
	return t.once(key{mask, each}, build)
}

// padding returns [rows, each]: 1 for lines past a row's length, else 0.
func (t *tape) padding(each int) *ml.Node {
	type key struct{ padding int }
	return t.once(key{each}, func() *ml.Node {
		lengths := ml.ConvertDType(t.data["lengths"], dtypes.Float32)
		return indicator(ml.LessOrEqual(ml.BroadcastToDims(lengths, t.rows, each), ml.BroadcastToDims(t.count(each), t.rows, each)))
	})
}

// stackedAttention is for the Go backend. Query heads that share a key head are stacked below each other, so that all
// products run over one batch of rows × key heads and keys are never repeated. Keys and values are kept transposed:
// then each product with an output of lines × lines, the large ones, has the layout of the faster kernel.
func (t *tape) stackedAttention(q, k, v engine.Value, head int, mask engine.Mask) engine.Value {
	tokens := t.node(q).Shape().Dim(0)
	each := tokens / t.rows
	keyHeads := t.node(k).Shape().Dim(1) / head
	group := t.node(q).Shape().Dim(1) / head / keyHeads
	batch, lines := t.rows*keyHeads, group*each

	// [tokens, keyHeads·group·head] ↔ [batch, group·each, head]
	split := func(n *ml.Node) *ml.Node {
		n = ml.Reshape(n, t.rows, each, keyHeads*group, head)
		return ml.Reshape(ml.TransposeAllAxes(n, 0, 2, 1, 3), batch, lines, head)
	}
	merge := func(n *ml.Node) *ml.Node {
		n = ml.Reshape(n, t.rows, keyHeads*group, each, head)
		return ml.Reshape(ml.TransposeAllAxes(n, 0, 2, 1, 3), tokens, keyHeads*group*head)
	}
	// [tokens, keyHeads·head] ↔ [batch, head, each]
	turn := func(n *ml.Node) *ml.Node {
		n = ml.Reshape(n, t.rows, each, keyHeads, head)
		return ml.Reshape(ml.TransposeAllAxes(n, 0, 2, 3, 1), batch, head, each)
	}
	unturn := func(n *ml.Node) *ml.Node {
		n = ml.Reshape(n, t.rows, keyHeads, head, each)
		return ml.Reshape(ml.TransposeAllAxes(n, 0, 3, 1, 2), tokens, keyHeads*head)
	}
	flip := func(n *ml.Node) *ml.Node { return ml.TransposeAllAxes(n, 0, 2, 1) }

	scale := 1 / math.Sqrt(float64(head))
	qs, kt, vt := split(ml.MulScalar(t.node(q), scale)), turn(t.node(k)), turn(t.node(v))
	scores := t.product(qs, kt, plain)
	if mask != engine.Full {
		scores = ml.Add(scores, t.stackedMask(mask, each, keyHeads, group))
	}
	weights := t.softmax(scores)
	out := t.product(weights, vt, transposed)

	return t.add(merge(out), func(dy *ml.Node) {
		d := split(dy)
		t.flow(v, unturn(t.product(flip(d), weights, plain)))
		// softmax: ds = w·(dw − Σ w·dw), and Σ w·dw over the keys is Σ out·d over the head.
		sum := t.rowSum(ml.Reshape(ml.Mul(out, d), batch*lines, head))
		sum = ml.Reshape(t.spread(sum, each), batch, lines, each)
		ds := ml.Mul(weights, ml.Sub(t.product(d, vt, plain), sum))
		t.flow(q, ml.MulScalar(merge(t.product(ds, kt, transposed)), scale))
		t.flow(k, unturn(t.product(flip(qs), ds, plain)))
	})
}

// stackedMask returns [rows·keyHeads, group·each, each]: 0 where the query sees the key, else masked.
func (t *tape) stackedMask(mask engine.Mask, each, keyHeads, group int) *ml.Node {
	type key struct {
		stacked               engine.Mask
		each, keyHeads, group int
	}
	return t.once(key{mask, each, keyHeads, group}, func() *ml.Node {
		if mask == engine.Padded {
			one := ml.Reshape(ml.MulScalar(t.padding(each), masked), t.rows, 1, 1, each)
			return ml.Reshape(ml.BroadcastToDims(one, t.rows, keyHeads, group*each, each), t.rows*keyHeads, group*each, each)
		}
		one := t.constant(each, each, func(q, k int) float32 {
			if k <= q {
				return 0
			}
			return masked
		})
		return ml.Reshape(tile(one, t.rows*keyHeads*group), t.rows*keyHeads, group*each, each)
	})
}
