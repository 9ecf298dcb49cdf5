// Command gen writes the assembly of package kernel, its Go declarations, and their counterparts for architectures that
// have none. It owns the instructions, and refuses to own any arithmetic: the formulas are those of the portable path.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"go/format"
	"log"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/mmcloughlin/avo/pass"
	"github.com/mmcloughlin/avo/printer"
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

// generate returns the generated files of the kernel package by their names.
func generate() (map[string][]byte, error) {
	files := map[string][]byte{}
	config := printer.Config{Name: "trainer/engine/native/kernel/gen", Pkg: "kernel"}
	var stubs []byte
	for _, wide := range []bool{false, true} {
		g := newGenerator(wide)
		g.rows()
		g.functions64()
		g.products()
		g.transposes()
		g.peak()
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
		if err := g.check(assembly); err != nil {
			return nil, err
		}
		name := strings.ToLower(g.suffix())
		files[name+"_amd64.s"] = assembly
		declared, err := printer.NewStubs(config).Print(file)
		if err != nil {
			return nil, err
		}
		files[name+"_amd64.go"] = declared
		_, declared, _ = bytes.Cut(declared, []byte("package kernel\n"))
		stubs = append(stubs, declared...)
	}
	var err error
	files["assembly_other.go"], err = format.Source(others(config, stubs))
	return files, err
}

// others gives every declared assembly function a body for the architectures that never call it.
func others(config printer.Config, declared []byte) []byte {
	var out bytes.Buffer
	fmt.Fprintf(&out, "// %s\n\n//go:build !amd64\n\npackage kernel\n", config.GeneratedWarning())
	for _, line := range strings.Split(string(declared), "\n") {
		if strings.HasPrefix(line, "func ") {
			fmt.Fprintf(&out, "\n%s { panic(\"kernel: not on this architecture\") }\n", line)
		}
	}
	return out.Bytes()
}

var highRegister = regexp.MustCompile(`\b[XYZ](1[6-9]|2[0-9]|3[01])\b`)

// check refuses registers that the path's CPUs lack.
func (g *generator) check(assembly []byte) error {
	if r := highRegister.Find(assembly); r != nil && !g.wide {
		return fmt.Errorf("the AVX2 path uses register %s", r)
	}
	if n := bytes.Count(assembly, []byte("\n\tRET")); n != bytes.Count(assembly, []byte("\tVZEROUPPER\n\tRET")) {
		return errors.New("a function returns without VZEROUPPER")
	}
	return nil
}

func newGenerator(wide bool) *generator {
	g := &generator{Context: newContext(), wide: wide, constants: map[uint32]string{}}
	g.ConstraintExpr("amd64")
	return g
}
