// Package peft owns the folder of a low-rank adapter, in the layout that the Python package PEFT reads: adapter_config.json and
// adapter_model.safetensors. Beside them lies capanode.json, which names the model that the adapter belongs to by CID. It
// refuses to own the arithmetic of adapters (package adapt) and full models (package hf).
//
// docs/models.md describes the layout.
package peft

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"slices"
	"strings"
	"text/template"

	_ "embed"

	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/storage/safetensors"
	"github.com/capacloud/capanode/trainer/adapt"
	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/hf"
	"github.com/capacloud/capanode/trainer/tokenizer"
)

// Names of the files in a folder.
const (
	ConfigFile     = "adapter_config.json"
	weightsFile    = "adapter_model.safetensors"
	cardFile       = "README.md"
	provenanceFile = "capanode.json"
)

// maxJSON is what is read of a JSON file at most, in bytes.
const maxJSON = 1 << 20

// Adapter is all that a folder says.
type Adapter struct {
	LoRA       adapt.LoRA
	Pairs      []adapt.Pair
	Params     []engine.Param // what is trained, in canonical order; offsets point into Weights
	Weights    []float32
	Context    int                 // of the model, for the tokenizer's files
	Tokenizer  tokenizer.Tokenizer // nil leaves its files out; nil after Read: it is the base model's
	Provenance hf.Provenance       // Init is the CID of the base model
}

// configJSON is adapter_config.json. What is not listed keeps PEFT's defaults.
type configJSON struct {
	Type       string   `json:"peft_type"`
	Task       string   `json:"task_type"`
	Base       string   `json:"base_model_name_or_path"`
	Rank       int      `json:"r"`
	Alpha      float64  `json:"lora_alpha"`
	Targets    []string `json:"target_modules"`
	Dropout    float64  `json:"lora_dropout"`
	Bias       string   `json:"bias"`
	FanInOut   bool     `json:"fan_in_fan_out"`
	Inference  bool     `json:"inference_mode"`
	RSLoRA     bool     `json:"use_rslora"`
	DoRA       bool     `json:"use_dora"`
	RankBy     any      `json:"rank_pattern,omitempty"`
	AlphaBy    any      `json:"alpha_pattern,omitempty"`
	Saved      any      `json:"modules_to_save"`
	Layers     any      `json:"layers_to_transform"`
	Parameters any      `json:"target_parameters,omitempty"`
}

// check refuses what would compute something else than [adapt.LoRA].
func (c configJSON) check() error {
	filled := func(v any) bool {
		switch v := v.(type) {
		case nil:
			return false
		case map[string]any:
			return len(v) > 0
		case []any:
			return len(v) > 0
		}
		return true
	}
	for what, asked := range map[string]bool{
		"peft_type": c.Type != "LORA", "bias": c.Bias != "" && c.Bias != "none", "use_rslora": c.RSLoRA, "use_dora": c.DoRA, "rank_pattern": filled(c.RankBy),
		"alpha_pattern": filled(c.AlphaBy), "modules_to_save": filled(c.Saved), "layers_to_transform": filled(c.Layers), "target_parameters": filled(c.Parameters),
	} {
		if asked {
			return fmt.Errorf("peft: %s: %s asks for what this program does not do: %w", ConfigFile, what, hf.ErrUnsupported)
		}
	}
	return nil
}

// Write writes the folder to dir as [hf.Write] does: complete or not at all, equal adapters as equal bytes.
func Write(dir string, a Adapter) error {
	if len(a.Weights) != engine.Elements(a.Params) {
		return fmt.Errorf("peft: %d weights for parameters of %d: %w", len(a.Weights), engine.Elements(a.Params), engine.ErrShape)
	}
	for _, w := range a.Weights {
		if !(math.Abs(float64(w)) <= math.MaxFloat32) {
			return fmt.Errorf("peft: %w", hf.ErrNotFinite)
		}
	}
	modules := a.LoRA.Targets
	if slices.Equal(modules, []string{adapt.AllLinear}) { // older versions of PEFT know names alone
		modules = nil
		for _, p := range a.Pairs {
			name := strings.TrimSuffix(p.Weight, ".weight")
			modules = append(modules, name[strings.LastIndexByte(name, '.')+1:])
		}
		slices.Sort(modules)
		modules = slices.Compact(modules)
	}
	a.Provenance.Version = hf.ProvenanceVersion
	config := configJSON{Type: "LORA", Task: "CAUSAL_LM", Base: a.Provenance.Init, Rank: a.LoRA.Rank, Alpha: a.LoRA.Alpha, Targets: modules, Bias: "none", Inference: true}
	files := map[string]func(io.Writer) error{
		ConfigFile:     writeJSON(config),
		provenanceFile: writeJSON(a.Provenance),
		cardFile:       func(w io.Writer) error { return writeCard(w, a) },
		weightsFile:    func(w io.Writer) error { return hf.WriteSafetensors(w, a.Params, a.Weights, hf.Float32) },
	}
	if a.Tokenizer != nil {
		made, err := tokenizer.HuggingFace(a.Tokenizer, a.Context)
		if err != nil {
			return fmt.Errorf("peft: %w", err)
		}
		for _, f := range made {
			files[f.Name] = func(w io.Writer) error { _, err := w.Write(f.Data); return err }
		}
	}
	return hf.WriteFolder(dir, files)
}

func writeJSON(v any) func(io.Writer) error {
	return func(w io.Writer) error {
		enc := json.NewEncoder(w)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "  ")
		return enc.Encode(v)
	}
}

//go:embed card.tmpl
var cardText string

func writeCard(w io.Writer, a Adapter) error {
	card, err := template.New("card").Parse(cardText)
	if err != nil {
		return fmt.Errorf("peft: card: %w", err)
	}
	return card.Execute(w, a)
}

// Head is what a folder says before its weights are read.
type Head struct {
	LoRA       adapt.LoRA
	Base       cid.Cid // folder of the model that the adapter belongs to; undefined when the folder does not name one by CID
	Provenance hf.Provenance
}

// ReadHead reads the small files of a folder, which are hostile input. A folder that is no adapter is [fs.ErrNotExist].
func ReadHead(src hf.Source) (h Head, err error) {
	var config configJSON
	if err := readJSON(src, ConfigFile, &config); err != nil {
		return h, err
	}
	if err := config.check(); err != nil {
		return h, err
	}
	h.LoRA = adapt.LoRA{Rank: config.Rank, Alpha: config.Alpha, Targets: config.Targets}
	if err := h.LoRA.Check(); err != nil {
		return h, fmt.Errorf("peft: %s: %w: %w", ConfigFile, hf.ErrFormat, err)
	}
	if err := readJSON(src, provenanceFile, &h.Provenance); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return h, err
	}
	for _, name := range []string{h.Provenance.Init, config.Base} {
		if c, err := cid.Decode(name); err == nil && !h.Base.Defined() {
			h.Base = c
		}
	}
	return h, nil
}

// ReadWeights reads the adapter's matrices for the model that it belongs to. The file must hold exactly what the head asks for, as
// 32-bit floats; its size is compared with that before anything is allocated.
func (h Head) ReadWeights(src hf.Source, base engine.Program) (a Adapter, err error) {
	a = Adapter{LoRA: h.LoRA, Context: base.Context, Provenance: h.Provenance}
	program, err := a.LoRA.Apply(base)
	if err == nil {
		a.Pairs, err = a.LoRA.Modules(base)
	}
	if err == nil {
		a.Params, _, err = engine.Split(program.Params)
	}
	if err != nil {
		return a, fmt.Errorf("peft: %w: %w", hf.ErrFormat, err)
	}
	f, err := src.Open(weightsFile)
	if err != nil {
		return a, fmt.Errorf("peft: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	tensors, err := safetensors.ReadHeader(f, f.Size())
	if err != nil {
		return a, fmt.Errorf("peft: %s: %w: %w", weightsFile, hf.ErrFormat, err)
	}
	if len(tensors) != len(a.Params) {
		return a, fmt.Errorf("peft: %s: %d tensors, %s asks for %d: %w", weightsFile, len(tensors), ConfigFile, len(a.Params), hf.ErrFormat)
	}
	a.Weights = make([]float32, engine.Elements(a.Params))
	for _, p := range a.Params {
		i := slices.IndexFunc(tensors, func(t safetensors.Tensor) bool { return t.Name == p.Name })
		if i < 0 || !slices.Equal(tensors[i].Shape, p.Shape) || tensors[i].Type != "F32" || tensors[i].Bytes != 4*int64(p.Size()) {
			return a, fmt.Errorf("peft: %s: no tensor %s of 32-bit floats %v: %w", weightsFile, p.Name, p.Shape, hf.ErrFormat)
		}
		if err := readFloats(io.NewSectionReader(f, tensors[i].Offset, tensors[i].Bytes), a.Weights[p.Offset:p.Offset+p.Size()]); err != nil {
			return a, fmt.Errorf("peft: %s: tensor %s: %w", weightsFile, p.Name, err)
		}
	}
	return a, nil
}
