package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/safetensors"
	"github.com/capacloud/capanode/trainer/hf"
)

// Imported is a model that was taken into the store.
type Imported struct {
	CID        string   `json:"checkpoint"`
	Family     string   `json:"family"`
	Parameters int      `json:"parameters"`
	Type       string   `json:"dtype"` // of the stored weights
	Vocab      int      `json:"vocab"`
	Context    int      `json:"context"`
	Tokenizer  string   `json:"tokenizer,omitempty"` // empty when it cannot be applied
	Problem    string   `json:"tokenizer_problem,omitempty"`
	Left       []string `json:"left_out,omitempty"` // entries of the folder that are no part of the model

	staged bool
}

// stagedPin holds a folder from its commit until it has the pin of its CID.
const stagedPin = "import"

// stagings begins the names of folders in the home in which imports are put together.
const stagings = "import-"

// Import takes a Hugging Face folder, or the folder that a CID names, into the store and pins it, so that it can be sampled from,
// measured and trained on by its CID. The files stay as they are. A model that this program would compute in another way is refused
// with the key of its configuration that asks for that; then, and when an import is cut short, nothing of it is kept.
func Import(ctx context.Context, u Use, what string) (got Imported, err error) {
	err = u.with(ctx, func(n *Node) error {
		var m hf.Model
		var c cid.Cid
		if info, serr := os.Stat(what); serr == nil && info.IsDir() {
			m, c, err = n.importFolder(ctx, what, &got)
		} else if c, err = n.resolve(what); err == nil {
			if err = n.needFolder(ctx, c); err == nil {
				var read readModel
				read, err = n.readModel(ctx, c)
				m = read.Model
			}
		}
		if err == nil {
			err = n.store.Pin(ctx, importPin(c), c)
		}
		if err == nil && got.staged {
			err = n.store.Unpin(ctx, stagedPin)
		}
		if err != nil {
			return err
		}
		got.CID, got.Family, got.Parameters, got.Type = c.String(), m.Spec.Family, len(m.Weights), m.Type.String()
		got.Vocab, got.Context = m.Spec.Vocab, m.Spec.Context
		if m.Tokenizer != nil {
			got.Tokenizer = m.Tokenizer.Name()
		} else if m.TokenizerProblem != nil {
			got.Problem = m.TokenizerProblem.Error()
		}
		return nil
	})
	return got, err
}

// importPin names the pin of an imported model; `checkpoint list` shows it like the models of runs.
func importPin(c cid.Cid) string {
	s := c.String()
	return checkpointPin("imported-"+s[len(s)-12:], 0)
}

// importFolder reads a model and stores the files that belong to it.
func (n *Node) importFolder(ctx context.Context, dir string, got *Imported) (m hf.Model, c cid.Cid, err error) {
	keep, leave, err := hf.Files(dir)
	if err != nil {
		return m, cid.Undef, err
	}
	got.Left = leave
	home, err := n.home.sub("tmp")
	if err != nil {
		return m, cid.Undef, err
	}
	old, err := filepath.Glob(filepath.Join(home, stagings+"*")) // of imports that were killed; the home is this process's alone
	for _, path := range old {
		err = errors.Join(err, os.RemoveAll(path))
	}
	if err != nil {
		return m, cid.Undef, err
	}
	staging, err := os.MkdirTemp(home, stagings)
	if err != nil {
		return m, cid.Undef, fmt.Errorf("import %s: %w", dir, err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(staging)) }()
	for _, name := range keep {
		if err := stage(ctx, filepath.Join(dir, name), filepath.Join(staging, name)); err != nil {
			return m, cid.Undef, fmt.Errorf("import %s: %w", dir, err)
		}
	}
	if m, err = hf.ReadFrom(hf.Dir(staging)); err != nil {
		return m, cid.Undef, fmt.Errorf("import %s: %w", dir, err)
	}
	c, err = n.store.AddPath(ctx, staging, storage.PutOptions{Pin: stagedPin, Class: storage.Cached, Cut: safetensors.Cut})
	got.staged = err == nil
	return m, c, err
}

// stage puts a file, or what a link to one leads to, into another folder: by a second name where the file system can, else as a copy.
func stage(ctx context.Context, from, to string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	real, err := filepath.EvalSymlinks(from) // caches of models are made of links
	if err != nil {
		return err
	}
	info, err := os.Stat(real)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is no regular file: %w", from, storage.ErrWrongKind)
	}
	if os.Link(real, to) == nil {
		return nil
	}
	in, err := os.Open(real)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, readerWith{ctx, in})
	return errors.Join(err, out.Close()) // the store's copy is the one that is synced
}

// readerWith ends with a context.
type readerWith struct {
	ctx context.Context
	r   io.Reader
}

func (r readerWith) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}
