// Command gen writes the assembly of package kernel, its Go declarations, and their counterparts for architectures that
// have none. It owns the instructions, and refuses to own any arithmetic: the formulas are those of the portable path.
package main

import (
	"fmt"
	"regexp"

	"github.com/capacloud/capanode/trainer/internal/assembly"
)

func main() { assembly.Main(generate) }

// generate returns the generated files of the kernel package.
func generate() (assembly.Files, error) {
	var builders []*assembly.Builder
	for _, wide := range []bool{false, true} {
		g := newGenerator(wide)
		g.rows()
		g.functions64()
		g.products()
		g.transposes()
		g.peak()
		builders = append(builders, g.Builder)
	}
	files, err := assembly.Package("kernel", "trainer/engine/native/kernel/gen", builders...)
	if r := highRegister.Find(files["avx2_amd64.s"]); r != nil {
		return nil, fmt.Errorf("the AVX2 path uses register %s, which its processors lack", r)
	}
	return files, err
}

var highRegister = regexp.MustCompile(`\b[XYZ](1[6-9]|2[0-9]|3[01])\b`)

func newGenerator(wide bool) *generator {
	set := "AVX2"
	if wide {
		set = "AVX512"
	}
	return &generator{Builder: assembly.NewBuilder(set), wide: wide, constants: map[uint32]string{}}
}
