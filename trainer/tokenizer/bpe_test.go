package tokenizer

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// testCorpus is text of our own making.
func testCorpus() []byte {
	rng := rand.New(rand.NewPCG(21, 22))
	nouns := []string{"node", "round", "shard", "Lease", "tensor", "Straße", "schöner Morgen", "日本語", "GPU"}
	verbs := []string{"trains", "fetches", "doesn't merge", "signs", "averages", "we'll commit"}
	for range 120 { // made-up words, so that there are pairs enough to merge
		word := ""
		for range 2 + rng.IntN(3) {
			word += string("bdfgklmnprst"[rng.IntN(12)]) + string("aeiou"[rng.IntN(5)])
		}
		nouns = append(nouns, word)
	}
	var b bytes.Buffer
	for range 3000 {
		b.WriteString("The " + nouns[rng.IntN(len(nouns))] + " " + verbs[rng.IntN(len(verbs))] + " the " + nouns[rng.IntN(len(nouns))])
		b.WriteString([]string{".\n", "; ", " (123).\n", "!\n\n", " = 4.75,\t"}[rng.IntN(5)])
	}
	return b.Bytes()
}

var trainOnce = sync.OnceValues(func() (*BPE, error) {
	tok, _, err := Train(testContext, linesOf(testCorpus()), TrainOptions{Vocab: 512})
	return tok, err
})

func trained(t testing.TB) *BPE {
	t.Helper()
	tok, err := trainOnce()
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func TestBPERoundTrip(t *testing.T) {
	tok := trained(t)
	if tok.Vocab() != 512 || tok.EndOfText() != 256 {
		t.Fatalf("%d tokens, texts end with %d", tok.Vocab(), tok.EndOfText())
	}
	rng := rand.New(rand.NewPCG(1, 1))
	for range 2000 {
		text := randomText(rng, 50)
		for range rng.IntN(4) {
			text = append(text, byte(rng.IntN(256)))
		}
		ids := tok.Encode(nil, text)
		if got := tok.Decode(nil, ids); !bytes.Equal(got, text) {
			t.Fatalf("%q comes back as %q", text, got)
		}
		if slices.Contains(ids, tok.EndOfText()) {
			t.Fatalf("%q ends its own document", text)
		}
	}
	if got := tok.Decode([]byte("> "), []int32{-1, 256, 1 << 30, 512}); string(got) != "> " {
		t.Errorf("no text decodes to %q", got)
	}
	if all := tok.EncodeAll(nil, []byte("a"+EndOfTextSymbol)); len(all) != 2 || all[1] != 256 {
		t.Errorf("a special token spelled out is %v", all)
	}
}

// TestBPECompresses holds a trained tokenizer to what it is for.
func TestBPECompresses(t *testing.T) {
	text := testCorpus()
	if n := len(trained(t).Encode(nil, text)); 3*n > len(text) {
		t.Errorf("%d tokens for %d bytes of the text that was trained on", n, len(text))
	}
}

// What is cut before the tokenizer exists is cut as with it.
func TestTrainedCutIsThatOfTheTrained(t *testing.T) {
	if got := trained(t).documents; got != trainedRules {
		t.Errorf("a trained tokenizer has %+v, want %+v", got, trainedRules)
	}
}

func TestCutChangesNoID(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 2))
	cuts := 0
	for _, k := range knownSplits() {
		tok := withSplit(t, k)
		for range 500 {
			text := slices.Concat(randomText(rng, 12), []byte([]string{"word next", "x\nb", ".\n1", " \ny", "\n\nz", "a b"}[rng.IntN(6)]), randomText(rng, 3))
			at := Cut(tok, text)
			if at == 0 {
				continue
			}
			cuts++
			whole := tok.Encode(nil, text)
			if parts := tok.Encode(tok.Encode(nil, text[:at]), text[at:]); !slices.Equal(parts, whole) {
				t.Fatalf("%s: %q cut at %d has IDs %v, whole %v", k.regex, text, at, parts, whole)
			}
		}
	}
	if cuts < 1000 {
		t.Errorf("only %d cuts", cuts)
	}
}

// withSplit returns the trained tokenizer with another splitter.
func withSplit(t testing.TB, k knownSplit) *BPE {
	t.Helper()
	s, err := parse(trained(t).file)
	if err != nil {
		t.Fatal(err)
	}
	s.steps[0] = splitStep(k)
	tok, err := s.build(256, configJSON{})
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func TestLongWordsMergeLikeShortOnes(t *testing.T) {
	tok := trained(t)
	var few, many merger
	rng := rand.New(rand.NewPCG(3, 3))
	for range 2000 {
		var symbols []int32
		for _, b := range testCorpus()[rng.IntN(1000):][:2+rng.IntN(fewSymbols-2)] {
			symbols = append(symbols, tok.bytes[b])
		}
		want := few.apply(&tok.merges, slices.Clone(symbols))
		if got := many.long.apply(&tok.merges, slices.Clone(symbols)); !slices.Equal(got, want) {
			t.Fatalf("%v merges to %v by the heap, %v by looking at all", symbols, got, want)
		}
	}
}

func TestEncodeIsConcurrentAndAllocatesNothing(t *testing.T) {
	tok, text := trained(t), testCorpus()
	want := tok.Encode(nil, text)
	var work sync.WaitGroup
	for range 4 {
		work.Go(func() {
			if got := tok.Encode(nil, text); !slices.Equal(got, want) {
				t.Error("IDs differ between goroutines")
			}
		})
	}
	work.Wait()
	ids := make([]int32, 0, len(text))
	if n := testing.AllocsPerRun(5, func() { ids = tok.Encode(ids[:0], text) }); n > 1 {
		t.Errorf("%v allocations to encode %d tokens", n, len(want))
	}
}

// goldenCase is a tokenizer with texts and the IDs that the Python package gave, special tokens recognised and not.
type goldenCase struct {
	Name  string   `json:"name"`
	Texts []string `json:"texts"`
	All   [][]int  `json:"all"`
	Text  [][]int  `json:"text"`
}

// TestGoldenPython compares with what the Python package (0.23.3) gave, recorded by TestInteropGolden with -update.
func TestGoldenPython(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("testdata", "python", "*.ids.json"))
	if err != nil || len(files) < 7 {
		t.Fatalf("%d fixtures, %v", len(files), err)
	}
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		var c goldenCase
		if err := json.Unmarshal(raw, &c); err != nil {
			t.Fatal(err)
		}
		tok := loadFile(t, strings.Replace(f, ".ids.json", ".tokenizer.json", 1))
		for i, text := range c.Texts {
			if got := tok.EncodeAll(nil, []byte(text)); !equalInts(got, c.All[i]) {
				t.Errorf("%s: %q has IDs %v, in Python %v", c.Name, text, got, c.All[i])
			}
			if got := tok.Encode(nil, []byte(text)); !equalInts(got, c.Text[i]) {
				t.Errorf("%s: document %q has IDs %v, in Python %v", c.Name, text, got, c.Text[i])
			}
		}
	}
}

func equalInts(a []int32, b []int) bool {
	return slices.EqualFunc(a, b, func(x int32, y int) bool { return int(x) == y })
}

func FuzzBPE(f *testing.F) {
	f.Add([]byte("The node doesn't merge 日本語.\n"))
	f.Add([]byte("\xff\x00<|endoftext|>"))
	f.Add(bytes.Repeat([]byte("tensor"), 40))
	f.Fuzz(func(t *testing.T, text []byte) {
		tok := trained(t)
		ids := tok.Encode(nil, text)
		if got := tok.Decode(nil, ids); !bytes.Equal(got, text) {
			t.Fatalf("%q comes back as %q", text, got)
		}
		if at := Cut(tok, text); at > 0 {
			if parts := tok.Encode(tok.Encode(nil, text[:at]), text[at:]); !slices.Equal(parts, ids) {
				t.Fatalf("%q cut at %d has other IDs", text, at)
			}
		}
	})
}
