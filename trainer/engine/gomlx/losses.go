package gomlx

import (
	ml "github.com/gomlx/gomlx/core/graph"

	"github.com/capacloud/capanode/trainer/engine"
)

// CrossEntropy implements [engine.Graph].
func (t *tape) CrossEntropy(logits engine.Value) engine.Value { return t.SmoothCrossEntropy(logits, 0) }

// SmoothCrossEntropy implements [engine.Graph].
func (t *tape) SmoothCrossEntropy(logits engine.Value, smoothing float64) engine.Value {
	targets, wanted := t.data["targets"], t.data["wanted"]
	if t.plain {
		return t.plainCrossEntropy(logits, targets, wanted, smoothing)
	}
	// log Σ exp = max(logits) − log(max(softmax)), which stays finite where the target's own probability underflows.
	a := t.node(logits)
	lines, classes := a.Shape().Dim(0), a.Shape().Dim(1)
	p := t.softmax(a)
	total := ml.Sub(ml.ReduceMax(a, -1), ml.Log(ml.ReduceMax(p, -1)))
	each := ml.Reshape(ml.Sub(total, t.smoothed(ml.Gather(a, targets), a, smoothing)), lines, 1)
	loss := ml.Reshape(t.columnSum(ml.Mul(each, wanted)))
	return t.add(loss, func(*ml.Node) { // the adjoint of the loss is one
		if smoothing != 0 {
			p = ml.AddScalar(p, -smoothing/float64(classes))
		}
		d := ml.Mul(p, t.spread(wanted, classes))
		hit := ml.MulScalar(ml.Neg(ml.Reshape(wanted, lines)), 1-smoothing)
		t.flow(logits, ml.ScatterSum(d, targets, hit, true, true))
	})
}

// smoothed mixes the target's logit of each line, [m], with the mean of the line's.
func (t *tape) smoothed(target, logits *ml.Node, smoothing float64) *ml.Node {
	if smoothing == 0 {
		return target
	}
	lines, classes := logits.Shape().Dim(0), logits.Shape().Dim(1)
	mean := ml.Reshape(ml.MulScalar(t.rowSum(logits), smoothing/float64(classes)), lines)
	return ml.Add(ml.MulScalar(target, 1-smoothing), mean)
}

// plainCrossEntropy marks each line's target by comparison, so that all of it fuses into passes over the logits.
func (t *tape) plainCrossEntropy(logits engine.Value, targets, wanted *ml.Node, smoothing float64) engine.Value {
	a := wide(t.node(logits))
	lines, classes := a.Shape().Dim(0), a.Shape().Dim(1)
	hit := indicator(ml.Equal(ml.Slice(targets, ml.AxisRange(), ml.AxisRange(1, 2)), t.ids(classes)))
	total := logSumExp(a)
	wish := ml.Reshape(t.smoothed(ml.Reshape(t.rowSum(ml.Mul(a, hit)), lines), a, smoothing), lines, 1)
	if smoothing != 0 {
		hit = ml.AddScalar(ml.MulScalar(hit, 1-smoothing), smoothing/float64(classes))
	}
	return t.add(ml.ReduceAllSum(ml.Mul(ml.Sub(total, wish), wanted)), func(*ml.Node) {
		t.flow(logits, ml.Mul(ml.Sub(ml.Exp(ml.Sub(a, total)), hit), wanted))
	})
}

// logSumExp of each line: [m, n] → [m, 1].
func logSumExp(x *ml.Node) *ml.Node {
	top := ml.ReduceAndKeep(x, ml.ReduceMax, -1)
	sum := ml.ReduceAndKeep(ml.Exp(ml.Sub(x, top)), ml.ReduceSum, -1)
	return ml.Add(top, ml.Log(sum))
}

// SquaredError implements [engine.Graph].
func (t *tape) SquaredError(x, want engine.Value) engine.Value {
	a := wide(t.node(x))
	width, wanted := a.Shape().Dim(1), t.data["wanted"]
	off := ml.Sub(a, wide(t.node(want)))
	each := ml.MulScalar(t.rowSum(ml.Mul(off, off)), 1/float64(width))
	return t.add(ml.Reshape(t.columnSum(ml.Mul(each, wanted))), func(*ml.Node) {
		t.flow(x, ml.MulScalar(ml.Mul(off, t.spread(wanted, width)), 2/float64(width)))
	})
}

// Contrastive implements [engine.Graph], in float32 throughout. With s = e^scale·u·wᵀ for the lines scaled to length
// one: ds = (softmax over rows + softmax over columns)/2 − 1 on the diagonal, and dscale = Σ ds·s.
func (t *tape) Contrastive(a, b, scale engine.Value) engine.Value {
	factor := ml.Reshape(ml.Exp(t.node(scale)))
	u, uInverse := t.unit(wide(t.node(a)))
	w, wInverse := t.unit(wide(t.node(b)))
	cosine := ml.DotGeneral(u, []int{1}, nil, w, []int{1}, nil)
	s := ml.Mul(cosine, factor)
	back := ml.TransposeAllAxes(s, 1, 0)
	diagonal := t.constant(t.rows, t.rows, func(r, c int) float32 {
		if r == c {
			return 1
		}
		return 0
	})
	sums := ml.MulScalar(ml.ReduceAllSum(ml.Add(logSumExp(s), logSumExp(back))), 0.5)
	return t.add(ml.Sub(sums, ml.ReduceAllSum(ml.Mul(s, diagonal))), func(*ml.Node) {
		both := ml.Add(t.softmax(s), ml.TransposeAllAxes(t.softmax(back), 1, 0))
		ds := ml.Sub(ml.MulScalar(both, 0.5), diagonal)
		t.flow(scale, ml.Reshape(ml.ReduceAllSum(ml.Mul(ds, s)), 1))
		ds = ml.Mul(ds, factor)
		t.flow(a, t.unitBack(u, uInverse, ml.DotGeneral(ds, []int{1}, nil, w, []int{0}, nil)))
		t.flow(b, t.unitBack(w, wInverse, ml.DotGeneral(ds, []int{0}, nil, u, []int{0}, nil)))
	})
}

// unit scales each line to length one and returns what it was multiplied with.
func (t *tape) unit(x *ml.Node) (line, inverse *ml.Node) {
	inverse = t.spread(ml.Rsqrt(t.rowSum(ml.Mul(x, x))), x.Shape().Dim(1))
	return ml.Mul(x, inverse), inverse
}

// unitBack is the adjoint of unit: (du − u·Σ du·u)/length.
func (t *tape) unitBack(line, inverse, dy *ml.Node) *ml.Node {
	along := t.spread(t.rowSum(ml.Mul(dy, line)), line.Shape().Dim(1))
	return ml.Mul(inverse, ml.Sub(dy, ml.Mul(line, along)))
}
