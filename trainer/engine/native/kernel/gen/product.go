package main

import (
	"fmt"

	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// products makes one function for each size of a tile of C that is kept in registers: up to 6 rows of one panel with
// AVX2, up to 8 rows of three panels with AVX-512.
func (g *generator) products() {
	rows, panels := 6, 1
	if g.wide {
		rows, panels = 8, 3
	}
	for m := 1; m <= rows; m++ {
		for n := 1; n <= panels; n++ {
			g.tile(m, n)
		}
	}
}

// tile makes the function that carries a tile of C through some steps over k. At each step it also asks for the cache
// line at ahead, which then moves on.
func (g *generator) tile(rows, panels int) {
	g.Begin(fmt.Sprintf("tile%dx%d", rows, panels), fmt.Sprintf("computes %d rows of %d panels of C.", rows, panels),
		"(a *float32, aRow, aStep int, b *float32, bStep, bPanel int, c *float32, cRow int, ahead *float32, aheadBytes, steps int, add bool)")
	stride := func(name string) reg.GPVirtual {
		r := g.Word(name)
		g.SHLQ(operand.U8(2), r)
		return r
	}
	at := func(base, row string) []operand.Mem { return g.every3(g.Word(base), stride(row), rows) }
	cAt := at("c", "cRow")
	vectors := panels * g.halves()
	acc := make([][]reg.VecVirtual, rows)
	for m := range acc {
		for range vectors {
			acc[m] = append(acc[m], g.register())
		}
	}
	place := func(m, v int) operand.Mem {
		at := cAt[m]
		at.Disp = v * g.bytes()
		return at
	}
	add := g.Load(g.Param("add"), g.GP8())
	g.TESTB(add, add)
	g.JNZ(operand.LabelRef("old"))
	for m := range acc {
		for _, x := range acc[m] {
			g.VXORPS(x, x, x)
		}
	}
	g.JMP(operand.LabelRef("begin"))
	g.Label("old")
	for m := range acc {
		for v, x := range acc[m] {
			g.VMOVUPS(place(m, v), x)
		}
	}
	g.Label("begin")
	aAt := at("a", "aRow")
	ahead, aheadBytes := g.Word("ahead"), g.Word("aheadBytes")
	aStep, b, bStep, steps := stride("aStep"), g.Word("b"), stride("bStep"), g.Word("steps")
	var bPanel reg.GPVirtual
	if panels > 1 {
		bPanel = stride("bPanel")
	}
	g.Label("loop")
	g.prefetch(operand.Mem{Base: ahead})
	columns := make([]reg.VecVirtual, vectors)
	for v := range columns {
		at := operand.Mem{Base: b, Disp: v % g.halves() * g.bytes()}
		if n := v / g.halves(); n > 0 {
			at.Index, at.Scale = bPanel, uint8(n)
		}
		columns[v] = g.register()
		g.VMOVUPS(at, columns[v])
	}
	for m := range acc {
		x := g.register()
		g.VBROADCASTSS(aAt[m], x)
		for v, c := range acc[m] {
			g.VFMADD231PS(columns[v], x, c)
		}
	}
	for m := 0; m < rows; m += 3 {
		g.ADDQ(aStep, aAt[m].Base)
	}
	g.ADDQ(bStep, b)
	g.ADDQ(aheadBytes, ahead)
	g.DECQ(steps)
	g.JNZ(operand.LabelRef("loop"))
	cAt = at("c", "cRow")
	for m := range acc {
		for v, x := range acc[m] {
			g.VMOVUPS(x, place(m, v))
		}
	}
	g.End()
}

// prefetch asks for a line of memory in the second-level cache.
func (g *generator) prefetch(m operand.Mem) { g.PREFETCHT1(m) }

// every3 returns the addresses of rows that lie a stride apart, with one base register for three of them.
func (g *generator) every3(base, stride reg.GPVirtual, rows int) []operand.Mem {
	var at []operand.Mem
	for m := range rows {
		if m > 0 && m%3 == 0 {
			next := g.GP64()
			g.LEAQ(operand.Mem{Base: base, Index: stride, Scale: 2}, next)
			g.ADDQ(stride, next)
			base = next
		}
		a := operand.Mem{Base: base}
		if m%3 > 0 {
			a.Index, a.Scale = stride, uint8(m%3)
		}
		at = append(at, a)
	}
	return at
}

// transposes makes the function that transposes 8 rows by blocks of 8 columns; AVX-512 has no need of its own.
func (g *generator) transposes() {
	if g.wide {
		return
	}
	g.Begin("transpose8", "transposes 8 rows of src, for a number of columns that is a positive multiple of 8.",
		"(dst *float32, dstRow int, src *float32, srcRow, cols int)")
	dst, dstRow, src, srcRow, cols := g.Word("dst"), g.Word("dstRow"), g.Word("src"), g.Word("srcRow"), g.Word("cols")
	g.SHLQ(operand.U8(2), dstRow)
	g.SHLQ(operand.U8(2), srcRow)
	from := g.every3(src, srcRow, 8)
	to := g.every3(dst, dstRow, 8)
	g.Label("loop")
	var x [8]reg.VecVirtual
	// Rows i and i+4 share registers, so that the last steps need no crossing of lanes.
	for i := range 4 {
		for half := range 2 {
			low, high := from[i], from[i+4]
			low.Disp, high.Disp = 16*half, 16*half
			d := g.YMM()
			g.VMOVUPS(low, d.AsX())
			g.VINSERTF128(operand.U8(1), high, d, d)
			x[4*half+i] = d
		}
	}
	for half := range 2 {
		r := x[4*half : 4*half+4]
		pair := func(a, b reg.VecVirtual) (low, high reg.VecVirtual) {
			low, high = g.YMM(), g.YMM()
			g.VUNPCKLPS(b, a, low)
			g.VUNPCKHPS(b, a, high)
			return low, high
		}
		low01, high01 := pair(r[0], r[1])
		low23, high23 := pair(r[2], r[3])
		for j, s := range []struct {
			a, b reg.VecVirtual
			pick operand.U8
		}{{low01, low23, 0x44}, {low01, low23, 0xee}, {high01, high23, 0x44}, {high01, high23, 0xee}} {
			d := g.YMM()
			g.VSHUFPS(s.pick, s.b, s.a, d)
			g.VMOVUPS(d, to[4*half+j])
		}
	}
	for m := 0; m < 8; m += 3 {
		g.ADDQ(operand.Imm(32), from[m].Base)
		g.LEAQ(operand.Mem{Base: to[m].Base, Index: dstRow, Scale: 8}, to[m].Base)
	}
	g.SUBQ(operand.Imm(8), cols)
	g.JNZ(operand.LabelRef("loop"))
	g.End()
}

// peak makes the function that measures what the core can do: rounds of twelve independent multiply-adds, enough to
// fill the pipelines of current cores.
func (g *generator) peak() {
	g.Begin("peak", "runs rounds of twelve vector multiply-adds.", "(rounds int)")
	n := g.GP64()
	g.Load(g.Param("rounds"), n)
	g.parts = 1
	x := g.load(g.constant(0.5))[0]
	var acc []reg.VecVirtual
	for i := range 12 {
		acc = append(acc, g.load(g.constant(float32(i+1)))...)
	}
	g.Label("loop")
	for _, a := range acc {
		g.VFMADD231PS(x, x, a)
	}
	g.DECQ(n)
	g.JNZ(operand.LabelRef("loop"))
	g.End()
}
