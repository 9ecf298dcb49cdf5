package peft_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/capacloud/capanode/trainer/adapt"
	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/hf"
	"github.com/capacloud/capanode/trainer/model"
	"github.com/capacloud/capanode/trainer/peft"
	"github.com/capacloud/capanode/trainer/tokenizer"
)

const baseCID = "bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi"

func base(t testing.TB) engine.Program {
	t.Helper()
	p, err := model.Spec{Family: model.FamilyLlama, Vocab: 257, Width: 8, Layers: 2, Heads: 2, KVHeads: 1, FeedForward: 12, Context: 16,
		RopeTheta: 10000, NormEps: 1e-5, TieEmbeddings: true}.Program()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func sample(t testing.TB, targets ...string) peft.Adapter {
	t.Helper()
	a := peft.Adapter{LoRA: adapt.LoRA{Rank: 2, Alpha: 5, Targets: targets}, Context: 16, Tokenizer: tokenizer.Byte{},
		Provenance: hf.Provenance{Version: hf.ProvenanceVersion, Name: "a", Run: "r", Init: baseCID, Tokens: 7}}
	q, err := a.LoRA.Apply(base(t))
	if err != nil {
		t.Fatal(err)
	}
	if a.Pairs, err = a.LoRA.Modules(base(t)); err != nil {
		t.Fatal(err)
	}
	if a.Params, _, err = engine.Split(q.Params); err != nil {
		t.Fatal(err)
	}
	a.Weights = make([]float32, engine.Elements(a.Params))
	for i := range a.Weights {
		a.Weights[i] = float32(i%100)/64 - 1
	}
	return a
}

func write(t testing.TB, a peft.Adapter) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "adapter")
	if err := peft.Write(dir, a); err != nil {
		t.Fatal(err)
	}
	return dir
}

func read(t testing.TB, dir string) (peft.Adapter, error) {
	t.Helper()
	head, err := peft.ReadHead(hf.Dir(dir))
	if err != nil {
		return peft.Adapter{}, err
	}
	return head.ReadWeights(hf.Dir(dir), base(t))
}

// What is written reads back, for names and for all-linear, which becomes the names that it stands for; equal adapters are equal bytes.
func TestRoundTrip(t *testing.T) {
	for _, targets := range [][]string{{"q_proj", "mlp.down_proj"}, {adapt.AllLinear}} {
		want := sample(t, targets...)
		dir, again := write(t, want), write(t, want)
		got, err := read(t, dir)
		if err != nil || !slices.Equal(got.Weights, want.Weights) || !slices.Equal(got.Pairs, want.Pairs) || got.Provenance != want.Provenance {
			t.Errorf("%v: %+v, %v", targets, got.Provenance, err)
		}
		head, err := peft.ReadHead(hf.Dir(dir))
		if err != nil || head.Base.String() != baseCID || head.LoRA.Scale() != 2.5 {
			t.Errorf("%+v, %v", head, err)
		}
		entries, err := os.ReadDir(dir)
		if err != nil || len(entries) != 6 {
			t.Fatalf("%v, %v", entries, err)
		}
		for _, e := range entries {
			a, _ := os.ReadFile(filepath.Join(dir, e.Name()))
			b, _ := os.ReadFile(filepath.Join(again, e.Name()))
			if len(a) == 0 || !bytes.Equal(a, b) {
				t.Errorf("%s differs from write to write", e.Name())
			}
		}
	}
}

// The names, shapes and keys are those that PEFT reads.
func TestLayout(t *testing.T) {
	a := sample(t, "q_proj")
	names := []string{}
	for _, p := range a.Params {
		names = append(names, p.Name)
	}
	const q = "base_model.model.model.layers.0.self_attn.q_proj."
	if !slices.Contains(names, q+"lora_A.weight") || !slices.Contains(names, q+"lora_B.weight") || len(names) != 4 {
		t.Errorf("tensors %v", names)
	}
	raw, err := os.ReadFile(filepath.Join(write(t, a), "adapter_config.json"))
	if err != nil {
		t.Fatal(err)
	}
	var config map[string]any
	if err := json.Unmarshal(raw, &config); err != nil || config["peft_type"] != "LORA" || config["r"] != 2.0 || config["lora_alpha"] != 5.0 ||
		config["task_type"] != "CAUSAL_LM" || config["target_modules"].([]any)[0] != "q_proj" {
		t.Errorf("%s, %v", raw, err)
	}
}

func TestHostileFolders(t *testing.T) {
	for name, c := range map[string]struct {
		file, old, new string
		kind           error
	}{
		"other kind":      {"adapter_config.json", `"LORA"`, `"IA3"`, hf.ErrUnsupported},
		"rank-stabilised": {"adapter_config.json", `"use_rslora": false`, `"use_rslora": true`, hf.ErrUnsupported},
		"bias":            {"adapter_config.json", `"bias": "none"`, `"bias": "all"`, hf.ErrUnsupported},
		"huge rank":       {"adapter_config.json", `"r": 2`, `"r": 1000000000`, hf.ErrFormat},
		"other rank":      {"adapter_config.json", `"r": 2`, `"r": 3`, hf.ErrFormat},
		"negative alpha":  {"adapter_config.json", `"lora_alpha": 5`, `"lora_alpha": -5`, hf.ErrFormat},
		"no such module":  {"adapter_config.json", `"q_proj"`, `"c_attn"`, hf.ErrFormat},
		"no JSON":         {"adapter_config.json", `{`, `[`, hf.ErrFormat},
		"other tensor":    {"adapter_model.safetensors", "lora_A", "lora_X", hf.ErrFormat},
		"other type":      {"adapter_model.safetensors", `"F32"`, `"I32"`, hf.ErrFormat},
		"damaged header":  {"adapter_model.safetensors", `"data_offsets"`, `"data_offsetX"`, hf.ErrFormat},
		"not finite":      {"adapter_model.safetensors", "\x00\x00\x80\xbf", "\x00\x00\xc0\x7f", hf.ErrNotFinite},
	} {
		dir := write(t, sample(t, "q_proj"))
		path := filepath.Join(dir, c.file)
		raw, err := os.ReadFile(path)
		if err != nil || !strings.Contains(string(raw), c.old) {
			t.Fatalf("%s: nothing to change, %v", name, err)
		}
		if err := os.WriteFile(path, bytes.Replace(raw, []byte(c.old), []byte(c.new), 1), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := read(t, dir); !errors.Is(err, c.kind) {
			t.Errorf("%s: %v, want %v", name, err, c.kind)
		}
	}
	if _, err := peft.ReadHead(hf.Dir(t.TempDir())); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no adapter: %v", err)
	}
	a := sample(t, "q_proj")
	a.Weights[3] = float32(math.Inf(1))
	if err := peft.Write(filepath.Join(t.TempDir(), "x"), a); !errors.Is(err, hf.ErrNotFinite) {
		t.Errorf("infinite: %v", err)
	}
}

// memory is a folder in memory.
type memory map[string][]byte

type file struct{ *bytes.Reader }

func (file) Close() error { return nil }

func (m memory) Open(name string) (hf.File, error) {
	raw, ok := m[name]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return file{bytes.NewReader(raw)}, nil
}

// Any bytes are an adapter or an error.
func FuzzRead(f *testing.F) {
	dir := write(f, sample(f, "q_proj"))
	seed := func(name string) []byte {
		raw, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			f.Fatal(err)
		}
		return raw
	}
	config, weights := seed("adapter_config.json"), seed("adapter_model.safetensors")
	f.Add(config, weights)
	f.Add(config, weights[:len(weights)-1])
	f.Add([]byte(`{"peft_type":"LORA","r":1,"lora_alpha":1,"target_modules":["q_proj"],"rank_pattern":{"a":1}}`), weights)
	f.Fuzz(func(t *testing.T, config, weights []byte) {
		src := memory{"adapter_config.json": config, "adapter_model.safetensors": weights}
		head, err := peft.ReadHead(src)
		if err != nil {
			return
		}
		a, err := head.ReadWeights(src, base(t))
		if err == nil && len(a.Weights) != engine.Elements(a.Params) {
			t.Fatalf("%d weights", len(a.Weights))
		}
	})
}
