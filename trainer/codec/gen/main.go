// Command gen writes the assembly of package codec, its Go declarations, and their counterparts for architectures that have
// none. It owns the instructions, and refuses to own any arithmetic: the portable functions in kernel.go are what they mean.
package main

import (
	"fmt"

	"github.com/mmcloughlin/avo/attr"
	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"

	"github.com/capacloud/capanode/trainer/internal/assembly"
)

func main() { assembly.Main(generate) }

// generate returns the generated files of the codec package.
func generate() (assembly.Files, error) {
	g := &generator{Builder: assembly.NewBuilder("AVX2"), constants: map[uint32]operand.Mem{}, tables: map[string]operand.Mem{}}
	g.squares()
	g.quantise8()
	g.quantise4()
	g.copyFinite()
	g.addRaw()
	g.unpack4()
	g.above()
	return assembly.Package("codec", "trainer/codec/gen", g.Builder)
}

// generator builds the functions for AVX2.
type generator struct {
	*assembly.Builder
	constants map[uint32]operand.Mem
	tables    map[string]operand.Mem
}

// lanes returns a register whose eight lanes hold the bits.
func (g *generator) lanes(bits uint32) reg.VecVirtual {
	m, ok := g.constants[bits]
	if !ok {
		m = g.ConstData(fmt.Sprintf("lanes%08x", bits), operand.U32(bits))
		g.constants[bits] = m
	}
	y := g.YMM()
	g.VPBROADCASTD(m, y)
	return y
}

// scalar returns a register whose eight lanes hold the float32 parameter.
func (g *generator) scalar(name string) reg.VecVirtual {
	x, y := g.XMM(), g.YMM()
	g.Load(g.Param(name), x)
	g.VBROADCASTSS(x, y)
	return y
}

// table returns the address of a named table of 64-bit words.
func (g *generator) table(name string, words []uint64) operand.Mem {
	m, ok := g.tables[name]
	if !ok {
		m = g.StaticGlobal(name)
		g.DataAttributes(attr.RODATA | attr.NOPTR)
		for i, w := range words {
			g.AddDatum(8*i, operand.U64(w))
		}
		g.tables[name] = m
	}
	return m
}

// mem is the memory at the address.
func mem(base reg.Register, disp int) operand.Mem { return operand.Mem{Base: base, Disp: disp} }

// loop repeats the body, which advances its pointers, until n, counted down by step, is used up.
func (g *generator) loop(n reg.Register, step int, body func()) {
	g.Label("next")
	g.CMPQ(n, operand.Imm(uint64(step)))
	g.JLT(operand.LabelRef("done"))
	body()
	g.SUBQ(operand.Imm(uint64(step)), n)
	g.JMP(operand.LabelRef("next"))
	g.Label("done")
}

// advance moves a pointer by so many bytes.
func (g *generator) advance(p reg.Register, bytes int) { g.ADDQ(operand.Imm(uint64(bytes)), p) }
