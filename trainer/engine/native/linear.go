package native

import (
	"slices"

	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/engine/native/kernel"
)

// weights are the parameters of an executor and the copies of its matrices that products read: panels of 16 columns.
type weights struct {
	flat     []float32   // trained
	fixed    []float32   // frozen
	forward  []*pack     // for x·Wᵀ
	backward []*pack     // for dy·W
	phases   [2][]*phase // that lay out the first, and both, of trained matrices
	once     []*phase    // that lay out those of frozen matrices that are new
}

// of returns the flat weights that a parameter lies in.
func (w *weights) of(frozen bool) []float32 {
	if frozen {
		return w.fixed
	}
	return w.flat
}

// pack is one matrix laid out in panels.
type pack struct {
	offset, out, in int  // in the flat weights, [out, in]
	frozen          bool // in the fixed ones
	done            bool // a frozen one is laid out
	panels          []float32
}

// newWeights returns the weights of an executor, none of them packed.
func newWeights(s *engine.State) *weights { return &weights{flat: s.Weights, fixed: s.Fixed} }

// packed returns the pack of a parameter that products of one kind read, asking for it if it is new.
func (c *compiler) packed(kind func(w *weights) *[]*pack, n *node) *pack {
	list := kind(c.weights)
	p := c.params[n.param]
	for _, have := range *list {
		if have.offset == p.Offset && have.frozen == p.Frozen {
			return have
		}
	}
	out, in := c.shapeOf(n)
	have := &pack{offset: p.Offset, out: out, in: in, frozen: p.Frozen}
	*list = append(*list, have)
	return have
}

func forward(w *weights) *[]*pack  { return &w.forward }
func backward(w *weights) *[]*pack { return &w.backward }

// clone returns weights that more packs can be asked of without changing these.
func (w *weights) clone() *weights {
	return &weights{flat: w.flat, fixed: w.fixed, forward: slices.Clip(w.forward), backward: slices.Clip(w.backward)}
}

// size returns the elements of all packs.
func (w *weights) size() int64 {
	n := int64(0)
	for _, list := range [][]*pack{w.forward, w.backward} {
		for _, p := range list {
			n += int64(kernel.PackedSize(p.out, p.in)) + slack
		}
	}
	return n
}

// adopt takes over the packs of a clone and allocates those that are new.
func (w *weights) adopt(more *weights) {
	*w = *more
	for _, list := range [][]*pack{w.forward, w.backward} {
		for _, p := range list {
			if p.panels == nil {
				p.panels = make([]float32, kernel.PackedSize(p.out, p.in)+slack)
			}
		}
	}
	trained := func(p *pack) bool { return !p.frozen }
	w.phases = [2][]*phase{{w.pack(false, trained)}, {w.pack(true, trained)}}
	w.once = nil
	if fresh := w.pack(true, func(p *pack) bool { return p.frozen && !p.done }); fresh.tasks > 0 {
		w.once = []*phase{fresh}
	}
}

// settle notes that the frozen matrices are laid out.
func (w *weights) settle() {
	w.once = nil
	for _, list := range [][]*pack{w.forward, w.backward} {
		for _, p := range list {
			p.done = p.frozen
		}
	}
}

// packRows is how many lines of a matrix one task lays out, whole panels of them.
const packRows = 64

// packing returns the phase that brings all packs up to date with the weights, with training set also those that only
// the backward pass reads.
func (w *weights) packing(training bool) []*phase {
	if training {
		return w.phases[1]
	}
	return w.phases[0]
}

func (w *weights) pack(training bool, which func(*pack) bool) *phase {
	ph := &phase{}
	for _, p := range w.forward {
		if !which(p) {
			continue
		}
		ph.add((p.out+packRows-1)/packRows, func(k *worker, task int) {
			low, high := task*packRows, min((task+1)*packRows, p.out)
			from := p.offset + low*p.in
			k.PackTransposed(p.panels[low*p.in:], w.of(p.frozen)[from:from+(high-low)*p.in], high-low, p.in)
		})
	}
	if training {
		for _, p := range w.backward {
			if !which(p) {
				continue
			}
			ph.add(1, func(k *worker, _ int) {
				k.Pack(p.panels, w.of(p.frozen)[p.offset:p.offset+p.out*p.in], p.out, p.in)
			})
		}
	}
	return ph
}

// tiles returns the part of a weight gradient that one task sums up over all lines: [out, in]. Small ones keep many
// cores busy; large ones copy less.
func (o Options) tiles() (out, in int) {
	if o.Parallelism > 8 {
		return 128, 192
	}
	return 384, 384
}

// sumLines is how many lines such a task multiplies at a time. Long lines are copied together first: as they lie in memory
// each is on a page of its own, and a product that walks over pages runs at half its speed.
const sumLines = 128

// longLine is the distance between lines, in elements, from which the copy pays.
const longLine = 256

// columns returns columns [at, at+n) of some lines of a tensor: where they are, or copied together.
func (t *tensor) columns(to sheet, low, lines, at, n int) sheet {
	if t.ld < longLine {
		return t.from(low, at)
	}
	for l := range lines {
		copy(to.line(l, n), t.line(low + l)[at:])
	}
	return to
}

// Linear implements [engine.Graph].
func (b *builder) Linear(x, weight engine.Value) engine.Value {
	c, in := b.c, b.node(x)
	out, width := c.shapeOf(b.node(weight))
	n := b.add("linear", in.lines, out, x, weight)
	n.forward = func(n *node) {
		from, to, p := in.out, n.result(), c.packed(forward, n.in[1])
		c.perLine(n.lines, func(w *worker, low, high int) {
			w.multiply(kernel.Product{M: high - low, N: out, K: width,
				A: from.data[low*from.ld:], ARow: from.ld, AStep: 1,
				B: p.panels, BStep: 16, BPanel: 16 * width,
				C: to.data[low*to.ld:], CRow: to.ld})
		}, from, to)
	}
	n.backward = func(n *node) { n.linearBackward() }
	return b.value()
}

func (n *node) linearBackward() {
	if n.in[1].wants {
		n.sumWeight()
	}
	c, in, dy := n.c, n.in[0], n.grad
	if !in.wants {
		return
	}
	out, width := c.shapeOf(n.in[1])
	s, p := in.flow(), c.packed(backward, n.in[1])
	c.perLine(n.lines, func(w *worker, low, high int) {
		if s.old != nil && s.old != s.dst {
			for i := low; i < high; i++ {
				copy(s.dst.line(i), s.old.line(i))
			}
		}
		w.multiply(kernel.Product{M: high - low, N: width, K: out,
			A: dy.data[low*dy.ld:], ARow: dy.ld, AStep: 1,
			B: p.panels, BStep: 16, BPanel: 16 * out,
			C: s.dst.data[low*s.dst.ld:], CRow: s.dst.ld, Add: s.old != nil})
	}, dy, s.dst, s.old)
}

// sumWeight emits the sum of the weight's gradient, dyᵀ·x.
func (n *node) sumWeight() {
	c, dy, x := n.c, n.grad, n.in[0].out
	out, width := c.shapeOf(n.in[1])
	tileOut, tileIn := c.options.tiles()
	across := (width + tileIn - 1) / tileIn
	c.need(sumLines * (leading(tileOut) + leading(tileIn)))
	c.later(deferred{params: []int{n.in[1].param}, reads: []*tensor{dy, x}, tasks: (out + tileOut - 1) / tileOut * across,
		run: func(w *worker, task int) {
			o, i := task/across*tileOut, task%across*tileIn
			m, k := min(tileOut, out-o), min(tileIn, width-i)
			for low := 0; low < n.lines; low += sumLines {
				lines := min(sumLines, n.lines-low)
				a := dy.columns(sheet{leading(tileOut), w.scratch}, low, lines, o, m)
				b := x.columns(sheet{leading(tileIn), w.scratch[sumLines*leading(tileOut):]}, low, lines, i, k)
				w.times(size{m, k, lines}, a.transposed(), b, sheet{width, n.in[1].sums()[o*width+i:]}, true)
			}
		}})
}
