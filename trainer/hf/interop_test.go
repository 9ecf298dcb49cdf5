package hf

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/engine/native"
	"github.com/capacloud/capanode/trainer/internal/python"
	"github.com/capacloud/capanode/trainer/model"
	"github.com/capacloud/capanode/trainer/tokenizer"
)

// pythonPackages is what the interop tests compare with; the recorded folders are of these versions.
var pythonPackages = map[string]string{"torch": "2.13.0", "transformers": "5.23.0", "tokenizers": "0.23.3", "safetensors": "0.8.0"}

// tolerance is how far logits in 32-bit floats may be apart.
const tolerance = 1e-4

// peer answers with the Python packages.
type peer struct{ *python.Process }

// startPython starts testdata/interop.py. Installing the packages takes some gigabytes.
func startPython(t testing.TB) peer {
	t.Helper()
	var packages []string
	for name, version := range pythonPackages {
		packages = append(packages, name+"=="+version)
	}
	p := peer{python.Start(t, "testdata/interop.py", packages...)}
	for name, have := range p.ask(map[string]any{"do": "version"}).Versions {
		if want := pythonPackages[name]; have != want {
			t.Fatalf("%s is of version %s, want %s", name, have, want)
		}
	}
	return p
}

// answer is what the script says.
type answer struct {
	Logits   []float64
	Odd      string // what transformers missed, or did not expect, while it loaded
	Tokens   [][]int32
	Mask     *int32
	Versions map[string]string
}

// ask sends a request and reads the answer.
func (p peer) ask(request map[string]any) (a answer) {
	p.Ask(request, &a)
	return a
}

// logitsOf computes a model's logits of some rows of tokens.
func logitsOf(t testing.TB, m Model, ids, types [][]int32) []float32 {
	t.Helper()
	p, err := m.Spec.Program()
	if err != nil {
		t.Fatal(err)
	}
	e, err := native.New(p, native.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	copy(e.State().Weights, m.Weights)
	b := engine.Batch{Rows: len(ids), Context: len(ids[0]), Inputs: slices.Concat(ids...)}
	if types != nil {
		b.Types = slices.Concat(types...)
	}
	out, err := e.Logits(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// near fails unless two lists of logits are equal within the tolerance, and returns how far they are apart.
func near(t testing.TB, got []float32, want []float64) float64 {
	t.Helper()
	if len(got) != len(want) || len(got) == 0 {
		t.Fatalf("%d logits, want %d", len(got), len(want))
	}
	worst, top := 0.0, 0.0
	for i, w := range want {
		worst, top = max(worst, math.Abs(float64(got[i])-w)), max(top, math.Abs(w))
	}
	if !(worst <= tolerance) || top < 0.1 {
		t.Fatalf("logits differ by %g; the largest is %g", worst, top)
	}
	return worst
}

// rows draws tokens.
func rows(rng *rand.Rand, count, length, below int) [][]int32 {
	all := make([][]int32, count)
	for i := range all {
		for range length {
			all[i] = append(all[i], int32(rng.IntN(below)))
		}
	}
	return all
}

// small returns a small model of a family with weights that leave nothing hidden.
func small(t testing.TB, family string, tied bool, tok tokenizer.Tokenizer) Model {
	t.Helper()
	s := model.Defaults(family)
	s.Vocab, s.Width, s.Layers, s.Heads, s.KVHeads, s.FeedForward, s.Context, s.TieEmbeddings = tok.Vocab(), 24, 2, 6, 6, 40, 20, tied
	if family == model.FamilyLlama {
		s.KVHeads = 2
	}
	s.Vocab = tokensOf(s, tok)
	params, total, err := layout(s)
	if err != nil {
		t.Fatal(err)
	}
	state, err := engine.NewState(params, 5)
	if err != nil || total != len(state.Weights) {
		t.Fatal(total, err)
	}
	rng := rand.New(rand.NewPCG(3, uint64(len(family))))
	for i := range state.Weights {
		state.Weights[i] += float32(rng.NormFloat64() / 4)
	}
	return Model{Spec: s, Params: state.Params, Weights: state.Weights, Tokenizer: tok}
}

var families = []string{model.FamilyLlama, model.FamilyGPT2, model.FamilyBERT}

// trained returns a small BPE.
func trained(t testing.TB) *tokenizer.BPE {
	t.Helper()
	tok, _, err := tokenizer.Train(t.Context(), func(yield func([]byte, error) bool) {
		for i := range 200 {
			if !yield(fmt.Appendf(nil, "the quick brown fox number %d jumps over the lazy dog and the other dog\n", i), nil) {
				return
			}
		}
	}, tokenizer.TrainOptions{Vocab: 300})
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// TestInteropExport lets transformers load what this program writes: it must find every tensor, give the same logits, and read
// texts as the same tokens.
func TestInteropExport(t *testing.T) {
	py := startPython(t)
	texts := []string{"the quick brown fox", "jumps over 13 lazy dogs, größer\n\tand other", "x"}
	for _, family := range families {
		for _, tied := range []bool{true, false} {
			for _, tok := range []tokenizer.Tokenizer{tokenizer.Byte{}, trained(t)} {
				m := small(t, family, tied, tok)
				dir := filepath.Join(t.TempDir(), "out")
				if err := Write(dir, m); err != nil {
					t.Fatal(err)
				}
				rng := rand.New(rand.NewPCG(1, 1))
				ids := rows(rng, 3, m.Spec.Context, m.Spec.Vocab)
				var types [][]int32
				if m.Spec.TokenTypes > 0 {
					types = rows(rng, 3, m.Spec.Context, m.Spec.TokenTypes)
				}
				a := py.ask(map[string]any{"do": "load", "folder": dir, "family": family, "ids": ids, "types": types})
				if a.Odd != "" {
					t.Errorf("%s tied=%v: transformers reports %s", family, tied, a.Odd)
				}
				off := near(t, logitsOf(t, m, ids, types), a.Logits)
				a = py.ask(map[string]any{"do": "tokens", "folder": dir, "texts": texts})
				for i, text := range texts {
					if want := tok.Encode(nil, []byte(text)); !slices.Equal(a.Tokens[i], want) {
						t.Errorf("%s %s: %q is %v in Python, %v here", family, tok.Name(), text, a.Tokens[i], want)
					}
				}
				if mask, _ := tokenizer.Masked(tok); family == model.FamilyBERT && (a.Mask == nil || *a.Mask != mask) {
					t.Errorf("the mask is %v in Python, %d here", a.Mask, mask)
				}
				t.Logf("%s tied=%v %.9s: logits differ by at most %.2g", family, tied, tok.Name(), off)
			}
		}
	}
}

// made is a model that transformers writes.
type made struct {
	name, family, dtype, shard string
	config                     map[string]any
}

// madeByPython are random models of each family, small enough to be recorded.
func madeByPython() []made {
	llama := func(more map[string]any) map[string]any {
		return with(map[string]any{"vocab_size": 19, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
			"intermediate_size": 12, "max_position_embeddings": 6, "bos_token_id": nil, "eos_token_id": nil}, more)
	}
	gpt2 := func(more map[string]any) map[string]any {
		return with(map[string]any{"vocab_size": 19, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 6, "bos_token_id": nil, "eos_token_id": nil}, more)
	}
	bert := func(more map[string]any) map[string]any {
		return with(map[string]any{"vocab_size": 19, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12,
			"max_position_embeddings": 6}, more)
	}
	untied := map[string]any{"tie_word_embeddings": false}
	return []made{
		{"llama", model.FamilyLlama, "bfloat16", "", llama(nil)},
		{"llama-tied", model.FamilyLlama, "float32", "2KB", llama(map[string]any{"tie_word_embeddings": true, "rope_theta": 500.0})},
		{"gpt2", model.FamilyGPT2, "float16", "", gpt2(map[string]any{"n_layer": 2})},
		{"gpt2-untied", model.FamilyGPT2, "float32", "3KB", gpt2(with(untied, map[string]any{"n_inner": 12, "activation_function": "gelu_pytorch_tanh"}))},
		{"bert", model.FamilyBERT, "float16", "2KB", bert(map[string]any{"num_hidden_layers": 2})},
		{"bert-untied", model.FamilyBERT, "float32", "", bert(with(untied, map[string]any{"type_vocab_size": 3}))},
	}
}

func with(base, more map[string]any) map[string]any {
	all := map[string]any{}
	for _, m := range []map[string]any{base, more} {
		for k, v := range m {
			all[k] = v
		}
	}
	return all
}

// recorded is what transformers said of a model that it wrote, beside the folder.
type recorded struct {
	IDs    [][]int32 `json:"ids"`
	Types  [][]int32 `json:"types,omitempty"`
	Logits []float64 `json:"logits"`
}

// TestInteropImport reads what transformers writes, and with -update keeps it for machines without Python.
func TestInteropImport(t *testing.T) {
	py := startPython(t)
	for i, c := range madeByPython() {
		rng := rand.New(rand.NewPCG(9, uint64(i)))
		dir := filepath.Join(t.TempDir(), c.name)
		if *update {
			dir = filepath.Join("testdata", "python", c.name)
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
		}
		r := recorded{IDs: rows(rng, 2, 6, 19)}
		if c.family == model.FamilyBERT {
			r.Types = rows(rng, 2, 6, 2)
		}
		a := py.ask(map[string]any{"do": "make", "folder": dir, "family": c.family, "config": c.config, "dtype": c.dtype, "shard": c.shard,
			"seed": 7 + i, "ids": r.IDs, "types": r.Types})
		r.Logits = a.Logits
		m, err := Read(dir)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		t.Logf("%s %s: logits differ by at most %.2g", c.name, c.dtype, near(t, logitsOf(t, m, r.IDs, r.Types), r.Logits))
		if !*update {
			continue
		}
		raw, err := marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "logits.json"), raw, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// TestRecordedByPython is TestInteropImport with what was recorded.
func TestRecordedByPython(t *testing.T) {
	for _, c := range madeByPython() {
		dir := filepath.Join("testdata", "python", c.name)
		m, err := Read(dir)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		raw, err := os.ReadFile(filepath.Join(dir, "logits.json"))
		if err != nil {
			t.Fatal(err)
		}
		var r recorded
		if err := json.Unmarshal(raw, &r); err != nil {
			t.Fatal(err)
		}
		near(t, logitsOf(t, m, r.IDs, r.Types), r.Logits)
		if m.Spec.Family != c.family || m.Type.String() != c.dtype {
			t.Errorf("%s: read as %s of %s", c.name, m.Spec.Family, m.Type)
		}
		again := filepath.Join(t.TempDir(), c.name) // written by this program it is the same model
		if err := Write(again, m); err != nil {
			t.Fatal(err)
		}
		back, err := Read(again)
		if err != nil || back.Spec != m.Spec || !slices.Equal(back.Weights, m.Weights) {
			t.Errorf("%s: written and read it is %+v, %v", c.name, back.Spec, err)
		}
	}
}
