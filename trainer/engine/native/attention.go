package native

import (
	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/engine/native/kernel"
)

// attend is one attention operation. A task takes one key head of one row, with all query heads that read it, and
// works through blocks of queries: the scores of a block live in the worker's scratch, and those of a whole row nowhere.
type attend struct {
	c             *compiler
	head, group   int // width of a head, query heads for each key head
	keyHeads      int
	lines         int // queries a row
	keys          int // keys a row at most
	block         int // queries at a time
	mask          engine.Mask
	scale         float32
	q, k, v, out  *tensor
	stats         *tensor // [lines, 2·query heads]: maximum and 1/sum of each softmax
	dq, dk, dv, d *tensor // gradients, d that of out
}

// Attention implements [engine.Graph].
func (b *builder) Attention(q, k, v engine.Value, head int, mask engine.Mask) engine.Value {
	c, nq, nk, nv := b.c, b.node(q), b.node(k), b.node(v)
	n := b.add("attention", nq.lines, nq.width, q, k, v)
	n.fragile = true // the backward pass reads the result
	c.acausal = c.acausal || mask != engine.Causal
	a := attend{c: c, head: head, keyHeads: nk.width / head, group: nq.width / nk.width, lines: nq.lines / c.shape.Rows, mask: mask}
	a.keys, a.scale = a.lines, 1/root(float32(head))
	if c.kind == decoding {
		a.keys = c.program.Context
	}
	a.block = queryBlock(a.keys)
	n.forward = func(n *node) {
		a := a
		a.q, a.k, a.v = nq.out, nk.out, nv.out
		a.out = n.result()
		if c.kind == decoding {
			a.k, a.v = c.cache(nk.out), c.cache(nv.out)
		}
		if c.kind == training {
			a.stats = c.column("statistics of "+n.name, n.lines, 2*a.group*a.keyHeads)
			n.saved = a.stats
		}
		c.need(leading(a.keys)*(head+a.block) + a.block)
		c.tasks(c.shape.Rows*a.keyHeads, a.forward, a.q, nk.out, nv.out, a.out, a.stats)
	}
	n.backward = func(n *node) {
		a := a
		a.q, a.k, a.v, a.out, a.stats, a.d = nq.out, nk.out, nv.out, n.out, n.saved, n.grad
		a.dq, a.dk, a.dv = c.tensor("gradient of q", nq.lines, nq.width), c.tensor("gradient of k", nk.lines, nk.width), c.tensor("gradient of v", nv.lines, nv.width)
		c.need(leading(a.keys) * (2*head + 2*a.block))
		c.tasks(c.shape.Rows*a.keyHeads, a.backward, a.q, a.k, a.v, a.out, a.stats, a.d, a.dq, a.dk, a.dv)
		for _, part := range []struct {
			to *node
			d  *tensor
		}{{nq, a.dq}, {nk, a.dk}, {nv, a.dv}} {
			if part.to.wants {
				part.to.give(part.d)
			}
		}
	}
	return b.value()
}

// queryBlock returns how many queries are worked on at a time, so that their scores stay in the second-level cache.
func queryBlock(keys int) int {
	switch {
	case keys <= 128:
		return 32
	case keys <= 2048:
		return 64
	}
	return 16
}

// seen returns how many keys query i of a row sees.
func (a *attend) seen(row, i int) int {
	past := a.c.batch.past
	switch {
	case a.mask == engine.Causal:
		return past + i + 1
	case a.mask == engine.Padded && a.c.batch.Lengths != nil:
		return int(a.c.batch.Lengths[row])
	}
	return past + a.lines
}

// sheet is a row-major matrix: in a worker's scratch, or a part of a tensor.
type sheet struct {
	ld   int
	data []float32
}

func (s sheet) line(i, width int) []float32 { return s.data[i*s.ld : i*s.ld+width] }

// from returns the part of a tensor that begins at a line and a column.
func (t *tensor) from(line, column int) sheet { return sheet{t.ld, t.data[line*t.ld+column:]} }

// operand is the first factor of a product: element [m, k] is data[m*row+k*step].
type operand struct {
	data      []float32
	row, step int
}

func (s sheet) plain() operand      { return operand{s.data, s.ld, 1} }
func (s sheet) transposed() operand { return operand{s.data, 1, s.ld} }

// size is the shape of a product: [m, k] times [k, n].
type size struct{ m, n, k int }

// times computes c = a·b, or c += a·b.
func (w *worker) times(s size, a operand, b, c sheet, add bool) {
	w.multiply(kernel.Product{M: s.m, N: s.n, K: s.k, A: a.data, ARow: a.row, AStep: a.step,
		B: b.data, BStep: b.ld, BPanel: 16, C: c.data, CRow: c.ld, Add: add})
}

// turn writes the keys or values of one head as [head, keys], times scale.
func (a *attend) turn(w *worker, to, from sheet, keys int, scale float32) {
	w.Transpose(to.data, to.ld, from.data, from.ld, keys, a.head)
	if scale != 1 {
		for d := range a.head {
			line := to.line(d, keys)
			w.Scale(line, line, scale)
		}
	}
}

// forward computes one key head of one row.
func (a *attend) forward(w *worker, task int) {
	row, kh := task/a.keyHeads, task%a.keyHeads
	first, ld := row*a.lines, leading(a.keys)
	firstKey := row * a.lines // a cache has one row
	kAt := kh * a.head
	turned := sheet{ld, w.scratch}
	scores := sheet{ld, w.scratch[a.head*ld:]}
	inverses := w.scratch[(a.head+a.block)*ld:]
	all := a.seen(row, a.lines-1)
	a.turn(w, turned, a.k.from(firstKey, kAt), all, a.scale)
	for g := range a.group {
		h := kh*a.group + g
		at := h * a.head
		for low := 0; low < a.lines; low += a.block {
			m := min(a.block, a.lines-low)
			keys := a.seen(row, low+m-1)
			w.times(size{m, keys, a.head}, a.q.from(first+low, at).plain(), turned, scores, false)
			for i := range m {
				seen := a.seen(row, low+i)
				line := scores.line(i, keys)
				top := w.Max(line[:seen])
				inverses[i] = 1 / w.ExpSum(line[:seen], top)
				clear(line[seen:])
				if a.stats != nil {
					s := a.stats.line(first + low + i)
					s[2*h], s[2*h+1] = top, inverses[i]
				}
			}
			w.times(size{m, a.head, keys}, scores.plain(), a.v.from(firstKey, kAt), a.out.from(first+low, at), false)
			for i := range m {
				line := a.out.line(first + low + i)[at : at+a.head]
				w.Scale(line, line, inverses[i])
			}
		}
	}
}

// backward computes the gradients of one key head of one row and of the query heads that read it. With p the softmax of
// the scores: dv = pᵀ·d, ds = p ⊙ (d·vᵀ − Σ out ⊙ d), dq = ds·k/√head, dk = dsᵀ·q/√head.
func (a *attend) backward(w *worker, task int) {
	row, kh := task/a.keyHeads, task%a.keyHeads
	first, ld := row*a.lines, leading(a.keys)
	kAt := kh * a.head
	k, v := sheet{ld, w.scratch}, sheet{ld, w.scratch[a.head*ld:]}
	p, ds := sheet{ld, w.scratch[2*a.head*ld:]}, sheet{ld, w.scratch[(2*a.head+a.block)*ld:]}
	all := a.seen(row, a.lines-1)
	a.turn(w, k, a.k.from(first, kAt), all, a.scale)
	a.turn(w, v, a.v.from(first, kAt), all, 1)
	dk, dv := a.dk.from(first, kAt), a.dv.from(first, kAt)
	for i := range a.lines {
		clear(dk.line(i, a.head))
		clear(dv.line(i, a.head))
	}
	for g := range a.group {
		h := kh*a.group + g
		at := h * a.head
		for low := 0; low < a.lines; low += a.block {
			m := min(a.block, a.lines-low)
			keys := a.seen(row, low+m-1)
			q, d, dq := a.q.from(first+low, at), a.d.from(first+low, at), a.dq.from(first+low, at)
			w.times(size{m, keys, a.head}, q.plain(), k, p, false)
			w.times(size{m, keys, a.head}, d.plain(), v, ds, false)
			for i := range m {
				seen := a.seen(row, low+i)
				s := a.stats.line(first + low + i)
				pi, di := p.line(i, keys), ds.line(i, keys)
				w.ExpScale(pi[:seen], s[2*h], s[2*h+1])
				delta := w.Dot(a.out.line(first + low + i)[at:at+a.head], d.line(i, a.head))
				w.SoftmaxBackward(di[:seen], pi[:seen], delta)
				clear(pi[seen:])
				clear(di[seen:])
			}
			w.times(size{keys, a.head, m}, p.transposed(), d, dv, true)
			w.times(size{keys, a.head, m}, ds.transposed(), q, dk, true)
			w.times(size{m, a.head, keys}, ds.plain(), a.k.from(first, kAt), dq, false)
			for i := range m {
				w.Scale(dq.line(i, a.head), dq.line(i, a.head), a.scale)
			}
		}
	}
	for i := range a.lines {
		w.Scale(dk.line(i, a.head), dk.line(i, a.head), a.scale)
	}
}
