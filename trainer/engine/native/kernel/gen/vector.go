package main

import (
	"fmt"
	"math"

	"github.com/mmcloughlin/avo/attr"
	"github.com/mmcloughlin/avo/build"
	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// generator builds the functions of one path. Its vector operations put each result into a new register, unless said
// otherwise, and take the operands in the order of the formula, not of the assembler.
type generator struct {
	*build.Context
	wide      bool // AVX-512: vectors of 16 and mask registers; else AVX2: vectors of 8
	constants map[uint32]string
}

type vector = reg.VecVirtual

func newContext() *build.Context { return build.NewContext() }

func (g *generator) suffix() string {
	if g.wide {
		return "AVX512"
	}
	return "AVX2"
}

// start begins a function; parameters and results are written as in Go.
func (g *generator) start(name, doc, signature string) {
	g.Function(name + g.suffix())
	g.Attributes(attr.NOSPLIT)
	g.Doc(name + g.suffix() + " " + doc)
	g.Pragma("noescape")
	g.SignatureExpr("func" + signature)
}

// end returns from a function.
func (g *generator) end() {
	g.VZEROUPPER()
	g.RET()
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

func (g *generator) vec() vector {
	if g.wide {
		return g.ZMM()
	}
	return g.YMM()
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
	g.VXORPS(d, d, d)
	return d
}

func (g *generator) load(m operand.Op) vector {
	d := g.vec()
	g.VMOVUPS(m, d)
	return d
}

func (g *generator) copy(x vector) vector {
	d := g.vec()
	g.VMOVAPS(x, d)
	return d
}

func (g *generator) add(a vector, b operand.Op) vector { d := g.vec(); g.VADDPS(b, a, d); return d }
func (g *generator) sub(a vector, b operand.Op) vector { d := g.vec(); g.VSUBPS(b, a, d); return d }
func (g *generator) mul(a vector, b operand.Op) vector { d := g.vec(); g.VMULPS(b, a, d); return d }
func (g *generator) div(a, b vector) vector            { d := g.vec(); g.VDIVPS(b, a, d); return d }
func (g *generator) sqrt(a vector) vector              { d := g.vec(); g.VSQRTPS(a, d); return d }
func (g *generator) and(a vector, b operand.Op) vector { d := g.vec(); g.VANDPS(b, a, d); return d }
func (g *generator) xor(a vector, b operand.Op) vector { d := g.vec(); g.VXORPS(b, a, d); return d }

// negate returns -a, also for zeros.
func (g *generator) negate(a vector) vector { return g.xor(a, g.constantBits(1<<31)) }

// fma returns fma(a, b, c).
func (g *generator) fma(a, b operand.Op, c vector) vector {
	d := g.copy(c)
	g.fmaInto(d, a, b)
	return d
}

// fmaInto sets acc = fma(a, b, acc); b must be a register, a may be memory.
func (g *generator) fmaInto(acc vector, a, b operand.Op) { g.VFMADD231PS(a, b, acc) }

// fnmaInto sets acc = fma(-a, b, acc).
func (g *generator) fnmaInto(acc vector, a, b operand.Op) { g.VFNMADD231PS(a, b, acc) }

// step sets p = fma(p, r, c), for a chain that evaluates a polynomial.
func (g *generator) step(p vector, r vector, c operand.Op) { g.VFMADD213PS(c, r, p) }

// fms returns fma(a, b, -c).
func (g *generator) fms(a, b vector, c operand.Op) vector {
	d := g.copy(a)
	g.VFMSUB213PS(c, b, d)
	return d
}

// The predicates of comparisons; the unordered ones hold for NaN.
const (
	less         = operand.U8(0x11) // a < b
	notLess      = operand.U8(0x15) // not a < b
	notLessEqual = operand.U8(0x16) // not a ≤ b
	unordered    = operand.U8(0x03) // a or b is NaN
)

// compare returns a mask of the lanes where the predicate holds.
func (g *generator) compare(predicate operand.U8, a vector, b operand.Op) reg.Register {
	if g.wide {
		k := g.K()
		g.VCMPPS(predicate, b, a, k)
		return k
	}
	d := g.vec()
	g.VCMPPS(predicate, b, a, d)
	return d
}

// keep returns x where the mask holds, else +0.
func (g *generator) keep(mask reg.Register, x vector) vector {
	d := g.vec()
	if g.wide {
		g.VMOVAPS_Z(x, mask, d)
	} else {
		g.VANDPS(x, mask, d)
	}
	return d
}

// choose returns yes where the mask holds, else no.
func (g *generator) choose(mask reg.Register, yes, no vector) vector {
	d := g.vec()
	if g.wide {
		g.VBLENDMPS(yes, no, mask, d)
	} else {
		g.VBLENDVPS(mask, yes, no, d)
	}
	return d
}

// first returns a mask of the lanes below n of one half.
func (g *generator) first(n reg.GPVirtual, half int) reg.Register {
	count := g.vec()
	if g.wide {
		g.VPBROADCASTD(n.As32(), count)
		k := g.K()
		g.VPCMPGTD(g.iota(half), count, k)
		return k
	}
	x := g.XMM()
	g.VMOVD(n.As32(), x)
	g.VPBROADCASTD(x, count)
	g.VPCMPGTD(g.iota(half), count, count)
	return count
}

// loadMasked returns the memory's lanes where the mask holds, else +0.
func (g *generator) loadMasked(mask reg.Register, m operand.Op) vector {
	d := g.vec()
	if g.wide {
		g.VMOVUPS_Z(m, mask, d)
	} else {
		g.VMASKMOVPS(m, mask, d)
	}
	return d
}

func (g *generator) storeMasked(mask reg.Register, x vector, m operand.Op) {
	if g.wide {
		g.VMOVUPS(x, mask, m)
	} else {
		g.VMASKMOVPS(x, mask, m)
	}
}

// broadcast returns a float32 parameter in all lanes.
func (g *generator) broadcast(name string) vector {
	b, err := g.Param(name).Resolve()
	if err != nil {
		panic(err)
	}
	d := g.vec()
	g.VBROADCASTSS(b.Addr, d)
	return d
}

// fold combines 16 lanes, in one or two vectors, by the tree of a row sum: lane j with j+8, j+4, j+2, j+1. combine takes
// the upper lanes first.
func (g *generator) fold(lanes []vector, combine func(upper, lower, into reg.Register)) reg.Register {
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
