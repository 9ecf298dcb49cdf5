package native

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"github.com/capacloud/capanode/trainer/engine"
)

// kind is what a compiled graph computes.
type kind int

const (
	training   kind = iota // losses, and gradients added to the sums
	evaluation             // losses
	inference              // the program's output
	decoding               // the output for new tokens behind cached ones
)

// buffer is a piece of the arena that some phases use.
type buffer struct {
	name        string
	size        int // elements
	first, last int // phases
	offset      int
	data        []float32 // set when the graph is bound to an arena
}

// tensor is a matrix of lines in a buffer, ld elements from one line to the next.
type tensor struct {
	lines, width, ld int
	*buffer
}

func (t *tensor) line(i int) []float32 { return t.data[i*t.ld : i*t.ld+t.width] }

// slack is how many elements past its end a matrix product may read of a tensor.
const slack = 16

// leading returns the distance between lines: whole vectors of 16, an odd number of them, so that the lines of a column
// spread over all sets of the caches.
func leading(width int) int {
	vectors := (width + 15) / 16
	if vectors > 1 {
		vectors |= 1
	}
	return 16 * vectors
}

// source is what all graphs of an executor are compiled from.
type source struct {
	program engine.Program
	params  []engine.Param // the trained ones, then the frozen ones, both in canonical order
	weights *weights
	options Options
}

// compiler turns a program into phases at one batch shape and plans the memory that they share.
type compiler struct {
	source
	shape engine.Shape
	kind  kind
	index map[string]int // of params

	nodes   []*node
	segment int  // layers begun
	acausal bool // some attention looks ahead

	phases  []*phase
	open    *fused
	pending []deferred
	buffers []*buffer
	scratch int       // elements that a worker needs
	setup   []func()  // run once the graph is allowed to allocate
	tables  int64     // elements that setup allocates
	turns   []*angles // rotary tables, each for all operations that share it
	batch   *reading  // the batch of the step at hand
	output  *tensor
	caches  []*tensor // keys and values of each attention, when decoding
}

// reading is where the operations find what they read from outside.
type reading struct {
	engine.Batch
	sums   []float32 // gradients of all trained parameters, flat
	losses []float64 // of the lines of the loss
	hits   []bool    // whether a line's target has the largest logit, when evaluating a cross-entropy
	past   int       // tokens cached before the first line, when decoding
}

// fused is a phase under construction that computes several operations block by block of lines, while a block is in the
// cache.
type fused struct {
	lines int
	runs  []func(w *worker, low, high int)
}

// deferred is the sum of some parameters' gradients. It needs all lines of what it reads and nothing waits for it, so it
// joins the next phase that has tasks of its own.
type deferred struct {
	params []int
	reads  []*tensor
	tasks  int
	run    func(w *worker, task int)
}

// now is the phase that an operation emitted at this point runs in.
func (c *compiler) now() int { return len(c.phases) }

// touch keeps buffers until the phase at hand.
func (c *compiler) touch(tensors ...*tensor) {
	for _, t := range tensors {
		if t != nil {
			t.first, t.last = min(t.first, c.now()), max(t.last, c.now())
		}
	}
}

// tensor makes a matrix for the phase at hand and later ones.
func (c *compiler) tensor(name string, lines, width int) *tensor {
	t := &tensor{lines: lines, width: width, ld: leading(width)}
	t.buffer = c.buffer(name, lines*t.ld+slack)
	return t
}

// column makes one number for each line.
func (c *compiler) column(name string, lines, width int) *tensor {
	t := &tensor{lines: lines, width: width, ld: width}
	t.buffer = c.buffer(name, lines*width)
	return t
}

func (c *compiler) buffer(name string, size int) *buffer {
	b := &buffer{name: name, size: size, first: math.MaxInt, last: -1}
	c.buffers = append(c.buffers, b)
	return b
}

// need asks for scratch.
func (c *compiler) need(elements int) { c.scratch = max(c.scratch, elements) }

// perLine emits work that computes each line from the same line of what it reads.
func (c *compiler) perLine(lines int, run func(w *worker, low, high int), uses ...*tensor) {
	if c.open != nil && c.open.lines != lines {
		c.close()
	}
	if c.open == nil {
		c.open = &fused{lines: lines}
	}
	c.touch(uses...)
	c.open.runs = append(c.open.runs, run)
}

// blockLines is how many lines of a fused phase are one task, at most.
const blockLines = 64

// close ends the phase of fused operations, if there is one.
func (c *compiler) close() {
	if c.open == nil {
		return
	}
	f := c.open
	c.open = nil
	each := (f.lines + 4*c.options.Parallelism - 1) / (4 * c.options.Parallelism)
	each = max(8, min(blockLines, (each+7)/8*8))
	p := &phase{}
	p.add((f.lines+each-1)/each, func(w *worker, task int) {
		low := task * each
		high := min(low+each, f.lines)
		for _, run := range f.runs {
			run(w, low, high)
		}
	})
	c.phases = append(c.phases, p)
}

// tasks emits a phase of its own, which takes the deferred sums along.
func (c *compiler) tasks(n int, run func(w *worker, task int), uses ...*tensor) {
	c.close()
	c.touch(uses...)
	p := &phase{}
	p.add(n, run)
	c.flush(p)
}

// flush ends a phase with the deferred sums.
func (c *compiler) flush(p *phase) {
	for _, d := range c.pending {
		c.touch(d.reads...)
		p.add(d.tasks, d.run)
	}
	c.pending = c.pending[:0]
	c.phases = append(c.phases, p)
}

// later emits the sum of a parameter's gradient. Two sums of one parameter never share a phase, and keep their order.
func (c *compiler) later(d deferred) {
	if slices.ContainsFunc(c.pending, func(other deferred) bool {
		return slices.ContainsFunc(d.params, func(p int) bool { return slices.Contains(other.params, p) })
	}) {
		c.close()
		c.flush(&phase{})
	}
	c.pending = append(c.pending, d)
}

// finish ends the last phase.
func (c *compiler) finish() {
	c.close()
	if len(c.pending) > 0 {
		c.flush(&phase{})
	}
}

// place gives every buffer its place in one arena and returns the arena's size. Buffers whose phases do not meet share
// memory: the largest are placed first, each at the lowest place that is free during its phases.
func (c *compiler) place() (size int) {
	var live []*buffer
	for _, b := range c.buffers {
		if b.last >= 0 {
			b.size = (b.size + 15) / 16 * 16
			live = append(live, b)
		}
	}
	c.buffers = live
	order := slices.Clone(live)
	slices.SortStableFunc(order, func(a, b *buffer) int { return cmp.Compare(b.size, a.size) })
	var placed []*buffer // by offset
	for _, b := range order {
		at := 0
		for _, other := range placed {
			if b.last < other.first || other.last < b.first {
				continue
			}
			if other.offset-at >= b.size {
				break
			}
			at = max(at, other.offset+other.size)
		}
		b.offset = at
		size = max(size, at+b.size)
		i, _ := slices.BinarySearchFunc(placed, at, func(p *buffer, at int) int { return cmp.Compare(p.offset, at) })
		placed = slices.Insert(placed, i, b)
	}
	return size
}

// graph is a program compiled for one batch shape.
type graph struct {
	plan    engine.Plan
	phases  []*phase
	buffers []*buffer
	setup   []func()
	arena   int   // elements
	scratch int   // elements a worker
	tables  int64 // elements that setup allocates
	batch   *reading
	output  *tensor
	caches  []*tensor
	bound   []float32 // the arena that the buffers lie in
}

// bind lays the graph's buffers into an arena.
func (g *graph) bind(arena []float32) {
	if len(g.bound) > 0 && &g.bound[0] == &arena[0] {
		return
	}
	for _, b := range g.buffers {
		b.data = arena[b.offset : b.offset+b.size : b.offset+b.size]
	}
	for _, f := range g.setup {
		f()
	}
	g.setup, g.bound = nil, arena
}

// compile plans one shape of a program. It allocates no tensor.
func compile(src source, shape engine.Shape, k kind) (*graph, error) {
	p := src.program
	newPlan := engine.NewPlan
	if k >= inference {
		newPlan = engine.NewOutputPlan
	}
	plan, err := newPlan(p, planShape(shape, k))
	if err != nil {
		return nil, err
	}
	c := &compiler{source: src, shape: shape, kind: k, index: map[string]int{}, batch: &reading{}}
	for i, q := range src.params {
		c.index[q.Name] = i
	}
	root := p.Loss
	if k >= inference {
		root = p.Logits
	}
	v := root(&builder{c})
	if v < 1 || int(v) > len(c.nodes) {
		return nil, fmt.Errorf("program %q gives no value: %w", p.Name, engine.ErrShape)
	}
	if k == decoding && c.acausal {
		return nil, fmt.Errorf("program %q looks ahead, so its tokens cannot be decoded one by one: %w", p.Name, engine.ErrShape)
	}
	c.emit(c.nodes[v-1])
	return &graph{plan: plan, phases: c.phases, setup: c.setup, arena: c.place(), buffers: c.buffers, scratch: c.scratch,
		tables: c.tables, batch: c.batch, output: c.output, caches: c.caches}, nil
}

// planShape is the shape that a graph is checked at: of a decoding graph, one that any model takes.
func planShape(s engine.Shape, k kind) engine.Shape {
	if k == decoding {
		return engine.Shape{Rows: 1, Context: 1, Picks: 1}
	}
	return s
}

// emit compiles all nodes: forward, and when training, backward.
func (c *compiler) emit(root *node) {
	for _, n := range c.nodes {
		c.emitForward(n)
	}
	if c.kind >= inference {
		c.output = root.out
		c.touch(root.out)
		c.finish()
		c.touchAfter(root.out)
		return
	}
	if c.kind == training {
		c.emitBackward()
	}
	c.finish()
}

// touchAfter keeps a tensor until the end.
func (c *compiler) touchAfter(t *tensor) { t.last = max(t.last, len(c.phases)) }

func (c *compiler) emitForward(n *node) {
	if n.forward != nil {
		n.forward(n)
	}
}

// emitBackward walks the nodes in reverse. With recomputation, the values of a layer that only the layer itself uses are
// computed once more before its gradients.
func (c *compiler) emitBackward() {
	again := c.options.Recompute && c.segment > 0
	segment := c.segment // the last one is still there
	for i := len(c.nodes) - 1; i >= 0; i-- {
		n := c.nodes[i]
		if again && n.segment < segment {
			segment = n.segment
			c.recompute(segment)
		}
		if n.backward != nil && (n.grad != nil || n.loss) {
			n.backward(n)
		}
	}
}

// recompute emits the values of one segment again, except those that other segments use.
func (c *compiler) recompute(segment int) {
	for _, n := range c.nodes {
		if n.segment == segment && !n.kept {
			c.emitForward(n)
		}
	}
}
