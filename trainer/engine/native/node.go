package native

import (
	"github.com/capacloud/capanode/trainer/engine"
)

// node is one value of a program.
type node struct {
	c       *compiler
	name    string
	param   int // index of the parameter that it is, or −1
	in      []*node
	lines   int // in all rows
	width   int
	segment int  // layer that it belongs to
	uses    int  // operations that read it
	kept    bool // another layer reads it
	wants   bool // a parameter's gradient flows through it
	loss    bool // a scalar
	fragile bool // its own backward pass reads the result, so nobody may overwrite it

	out   *tensor // of the latest forward pass emitted
	saved *tensor // what forward leaves for backward beside its result
	grad  *tensor // adjoint, once something has flowed back
	owned bool    // the adjoint is this node's alone and may be added to

	forward, backward func(n *node)
}

// builder implements [engine.Graph]: it records the nodes of a program that engine.NewPlan has checked.
type builder struct{ c *compiler }

// add records an operation on other nodes.
func (b *builder) add(name string, lines, width int, in ...engine.Value) *node {
	n := &node{c: b.c, name: name, param: -1, lines: lines, width: width, segment: b.c.segment}
	for _, v := range in {
		i := b.c.nodes[v-1]
		i.uses++
		i.kept = i.kept || i.param < 0 && i.segment != n.segment
		n.wants = n.wants || i.wants
		n.in = append(n.in, i)
	}
	b.c.nodes = append(b.c.nodes, n)
	return n
}

// value returns the name of the node added last.
func (b *builder) value() engine.Value { return engine.Value(len(b.c.nodes)) }

func (b *builder) node(v engine.Value) *node { return b.c.nodes[v-1] }

// Param implements [engine.Graph].
func (b *builder) Param(name string) engine.Value {
	n := b.add(name, 0, 0)
	n.param = b.c.index[name]
	n.wants = !b.c.params[n.param].Frozen
	return b.value()
}

// shapeOf returns a parameter's shape as a matrix.
func (c *compiler) shapeOf(n *node) (out, in int) {
	p := c.params[n.param]
	return p.Shape[0], p.Size() / p.Shape[0]
}

// values returns a parameter's elements.
func (n *node) values() []float32 {
	p := n.c.params[n.param]
	return n.c.weights.of(p.Frozen)[p.Offset : p.Offset+p.Size()]
}

// sums returns the gradient of a trained parameter that the step at hand sums up.
func (n *node) sums() []float32 {
	p := n.c.params[n.param]
	return n.c.batch.sums[p.Offset : p.Offset+p.Size()]
}

// sumsOr returns where to sum up a parameter's gradient: for a frozen one, which an operation cannot leave out, a tensor that
// nobody reads.
func (n *node) sumsOr(width int) (sums func() []float32, unused *tensor) {
	if n.wants {
		return n.sums, nil
	}
	unused = n.c.tensor("unused gradient", 1, width)
	return func() []float32 { return unused.data }, unused
}

// result makes the tensor of a node's value.
func (n *node) result() *tensor {
	n.out = n.c.tensor(n.name, n.lines, n.width)
	return n.out
}

// inPlace makes the tensor of a node's value where that of an input lies, if nobody else reads the input.
func (n *node) inPlace(input *node) *tensor {
	if input.uses > 1 || input.fragile || input.kept || input.lines != n.lines || input.width != n.width {
		return n.result()
	}
	n.out = input.out
	return n.out
}

// sink is where an operation puts its part of an adjoint: dst = old + part, or dst = part without old.
type sink struct{ dst, old *tensor }

// flow opens the adjoint of a node for one more part. What is read by others is left alone and summed into a new tensor.
func (n *node) flow() sink {
	old := n.grad
	if n.grad == nil || !n.owned {
		n.grad, n.owned = n.c.tensor("gradient of "+n.name, n.lines, n.width), true
	}
	return sink{n.grad, old}
}

// part returns where to compute a line of the part.
func (s sink) part(w *worker, line int) []float32 {
	if s.old == nil {
		return s.dst.line(line)
	}
	return w.scratch[:s.dst.width]
}

// put adds a line of the part to the adjoint.
func (s sink) put(w *worker, line int, part []float32) {
	if s.old != nil {
		w.Add(s.dst.line(line), s.old.line(line), part)
	}
}

// pass makes dy, unchanged, a part of the node's adjoint.
func (n *node) pass(dy *tensor) {
	if n.grad == nil {
		n.grad = dy
		return
	}
	n.merge(dy)
}

// give makes a tensor that nobody else reads a part of the node's adjoint.
func (n *node) give(part *tensor) {
	if n.grad == nil {
		n.grad, n.owned = part, true
		return
	}
	n.merge(part)
}

func (n *node) merge(part *tensor) {
	s := n.flow()
	n.c.perLine(n.lines, func(w *worker, low, high int) {
		for i := low; i < high; i++ {
			w.Add(s.dst.line(i), s.old.line(i), part.line(i))
		}
	}, s.dst, s.old, part)
}
