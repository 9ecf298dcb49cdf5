// Package hf owns the folder that a trained model leaves in: the layout that the Hugging Face tools read, written so that
// every peer of a run writes the same bytes, and read back as hostile input. It refuses to know how a model was trained
// and where the folder goes (room storage).
//
// What a folder contains is described in docs/models.md.
package hf

import (
	"errors"
	"fmt"
	"io/fs"
	"math"

	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/model"
	"github.com/capacloud/capanode/trainer/tokenizer"
)

// ErrOccupied reports a destination that holds something that an export must not replace.
var ErrOccupied = errors.New("destination is not empty")

// ErrFormat reports a folder or file that is malformed or lies about its content.
var ErrFormat = errors.New("malformed model files")

// ErrUnsupported reports a folder that is well-formed and asks for what this program does not do.
var ErrUnsupported = errors.New("unsupported model")

// ErrNotFinite reports weights that hold NaN or an infinity.
var ErrNotFinite = errors.New("weights are not finite")

// Names of the files in a folder.
const (
	configFile     = "config.json"
	generationFile = "generation_config.json"
	weightsFile    = "model.safetensors"
	indexFile      = "model.safetensors.index.json" // of weights in several files
	cardFile       = "README.md"
	provenanceFile = "capanode.json"
)

// What is read of a file at most, in bytes.
const (
	maxJSON      = 1 << 20
	maxTokenizer = tokenizer.MaxFile // vocabularies of other models run to tens of megabytes
)

// Model is all that a folder says.
type Model struct {
	Spec       model.Spec
	Params     []engine.Param // canonical order; offsets point into Weights
	Weights    []float32
	Type       Type                // how the folder stores the weights; a bfloat16 one does not prove that they belong to a state
	Tokenizer  tokenizer.Tokenizer // nil leaves the tokenizer files out; nil after Read when the folder has none that can be applied
	Provenance Provenance          // zero after Read when the folder has none

	TokenizerProblem error // after Read: why the folder's tokenizer cannot be applied
}

// Provenance says where a model comes from. It is written into the folder, so it may hold only what every peer of the
// run agrees on: nothing measured on one machine, no time, no peer.
type Provenance struct {
	Version int     `json:"version"`        // [ProvenanceVersion]; Write sets it
	Name    string  `json:"name"`           // of the job
	Run     string  `json:"run"`            // CID of the job record
	Dataset string  `json:"dataset"`        // CID of the dataset manifest
	Init    string  `json:"init,omitempty"` // CID of the model that the run started from; empty for random weights
	Round   uint64  `json:"round"`          // rounds committed
	Step    uint64  `json:"step"`           // nominal optimiser steps committed
	Tokens  uint64  `json:"tokens"`         // tokens of all peers in the committed rounds
	State   string  `json:"state"`          // hash of the replicated state whose weights these are, as the rounds name it, hex
	Loss    float64 `json:"loss"`           // agreed held-out loss in nats per token; 0 means not measured

	// Hashes of the state's other parts, hex: with them the weights prove that they belong to the state. Empty when unknown.
	Head     string `json:"state_head,omitempty"`
	Momentum string `json:"state_momentum,omitempty"`
}

// ProvenanceVersion is the version of capanode.json.
const ProvenanceVersion = 1

// check refuses a model whose parts do not belong together.
func (m Model) check() error {
	params, total, err := layout(m.Spec)
	if err != nil {
		return err
	}
	if len(m.Params) != len(params) || len(m.Weights) != total {
		return fmt.Errorf("hf: %d tensors with %d elements, the model has %d with %d: %w",
			len(m.Params), len(m.Weights), len(params), total, engine.ErrShape)
	}
	for i, p := range params {
		got := m.Params[i]
		if got.Name != p.Name || got.Offset != p.Offset || !equalShape(got.Shape, p.Shape) {
			return fmt.Errorf("hf: tensor %d is %s %v at %d, the model has %s %v at %d: %w",
				i, got.Name, got.Shape, got.Offset, p.Name, p.Shape, p.Offset, engine.ErrShape)
		}
	}
	if m.Tokenizer != nil && tokensOf(m.Spec, m.Tokenizer) > m.Spec.Vocab {
		return fmt.Errorf("hf: tokenizer %s has %d tokens, the model %d: %w",
			m.Tokenizer.Name(), tokensOf(m.Spec, m.Tokenizer), m.Spec.Vocab, engine.ErrShape)
	}
	if l := m.Provenance.Loss; math.IsNaN(l) || math.IsInf(l, 0) {
		return fmt.Errorf("hf: loss %v: %w", l, ErrNotFinite)
	}
	switch m.Type {
	case BFloat16:
		return finite(m.Params, m.Weights, maxBFloat16)
	case Float16:
		return finite(m.Params, m.Weights, maxFloat16)
	}
	return finite(m.Params, m.Weights, math.MaxFloat32)
}

// The largest numbers that round to a finite bfloat16 and a finite half.
const (
	maxBFloat16 = 0x1.FEFFFEp127
	maxFloat16  = 0x1.FFDFFEp15
)

// tokensOf returns how many tokens a model with that tokenizer has at least: one that fills gaps needs a token for them.
func tokensOf(s model.Spec, t tokenizer.Tokenizer) int {
	if s.Task() == model.TaskMasked {
		_, vocab := tokenizer.Masked(t)
		return vocab
	}
	return t.Vocab()
}

func layout(spec model.Spec) ([]engine.Param, int, error) {
	program, err := spec.Program()
	if err != nil {
		return nil, 0, fmt.Errorf("hf: %w", err)
	}
	return engine.Layout(program.Params)
}

func equalShape(a, b []int) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// finite names the first tensor with a NaN or a number beyond the limit, as an infinity is.
func finite(params []engine.Param, weights []float32, limit float32) error {
	for _, p := range params {
		for _, w := range weights[p.Offset : p.Offset+p.Size()] {
			if !(w <= limit && w >= -limit) {
				return fmt.Errorf("hf: tensor %s: %w", p.Name, ErrNotFinite)
			}
		}
	}
	return nil
}

// Read reads a folder of the file system. Nothing in it is trusted: sizes are checked before anything is allocated, shapes
// against the configuration, values for being finite. Read are the families of package model, in one file or several, of 32-bit,
// bfloat16 or half-precision floats; anything else is [ErrUnsupported], anything contradictory [ErrFormat].
func Read(dir string) (Model, error) {
	m, err := ReadFrom(Dir(dir))
	if err != nil {
		return Model{}, fmt.Errorf("%s: %w", dir, err)
	}
	return m, nil
}

// ReadFrom is [Read] for a folder that lies elsewhere. It reads each file once, from its beginning to its end, the weights after
// the small files, so that a folder can be read while it arrives.
func ReadFrom(src Source) (Model, error) {
	raw, err := readSmall(src, configFile, maxJSON)
	if err != nil {
		return Model{}, err
	}
	spec, dtype, err := readConfig(raw)
	if err != nil {
		return Model{}, err
	}
	params, total, err := layout(spec)
	if err != nil {
		return Model{}, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	m := Model{Spec: spec, Params: params}
	if err := m.readTokenizer(src); err != nil {
		return Model{}, err
	}
	err = readJSON(src, provenanceFile, &m.Provenance)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil // a folder made elsewhere
	}
	if err == nil && m.Provenance.Version > ProvenanceVersion {
		err = fmt.Errorf("hf: %s has version %d, this program reads %d: %w",
			provenanceFile, m.Provenance.Version, ProvenanceVersion, ErrUnsupported)
	}
	if err != nil {
		return Model{}, err
	}
	m.Weights, m.Type, err = readWeights(src, spec, params, total)
	if err == nil && dtype != "" && dtype != m.Type.String() {
		err = fmt.Errorf("hf: %s says %s, the weights are %s: %w", configFile, dtype, m.Type, ErrFormat)
	}
	if err != nil {
		return Model{}, err
	}
	return m, nil
}
