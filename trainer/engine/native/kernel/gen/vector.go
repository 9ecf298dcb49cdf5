package main

import (
	"fmt"
	"math"

	"github.com/mmcloughlin/avo/attr"
	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"

	"github.com/capacloud/capanode/trainer/internal/assembly"
)

// generator builds the functions of one path. Its vector operations put each result into new registers, unless said
// otherwise, and take the operands in the order of the formula, not of the assembler.
type generator struct {
	*assembly.Builder
	wide      bool // AVX-512: vectors of 16 and mask registers; else AVX2: vectors of 8
	constants map[uint32]string
	parts     int // registers in a vector of the body at hand
}

// vector is some registers that the same operations work on in turn, which keeps several chains of them busy at once.
type vector []reg.VecVirtual

// mask says which lanes of a vector count: mask registers, or vectors of all ones and zeros.
type mask []reg.Register

// in returns the part of an operand, a vector or memory that all parts share, that belongs to one of the parts.
func in(x any, part int) operand.Op {
	switch x := x.(type) {
	case vector:
		return x[part]
	case []operand.Mem:
		return x[part]
	case operand.Mem:
		return x
	}
	panic("not an operand")
}

// bytes is the size of a vector.
func (g *generator) bytes() int {
	if g.wide {
		return 64
	}
	return 32
}

// halves is the number of vectors that hold 16 lanes.
func (g *generator) halves() int { return 64 / g.bytes() }

// register returns a new register.
func (g *generator) register() reg.VecVirtual {
	if g.wide {
		return g.ZMM()
	}
	return g.YMM()
}

// vec returns a new vector.
func (g *generator) vec() vector {
	v := make(vector, g.parts)
	for p := range v {
		v[p] = g.register()
	}
	return v
}

// constant returns the memory that holds x in all lanes.
func (g *generator) constant(x float32) operand.Mem {
	return g.constantBits(math.Float32bits(x))
}

func (g *generator) constantBits(u uint32) operand.Mem {
	name, ok := g.constants[u]
	if !ok {
		name = fmt.Sprintf("c%08x", u)
		g.constants[u] = name
		g.table(name, func(int) uint32 { return u })
	}
	return operand.NewDataAddr(operand.NewStaticSymbol(name), 0)
}

// table defines 16 words of read-only memory.
func (g *generator) table(name string, word func(i int) uint32) {
	f := g.StaticGlobal(name)
	g.DataAttributes(attr.RODATA | attr.NOPTR)
	for i := range 16 {
		g.AddDatum(4*i, operand.U32(word(i)))
	}
	_ = f
}

// iota returns the memory of the lane numbers, from one half's first on.
func (g *generator) iota(half int) operand.Mem {
	const name = "iota"
	if _, ok := g.constants[math.MaxUint32]; !ok {
		g.constants[math.MaxUint32] = name
		g.table(name, func(i int) uint32 { return uint32(i) })
	}
	return operand.NewDataAddr(operand.NewStaticSymbol(name), half*32)
}

func (g *generator) zero() vector {
	d := g.vec()
	for _, r := range d {
		g.VXORPS(r, r, r)
	}
	return d
}

func (g *generator) load(m any) vector {
	d := g.vec()
	for p, r := range d {
		g.VMOVUPS(in(m, p), r)
	}
	return d
}

func (g *generator) copy(x vector) vector {
	d := g.vec()
	for p, r := range d {
		g.VMOVAPS(x[p], r)
	}
	return d
}

// two applies an instruction of two operands, whose assembler takes them in reverse.
func (g *generator) two(op func(...operand.Op), a vector, b any) vector {
	d := g.vec()
	for p, r := range d {
		op(in(b, p), a[p], r)
	}
	return d
}

func (g *generator) add(a vector, b any) vector { return g.two(g.VADDPS, a, b) }
func (g *generator) sub(a vector, b any) vector { return g.two(g.VSUBPS, a, b) }
func (g *generator) mul(a vector, b any) vector { return g.two(g.VMULPS, a, b) }
func (g *generator) div(a, b vector) vector     { return g.two(g.VDIVPS, a, b) }
func (g *generator) and(a vector, b any) vector { return g.two(g.VANDPS, a, b) }
func (g *generator) xor(a vector, b any) vector { return g.two(g.VXORPS, a, b) }

func (g *generator) sqrt(a vector) vector {
	d := g.vec()
	for p, r := range d {
		g.VSQRTPS(a[p], r)
	}
	return d
}

// negate returns -a, also for zeros.
func (g *generator) negate(a vector) vector { return g.xor(a, g.constantBits(1<<31)) }

// fmaInto sets acc = fma(a, b, acc).
func (g *generator) fmaInto(acc vector, a any, b vector) {
	for p, r := range acc {
		g.VFMADD231PS(in(a, p), b[p], r)
	}
}

// fnmaInto sets acc = fma(-a, b, acc).
func (g *generator) fnmaInto(acc vector, a any, b vector) {
	for p, r := range acc {
		g.VFNMADD231PS(in(a, p), b[p], r)
	}
}

// step sets x = fma(x, r, c), for a chain that evaluates a polynomial.
func (g *generator) step(x, r vector, c any) {
	for p := range x {
		g.VFMADD213PS(in(c, p), r[p], x[p])
	}
}

// fms returns fma(a, b, -c).
func (g *generator) fms(a, b, c vector) vector {
	d := g.copy(a)
	for p, r := range d {
		g.VFMSUB213PS(c[p], b[p], r)
	}
	return d
}

// addExponent adds the integer in the low bits of t to the exponent of x, in place.
func (g *generator) addExponent(x, t vector) {
	for p := range x {
		g.VPSLLD(operand.U8(23), t[p], t[p])
		g.VPADDD(t[p], x[p], x[p])
	}
}

// The predicates of comparisons; the unordered ones hold for NaN.
const (
	less         = operand.U8(0x11) // a < b
	notLess      = operand.U8(0x15) // not a < b
	notLessEqual = operand.U8(0x16) // not a ≤ b
	unordered    = operand.U8(0x03) // a or b is NaN
)

// compare returns a mask of the lanes where the predicate holds.
func (g *generator) compare(predicate operand.U8, a vector, b any) mask {
	var m mask
	for p := range a {
		var r reg.Register = g.K()
		if !g.wide {
			r = g.YMM()
		}
		g.VCMPPS(predicate, in(b, p), a[p], r)
		m = append(m, r)
	}
	return m
}

// keep returns x where the mask holds, else +0.
func (g *generator) keep(m mask, x vector) vector {
	d := g.vec()
	for p, r := range d {
		if g.wide {
			g.VMOVAPS_Z(x[p], m[p], r)
		} else {
			g.VANDPS(x[p], m[p], r)
		}
	}
	return d
}

// choose returns yes where the mask holds, else no.
func (g *generator) choose(m mask, yes, no vector) vector {
	d := g.copy(no)
	g.replace(m, yes, d)
	return d
}

// replace sets x to another vector where the mask holds.
func (g *generator) replace(m mask, by, x vector) {
	for p, r := range x {
		if g.wide {
			g.VMOVAPS(by[p], m[p], r)
		} else {
			g.VBLENDVPS(m[p], by[p], r, r)
		}
	}
}

// first returns a mask of those of 16 lanes that are below n, for as many parts as there are, from one half on.
func (g *generator) first(n reg.GPVirtual, half int) mask {
	var m mask
	for p := range g.parts {
		count := g.register()
		if g.wide {
			g.VPBROADCASTD(n.As32(), count)
			k := g.K()
			g.VPCMPGTD(g.iota(half+p), count, k)
			m = append(m, k)
			continue
		}
		x := g.XMM()
		g.VMOVD(n.As32(), x)
		g.VPBROADCASTD(x, count)
		g.VPCMPGTD(g.iota(half+p), count, count)
		m = append(m, count)
	}
	return m
}

// loadMasked returns the memory's lanes where the mask holds, else +0.
func (g *generator) loadMasked(m mask, from []operand.Mem) vector {
	d := g.vec()
	for p, r := range d {
		if g.wide {
			g.VMOVUPS_Z(from[p], m[p], r)
		} else {
			g.VMASKMOVPS(from[p], m[p], r)
		}
	}
	return d
}

func (g *generator) store(x vector, to []operand.Mem) {
	for p, r := range x {
		g.VMOVUPS(r, to[p])
	}
}

func (g *generator) storeMasked(m mask, x vector, to []operand.Mem) {
	for p, r := range x {
		if g.wide {
			g.VMOVUPS(r, m[p], to[p])
		} else {
			g.VMASKMOVPS(r, m[p], to[p])
		}
	}
}

// broadcast returns a float32 parameter in all lanes of a register.
func (g *generator) broadcast(name string) reg.VecVirtual {
	b, err := g.Param(name).Resolve()
	if err != nil {
		panic(err)
	}
	r := g.register()
	g.VBROADCASTSS(b.Addr, r)
	return r
}

// fold combines 16 lanes, in one or two vectors, by the tree of a row sum: lane j with j+8, j+4, j+2, j+1. combine takes
// the upper lanes first.
func (g *generator) fold(lanes vector, combine func(upper, lower, into reg.Register)) reg.Register {
	y, upper := lanes[0].AsY(), g.YMM()
	if g.wide {
		g.VEXTRACTF32X8(operand.U8(1), lanes[0], upper)
		combine(upper, y, y)
	} else {
		combine(lanes[1], y, y)
	}
	x, other := lanes[0].AsX(), g.XMM()
	g.VEXTRACTF128(operand.U8(1), y, other)
	combine(other, x, x)
	g.VMOVHLPS(x, x, other) // lanes 2 and 3
	combine(other, x, x)
	g.VMOVSHDUP(x, other) // lane 1
	combine(other, x, x)
	return x
}
