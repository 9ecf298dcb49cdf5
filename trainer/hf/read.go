package hf

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"

	"github.com/capacloud/capanode/storage/safetensors"
	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/tokenizer"
)

// File is one file of a folder. A storage.Reader is one.
type File interface {
	io.ReaderAt
	io.Closer
	Size() int64
}

// Source is a folder, wherever it lies.
type Source interface {
	// Open opens a file by its name. One that is not there is [fs.ErrNotExist].
	Open(name string) (File, error)
}

// Dir is a folder of the file system.
type Dir string

// Open implements [Source].
func (d Dir) Open(name string) (File, error) {
	f, err := os.Open(filepath.Join(string(d), name))
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return osFile{f, info.Size()}, nil
}

type osFile struct {
	*os.File
	size int64
}

func (f osFile) Size() int64 { return f.size }

// readTokenizer reads the tokenizer of a folder. A model without one, or with one that this program cannot apply, is still
// a model.
func (m *Model) readTokenizer(src Source) error {
	raw, err := readSmall(src, tokenizer.HuggingFaceName, maxTokenizer)
	if errors.Is(err, fs.ErrNotExist) {
		m.TokenizerProblem = fmt.Errorf("hf: there is no %s: %w", tokenizer.HuggingFaceName, ErrUnsupported)
		return nil
	}
	if err != nil {
		return err
	}
	config, err := readSmall(src, tokenizer.ConfigName, maxJSON)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	tok, err := tokenizer.Load(raw, config)
	if err == nil && tok.Vocab() > m.Spec.Vocab {
		err = fmt.Errorf("it has %d tokens, the model %d: %w", tok.Vocab(), m.Spec.Vocab, ErrFormat)
	}
	if err != nil {
		m.TokenizerProblem = fmt.Errorf("hf: tokenizer: %w", err)
		return nil
	}
	m.Tokenizer = tok
	return nil
}

// readSmall reads a file of at most limit bytes.
func readSmall(src Source, name string, limit int64) ([]byte, error) {
	f, err := src.Open(name)
	if err != nil {
		return nil, fmt.Errorf("hf: %w", err)
	}
	defer f.Close()
	if f.Size() > limit {
		return nil, fmt.Errorf("hf: %s is larger than %d bytes: %w", name, limit, ErrFormat)
	}
	raw := make([]byte, f.Size())
	if n, err := f.ReadAt(raw, 0); n < len(raw) {
		return nil, fmt.Errorf("hf: read %s: %w", name, err)
	}
	return raw, nil
}

func readJSON(src Source, name string, v any) error {
	raw, err := readSmall(src, name, maxJSON)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("hf: %s: %w: %w", name, ErrFormat, err)
	}
	return nil
}

// readWeights reads a safetensors file that must hold exactly params, in one type, in the order of the file. The file's size is
// compared with what params need before the weights are allocated.
func readWeights(src Source, params []engine.Param, total int) ([]float32, Type, error) {
	f, err := src.Open(weightsFile)
	if err != nil {
		return nil, 0, fmt.Errorf("hf: %w", err)
	}
	defer f.Close()
	tensors, err := safetensors.ReadHeader(f, f.Size())
	if err != nil {
		return nil, 0, fmt.Errorf("hf: %s: %w: %w", weightsFile, ErrFormat, err)
	}
	as, err := match(tensors, params)
	if err != nil {
		return nil, 0, fmt.Errorf("hf: %s: %w", weightsFile, err)
	}
	byName := make(map[string]engine.Param, len(params))
	for _, p := range params {
		byName[p.Name] = p
	}
	weights := make([]float32, total)
	for _, t := range tensors {
		p := byName[t.Name]
		if err := readFloats(io.NewSectionReader(f, t.Offset, t.Bytes), weights[p.Offset:p.Offset+p.Size()], as); err != nil {
			return nil, 0, fmt.Errorf("hf: %s: tensor %s: %w", weightsFile, p.Name, err)
		}
	}
	if err := finite(params, weights, math.MaxFloat32); err != nil {
		return nil, 0, fmt.Errorf("%w: in %s", err, weightsFile)
	}
	return weights, as, nil
}

// match checks that the tensors are those of the model and returns their type.
func match(tensors []safetensors.Tensor, params []engine.Param) (Type, error) {
	if len(tensors) != len(params) {
		return 0, fmt.Errorf("%d tensors, config.json asks for %d: %w", len(tensors), len(params), ErrFormat)
	}
	byName := make(map[string]safetensors.Tensor, len(tensors))
	for _, t := range tensors {
		byName[t.Name] = t
	}
	var as Type
	for i, p := range params {
		t, ok := byName[p.Name]
		if !ok || !equalShape(t.Shape, p.Shape) {
			return 0, fmt.Errorf("tensor %s has shape %v, config.json asks for %v: %w", p.Name, t.Shape, p.Shape, ErrFormat)
		}
		known := false
		for k := range types {
			if types[k].tensor == t.Type && (i == 0 || as == Type(k)) {
				as, known = Type(k), true
			}
		}
		if !known {
			return 0, fmt.Errorf("tensor %s has elements of type %.20q; all of F32 or all of BF16 is what this program reads: convert the model: %w", p.Name, t.Type, ErrUnsupported)
		}
	}
	return as, nil
}
