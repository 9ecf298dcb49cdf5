package native

import (
	"slices"

	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/engine/native/kernel"
)

// scalar records a loss over lines: their losses go to the batch's, and the gradient of the sum is made with them, because
// it needs the same exponentials.
func (b *builder) scalar(name string, lines int, in ...engine.Value) *node {
	n := b.add(name, 0, 0, in...)
	n.loss = true
	b.c.tables += 2 * int64(lines)
	b.c.setup = append(b.c.setup, func() { b.c.batch.losses = make([]float64, lines) })
	return n
}

// CrossEntropy implements [engine.Graph].
func (b *builder) CrossEntropy(logits engine.Value) engine.Value {
	return b.SmoothCrossEntropy(logits, 0)
}

// SmoothCrossEntropy implements [engine.Graph].
func (b *builder) SmoothCrossEntropy(logits engine.Value, smoothing float64) engine.Value {
	c, in := b.c, b.node(logits)
	n := b.scalar("cross-entropy", in.lines, logits)
	smooth := newSmoothing(c, smoothing, in.width)
	if c.kind == evaluation {
		c.tables += int64(in.lines+3) / 4
		c.setup = append(c.setup, func() { c.batch.hits = make([]bool, in.lines) })
	}
	n.forward = func(n *node) {
		from, d := in.out, in.out
		if in.uses > 1 || in.fragile || in.kept {
			d = c.tensor("gradient of logits", in.lines, in.width)
		}
		n.saved = d
		c.perLine(in.lines, func(w *worker, low, high int) {
			for i := low; i < high; i++ {
				target := c.batch.Targets[i]
				c.batch.losses[i] = 0
				d := d.line(i)
				if target == engine.Ignore {
					clear(d)
					if c.kind == evaluation {
						c.batch.hits[i] = false
					}
					continue
				}
				copy(d, from.line(i))
				top, want := w.Max(d), smooth.wanted(w, d, target)
				if c.kind == evaluation {
					c.batch.hits[i] = d[target] == top && !slices.Contains(d[:target], top)
				}
				sum := w.ExpSum(d, top)
				c.batch.losses[i] = kernel.Log64(float64(sum)) - (want - float64(top))
				if c.kind == training {
					w.Scale(d, d, 1/sum)
					smooth.gradient(w, d, target)
				}
			}
		}, from, d)
	}
	n.backward = func(n *node) { in.give(n.saved) }
	return b.value()
}

// smoothing is how the targets of a cross-entropy are spread over the classes. Where they are not, no number of its own
// enters the loss or the gradient.
type smoothing struct {
	share float64   // that all classes have together, the target included
	ones  []float32 // one for each class
}

func newSmoothing(c *compiler, share float64, classes int) *smoothing {
	s := &smoothing{share: share}
	if share != 0 {
		c.tables += int64(classes)
		c.setup = append(c.setup, func() {
			s.ones = make([]float32, classes)
			for i := range s.ones {
				s.ones[i] = 1
			}
		})
	}
	return s
}

// wanted returns the logit that the loss wants high: the target's, mixed with the mean of all.
func (s *smoothing) wanted(w *worker, logits []float32, target int32) float64 {
	at := float64(logits[target])
	if s.share == 0 {
		return at
	}
	mean := float64(w.Sum(logits)) / float64(len(logits))
	return float64(at*(1-s.share)) + float64(mean*s.share) // rounded one by one: a fused multiply-add would differ
}

// gradient takes the wanted distribution off a softmax.
func (s *smoothing) gradient(w *worker, p []float32, target int32) {
	if s.share == 0 {
		p[target]--
		return
	}
	w.AddScaled(p, s.ones, -float32(s.share/float64(len(p))))
	p[target] -= float32(1 - s.share)
}

// SquaredError implements [engine.Graph].
func (b *builder) SquaredError(x, want engine.Value) engine.Value {
	c, in, other := b.c, b.node(x), b.node(want)
	n := b.scalar("squared error", in.lines, x, want)
	n.forward = func(n *node) {
		from, want, d := in.out, other.out, c.tensor("gradient of "+in.name, in.lines, in.width)
		n.saved = d
		c.perLine(in.lines, func(w *worker, low, high int) {
			for i := low; i < high; i++ {
				d := d.line(i)
				c.batch.losses[i] = 0
				if c.batch.Targets[i] == engine.Ignore {
					clear(d)
					continue
				}
				copy(d, from.line(i))
				w.AddScaled(d, want.line(i), -1)
				c.batch.losses[i] = float64(w.Dot(d, d)) / float64(in.width)
				w.Scale(d, d, 2/float32(in.width))
			}
		}, from, want, d)
	}
	n.backward = func(n *node) {
		if in.wants {
			in.give(n.saved)
		}
	}
	return b.value()
}

// contrast is the working memory of a contrastive loss.
type contrast struct {
	rows, width    int
	a, b           *tensor // the two sides
	da, db         *tensor
	ua, ub         *tensor // scaled to length one
	ia, ib         *tensor // 1/length
	scores, d, col *tensor // [rows, rows]: scores, their gradient, and transposed scores
}

// Contrastive implements [engine.Graph]. It is one task: its matrices are rows × rows, small beside the two models.
func (b *builder) Contrastive(x, y, scale engine.Value) engine.Value {
	c, p, q := b.c, b.node(x), b.node(y)
	n := b.scalar("contrastive", c.shape.Rows, x, y, scale)
	m := &contrast{rows: c.shape.Rows, width: p.width}
	n.forward = func(n *node) {
		m.a, m.b = p.out, q.out
		m.da, m.db = c.tensor("gradient of "+p.name, m.rows, m.width), c.tensor("gradient of "+q.name, m.rows, m.width)
		m.ua, m.ub = c.tensor("unit "+p.name, m.rows, m.width), c.tensor("unit "+q.name, m.rows, m.width)
		m.ia, m.ib = c.column("length of "+p.name, m.rows, 1), c.column("length of "+q.name, m.rows, 1)
		m.scores, m.d, m.col = c.tensor("scores", m.rows, m.rows), c.tensor("gradient of scores", m.rows, m.rows), c.tensor("scores by column", m.rows, m.rows)
		c.need(leading(m.rows) * m.width)
		uses := []*tensor{m.a, m.b, m.da, m.db, m.ua, m.ub, m.ia, m.ib, m.scores, m.d, m.col}
		c.tasks(1, func(w *worker, _ int) { c.contrast(w, m, n.in[2]) }, uses...)
	}
	n.backward = func(n *node) {
		for _, part := range []struct {
			to *node
			d  *tensor
		}{{p, m.da}, {q, m.db}} {
			if part.to.wants {
				part.to.give(part.d)
			}
		}
	}
	return b.value()
}

// contrast computes the losses and, when training, all gradients.
func (c *compiler) contrast(w *worker, m *contrast, scale *node) {
	factor := float32(kernel.Exp64(float64(scale.values()[0])))
	unit := func(to, from, inverse *tensor) {
		for i := range m.rows {
			x := from.line(i)
			inverse.data[i] = 1 / root(w.Dot(x, x))
			w.Scale(to.line(i), x, inverse.data[i])
		}
	}
	unit(m.ua, m.a, m.ia)
	unit(m.ub, m.b, m.ib)
	turned := sheet{leading(m.rows), w.scratch}
	w.Transpose(turned.data, turned.ld, m.ub.data, m.ub.ld, m.rows, m.width)
	w.times(size{m.rows, m.rows, m.width}, m.ua.from(0, 0).plain(), turned, m.scores.from(0, 0), false)
	for i := range m.rows {
		w.Scale(m.scores.line(i), m.scores.line(i), factor)
	}
	w.Transpose(m.col.data, m.col.ld, m.scores.data, m.scores.ld, m.rows, m.rows)
	side := func(i int, line []float32) float64 { // makes line half the gradient of its softmax and returns half its loss
		top, want := w.Max(line), line[i]
		sum := w.ExpSum(line, top)
		w.Scale(line, line, 0.5/sum)
		line[i] -= 0.5
		return (kernel.Log64(float64(sum)) - (float64(want) - float64(top))) / 2
	}
	for i := range m.rows {
		copy(m.d.line(i), m.scores.line(i))
		c.batch.losses[i] = side(i, m.d.line(i))
	}
	for i := range m.rows {
		c.batch.losses[i] += side(i, m.col.line(i))
	}
	if c.kind != training {
		return
	}
	for j := range m.rows { // by columns, into the gradient by rows
		for i, g := range m.col.line(j) {
			m.d.data[i*m.d.ld+j] += g
		}
	}
	sum := float32(0)
	for i := range m.rows {
		sum += w.Dot(m.d.line(i), m.scores.line(i))
		w.Scale(m.d.line(i), m.d.line(i), factor)
	}
	if scale.wants {
		scale.sums()[0] += sum
	}
	w.times(size{m.rows, m.width, m.rows}, m.d.from(0, 0).plain(), m.ub.from(0, 0), m.da.from(0, 0), false)
	w.times(size{m.rows, m.width, m.rows}, m.d.from(0, 0).transposed(), m.ua.from(0, 0), m.db.from(0, 0), false)
	for i := range m.rows { // back through the scaling to length one: (d − u·(u·d))/length
		for _, s := range []struct{ d, u, inverse *tensor }{{m.da, m.ua, m.ia}, {m.db, m.ub, m.ib}} {
			d, u := s.d.line(i), s.u.line(i)
			w.AddScaled(d, u, -w.Dot(u, d))
			w.Scale(d, d, s.inverse.data[i])
		}
	}
}
