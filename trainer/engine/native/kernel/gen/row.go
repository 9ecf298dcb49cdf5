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
	body      func(r *row)
	results   []string
	serial    bool // one register at a time, where there are too few for two
}

// row is what a body sees of each row: a vector.
type row struct {
	*generator
	index   reg.Register
	bases   map[string]reg.Register
	scalars map[string]reg.VecVirtual
	lane    []vector // the sums, updated in place
	mask    mask     // nil in the loop, the valid lanes in the rest
	half    int      // the first part's, counted in vectors from index on
}

func (r *row) at(name string) []operand.Mem {
	var at []operand.Mem
	for p := range r.parts {
		at = append(at, operand.Mem{Base: r.bases[name], Index: r.index, Scale: 4, Disp: (r.half + p) * r.bytes()})
	}
	return at
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
		r.store(x, r.at(name))
	}
}

// scalar returns a parameter in all lanes of a vector, which must not be changed.
func (r *row) scalar(name string) vector {
	v := make(vector, r.parts)
	for p := range v {
		v[p] = r.scalars[name]
	}
	return v
}

// sum adds x to one of the sums.
func (r *row) sum(i int, x vector) {
	for p, l := range r.lane[i] {
		r.VADDPS(x[p], l, l)
	}
}

func (g *generator) row(f rowSpec) {
	g.Begin(f.name, f.doc, f.signature)
	r := &row{generator: g, bases: map[string]reg.Register{}, scalars: map[string]reg.VecVirtual{}}
	n, i := g.GP64(), g.GP64()
	g.Load(g.Param(f.slices[0]).Len(), n)
	for _, s := range f.slices {
		r.bases[s] = g.Load(g.Param(s).Base(), g.GP64())
	}
	for _, s := range f.scalars {
		r.scalars[s] = g.broadcast(s)
	}
	g.parts = g.halves()
	var lanes []vector
	for range f.lanes {
		lanes = append(lanes, g.zero())
	}
	// AVX-512 has registers enough to work on 32 elements at a time; their parts share the lanes, in order.
	stride := 16
	if g.wide {
		stride = 32
	}
	r.index = i
	g.XORQ(i, i)
	g.SUBQ(operand.Imm(uint64(stride)), n)
	g.JLT(operand.LabelRef("rest"))
	g.Label("loop")
	r.bodies(f, lanes, stride*4/g.bytes(), nil)
	g.ADDQ(operand.Imm(uint64(stride)), i)
	g.SUBQ(operand.Imm(uint64(stride)), n)
	g.JGE(operand.LabelRef("loop"))
	g.Label("rest")
	g.ADDQ(operand.Imm(uint64(stride)), n)
	g.JZ(operand.LabelRef("done"))
	g.Label("part")
	r.bodies(f, lanes, g.halves(), n)
	if stride > 16 {
		g.ADDQ(operand.Imm(16), i)
		g.SUBQ(operand.Imm(16), n)
		g.JG(operand.LabelRef("part"))
	}
	g.Label("done")
	for j, result := range f.results {
		g.Store(g.fold(lanes[j], func(upper, lower, into reg.Register) { g.VADDPS(upper, lower, into) }), g.result(result))
	}
	g.End()
}

// bodies writes the body for that many vectors from the index on, all at once or one after the other. If n is given,
// only the first n elements count.
func (r *row) bodies(f rowSpec, lanes []vector, vectors int, n reg.Register) {
	r.parts = vectors
	if f.serial {
		r.parts = 1
	}
	for r.half = 0; r.half < vectors; r.half += r.parts {
		r.mask, r.lane = nil, nil
		for _, l := range lanes {
			var parts vector
			for p := range r.parts {
				parts = append(parts, l[(r.half+p)%r.halves()])
			}
			r.lane = append(r.lane, parts)
		}
		if n == nil {
			f.body(r)
			continue
		}
		r.mask = r.first(n.(reg.GPVirtual), r.half)
		kept := r.lane
		for j, l := range kept {
			r.lane[j] = r.copy(l)
		}
		f.body(r)
		for j := range lanes {
			r.replace(r.mask, r.lane[j], lanes[j][r.half:r.half+r.parts])
		}
	}
}

// max is a row function with one more thing to keep: whether any element was NaN.
func (g *generator) max() {
	g.Begin("max", "returns the largest element of x, or NaN.", "(x []float32) float32")
	n, i := g.GP64(), g.GP64()
	r := &row{generator: g, index: i, bases: map[string]reg.Register{"x": g.Load(g.Param("x").Base(), g.GP64())}}
	g.Load(g.Param("x").Len(), n)
	g.parts = g.halves()
	lanes := g.load(g.constant(float32(math.Inf(-1))))
	var bad reg.Register
	if g.wide {
		bad = g.K()
		g.KXORW(bad, bad, bad)
	} else {
		bad = g.YMM()
		g.VXORPS(bad, bad, bad)
	}
	next := func() vector {
		x := r.get("x")
		for _, nan := range g.compare(unordered, x, x) {
			if g.wide {
				g.KORW(nan, bad, bad)
			} else {
				g.VORPS(nan, bad, bad)
			}
		}
		return g.two(g.VMAXPS, x, lanes)
	}
	g.XORQ(i, i)
	g.SUBQ(operand.Imm(16), n)
	g.JLT(operand.LabelRef("rest"))
	g.Label("loop")
	for p, x := range next() {
		g.VMOVAPS(x, lanes[p])
	}
	g.ADDQ(operand.Imm(16), i)
	g.SUBQ(operand.Imm(16), n)
	g.JGE(operand.LabelRef("loop"))
	g.Label("rest")
	g.ADDQ(operand.Imm(16), n)
	g.JZ(operand.LabelRef("done"))
	r.mask = g.first(n, 0)
	g.replace(r.mask, next(), lanes)
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
	g.End()
}

// result returns the function's result of that name, or its only one.
func (g *generator) result(name string) gotypes.Component {
	if name == "" {
		return g.ReturnIndex(0)
	}
	return g.Return(name)
}
