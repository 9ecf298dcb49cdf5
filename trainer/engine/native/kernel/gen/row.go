package main

import (
	"math"

	"github.com/mmcloughlin/avo/gotypes"
	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// rowSpec describes a function over rows: one loop over 16 elements at a time, and a masked rest.
type rowSpec struct {
	name, doc string
	signature string
	slices    []string // the rows; the first one's length counts
	scalars   []string // parameters that are broadcast
	lanes     int      // sums that are kept, in 16 lanes each
	first     float32  // what the lanes start from
	body      func(r *row)
	results   []string
	// combine merges lanes for the result, [generator.fold]'s way; nil adds.
	combine func(upper, lower, into reg.Register)
}

// row is what a body sees: one vector of each row.
type row struct {
	*generator
	index  reg.Register
	bases  map[string]reg.Register
	scalar map[string]vector
	lane   []vector     // the sums of this half, updated in place
	mask   reg.Register // nil in the loop, the valid lanes in the rest
	half   int
}

func (r *row) at(name string) operand.Mem {
	return operand.Mem{Base: r.bases[name], Index: r.index, Scale: 4, Disp: r.half * 32}
}

func (r *row) get(name string) vector {
	if r.mask != nil {
		return r.loadMasked(r.mask, r.at(name))
	}
	return r.load(r.at(name))
}

func (r *row) put(name string, x vector) {
	if r.mask != nil {
		r.storeMasked(r.mask, x, r.at(name))
	} else {
		r.VMOVUPS(x, r.at(name))
	}
}

func (g *generator) row(f rowSpec) {
	g.start(f.name, f.doc, f.signature)
	r := &row{generator: g, bases: map[string]reg.Register{}, scalar: map[string]vector{}}
	n := g.GP64()
	g.Load(g.Param(f.slices[0]).Len(), n)
	for _, s := range f.slices {
		r.bases[s] = g.Load(g.Param(s).Base(), g.GP64())
	}
	for _, s := range f.scalars {
		r.scalar[s] = g.broadcast(s)
	}
	lanes := make([][]vector, g.halves())
	for half := range lanes {
		for range f.lanes {
			if f.first == 0 {
				lanes[half] = append(lanes[half], g.zero())
			} else {
				lanes[half] = append(lanes[half], g.load(g.constant(f.first)))
			}
		}
	}
	i := g.GP64()
	r.index = i
	g.XORQ(i, i)
	g.SUBQ(operand.Imm(16), n)
	g.JLT(operand.LabelRef("rest"))

	g.Label("loop")
	for r.half = range g.halves() {
		r.lane = lanes[r.half]
		f.body(r)
	}
	g.ADDQ(operand.Imm(16), i)
	g.SUBQ(operand.Imm(16), n)
	g.JGE(operand.LabelRef("loop"))

	g.Label("rest")
	g.ADDQ(operand.Imm(16), n)
	g.JZ(operand.LabelRef("done"))
	for r.half = range g.halves() {
		r.mask = g.first(n, r.half)
		r.lane = nil
		for _, l := range lanes[r.half] {
			r.lane = append(r.lane, g.copy(l))
		}
		f.body(r)
		for j, l := range lanes[r.half] {
			if g.wide {
				g.VMOVAPS(r.lane[j], r.mask, l)
			} else {
				g.VBLENDVPS(r.mask, r.lane[j], l, l)
			}
		}
	}
	g.Label("done")
	combine := f.combine
	if combine == nil {
		combine = func(upper, lower, into reg.Register) { g.VADDPS(upper, lower, into) }
	}
	for j, result := range f.results {
		all := make([]vector, g.halves())
		for half := range all {
			all[half] = lanes[half][j]
		}
		g.Store(g.fold(all, combine), g.result(result))
	}
	g.end()
}

// max is a row function with one more thing to keep: whether any element was NaN.
func (g *generator) max() {
	g.start("max", "returns the largest element of x, or NaN.", "(x []float32) float32")
	n, base, i := g.GP64(), g.GP64(), g.GP64()
	g.Load(g.Param("x").Len(), n)
	g.Load(g.Param("x").Base(), base)
	var lanes []vector
	for range g.halves() {
		lanes = append(lanes, g.load(g.constant(float32(math.Inf(-1)))))
	}
	var bad reg.Register
	if g.wide {
		k := g.K()
		g.KXORW(k, k, k)
		bad = k
	} else {
		bad = g.zero()
	}
	note := func(x vector) {
		nan := g.compare(unordered, x, x)
		if g.wide {
			g.KORW(nan, bad, bad)
		} else {
			g.VORPS(nan, bad, bad)
		}
	}
	at := func(half int) operand.Mem { return operand.Mem{Base: base, Index: i, Scale: 4, Disp: half * 32} }
	g.XORQ(i, i)
	g.SUBQ(operand.Imm(16), n)
	g.JLT(operand.LabelRef("rest"))
	g.Label("loop")
	for half, lane := range lanes {
		x := g.load(at(half))
		note(x)
		g.VMAXPS(lane, x, lane)
	}
	g.ADDQ(operand.Imm(16), i)
	g.SUBQ(operand.Imm(16), n)
	g.JGE(operand.LabelRef("loop"))
	g.Label("rest")
	g.ADDQ(operand.Imm(16), n)
	g.JZ(operand.LabelRef("done"))
	for half, lane := range lanes {
		mask := g.first(n, half)
		x := g.loadMasked(mask, at(half))
		note(x)
		most := g.vec()
		g.VMAXPS(lane, x, most)
		if g.wide {
			g.VMOVAPS(most, mask, lane)
		} else {
			g.VBLENDVPS(mask, most, lane, lane)
		}
	}
	g.Label("done")
	x := g.fold(lanes, func(upper, lower, into reg.Register) { g.VMAXPS(lower, upper, into) })
	nan := g.GP32()
	if g.wide {
		g.KMOVW(bad, nan)
	} else {
		g.VMOVMSKPS(bad, nan)
	}
	g.TESTL(nan, nan)
	g.JZ(operand.LabelRef("clean"))
	g.VMOVSS(g.constant(float32(math.NaN())), x)
	g.Label("clean")
	g.Store(x, g.result(""))
	g.end()
}

// result returns the function's result of that name, or its only one.
func (g *generator) result(name string) gotypes.Component {
	if name == "" {
		return g.ReturnIndex(0)
	}
	return g.Return(name)
}
