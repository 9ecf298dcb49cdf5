package native

import "github.com/capacloud/capanode/trainer/engine"

// Features implements [engine.Graph].
func (b *builder) Features(width int) engine.Value {
	c := b.c
	n := b.add("features", c.shape.Rows*c.shape.Context, width)
	n.forward = func(n *node) {
		out := n.result()
		c.perLine(n.lines, func(_ *worker, low, high int) {
			for i := low; i < high; i++ {
				copy(out.line(i), c.batch.Features[i*width:])
			}
		}, out)
	}
	return b.value()
}

// Patches implements [engine.Graph].
func (b *builder) Patches(m engine.Image) engine.Value {
	c := b.c
	count, elements := m.Patches()
	across := m.Width / m.Patch
	n := b.add("patches", c.shape.Rows*count, elements)
	n.forward = func(n *node) {
		out := n.result()
		c.perLine(n.lines, func(_ *worker, low, high int) {
			for i := low; i < high; i++ {
				top, left := i%count/across*m.Patch, i%count%across*m.Patch
				line := out.line(i)
				for channel := range m.Channels {
					for y := range m.Patch {
						from := ((i/count*m.Channels+channel)*m.Height+top+y)*m.Width + left
						copy(line[(channel*m.Patch+y)*m.Patch:], c.batch.Features[from:from+m.Patch])
					}
				}
			}
		}, out)
	}
	return b.value()
}

// Pool implements [engine.Graph].
func (b *builder) Pool(x engine.Value, mask engine.Mask) engine.Value {
	c, in := b.c, b.node(x)
	each := in.lines / c.shape.Rows
	n := b.add("pool", c.shape.Rows, in.width, x)
	count := func(row int) int {
		if mask == engine.Padded && c.batch.Lengths != nil {
			return int(c.batch.Lengths[row])
		}
		return each
	}
	n.forward = func(n *node) {
		from, out := in.out, n.result()
		c.tasks(c.shape.Rows, func(w *worker, row int) {
			sum := out.line(row)
			clear(sum)
			for i := range count(row) {
				w.Add(sum, sum, from.line(row*each+i))
			}
			w.Scale(sum, sum, 1/float32(count(row)))
		}, from, out)
	}
	n.backward = func(n *node) {
		if !in.wants {
			return
		}
		dy, part := n.grad, c.tensor("gradient of "+in.name, in.lines, in.width)
		c.tasks(c.shape.Rows, func(w *worker, row int) {
			for i := range each {
				if i < count(row) {
					w.Scale(part.line(row*each+i), dy.line(row), 1/float32(count(row)))
				} else {
					clear(part.line(row*each + i))
				}
			}
		}, dy, part)
		in.give(part)
	}
	return b.value()
}

// Gather implements [engine.Graph].
func (b *builder) Gather(x engine.Value) engine.Value {
	c, in := b.c, b.node(x)
	each, picks := in.lines/c.shape.Rows, c.shape.Picks
	n := b.add("gather", c.shape.Rows*picks, in.width, x)
	n.forward = func(n *node) {
		from, out := in.out, n.result()
		c.tasks(c.shape.Rows, func(_ *worker, row int) {
			for i, pick := range c.batch.Picks[row*picks : (row+1)*picks] {
				copy(out.line(row*picks+i), from.line(row*each+int(pick)))
			}
		}, from, out)
	}
	n.backward = func(n *node) {
		if !in.wants {
			return
		}
		dy, part := n.grad, c.tensor("gradient of "+in.name, in.lines, in.width)
		c.tasks(c.shape.Rows, func(_ *worker, row int) {
			for i := range each {
				clear(part.line(row*each + i))
			}
			for i, pick := range c.batch.Picks[row*picks : (row+1)*picks] {
				copy(part.line(row*each+int(pick)), dy.line(row*picks+i))
			}
		}, dy, part)
		in.give(part)
	}
	return b.value()
}

// Scatter implements [engine.Graph].
func (b *builder) Scatter(x, fill, like engine.Value) engine.Value {
	c, in := b.c, b.node(x)
	each, picks := b.node(like).lines/c.shape.Rows, c.shape.Picks
	n := b.add("scatter", c.shape.Rows*each, in.width, x, fill) // of like, only the shape is read
	n.forward = func(n *node) {
		from, out := in.out, n.result()
		c.tasks(c.shape.Rows, func(_ *worker, row int) {
			fill, next := n.in[1].values(), 0
			for i := range each {
				line := out.line(row*each + i)
				if next < picks && int(c.batch.Picks[row*picks+next]) == i {
					copy(line, from.line(row*picks+next))
					next++
				} else {
					copy(line, fill)
				}
			}
		}, from, out)
	}
	n.backward = func(n *node) {
		dy := n.grad
		c.columns(n.in[1:2], n.width, func(w *worker, low, high int) {
			sums := n.in[1].sums()[low:high]
			for row := range c.shape.Rows {
				next := 0
				for i := range each {
					if next < picks && int(c.batch.Picks[row*picks+next]) == i {
						next++
					} else {
						w.Add(sums, sums, dy.line(row*each + i)[low:high])
					}
				}
			}
		}, dy)
		if !in.wants {
			return
		}
		part := c.tensor("gradient of "+in.name, in.lines, in.width)
		c.tasks(c.shape.Rows, func(_ *worker, row int) {
			for i, pick := range c.batch.Picks[row*picks : (row+1)*picks] {
				copy(part.line(row*picks+i), dy.line(row*each+int(pick)))
			}
		}, dy, part)
		in.give(part)
	}
	return b.value()
}
