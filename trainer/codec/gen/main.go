// Command gen writes the assembly of package codec, its Go declarations, and their counterparts for architectures that have
// none. It owns the instructions, and refuses to own any arithmetic: the portable functions in kernel.go are what they mean.
package main

import (
	"bytes"
	"fmt"
	"go/format"
	"log"
	"os"
	"path/filepath"
	"strings"

	"github.com/mmcloughlin/avo/attr"
	"github.com/mmcloughlin/avo/build"
	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/pass"
	"github.com/mmcloughlin/avo/printer"
	"github.com/mmcloughlin/avo/reg"
)

func main() {
	log.SetFlags(0)
	files, err := generate()
	if err != nil {
		log.Fatal(err)
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Clean(name), content, 0o644); err != nil {
			log.Fatal(err)
		}
	}
}

// generate returns the generated files of the codec package by their names.
func generate() (map[string][]byte, error) {
	config := printer.Config{Name: "trainer/codec/gen", Pkg: "codec"}
	g := &generator{Context: build.NewContext(), constants: map[uint32]operand.Mem{}, tables: map[string]operand.Mem{}}
	g.ConstraintExpr("amd64")
	g.squares()
	g.quantise8()
	g.quantise4()
	g.copyFinite()
	g.addRaw()
	g.unpack4()
	g.above()
	file, err := g.Result()
	if err != nil {
		return nil, err
	}
	if err := pass.Compile.Execute(file); err != nil {
		return nil, err
	}
	assembly, err := printer.NewGoAsm(config).Print(file)
	if err != nil {
		return nil, err
	}
	declared, err := printer.NewStubs(config).Print(file)
	if err != nil {
		return nil, err
	}
	others, err := format.Source(others(config, declared))
	return map[string][]byte{"avx2_amd64.s": assembly, "avx2_amd64.go": declared, "assembly_other.go": others}, err
}

// others gives every declared assembly function a body for the architectures that never call it.
func others(config printer.Config, declared []byte) []byte {
	var out bytes.Buffer
	fmt.Fprintf(&out, "// %s\n\n//go:build !amd64\n\npackage codec\n", config.GeneratedWarning())
	for line := range strings.SplitSeq(string(declared), "\n") {
		if strings.HasPrefix(line, "func ") {
			fmt.Fprintf(&out, "\n%s { panic(\"codec: not on this architecture\") }\n", line)
		}
	}
	return out.Bytes()
}

// generator builds the functions for AVX2.
type generator struct {
	*build.Context
	constants map[uint32]operand.Mem
	tables    map[string]operand.Mem
}

// start begins a function; parameters and results are written as in Go.
func (g *generator) start(name, doc, signature string) {
	g.Function(name + "AVX2")
	g.Attributes(attr.NOSPLIT)
	g.Doc(name + "AVX2 " + doc)
	g.Pragma("noescape")
	g.SignatureExpr("func" + signature)
}

func (g *generator) end() {
	g.VZEROUPPER()
	g.RET()
}

// param loads an integer or pointer parameter.
func (g *generator) param(name string) reg.GPVirtual {
	return g.Load(g.Param(name), g.GP64()).(reg.GPVirtual)
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
