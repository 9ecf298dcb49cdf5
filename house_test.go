// Package capanode_test guards the house: which room may import which, and that each room says what it owns.
package capanode_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/capacloud/capanode"

// below lists, for each room, the rooms that it may import. Imports point one way:
// cmd → node → {trainer, market} → {storage, gpu} → p2p.
var below = map[string][]string{
	"p2p":     {"p2p"},
	"storage": {"storage", "p2p"},
	"gpu":     {"gpu", "p2p"},
	"market":  {"market", "storage", "gpu", "p2p"},
	"trainer": {"trainer", "storage", "gpu", "p2p"},
	"node":    {"node", "trainer", "market", "storage", "gpu", "p2p"},
	"cmd":     {"cmd", "node", "trainer", "market", "storage", "gpu", "p2p"},
}

// only lists dependencies that one package keeps from the rest of the tree, with the reason.
var only = []struct{ dependency, owner, why string }{
	{"github.com/gomlx/", "trainer/engine/", "GoMLX builds graphs by panicking; one package turns that into errors"},
	{"github.com/gomlx/go-xla/installer", "", "nothing is downloaded to the machine of a user"},
	{"github.com/ipfs/boxo", "storage/ipfs", "boxo is kept for IPFS compatibility alone"},
	{"github.com/NVIDIA/go-nvml", "gpu/nvml", "go-nvml needs cgo; the static build must do without it"},
	{"github.com/spf13/cobra", "cmd/capanode", "command-line parsing is not a library concern"},
	{"math/rand", "", "math/rand/v2 has stable, seedable generators"},
}

type source struct {
	dir, file string
	test      bool
	ast       *ast.File
}

func sources(t *testing.T) []source {
	t.Helper()
	var all []source
	fset := token.NewFileSet()
	err := filepath.WalkDir(".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && p != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(p, ".go") {
			return nil
		}
		f, err := parser.ParseFile(fset, p, nil, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		all = append(all, source{filepath.ToSlash(filepath.Dir(p)), filepath.ToSlash(p), strings.HasSuffix(p, "_test.go"), f})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func room(dir string) string { return strings.SplitN(dir, "/", 2)[0] }

func TestRoomsImportDownwards(t *testing.T) {
	for _, s := range sources(t) {
		allowed, known := below[room(s.dir)]
		if s.dir == "." {
			continue
		}
		if !known {
			t.Errorf("%s: %q is no room of the house; the rooms are cmd node p2p market trainer gpu storage docs", s.file, room(s.dir))
			continue
		}
		for _, spec := range s.ast.Imports {
			p, _ := strconv.Unquote(spec.Path.Value)
			rest, ours := strings.CutPrefix(p, module+"/")
			if !ours {
				continue
			}
			if !slices.Contains(allowed, room(rest)) {
				t.Errorf("%s imports %s: %s may import only %v, so that a line of code knows its room", s.file, rest, room(s.dir), allowed)
			}
		}
	}
}

func TestDependenciesStayInTheirPackage(t *testing.T) {
	for _, s := range sources(t) {
		for _, spec := range s.ast.Imports {
			p, _ := strconv.Unquote(spec.Path.Value)
			for _, rule := range only {
				hit := p == rule.dependency || strings.HasSuffix(rule.dependency, "/") && strings.HasPrefix(p, rule.dependency) ||
					strings.HasPrefix(p, rule.dependency+"/") && rule.owner != ""
				if hit && (rule.owner == "" || !strings.HasPrefix(s.dir+"/", strings.TrimSuffix(rule.owner, "/")+"/")) {
					t.Errorf("%s imports %s, which belongs to %q: %s", s.file, p, rule.owner, rule.why)
				}
			}
		}
	}
}

// benchOnly are protocols that measurements use between a node and itself.
var benchOnly = []string{"/capanode/bench-raw/1.0.0", "/capanode/bench-echo/1.0.0"}

// Each protocol, topic and signing domain of the program has a page in docs/protocol.
func TestEachWireNameIsDocumented(t *testing.T) {
	pages, err := filepath.Glob("docs/protocol/*.md")
	if err != nil {
		t.Fatal(err)
	}
	var documented strings.Builder
	for _, page := range pages {
		b, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		documented.Write(b)
	}
	found := 0
	for _, s := range sources(t) {
		if s.test || strings.HasPrefix(s.dir, "p2p/nettest") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), s.file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			lit, ok := n.(*ast.BasicLit)
			if !ok || lit.Kind != token.STRING {
				return true
			}
			name, err := strconv.Unquote(lit.Value)
			if err != nil || !strings.HasPrefix(name, "/capanode/") && !strings.HasPrefix(name, "capanode/") || slices.Contains(benchOnly, name) {
				return true
			}
			found++
			if !strings.Contains(documented.String(), strings.TrimRight(name, "/\x00")) {
				t.Errorf("%s: no page in docs/protocol names %q", s.file, name)
			}
			return true
		})
	}
	if found < 8 {
		t.Errorf("only %d wire names found", found)
	}
}

func TestEachPackageSaysWhatItOwns(t *testing.T) {
	doc := map[string]string{}
	code := map[string]bool{}
	for _, s := range sources(t) {
		if s.test {
			continue
		}
		code[s.dir] = true
		if s.ast.Doc != nil {
			doc[s.dir] += s.ast.Doc.Text()
		}
	}
	for dir := range code {
		if d := doc[dir]; len(d) < 60 {
			t.Errorf("package %s: its doc must say what it owns and what it refuses to own; it says %q", path.Base(dir), d)
		}
	}
}
