package tokenizer

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// TestInteropGolden compares the Python package with the fixtures that stand in for it elsewhere; -update records them. They
// are trained on text of our own making.
func TestInteropGolden(t *testing.T) {
	p := startPython(t)
	corpus := filepath.Join(t.TempDir(), "corpus.txt")
	if err := os.WriteFile(corpus, testCorpus(), 0o600); err != nil {
		t.Fatal(err)
	}
	dir, rng := filepath.Join("testdata", "python"), rand.New(rand.NewPCG(31, 32))
	for _, k := range interopKinds() {
		c := goldenCase{Name: k.name}
		for range 40 {
			c.Texts = append(c.Texts, string(randomText(rng, 25)))
		}
		fixture := filepath.Join(dir, k.name+".tokenizer.json")
		if *update {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), "new.json")
			k.request["do"], k.request["path"], k.request["files"], k.request["vocab"] = "train", path, []string{corpus}, 400
			var trained struct{ Merges []string }
			p.Ask(k.request, &trained)
			raw, err := os.ReadFile(path)
			var small bytes.Buffer
			if err == nil {
				err = json.Compact(&small, raw)
			}
			if err == nil {
				err = os.WriteFile(fixture, append(small.Bytes(), '\n'), 0o644)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		var texts [][]byte
		for _, text := range c.Texts {
			texts = append(texts, []byte(text))
		}
		for special, ids := range map[bool]*[][]int{true: &c.All, false: &c.Text} {
			var answer struct{ IDs [][]int }
			p.Ask(map[string]any{"do": "encode", "path": fixture, "special": special, "texts": texts}, &answer)
			*ids = answer.IDs
		}
		got, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		golden := filepath.Join(dir, k.name+".ids.json")
		if *update {
			if err := os.WriteFile(golden, append(got, '\n'), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil || !bytes.Equal(bytes.TrimSpace(want), got) {
			t.Errorf("%s: the Python package gives other IDs than its fixture (%v)", k.name, err)
		}
	}
}
