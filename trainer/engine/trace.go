package engine

import (
	"fmt"
	"math"
)

// tracer is the Graph that computes shapes and costs only.
type tracer struct {
	program Program
	params  map[string]Param
	batch   Shape
	tokens  int
	shapes  []traced // of Value i+1
	plan    Plan
	err     error // the first one
}

// traced is the shape of one value: a parameter, a scalar, or a matrix [Rows·lines, width].
type traced struct {
	param        []int
	frozen       bool // of a parameter
	scalar       bool
	lines, width int
}

func (t *tracer) fail(format string, args ...any) Value {
	if t.err == nil {
		t.err = fmt.Errorf(format+": %w", append(args, ErrShape)...)
	}
	return 0
}

// shape returns the shape of a value, if it is one of this graph's.
func (t *tracer) shape(v Value) (traced, bool) {
	if v < 1 || int(v) > len(t.shapes) {
		return traced{}, false
	}
	return t.shapes[v-1], true
}

// matrix returns the shape of a [Rows·lines, width] value. Parameters and scalars are no such values.
func (t *tracer) matrix(op string, v Value) (traced, bool) {
	s, ok := t.shape(v)
	if !ok || s.param != nil || s.scalar {
		t.fail("%s of %v, which is not a matrix of lines", op, s.param)
		return traced{}, false
	}
	return s, true
}

// vector wants a parameter of width elements in one dimension.
func (t *tracer) vector(op string, v Value, width int) bool {
	s, _ := t.shape(v)
	if len(s.param) != 1 || s.param[0] != width {
		t.fail("%s of width %d with %v", op, width, s.param)
		return false
	}
	return true
}

// weight returns the shape of a parameter of two or more dimensions as a matrix.
func (t *tracer) weight(op string, v Value) (out, in int, ok bool) {
	s, _ := t.shape(v)
	if len(s.param) < 2 {
		t.fail("%s with %v, which is not a matrix of parameters", op, s.param)
		return 0, 0, false
	}
	in = 1
	for _, d := range s.param[1:] {
		in *= d
	}
	return s.param[0], in, true
}

func (t *tracer) add(s traced) Value {
	t.shapes = append(t.shapes, s)
	return Value(len(t.shapes))
}

// cost records a result of that many elements and its matrix products as multiply-adds.
func (t *tracer) cost(op string, elements, mulAdds int64) bool {
	if elements > maxElements || mulAdds < 0 || mulAdds > math.MaxInt64/8 {
		t.fail("%s of %d rows × %d tokens is too large", op, t.batch.Rows, t.batch.Context)
		return false
	}
	bytes := 4 * elements
	t.plan.Tensors = append(t.plan.Tensors, Tensor{fmt.Sprintf("%s %d", op, len(t.shapes)+1), bytes})
	t.plan.ActivationBytes += bytes
	t.plan.ForwardFLOPs += 2 * mulAdds
	if t.plan.ActivationBytes < 0 || t.plan.ForwardFLOPs < 0 || t.plan.ForwardFLOPs > math.MaxInt64/8 {
		t.fail("%s: the sum over the model overflows", op)
		return false
	}
	return true
}

// result records an operation's result [Rows·lines, width], extra elements kept beside it for each line, and multiply-adds
// for each line.
func (t *tracer) result(op string, s traced, extra, mulAdds int64) Value {
	all, err := product(t.batch.Rows, s.lines)
	if err != nil || extra < 0 || mulAdds < 0 || extra > maxElements || (int64(s.width)+extra) > maxElements/all || mulAdds > math.MaxInt64/8/all {
		return t.fail("%s of %d rows × %d lines × %d", op, t.batch.Rows, s.lines, s.width)
	}
	if !t.cost(op, all*(int64(s.width)+extra), all*mulAdds) {
		return 0
	}
	return t.add(traced{lines: s.lines, width: s.width})
}

// Param implements [Graph].
func (t *tracer) Param(name string) Value {
	p, ok := t.params[name]
	if !ok {
		return t.fail("the program has no parameter %q", name)
	}
	return t.add(traced{param: p.Shape, frozen: p.Frozen})
}

// Embedding implements [Graph].
func (t *tracer) Embedding(table Value) Value {
	lines, width, ok := t.weight("embedding", table)
	if !ok {
		return 0
	}
	if lines != t.program.Vocab {
		return t.fail("embedding of %d lines for a vocabulary of %d", lines, t.program.Vocab)
	}
	t.plan.Needs.Inputs = true
	return t.result("embedding", traced{lines: t.batch.Context, width: width}, 0, 0)
}

// Positions implements [Graph].
func (t *tracer) Positions(x, table Value) Value {
	s, ok := t.matrix("positions", x)
	lines, width, ok2 := t.weight("positions", table)
	if !ok || !ok2 {
		return 0
	}
	if lines < s.lines || width != s.width {
		return t.fail("positions [%d, %d] for %d lines of width %d", lines, width, s.lines, s.width)
	}
	return t.result("positions", s, 0, 0)
}

// Types implements [Graph].
func (t *tracer) Types(x, table Value) Value {
	s, ok := t.matrix("types", x)
	lines, width, ok2 := t.weight("types", table)
	if !ok || !ok2 {
		return 0
	}
	if have := t.plan.Needs.Types; width != s.width || s.lines != t.batch.Context || have != 0 && have != lines {
		return t.fail("types [%d, %d] for %d lines of width %d a row of %d tokens, elsewhere %d types", lines, width, s.lines, s.width, t.batch.Context, have)
	}
	t.plan.Needs.Types = lines
	return t.result("types", s, 0, 0)
}

// Features implements [Graph].
func (t *tracer) Features(width int) Value {
	return t.features("features", t.batch.Context, width)
}

// features records continuous inputs. A program reads them in one form only.
func (t *tracer) features(op string, lines, width int) Value {
	each, err := product(lines, width)
	if err != nil {
		return t.fail("%s of %d lines × %d", op, lines, width)
	}
	if have := t.plan.Needs.Features; have != 0 && int64(have) != each {
		return t.fail("%s of %d elements a row, the program reads %d elsewhere", op, each, have)
	}
	t.plan.Needs.Features = int(each)
	return t.result(op, traced{lines: lines, width: width}, 0, 0)
}

// Patches implements [Graph].
func (t *tracer) Patches(image Image) Value {
	pixels, err := product(image.Channels, image.Height, image.Width)
	if err != nil || image.Patch < 1 || image.Height%image.Patch != 0 || image.Width%image.Patch != 0 || pixels > math.MaxInt32 {
		return t.fail("patches of %d pixels from %d channels of %d × %d", image.Patch, image.Channels, image.Height, image.Width)
	}
	count, elements := image.Patches()
	return t.features("patches", count, elements)
}

// Linear implements [Graph].
func (t *tracer) Linear(x, weight Value) Value {
	s, ok := t.matrix("linear", x)
	out, in, ok2 := t.weight("linear", weight)
	if !ok || !ok2 {
		return 0
	}
	if s.width != in {
		return t.fail("linear of width %d with a weight [%d, %d]", s.width, out, in)
	}
	before := t.plan.ForwardFLOPs
	defer func() {
		if w, _ := t.shape(weight); w.frozen {
			t.plan.FrozenFLOPs += t.plan.ForwardFLOPs - before
		}
	}()
	return t.result("linear", traced{lines: s.lines, width: out}, 0, int64(in)*int64(out))
}

// Bias implements [Graph].
func (t *tracer) Bias(x, bias Value) Value {
	s, ok := t.matrix("bias", x)
	if !ok || !t.vector("bias", bias, s.width) {
		return 0
	}
	return t.result("bias", s, 0, 0)
}

// RMSNorm implements [Graph].
func (t *tracer) RMSNorm(x, weight Value, eps float64) Value {
	s, ok := t.matrix("norm", x)
	if !ok || !t.vector("norm", weight, s.width) {
		return 0
	}
	if !(eps >= 0 && eps <= 1) {
		return t.fail("norm with epsilon %g, allowed are 0 to 1", eps)
	}
	return t.result("norm", s, 1, 0)
}

// LayerNorm implements [Graph].
func (t *tracer) LayerNorm(x, weight, bias Value, eps float64) Value {
	s, ok := t.matrix("layer norm", x)
	if !ok || !t.vector("layer norm", weight, s.width) || !t.vector("layer norm", bias, s.width) {
		return 0
	}
	if !(eps >= 0 && eps <= 1) {
		return t.fail("layer norm with epsilon %g, allowed are 0 to 1", eps)
	}
	return t.result("layer norm", s, 2, 0)
}

// heads checks a head width against a value and returns the number of heads.
func (t *tracer) heads(op string, v Value, head int) (s traced, n int, ok bool) {
	if s, ok = t.matrix(op, v); !ok {
		return s, 0, false
	}
	if head < 1 || s.width%head != 0 {
		t.fail("%s of width %d in heads of %d", op, s.width, head)
		return s, 0, false
	}
	return s, s.width / head, true
}

// Rotary implements [Graph].
func (t *tracer) Rotary(x Value, head int, theta float64) Value {
	s, _, ok := t.heads("rotary", x, head)
	if !ok {
		return 0
	}
	if head%2 != 0 || !(theta >= 1 && theta <= 1e12) {
		return t.fail("rotary with heads of %d and theta %g, wanted an even number and 1 to 1e12", head, theta)
	}
	return t.result("rotary", s, 0, 0)
}

// Attention implements [Graph].
func (t *tracer) Attention(q, k, v Value, head int, mask Mask) Value {
	sq, nq, ok1 := t.heads("attention", q, head)
	sk, nk, ok2 := t.heads("attention", k, head)
	sv, nv, ok3 := t.heads("attention", v, head)
	if !ok1 || !ok2 || !ok3 || !t.mask("attention", sq, mask) {
		return 0
	}
	if nk != nv || nq%nk != 0 || sq.lines != sk.lines || sk.lines != sv.lines {
		return t.fail("attention of %d query heads over %d key and %d value heads, %d, %d and %d lines a row", nq, nk, nv, sq.lines, sk.lines, sv.lines)
	}
	scores, err := product(sq.lines, nq)
	if err != nil {
		return t.fail("attention scores of %d lines × %d heads", sq.lines, nq)
	}
	return t.result("attention", sq, scores, 2*scores*int64(head))
}

// mask checks that a mask fits the lines it is for: lengths count tokens.
func (t *tracer) mask(op string, s traced, mask Mask) bool {
	if mask < Full || mask > Padded || mask == Padded && s.lines != t.batch.Context {
		t.fail("%s with mask %d over %d lines a row of %d tokens", op, mask, s.lines, t.batch.Context)
		return false
	}
	t.plan.Needs.Lengths = t.plan.Needs.Lengths || mask == Padded
	return true
}

// SwiGLU implements [Graph].
func (t *tracer) SwiGLU(gate, up Value) Value { return t.same("swiglu", gate, up, 2) }

// Add implements [Graph].
func (t *tracer) Add(a, b Value) Value { return t.same("add", a, b, 0) }

// same records an element-wise operation that keeps that many further results of its size.
func (t *tracer) same(op string, a, b Value, kept int64) Value {
	sa, ok1 := t.matrix(op, a)
	sb, ok2 := t.matrix(op, b)
	if !ok1 || !ok2 {
		return 0
	}
	if sa.width != sb.width || sa.lines != sb.lines {
		return t.fail("%s of %d lines × %d and %d lines × %d", op, sa.lines, sa.width, sb.lines, sb.width)
	}
	return t.result(op, sa, kept*int64(sa.width), 0)
}

// GELU implements [Graph].
func (t *tracer) GELU(x Value) Value { return t.same("gelu", x, x, 0) }

// GELUTanh implements [Graph].
func (t *tracer) GELUTanh(x Value) Value { return t.same("gelu", x, x, 0) }

// Scale implements [Graph].
func (t *tracer) Scale(x Value, factor float64) Value {
	if f := float32(factor); math.IsNaN(factor) || math.IsInf(float64(f), 0) {
		return t.fail("scale by %g", factor)
	}
	return t.same("scale", x, x, 0)
}

// Pool implements [Graph].
func (t *tracer) Pool(x Value, mask Mask) Value {
	s, ok := t.matrix("pool", x)
	if !ok || !t.mask("pool", s, mask) {
		return 0
	}
	if mask == Causal {
		return t.fail("pool with a causal mask")
	}
	return t.result("pool", traced{lines: 1, width: s.width}, 0, 0)
}

// picks checks that one value's lines are what picks are chosen from.
func (t *tracer) picks(op string, lines int) bool {
	if have := t.plan.Needs.Picks; have != 0 && have != lines || t.batch.Picks < 1 || t.batch.Picks > lines {
		t.fail("%s: %d picks of %d lines a row, elsewhere of %d", op, t.batch.Picks, lines, have)
		return false
	}
	t.plan.Needs.Picks = lines
	return true
}

// Gather implements [Graph].
func (t *tracer) Gather(x Value) Value {
	s, ok := t.matrix("gather", x)
	if !ok || !t.picks("gather", s.lines) {
		return 0
	}
	return t.result("gather", traced{lines: t.batch.Picks, width: s.width}, 0, 0)
}

// Scatter implements [Graph].
func (t *tracer) Scatter(x, fill, like Value) Value {
	s, ok := t.matrix("scatter", x)
	l, ok2 := t.matrix("scatter", like)
	if !ok || !ok2 || !t.vector("scatter", fill, s.width) || !t.picks("scatter", l.lines) {
		return 0
	}
	if s.lines != t.batch.Picks {
		return t.fail("scatter of %d lines a row to %d picks", s.lines, t.batch.Picks)
	}
	return t.result("scatter", traced{lines: l.lines, width: s.width}, 0, 0)
}

// Layer implements [Graph].
func (t *tracer) Layer(x Value) Value {
	if _, ok := t.matrix("layer", x); !ok {
		return 0
	}
	return x
}

// loss records a scalar that reads targets for that many lines a row.
func (t *tracer) loss(op string, lines int, all bool, elements, mulAdds int64) Value {
	if have := t.plan.Needs.Targets; have != 0 && have != lines {
		return t.fail("%s over %d lines a row, another loss over %d", op, lines, have)
	}
	t.plan.Needs.Targets, t.plan.Needs.All = lines, t.plan.Needs.All || all
	if !t.cost(op, elements, mulAdds) {
		return 0
	}
	return t.add(traced{scalar: true})
}

// CrossEntropy implements [Graph].
func (t *tracer) CrossEntropy(logits Value) Value {
	s, ok := t.matrix("cross-entropy", logits)
	if !ok {
		return 0
	}
	if s.width != t.program.classes() {
		return t.fail("cross-entropy of width %d for %d classes", s.width, t.program.classes())
	}
	all, _ := product(t.batch.Rows, s.lines) // checked when the value was made
	return t.loss("cross-entropy", s.lines, false, all*int64(s.width+1), 0)
}

// SmoothCrossEntropy implements [Graph].
func (t *tracer) SmoothCrossEntropy(logits Value, smoothing float64) Value {
	if !(smoothing >= 0 && smoothing < 1) {
		return t.fail("cross-entropy with smoothing %g, allowed are 0 to below 1", smoothing)
	}
	return t.CrossEntropy(logits)
}

// SquaredError implements [Graph].
func (t *tracer) SquaredError(x, want Value) Value {
	sx, ok := t.matrix("squared error", x)
	sw, ok2 := t.matrix("squared error", want)
	if !ok || !ok2 {
		return 0
	}
	if sx.lines != sw.lines || sx.width != sw.width {
		return t.fail("squared error of %d lines × %d and %d lines × %d", sx.lines, sx.width, sw.lines, sw.width)
	}
	all, _ := product(t.batch.Rows, sx.lines)
	return t.loss("squared error", sx.lines, false, all*int64(sx.width+1), 0)
}

// Contrastive implements [Graph].
func (t *tracer) Contrastive(a, b, scale Value) Value {
	sa, ok := t.matrix("contrastive", a)
	sb, ok2 := t.matrix("contrastive", b)
	if !ok || !ok2 || !t.vector("contrastive scale", scale, 1) {
		return 0
	}
	if sa.lines != 1 || sb.lines != 1 || sa.width != sb.width {
		return t.fail("contrastive loss of %d lines × %d and %d lines × %d a row, wanted one line", sa.lines, sa.width, sb.lines, sb.width)
	}
	rows := int64(t.batch.Rows)
	pairs, err := product(t.batch.Rows, t.batch.Rows, sa.width)
	if err != nil {
		return t.fail("contrastive loss of %d rows", t.batch.Rows)
	}
	return t.loss("contrastive", 1, true, 2*rows*(rows+int64(sa.width)), pairs)
}
