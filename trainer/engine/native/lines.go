package native

import (
	"math"

	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/engine/native/kernel"
)

// Embedding implements [engine.Graph].
func (b *builder) Embedding(table engine.Value) engine.Value {
	c := b.c
	_, width := c.shapeOf(b.node(table))
	n := b.add("embedding", c.shape.Rows*c.shape.Context, width, table)
	n.forward = func(n *node) {
		out := n.result()
		c.perLine(n.lines, func(_ *worker, low, high int) {
			w := n.in[0].values()
			for i, id := range c.batch.Inputs[low:high] {
				copy(out.line(low+i), w[int(id)*width:])
			}
		}, out)
	}
	n.backward = func(n *node) {
		dy := n.grad
		c.columns(n.in[:1], width, func(w *worker, low, high int) {
			sums := n.in[0].sums()
			for i, id := range c.batch.Inputs {
				to := sums[int(id)*width+low : int(id)*width+high]
				w.Add(to, to, dy.line(i)[low:high])
			}
		}, dy)
	}
	return b.value()
}

// columnsEach returns how many columns of a gradient one task sums over all lines. Few keep many cores busy; many read
// memory in longer pieces.
func (o Options) columnsEach() int {
	if o.Parallelism > 8 {
		return 64
	}
	return 384
}

// columns emits the sum of the gradients of parameters, cut into ranges of columns.
func (c *compiler) columns(params []*node, width int, run func(w *worker, low, high int), reads ...*tensor) {
	var of []int
	wanted := false
	for _, p := range params {
		of = append(of, p.param)
		wanted = wanted || p.wants
	}
	if !wanted {
		return
	}
	each := c.options.columnsEach()
	c.later(deferred{params: of, reads: reads, tasks: (width + each - 1) / each, run: func(w *worker, task int) {
		run(w, task*each, min((task+1)*each, width))
	}})
}

// Positions implements [engine.Graph].
func (b *builder) Positions(x, table engine.Value) engine.Value {
	c := b.c
	each := b.node(x).lines / c.shape.Rows
	return b.addRows("positions", x, table, func(line int) int { return line%each + c.batch.past })
}

// Bias implements [engine.Graph].
func (b *builder) Bias(x, bias engine.Value) engine.Value {
	return b.addRows("bias", x, bias, func(int) int { return 0 })
}

// Types implements [engine.Graph].
func (b *builder) Types(x, table engine.Value) engine.Value {
	c := b.c
	return b.addRows("types", x, table, func(line int) int {
		if c.batch.Types == nil {
			return 0
		}
		return int(c.batch.Types[line])
	})
}

// addRows adds to each line of x the row of a parameter that belongs to it.
func (b *builder) addRows(operation string, x, rows engine.Value, rowOf func(line int) int) engine.Value {
	c, in := b.c, b.node(x)
	n := b.add(operation, in.lines, in.width, x, rows)
	n.forward = func(n *node) {
		from, out := in.out, n.inPlace(in)
		c.perLine(n.lines, func(w *worker, low, high int) {
			rows := n.in[1].values()
			for i := low; i < high; i++ {
				at := rowOf(i) * n.width
				w.Add(out.line(i), from.line(i), rows[at:at+n.width])
			}
		}, from, out)
	}
	n.backward = func(n *node) {
		dy := n.grad
		if in.wants {
			in.pass(dy)
		}
		c.columns(n.in[1:2], n.width, func(w *worker, low, high int) {
			sums := n.in[1].sums()
			for i := range n.lines {
				at := rowOf(i) * n.width
				to := sums[at+low : at+high]
				w.Add(to, to, dy.line(i)[low:high])
			}
		}, dy)
	}
	return b.value()
}

// RMSNorm implements [engine.Graph]. saved holds 1/rms of each line.
func (b *builder) RMSNorm(x, weight engine.Value, eps float64) engine.Value {
	c, in := b.c, b.node(x)
	width, e := in.width, float32(eps)
	n := b.add("norm", in.lines, width, x, weight)
	n.forward = func(n *node) {
		from, out := in.out, n.result()
		inverse := c.column("inverse of "+n.name, n.lines, 1)
		n.saved = inverse
		c.perLine(n.lines, func(w *worker, low, high int) {
			scale := n.in[1].values()
			for i := low; i < high; i++ {
				x := from.line(i)
				mean := w.Dot(x, x) / float32(width)
				inverse.data[i] = 1 / root(mean+e)
				w.RMSNorm(out.line(i), x, scale, inverse.data[i])
			}
		}, from, out, inverse)
	}
	n.backward = func(n *node) {
		dy, from, inverse := n.grad, in.out, n.saved
		c.columns(n.in[1:2], width, func(w *worker, low, high int) {
			sums := n.in[1].sums()[low:high]
			for i := range n.lines {
				w.RMSNormGrad(sums, dy.line(i)[low:high], from.line(i)[low:high], inverse.data[i])
			}
		}, dy, from, inverse)
		if !in.wants {
			return
		}
		s := in.flow()
		c.need(width)
		c.perLine(n.lines, func(w *worker, low, high int) {
			scale := n.in[1].values()
			for i := low; i < high; i++ {
				x, dy, r := from.line(i), dy.line(i), inverse.data[i]
				cube := float32(float32(r*r) * r)
				k := float32(w.DotMul(dy, scale, x)/float32(width)) * cube
				part := s.part(w, i)
				w.RMSNormBackward(part, dy, x, scale, r, k)
				s.put(w, i, part)
			}
		}, dy, from, inverse, s.dst, s.old)
	}
	return b.value()
}

// root returns √x rounded once: float64 has more than twice the digits.
func root(x float32) float32 { return float32(math.Sqrt(float64(x))) }

// LayerNorm implements [engine.Graph]. saved holds the mean and 1/deviation of each line.
func (b *builder) LayerNorm(x, weight, bias engine.Value, eps float64) engine.Value {
	c, in := b.c, b.node(x)
	width, e := in.width, float32(eps)
	n := b.add("layer norm", in.lines, width, x, weight, bias)
	n.forward = func(n *node) {
		from, out := in.out, n.result()
		stats := c.column("statistics of "+n.name, n.lines, 2)
		n.saved = stats
		c.perLine(n.lines, func(w *worker, low, high int) {
			scale, shift := n.in[1].values(), n.in[2].values()
			for i := low; i < high; i++ {
				x := from.line(i)
				mean := w.Sum(x) / float32(width)
				inverse := 1 / root(w.SumSquaredDiff(x, mean)/float32(width)+e)
				stats.data[2*i], stats.data[2*i+1] = mean, inverse
				w.LayerNorm(out.line(i), x, scale, shift, mean, inverse)
			}
		}, from, out, stats)
	}
	n.backward = func(n *node) { n.layerNormBackward() }
	return b.value()
}

func (n *node) layerNormBackward() {
	c, in, width := n.c, n.in[0], n.width
	dy, from, stats := n.grad, in.out, n.saved
	weight, unused := n.in[1].sumsOr(width)
	bias, unused2 := n.in[2].sumsOr(width)
	run := func(w *worker, low, high int) {
		dw, db := weight()[low:high], bias()[low:high]
		for i := range n.lines {
			w.LayerNormGrad(dw, db, dy.line(i)[low:high], from.line(i)[low:high], stats.data[2*i], stats.data[2*i+1])
		}
	}
	c.columns(n.in[1:3], width, run, dy, from, stats, unused, unused2)
	if !in.wants {
		return
	}
	s := in.flow()
	c.need(width)
	c.perLine(n.lines, func(w *worker, low, high int) {
		scale := n.in[1].values()
		for i := low; i < high; i++ {
			x, dy := from.line(i), dy.line(i)
			mean, inverse := stats.data[2*i], stats.data[2*i+1]
			u, ux := w.LayerNormSums(dy, scale, x, mean, inverse)
			part := s.part(w, i)
			w.LayerNormBackward(part, dy, scale, x, mean, inverse, u/float32(width), ux/float32(width))
			s.put(w, i, part)
		}
	}, dy, from, stats, s.dst, s.old)
}

// Rotary implements [engine.Graph].
func (b *builder) Rotary(x engine.Value, head int, theta float64) engine.Value {
	c, in := b.c, b.node(x)
	each := in.lines / c.shape.Rows
	n := b.add("rotary", in.lines, in.width, x)
	count := each
	if c.kind == decoding {
		count = c.program.Context
	}
	a := c.angles(head/2, count, theta)
	turn := func(from, to *tensor, sin *[]float32) func(w *worker, low, high int) {
		return func(w *worker, low, high int) {
			for i := low; i < high; i++ {
				at := (i%each + c.batch.past) * a.half
				x, y := from.line(i), to.line(i)
				for h := 0; h < len(x); h += head {
					w.Rotary(y[h:h+head], x[h:h+head], a.cos[at:at+a.half], (*sin)[at:at+a.half])
				}
			}
		}
	}
	n.forward = func(n *node) {
		from, out := in.out, n.inPlace(in)
		c.perLine(n.lines, turn(from, out, &a.sin), from, out)
	}
	n.backward = func(n *node) {
		if !in.wants {
			return
		}
		dx := n.grad // turned back in place where nobody else reads it
		if !n.owned {
			dx = c.tensor("gradient of "+in.name, n.lines, n.width)
		}
		c.perLine(n.lines, turn(n.grad, dx, &a.back), n.grad, dx)
		in.give(dx)
	}
	return b.value()
}

// angles are the cosines and sines of a rotary embedding, and the sines of the turn back: [count, half].
type angles struct {
	half, count    int
	theta          float64
	cos, sin, back []float32
}

// angles returns the table for heads of that width, made once for all operations that read it.
func (c *compiler) angles(half, count int, theta float64) *angles {
	for _, a := range c.turns {
		if a.half == half && a.count == count && a.theta == theta {
			return a
		}
	}
	a := &angles{half: half, count: count, theta: theta}
	c.turns = append(c.turns, a)
	c.tables += 3 * int64(count) * int64(half)
	c.setup = append(c.setup, a.fill)
	return a
}

func (a *angles) fill() {
	n := a.count * a.half
	a.cos, a.sin, a.back = make([]float32, n), make([]float32, n), make([]float32, n)
	for i := range a.half {
		frequency := kernel.Pow64(a.theta, -2*float64(i)/float64(2*a.half))
		for p := range a.count {
			sin, cos := kernel.SinCos64(float64(p) * frequency)
			at := p*a.half + i
			a.cos[at], a.sin[at], a.back[at] = float32(cos), float32(sin), -float32(sin)
		}
	}
}

// SwiGLU implements [engine.Graph].
func (b *builder) SwiGLU(gate, up engine.Value) engine.Value {
	c, g, u := b.c, b.node(gate), b.node(up)
	n := b.add("swiglu", g.lines, g.width, gate, up)
	n.forward = func(n *node) {
		gate, up, out := g.out, u.out, n.result()
		c.perLine(n.lines, func(w *worker, low, high int) {
			for i := low; i < high; i++ {
				w.SwiGLU(out.line(i), gate.line(i), up.line(i))
			}
		}, gate, up, out)
	}
	n.backward = func(n *node) {
		dy, gate, up := n.grad, g.out, u.out
		dg, du := c.tensor("gradient of gate", n.lines, n.width), c.tensor("gradient of up", n.lines, n.width)
		c.perLine(n.lines, func(w *worker, low, high int) {
			for i := low; i < high; i++ {
				w.SwiGLUBackward(dg.line(i), du.line(i), gate.line(i), up.line(i), dy.line(i))
			}
		}, dy, gate, up, dg, du)
		for _, part := range []struct {
			to *node
			d  *tensor
		}{{g, dg}, {u, du}} {
			if part.to.wants {
				part.to.give(part.d)
			}
		}
	}
	return b.value()
}

// GELU implements [engine.Graph].
func (b *builder) GELU(x engine.Value) engine.Value {
	return b.activation(x, kernel.Set.GELU, kernel.Set.GELUBackward)
}

// GELUTanh implements [engine.Graph].
func (b *builder) GELUTanh(x engine.Value) engine.Value {
	return b.activation(x, kernel.Set.GELUTanh, kernel.Set.GELUTanhBackward)
}

// activation records an element-wise function with its gradient.
func (b *builder) activation(x engine.Value, f func(_ kernel.Set, dst, x []float32), back func(_ kernel.Set, dx, x, dy []float32)) engine.Value {
	c, in := b.c, b.node(x)
	n := b.add("gelu", in.lines, in.width, x)
	n.forward = func(n *node) {
		from, out := in.out, n.result()
		c.perLine(n.lines, func(w *worker, low, high int) {
			for i := low; i < high; i++ {
				f(w.Set, out.line(i), from.line(i))
			}
		}, from, out)
	}
	n.backward = func(n *node) {
		if !in.wants {
			return
		}
		dy, from, s := n.grad, in.out, in.flow()
		c.need(n.width)
		c.perLine(n.lines, func(w *worker, low, high int) {
			for i := low; i < high; i++ {
				part := s.part(w, i)
				back(w.Set, part, from.line(i), dy.line(i))
				s.put(w, i, part)
			}
		}, dy, from, s.dst, s.old)
	}
	return b.value()
}

// Add implements [engine.Graph].
func (b *builder) Add(x, y engine.Value) engine.Value {
	c, p, q := b.c, b.node(x), b.node(y)
	n := b.add("add", p.lines, p.width, x, y)
	n.forward = func(n *node) {
		a, b := p.out, q.out
		out := n.inPlace(q) // the branch, which nobody else reads; the other is the residual
		c.perLine(n.lines, func(w *worker, low, high int) {
			for i := low; i < high; i++ {
				w.Add(out.line(i), a.line(i), b.line(i))
			}
		}, a, b, out)
	}
	n.backward = func(n *node) {
		for _, in := range n.in {
			if in.wants {
				in.pass(n.grad)
			}
		}
	}
	return b.value()
}

// Scale implements [engine.Graph].
func (b *builder) Scale(x engine.Value, factor float64) engine.Value {
	c, in, f := b.c, b.node(x), float32(factor)
	n := b.add("scale", in.lines, in.width, x)
	n.forward = func(n *node) {
		from, out := in.out, n.inPlace(in)
		c.perLine(n.lines, func(w *worker, low, high int) {
			for i := low; i < high; i++ {
				w.Scale(out.line(i), from.line(i), f)
			}
		}, from, out)
	}
	n.backward = func(n *node) {
		if !in.wants {
			return
		}
		dy, s := n.grad, in.flow()
		c.need(n.width)
		c.perLine(n.lines, func(w *worker, low, high int) {
			for i := low; i < high; i++ {
				part := s.part(w, i)
				w.Scale(part, dy.line(i), f)
				s.put(w, i, part)
			}
		}, dy, s.dst, s.old)
	}
	return b.value()
}

// Layer implements [engine.Graph].
func (b *builder) Layer(x engine.Value) engine.Value {
	b.c.segment++
	return x
}
