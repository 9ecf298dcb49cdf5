package hf

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/capacloud/capanode/trainer/model"
	"github.com/capacloud/capanode/trainer/tokenizer"
)

func TestFamiliesRoundTrip(t *testing.T) {
	for _, family := range families {
		for _, tied := range []bool{true, false} {
			for _, as := range []Type{Float32, BFloat16, Float16} {
				for _, tok := range []tokenizer.Tokenizer{tokenizer.Byte{}, trained(t)} {
					m := small(t, family, tied, tok)
					m.Type = as
					dir := filepath.Join(t.TempDir(), "out")
					if err := Write(dir, m); err != nil {
						t.Fatal(err)
					}
					got, err := Read(dir)
					if err != nil {
						t.Fatalf("%s tied=%v %v: %v", family, tied, as, err)
					}
					if got.Spec != m.Spec || got.Type != as || got.Tokenizer == nil || got.Tokenizer.Name() != tok.Name() {
						t.Errorf("%s tied=%v %v: read back %+v, tokenizer %v", family, tied, as, got.Spec, got.TokenizerProblem)
					}
					for i, w := range m.Weights {
						if off := math.Abs(float64(w - got.Weights[i])); off > []float64{0, 1.0 / 256, 1.0 / 2048}[as]*math.Abs(float64(w))+1e-7*float64(as) {
							t.Fatalf("%s tied=%v %v: weight %d is %v, was %v", family, tied, as, i, got.Weights[i], w)
						}
					}
				}
			}
		}
	}
}

// Every half becomes a float and the same half again; between two halves the nearer one is taken, of equally near ones the even.
func TestFloat16(t *testing.T) {
	for h := range 1 << 16 {
		v := fromFloat16(uint16(h))
		if exponent := h >> 10 & 31; exponent == 31 {
			if h&0x3ff != 0 != math.IsNaN(float64(v)) || h&0x3ff == 0 && toFloat16(v) != uint16(h) {
				t.Fatalf("%#04x is %v, and again %#04x", h, v, toFloat16(v))
			}
			continue
		}
		if toFloat16(v) != uint16(h) {
			t.Fatalf("%#04x is %v, and again %#04x", h, v, toFloat16(v))
		}
		next := fromFloat16(uint16(h + 1))
		if h&0x7fff == 0x7bff {
			next = float32(math.Copysign(65536, float64(v)))
		}
		half := (v + next) / 2 // exact
		even := uint16(h + h&1)
		if toFloat16(half) != even || toFloat16(math.Nextafter32(half, v)) != uint16(h) || toFloat16(math.Nextafter32(half, next)) != uint16(h+1) {
			t.Fatalf("between %v and %v: %#04x, %#04x, %#04x", v, next, toFloat16(math.Nextafter32(half, v)), toFloat16(half), toFloat16(math.Nextafter32(half, next)))
		}
	}
	if toFloat16(float32(math.NaN()))&0x7fff != 0x7e00 || toFloat16(maxFloat16) != 0x7bff || toFloat16(math.Nextafter32(maxFloat16, 1e9)) != 0x7c00 {
		t.Error("NaN or the limit is another one")
	}
}

// What config.json asks for and this program does not compute is refused with its key.
func TestConfigsAreRefusedByName(t *testing.T) {
	for family, asks := range map[string]map[string]string{
		model.FamilyLlama: {"hidden_act": `"gelu"`, "attention_bias": "true", "mlp_bias": "true", "rope_scaling": `{"rope_type":"llama3"}`, "rope_parameters": `{"rope_type":"yarn"}`,
			"pretraining_tp": "2", "head_dim": "6", "partial_rotary_factor": "0.5", "sliding_window": "128"},
		model.FamilyGPT2: {"activation_function": `"gelu"`, "scale_attn_weights": "false", "scale_attn_by_inverse_layer_idx": "true",
			"reorder_and_upcast_attn": "true", "add_cross_attention": "true"},
		model.FamilyBERT: {"hidden_act": `"relu"`, "position_embedding_type": `"relative_key"`, "is_decoder": "true"},
	} {
		both := map[string]string{"quantization_config": `{"bits":4}`, "torch_dtype": `"int8"`, "architectures": `["BertModel"]`, "model_type": `"mamba"`,
			"an_invention": "1", "HIDDEN_ACT": `"silu"`}
		for key, value := range both {
			asks[key] = value
		}
		s := small(t, family, true, tokenizer.Byte{}).Spec
		f, err := formatOf(s)
		if err != nil {
			t.Fatal(err)
		}
		for key, value := range asks {
			raw, err := marshal(f.write(s, Float32, nil))
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err := readConfig(raw); err != nil {
				t.Fatalf("%s: %v", family, err)
			}
			var all map[string]json.RawMessage
			if err := json.Unmarshal(raw, &all); err != nil {
				t.Fatal(err)
			}
			all[key] = json.RawMessage(value)
			if raw, err = json.Marshal(all); err != nil {
				t.Fatal(err)
			}
			if _, _, err := readConfig(raw); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), key) {
				t.Errorf("%s with %s %s: %v", family, key, value, err)
			}
		}
	}
}

// The published checkpoints of GPT-2 and BERT spell some tensors in an older way and hold some that the model does not read.
func TestOlderSpellings(t *testing.T) {
	for _, family := range []string{model.FamilyGPT2, model.FamilyBERT} {
		m := small(t, family, true, tokenizer.Byte{})
		dir := filepath.Join(t.TempDir(), family)
		if err := Write(dir, m); err != nil {
			t.Fatal(err)
		}
		tensors := storedAs(m.Spec, m.Params)
		weights := slices.Clone(m.Weights)
		for i := range tensors {
			name := &tensors[i].name
			*name = strings.TrimPrefix(*name, "transformer.")
			*name = strings.Replace(*name, "LayerNorm.weight", "LayerNorm.gamma", 1)
			*name = strings.Replace(*name, "LayerNorm.bias", "LayerNorm.beta", 1)
		}
		for _, name := range map[string][]string{model.FamilyGPT2: {"h.0.attn.bias", "lm_head.weight"}, model.FamilyBERT: {"bert.pooler.dense.bias", "cls.predictions.decoder.bias"}}[family] {
			p := m.Params[0]
			tensors = append(tensors, stored{name: name, shape: p.Shape, parts: m.Params[:1]})
		}
		var b bytes.Buffer
		if err := writeTensors(&b, tensors, weights, Float32); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, weightsFile), b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		got, err := Read(dir)
		if err != nil || !slices.Equal(got.Weights, m.Weights) {
			t.Errorf("%s: %v", family, err)
		}
	}
}

// shardedFolder writes a model whose weights are in two files, and its index after a change.
func shardedFolder(t testing.TB, change func(index map[string]string)) string {
	t.Helper()
	m := small(t, model.FamilyGPT2, true, tokenizer.Byte{})
	dir := filepath.Join(t.TempDir(), "out")
	if err := Write(dir, m); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, weightsFile)); err != nil {
		t.Fatal(err)
	}
	tensors, index := storedAs(m.Spec, m.Params), map[string]string{}
	for i, part := range [][]stored{tensors[:9], tensors[9:]} {
		name := fmt.Sprintf("model-%05d-of-00002.safetensors", i+1)
		var b bytes.Buffer
		if err := writeTensors(&b, part, m.Weights, Float32); err != nil {
			t.Fatal(err)
		}
		for _, s := range part {
			index[s.name] = name
		}
		if err := os.WriteFile(filepath.Join(dir, name), b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	change(index)
	raw, err := marshal(map[string]any{"metadata": map[string]any{"total_size": 1}, "weight_map": index})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, indexFile), raw, 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestShards(t *testing.T) {
	const tensor = "transformer.wte.weight"
	for name, c := range map[string]struct {
		change func(index map[string]string)
		want   error
	}{
		"as it should be":  {func(map[string]string) {}, nil},
		"the wrong file":   {func(i map[string]string) { i[tensor] = "model-00001-of-00002.safetensors" }, ErrFormat},
		"not in the index": {func(i map[string]string) { delete(i, tensor) }, ErrFormat},
		"outside":          {func(i map[string]string) { i["x"] = "../../etc/model.safetensors" }, ErrFormat},
		"a hidden file":    {func(i map[string]string) { i["x"] = ".model.safetensors" }, ErrFormat},
		"no weights":       {func(i map[string]string) { i["x"] = configFile }, ErrFormat},
		"a missing file":   {func(i map[string]string) { i["x"] = "model-00003-of-00002.safetensors" }, fs.ErrNotExist},
		"nothing":          {func(i map[string]string) { clear(i) }, ErrFormat},
		"too many files": {func(i map[string]string) {
			for n := range maxShards {
				i[fmt.Sprint(n)] = fmt.Sprintf("%d.safetensors", n)
			}
		}, ErrFormat},
		"a tensor less": {func(i map[string]string) {
			for k, v := range i {
				if v == i[tensor] {
					delete(i, k)
				}
			}
		}, ErrFormat},
	} {
		if _, err := Read(shardedFolder(t, c.change)); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// memory is a folder in memory.
type memory map[string][]byte

type memoryFile struct{ *bytes.Reader }

func (memoryFile) Close() error { return nil }

func (m memory) Open(name string) (File, error) {
	b, ok := m[name]
	if !ok {
		return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	return memoryFile{bytes.NewReader(b)}, nil
}

// FuzzFolder checks that whatever lies in a folder is a model that can be written, or an error that says what kind it is.
func FuzzFolder(f *testing.F) {
	for _, c := range madeByPython() {
		var files [3][]byte
		for i, name := range []string{configFile, indexFile, weightsFile} {
			files[i], _ = os.ReadFile(filepath.Join("testdata", "python", c.name, name)) // some have no index, some no single file
		}
		f.Add(files[0], files[1], files[2])
	}
	f.Fuzz(func(t *testing.T, config, index, weights []byte) {
		folder := memory{configFile: config, weightsFile: weights}
		if len(index) > 0 {
			folder[indexFile] = index
		}
		m, err := ReadFrom(folder)
		if err != nil {
			for _, kind := range []error{ErrFormat, ErrUnsupported, ErrNotFinite, fs.ErrNotExist} {
				if errors.Is(err, kind) {
					return
				}
			}
			t.Fatal(err)
		}
		if err := m.check(); err != nil {
			t.Fatal(err)
		}
	})
}
