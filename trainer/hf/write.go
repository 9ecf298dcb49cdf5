package hf

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/capacloud/capanode/trainer/model"
	"github.com/capacloud/capanode/trainer/tokenizer"
)

// file is one file of a folder and how its content is written.
type file struct {
	name  string
	write func(w io.Writer) error
}

// Write writes the model's folder to dir, which must not exist or be empty; anything else is [ErrOccupied]. The folder
// appears complete or not at all: it is written and synced beside dir under a hidden name and then renamed. What an
// earlier, interrupted Write left there is removed. Equal models give equal bytes in every file.
func Write(dir string, m Model) error {
	if err := m.check(); err != nil {
		return err
	}
	files, err := contents(m)
	if err != nil {
		return err
	}
	return writeFolder(dir, files)
}

// WriteFolder writes files, by their names, to dir as [Write] does.
func WriteFolder(dir string, contents map[string]func(w io.Writer) error) error {
	var files []file
	for name, write := range contents {
		files = append(files, file{name, write})
	}
	return writeFolder(dir, files)
}

func writeFolder(dir string, files []file) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("hf: %w", err)
	}
	if err := vacant(dir); err != nil {
		return err
	}
	parent := filepath.Dir(dir)
	partial := filepath.Join(parent, "."+filepath.Base(dir)+".partial")
	if err := discard(partial, files); err != nil {
		return err
	}
	if err := os.MkdirAll(partial, 0o755); err != nil {
		return fmt.Errorf("hf: %w", err)
	}
	for _, f := range files {
		if err := writeFile(filepath.Join(partial, f.name), f.write); err != nil {
			return errors.Join(err, discard(partial, files))
		}
	}
	if err := syncDir(partial); err != nil {
		return err
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("hf: %w", err)
	}
	if err := os.Rename(partial, dir); err != nil {
		return fmt.Errorf("hf: %w", err)
	}
	return syncDir(parent)
}

// vacant refuses a destination that is a file or a folder with entries.
func vacant(dir string) error {
	entries, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("hf: %s: %w: %w", dir, ErrOccupied, err)
	case len(entries) > 0:
		return fmt.Errorf("hf: %s holds %s: %w: choose another folder", dir, entries[0].Name(), ErrOccupied)
	}
	return nil
}

// discard removes what an interrupted Write left, and nothing that it did not write.
func discard(partial string, files []file) error {
	entries, err := os.ReadDir(partial)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("hf: %w", err)
	}
	for _, e := range entries {
		if !slices.ContainsFunc(files, func(f file) bool { return f.name == e.Name() }) {
			return fmt.Errorf("hf: %s holds %s: %w: move it away", partial, e.Name(), ErrOccupied)
		}
	}
	if err := os.RemoveAll(partial); err != nil {
		return fmt.Errorf("hf: %w", err)
	}
	return nil
}

func writeFile(path string, write func(w io.Writer) error) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return fmt.Errorf("hf: %w", err)
	}
	w := bufio.NewWriterSize(f, 1<<20)
	err = write(w)
	if err == nil {
		err = w.Flush()
	}
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("hf: write %s: %w", path, err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("hf: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("hf: sync %s: %w", dir, err)
	}
	return nil
}

// contents lists the files of a folder.
func contents(m Model) ([]file, error) {
	var end *int32
	var tokenizerFiles []tokenizer.File
	if m.Tokenizer != nil {
		id := m.Tokenizer.EndOfText()
		end = &id
		var err error
		files := tokenizer.HuggingFace
		if m.Spec.Task() == model.TaskMasked {
			files = tokenizer.HuggingFaceMasked
		}
		if tokenizerFiles, err = files(m.Tokenizer, m.Spec.Context); err != nil {
			return nil, fmt.Errorf("hf: %w", err)
		}
	}
	m.Provenance.Version = ProvenanceVersion
	f, err := formatOf(m.Spec)
	if err != nil {
		return nil, err
	}
	files := []file{
		{weightsFile, func(w io.Writer) error { return writeTensors(w, storedAs(m.Spec, m.Params), m.Weights, m.Type) }},
		{cardFile, func(w io.Writer) error { return writeCard(w, f, m) }},
	}
	small := map[string]any{configFile: f.write(m.Spec, m.Type, end), provenanceFile: m.Provenance}
	if m.Spec.Task() == model.TaskCausal {
		small[generationFile] = generationJSON{FromModel: true, Bos: end, Eos: orNil(end)}
	}
	for name, v := range small {
		raw, err := marshal(v)
		if err != nil {
			return nil, err
		}
		files = append(files, file{name, func(w io.Writer) error { _, err := w.Write(raw); return err }})
	}
	for _, t := range tokenizerFiles {
		files = append(files, file{t.Name, func(w io.Writer) error { _, err := w.Write(t.Data); return err }})
	}
	return files, nil
}

// marshal writes JSON as people read it: two spaces, no HTML escapes, a final newline.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("hf: encode JSON: %w", err)
	}
	return b.Bytes(), nil
}
