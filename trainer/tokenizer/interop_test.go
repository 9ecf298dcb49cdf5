package tokenizer

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/capacloud/capanode/trainer/internal/python"
)

// pythonPackage is what the interop tests compare with; the class tables and the golden fixtures are of this version.
const pythonPackage = "tokenizers==0.23.3"

// corpora is where the development corpora lie, outside the repository.
const corpora = "../../../shared/data/text"

// peer answers with the Python package.
type peer struct {
	*python.Process
	t testing.TB
}

// startPython starts testdata/interop.py.
func startPython(t testing.TB) peer {
	t.Helper()
	p := peer{python.Start(t, "testdata/interop.py", pythonPackage), t}
	var v struct{ Version string }
	p.Ask(map[string]any{"do": "version"}, &v)
	if want := strings.TrimPrefix(pythonPackage, "tokenizers=="); v.Version != want {
		t.Fatalf("the Python package is of version %s, want %s", v.Version, want)
	}
	return p
}

// lengths returns how Python's regular expressions cut texts, in characters.
func (p peer) lengths(regex string, digits *bool, texts [][]byte) [][]int {
	p.t.Helper()
	var answer struct{ Lengths [][]int }
	p.Ask(map[string]any{"do": "split", "regex": regex, "digits": digits, "texts": texts}, &answer)
	return answer.Lengths
}

func cutLengths(next splitter, text []byte) []int {
	out := []int{}
	for len(text) > 0 {
		n := next(classes(), text)
		out = append(out, utf8.RuneCount(text[:n]))
		text = text[n:]
	}
	return out
}

// everyCodePoint returns texts in which every code point stands in the company that decides what splitters do with it.
func everyCodePoint() [][]byte {
	var texts [][]byte
	var b bytes.Buffer
	for r := rune(1); r <= utf8.MaxRune; r++ {
		if !utf8.ValidRune(r) {
			continue
		}
		fmt.Fprintf(&b, "a%cA 1%c%c'%cs\n%c!", r, r, r, r, r)
		if b.Len() > 1<<10 {
			texts = append(texts, bytes.Clone(b.Bytes()))
			b.Reset()
		}
	}
	return append(texts, b.Bytes())
}

func TestInteropSplitters(t *testing.T) {
	p := startPython(t)
	rng := rand.New(rand.NewPCG(1, 2))
	var texts [][]byte
	for range 4000 {
		texts = append(texts, randomText(rng, 60))
	}
	all := everyCodePoint()
	compare := func(regex string, digits *bool, next splitter, texts [][]byte) {
		t.Helper()
		for part := range slices.Chunk(texts, 200) {
			for i, want := range p.lengths(regex, digits, part) {
				if got := cutLengths(next, part[i]); !slices.Equal(got, want) {
					t.Fatalf("%s cuts %.300q into %v, Python into %v", regex, part[i], got[:min(20, len(got))], want[:min(20, len(want))])
				}
			}
		}
	}
	for _, k := range knownSplits() {
		compare(k.regex, nil, k.next, texts)
		compare(k.regex, nil, k.next, all)
	}
	for _, each := range []bool{true, false} {
		st, err := preTokenizerJSON{Type: typeDigits, Individual: &each}.step()
		if err != nil {
			t.Fatal(err)
		}
		compare(regexNumber, &each, st.next, texts)
		compare(regexNumber, &each, st.next, all)
	}
}

func TestInteropNormalizers(t *testing.T) {
	p := startPython(t)
	rng := rand.New(rand.NewPCG(3, 4))
	texts := everyCodePoint()
	for range 3000 {
		texts = append(texts, randomMarks(rng, 40))
	}
	for name, form := range forms {
		for part := range slices.Chunk(texts, 200) {
			var answer struct{ Texts [][]byte }
			p.Ask(map[string]any{"do": "normalize", "form": name, "texts": part}, &answer)
			for i, want := range answer.Texts {
				if got := (normalizer{form}).apply(part[i]); !bytes.Equal(got, want) {
					t.Fatalf("%s of %+.300q is %+.300q, in Python %+.300q", name, part[i], got, want)
				}
			}
		}
	}
}

// interopKind is a tokenizer that the Python package trains for a test.
type interopKind struct {
	name    string
	request map[string]any
}

func interopKinds() []interopKind {
	added := []map[string]any{
		{"content": "<mask>", "special": true, "lstrip": true}, {"content": "[tool]", "rstrip": true, "normalized": true},
		{"content": "word", "single_word": true}, {"content": "  ", "normalized": true}, {"content": "<|a|>"}, {"content": "<|a|><|b|>", "special": true},
		{"content": "é!", "normalized": true}, {"content": " x ", "lstrip": true, "rstrip": true},
	}
	return []interopKind{
		{"gpt2", map[string]any{"kind": "gpt2", "special": []string{EndOfTextSymbol}}},
		{"roberta", map[string]any{"kind": "roberta", "special": []string{"<s>", "</s>", "<unk>"}, "added": added[:1]}},
		{"llama3", map[string]any{"kind": "template", "regex": regexLlama3, "special": []string{"<|begin_of_text|>", "<|end_of_text|>"}, "ignore_merges": true}},
		{"qwen2", map[string]any{"kind": "split", "regex": regexQwen2, "normalizer": "NFC", "special": []string{EndOfTextSymbol}, "added": added}},
		{"o200k", map[string]any{"kind": "split", "regex": regexO200k, "special": []string{"<|return|>"}, "behavior": "removed", "invert": true, "added": added[4:6]}},
		{"tekken", map[string]any{"kind": "split", "regex": regexTekken, "normalizer": "NFKC", "special": []string{"<s>", "</s>"}, "added": added[1:5]}},
		{"digits", map[string]any{"kind": "digits", "special": []string{EndOfTextSymbol}, "added": added[2:4]}},
	}
}

// corpusLines returns the first 10,000 lines of each development corpus, or skips.
func corpusLines(t *testing.T) (files []string, lines [][]byte) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(corpora, "*"))
	if err != nil || len(files) == 0 {
		t.Skipf("the development corpora are not at %s", corpora)
	}
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		all := bytes.SplitAfter(raw, []byte("\n"))
		lines = append(lines, all[:min(len(all), 10000)]...)
	}
	return files, lines
}

// sameIDs holds a tokenizer to the Python package with the file at path, in both modes, on texts, and its decoding.
func (p peer) sameIDs(tok *BPE, path string, texts [][]byte) {
	p.t.Helper()
	for _, special := range []bool{true, false} {
		for part := range slices.Chunk(texts, 2000) {
			var answer struct{ IDs [][]int32 }
			p.Ask(map[string]any{"do": "encode", "path": path, "special": special, "texts": part}, &answer)
			for i, want := range answer.IDs {
				got := tok.Encode(nil, part[i])
				if special {
					got = tok.EncodeAll(nil, part[i])
				}
				if !slices.Equal(got, want) {
					p.t.Fatalf("%s, special %v: %.300q has IDs %v, in Python %v", path, special, part[i], got, want)
				}
			}
		}
	}
}

func TestInteropLoaded(t *testing.T) {
	p := startPython(t)
	files, lines := corpusLines(t)
	rng := rand.New(rand.NewPCG(5, 6))
	for range 10000 {
		lines = append(lines, randomText(rng, 40))
	}
	lines = append(lines, []byte{})
	for _, k := range interopKinds() {
		path := filepath.Join(t.TempDir(), k.name+".json")
		k.request["do"], k.request["path"], k.request["files"], k.request["vocab"] = "train", path, files, 3000
		var answer struct{ Merges []string }
		p.Ask(k.request, &answer)
		tok := loadFile(t, path)
		p.sameIDs(tok, path, lines)
		again := path + ".again"
		if err := os.WriteFile(again, tok.file, 0o600); err != nil {
			t.Fatal(err)
		}
		p.sameIDs(loadFile(t, again), again, lines[len(lines)-3000:])
		t.Logf("%s: %d texts", k.name, len(lines))
	}
}

func loadFile(t testing.TB, path string) *BPE {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	tok, err := Load(raw, nil)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return tok.(*BPE)
}

// TestInteropTrained trains on the same texts here and there: equal merges, and equal IDs with the file written here.
func TestInteropTrained(t *testing.T) {
	p := startPython(t)
	files, lines := corpusLines(t)
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		tok, report, err := Train(t.Context(), linesOf(raw), TrainOptions{Vocab: 8000})
		if err != nil {
			t.Fatal(err)
		}
		var answer struct{ Merges []string }
		path := filepath.Join(t.TempDir(), "python.json")
		p.Ask(map[string]any{"do": "train", "path": path, "kind": "split", "regex": regexLlama3, "special": []string{EndOfTextSymbol}, "files": []string{f}, "vocab": 8000}, &answer)
		s, err := parse(tok.file)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(s.merges, answer.Merges) {
			for i := range s.merges {
				if i >= len(answer.Merges) || s.merges[i] != answer.Merges[i] {
					t.Errorf("%s: merge %d of %d is %q, in Python %q of %d", filepath.Base(f), i, len(s.merges), s.merges[i], answer.Merges[min(i, len(answer.Merges)-1)], len(answer.Merges))
					break
				}
			}
		}
		t.Logf("%s: %+v", filepath.Base(f), report)
		own := filepath.Join(t.TempDir(), HuggingFaceName)
		if err := os.WriteFile(own, tok.file, 0o600); err != nil {
			t.Fatal(err)
		}
		p.sameIDs(tok, own, lines)
	}
}
