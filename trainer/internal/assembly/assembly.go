// Package assembly owns what the generators of assembly share: the frame of a function, and the files that a package gets, with
// declarations and with bodies for architectures that have none. It refuses to own instructions and arithmetic: those are the
// generators'.
package assembly

import (
	"bytes"
	"errors"
	"fmt"
	"go/format"
	"io/fs"
	"log"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mmcloughlin/avo/attr"
	"github.com/mmcloughlin/avo/build"
	"github.com/mmcloughlin/avo/pass"
	"github.com/mmcloughlin/avo/printer"
	"github.com/mmcloughlin/avo/reg"
)

// Builder builds the functions of one instruction set of amd64.
type Builder struct {
	*build.Context
	set string
}

// NewBuilder returns a builder whose functions' names end in that of the instruction set, such as "AVX2".
func NewBuilder(set string) *Builder {
	b := &Builder{build.NewContext(), set}
	b.ConstraintExpr("amd64")
	return b
}

// Begin begins a function; parameters and results are written as in Go. The function's doc is its name and doc.
func (b *Builder) Begin(name, doc, signature string) {
	name += b.set
	b.Function(name)
	b.Attributes(attr.NOSPLIT)
	b.Doc(name + " " + doc)
	b.Pragma("noescape")
	b.SignatureExpr("func" + signature)
}

// End returns from a function, and leaves no vector state that slows down other code.
func (b *Builder) End() {
	b.VZEROUPPER()
	b.RET()
}

// Word loads an integer or pointer parameter.
func (b *Builder) Word(name string) reg.GPVirtual {
	return b.Load(b.Param(name), b.GP64()).(reg.GPVirtual)
}

// Files is the content of generated files by their names.
type Files map[string][]byte

// Package generates the files of a package: assembly and declarations for each builder's instruction set, and bodies that
// panic for other architectures. Generator is the path of the generator within the module, for the header. It fails where a
// function returns without [Builder.End].
func Package(name, generator string, builders ...*Builder) (Files, error) {
	config := printer.Config{Name: generator, Pkg: name}
	files := Files{}
	others := fmt.Appendf(nil, "// %s\n\n//go:build !amd64\n\npackage %s\n", config.GeneratedWarning(), name)
	for _, b := range builders {
		file, err := b.Result()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", b.set, err)
		}
		if err := pass.Compile.Execute(file); err != nil {
			return nil, fmt.Errorf("%s: %w", b.set, err)
		}
		assembly, err := printer.NewGoAsm(config).Print(file)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", b.set, err)
		}
		if n := bytes.Count(assembly, []byte("\n\tRET")); n != bytes.Count(assembly, []byte("\tVZEROUPPER\n\tRET")) {
			return nil, fmt.Errorf("%s: a function returns without VZEROUPPER", b.set)
		}
		declared, err := printer.NewStubs(config).Print(file)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", b.set, err)
		}
		set := strings.ToLower(b.set)
		files[set+"_amd64.s"], files[set+"_amd64.go"] = assembly, declared
		for line := range strings.Lines(string(declared)) {
			if strings.HasPrefix(line, "func ") {
				others = fmt.Appendf(others, "\n%s { panic(\"%s: not on this architecture\") }\n", strings.TrimSuffix(line, "\n"), name)
			}
		}
	}
	var err error
	files["assembly_other.go"], err = format.Source(others)
	return files, err
}

// write writes the files into a folder, which is under version control: there is nothing to lose in a crash.
func (f Files) write(dir string) error {
	for name, content := range f {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// stale returns the names of those files that are missing in a folder, or are not what was generated.
func (f Files) stale(dir string) ([]string, error) {
	var stale []string
	for name, want := range f {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if err != nil || !bytes.Equal(got, want) {
			stale = append(stale, name)
		}
	}
	slices.Sort(stale)
	return stale, nil
}

// CheckCurrent fails a generator's test if the folder above it does not hold what it generates.
func CheckCurrent(t testing.TB, generate func() (Files, error)) {
	t.Helper()
	files, err := generate()
	if err != nil {
		t.Fatal(err)
	}
	if stale, err := files.stale(".."); err != nil || len(stale) > 0 {
		t.Errorf("%v: not what the generator writes, run go generate there (%v)", stale, err)
	}
}

// Main is the main function of a generator that `go generate` runs in the folder of its package.
func Main(generate func() (Files, error)) {
	log.SetFlags(0)
	files, err := generate()
	if err == nil {
		err = files.write(".")
	}
	if err != nil {
		log.Fatal(err)
	}
}
