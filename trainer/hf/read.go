package hf

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/capacloud/capanode/trainer/model"
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
	load := tokenizer.Load
	if m.Spec.Task() == model.TaskMasked {
		load = tokenizer.LoadMasked
	}
	tok, err := load(raw, config)
	if err == nil && tokensOf(m.Spec, tok) > m.Spec.Vocab {
		err = fmt.Errorf("it has %d tokens, the model %d: %w", tokensOf(m.Spec, tok), m.Spec.Vocab, ErrFormat)
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
