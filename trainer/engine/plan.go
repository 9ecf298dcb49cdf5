package engine

import (
	"cmp"
	"fmt"
	"math"
	"slices"
)

// Plan is what a program costs at one batch shape, known before anything is allocated.
type Plan struct {
	Parameters      int64    // elements of all parameters
	ForwardFLOPs    int64    // of the matrix products of one forward pass over the batch
	ActivationBytes int64    // float32 results of all operations, kept for the backward pass
	Tensors         []Tensor // parameters and results, the largest first
}

// Tensor is one entry of a [Plan].
type Tensor struct {
	Name  string
	Bytes int64
}

// NewPlan walks the loss of a program at the given batch shape. It checks every shape on the way; errors wrap
// [ErrShape].
func NewPlan(p Program, rows, context int) (Plan, error) {
	params, total, err := Layout(p.Params)
	if err != nil {
		return Plan{}, err
	}
	if p.Vocab < 1 || p.Vocab > math.MaxInt32 || context < 1 || context > p.Context {
		return Plan{}, fmt.Errorf("vocabulary %d, %d tokens of context for a model of %d: %w",
			p.Vocab, context, p.Context, ErrShape)
	}
	tokens, err := product(rows, context)
	if err != nil {
		return Plan{}, fmt.Errorf("%d rows × %d tokens: %w", rows, context, err)
	}
	t := &tracer{params: map[string]Param{}, tokens: int(tokens), context: context, vocab: p.Vocab}
	t.plan.Parameters = int64(total)
	for _, q := range params {
		t.params[q.Name] = q
		t.plan.Tensors = append(t.plan.Tensors, Tensor{q.Name, 4 * int64(q.Size())})
	}
	loss := p.Loss(t)
	if t.err == nil && t.shape(loss) == nil {
		t.fail("the loss is no value of the graph")
	}
	if t.err != nil {
		return Plan{}, t.err
	}
	slices.SortStableFunc(t.plan.Tensors, func(a, b Tensor) int { return cmp.Compare(b.Bytes, a.Bytes) })
	return t.plan, nil
}

// tracer is the Graph that computes shapes and costs only.
type tracer struct {
	params          map[string]Param
	tokens, context int
	vocab           int
	shapes          [][]int // of Value i+1
	plan            Plan
	err             error // the first one
}

func (t *tracer) fail(format string, args ...any) Value {
	if t.err == nil {
		t.err = fmt.Errorf(format+": %w", append(args, ErrShape)...)
	}
	return 0
}

// shape returns the shape of a value, or nil when it is not one of this graph's.
func (t *tracer) shape(v Value) []int {
	if v < 1 || int(v) > len(t.shapes) {
		return nil
	}
	return t.shapes[v-1]
}

// width returns the columns of a [tokens, width] value. Parameters are no such values.
func (t *tracer) width(op string, v Value) (int, bool) {
	s := t.shape(v)
	if len(s) != 2 || s[0] != -1 {
		t.fail("%s of %v, which is not a [tokens, width] matrix", op, s)
		return 0, false
	}
	return s[1], true
}

// matrix returns the shape of a rank-2 parameter.
func (t *tracer) matrix(op string, v Value) (out, in int, ok bool) {
	s := t.shape(v)
	if len(s) != 2 || s[0] == -1 {
		t.fail("%s with %v, which is not a matrix of parameters", op, s)
		return 0, 0, false
	}
	return s[0], s[1], true
}

// result records an operation's result [tokens, width], extra elements kept beside it, and its matrix products as
// multiply-adds per token.
func (t *tracer) result(op string, width int, extra, mulAdds int64) Value {
	elements, err := product(t.tokens, width)
	if err != nil || extra > maxElements {
		return t.fail("%s of %d tokens × %d", op, t.tokens, width)
	}
	if mulAdds > math.MaxInt64/8/int64(t.tokens) {
		return t.fail("%s of %d tokens × %d takes too many operations", op, t.tokens, width)
	}
	t.shapes = append(t.shapes, []int{-1, width})
	bytes := 4 * (elements + extra)
	t.plan.Tensors = append(t.plan.Tensors, Tensor{fmt.Sprintf("%s %d", op, len(t.shapes)), bytes})
	t.plan.ActivationBytes += bytes
	t.plan.ForwardFLOPs += 2 * mulAdds * int64(t.tokens)
	if t.plan.ActivationBytes < 0 || t.plan.ForwardFLOPs < 0 || t.plan.ForwardFLOPs > math.MaxInt64/8 {
		return t.fail("%s: the sum over the model overflows", op)
	}
	return Value(len(t.shapes))
}

// Param implements [Graph].
func (t *tracer) Param(name string) Value {
	p, ok := t.params[name]
	if !ok {
		return t.fail("the program has no parameter %q", name)
	}
	t.shapes = append(t.shapes, p.Shape)
	return Value(len(t.shapes))
}

// Embedding implements [Graph].
func (t *tracer) Embedding(table Value) Value {
	lines, width, ok := t.matrix("embedding", table)
	if !ok {
		return 0
	}
	if lines != t.vocab {
		return t.fail("embedding of %d lines for a vocabulary of %d", lines, t.vocab)
	}
	return t.result("embedding", width, 0, 0)
}

// Linear implements [Graph].
func (t *tracer) Linear(x, weight Value) Value {
	width, ok := t.width("linear", x)
	out, in, ok2 := t.matrix("linear", weight)
	if !ok || !ok2 {
		return 0
	}
	if width != in {
		return t.fail("linear of width %d with a weight [%d, %d]", width, out, in)
	}
	return t.result("linear", out, 0, int64(in)*int64(out))
}

// RMSNorm implements [Graph].
func (t *tracer) RMSNorm(x, weight Value, eps float64) Value {
	width, ok := t.width("norm", x)
	if !ok {
		return 0
	}
	if s := t.shape(weight); len(s) != 1 || s[0] != width {
		return t.fail("norm of width %d with a weight %v", width, s)
	}
	if !(eps >= 0 && eps <= 1) {
		return t.fail("norm with epsilon %g, allowed are 0 to 1", eps)
	}
	return t.result("norm", width, int64(t.tokens), 0)
}

// heads checks a head width against a value and returns the number of heads.
func (t *tracer) heads(op string, v Value, head int) (int, bool) {
	width, ok := t.width(op, v)
	if !ok {
		return 0, false
	}
	if head < 1 || width%head != 0 {
		t.fail("%s of width %d in heads of %d", op, width, head)
		return 0, false
	}
	return width / head, true
}

// Rotary implements [Graph].
func (t *tracer) Rotary(x Value, head int, theta float64) Value {
	heads, ok := t.heads("rotary", x, head)
	if !ok {
		return 0
	}
	if head%2 != 0 || !(theta >= 1 && theta <= 1e12) {
		return t.fail("rotary with heads of %d and theta %g, wanted an even number and 1 to 1e12", head, theta)
	}
	return t.result("rotary", heads*head, 0, 0)
}

// Attention implements [Graph].
func (t *tracer) Attention(q, k, v Value, head int) Value {
	nq, ok1 := t.heads("attention", q, head)
	nk, ok2 := t.heads("attention", k, head)
	nv, ok3 := t.heads("attention", v, head)
	if !ok1 || !ok2 || !ok3 {
		return 0
	}
	if nk != nv || nq%nk != 0 {
		return t.fail("attention of %d query heads over %d key and %d value heads", nq, nk, nv)
	}
	scores, err := product(t.tokens, t.context, nq)
	if err != nil {
		return t.fail("attention scores of %d tokens × %d × %d heads", t.tokens, t.context, nq)
	}
	return t.result("attention", nq*head, scores, 2*int64(t.context)*int64(nq)*int64(head))
}

// SwiGLU implements [Graph].
func (t *tracer) SwiGLU(gate, up Value) Value { return t.same("swiglu", gate, up, 2) }

// Add implements [Graph].
func (t *tracer) Add(a, b Value) Value { return t.same("add", a, b, 0) }

// same records an element-wise operation that keeps that many further results of its size.
func (t *tracer) same(op string, a, b Value, kept int64) Value {
	wa, ok1 := t.width(op, a)
	wb, ok2 := t.width(op, b)
	if !ok1 || !ok2 {
		return 0
	}
	if wa != wb {
		return t.fail("%s of widths %d and %d", op, wa, wb)
	}
	return t.result(op, wa, kept*int64(t.tokens)*int64(wa), 0)
}

// CrossEntropy implements [Graph].
func (t *tracer) CrossEntropy(logits Value) Value {
	width, ok := t.width("cross-entropy", logits)
	if !ok {
		return 0
	}
	if width != t.vocab {
		return t.fail("cross-entropy of width %d for a vocabulary of %d", width, t.vocab)
	}
	return t.result("cross-entropy", width, int64(t.tokens), 0)
}
