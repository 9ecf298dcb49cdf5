package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/safetensors"
	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/hf"
	"github.com/capacloud/capanode/trainer/job"
)

// frozen is what a run leaves as it is, in the layout of an engine's state.
type frozen struct {
	params []engine.Param
	flat   []float32
}

// initElsewhere tells whether the model that the job starts from may have to be fetched.
func (r *requester) initElsewhere() bool {
	dir, ok := r.initFolder()
	return r.file.Init != "" && !(ok && !isAdapter(hf.Dir(dir)))
}

// initFolder returns the folder that the job's init names, if it is one.
func (r *requester) initFolder() (dir string, ok bool) {
	dir = besideJob(r.o.JobPath, r.file.Init)
	info, err := os.Stat(dir)
	return dir, r.file.Init != "" && err == nil && info.IsDir()
}

// findBase reads the model that the job starts from and puts it into the store, where the members fetch it.
func (r *requester) findBase(ctx context.Context) error {
	if r.file.Init == "" {
		return nil
	}
	var m readModel
	var c cid.Cid
	var err error
	if dir, ok := r.initFolder(); ok {
		m, err = r.readFolder(ctx, hf.Dir(dir))
	} else if m, c, err = r.load(ctx, r.file.Init); errors.Is(err, ErrNotFound) {
		err = fmt.Errorf("there is no folder %s, and no such CID or run: %w", dir, err)
	}
	if err == nil && m.Tokenizer == nil {
		err = fmt.Errorf("its text cannot be made into tokens: %w: %w", hf.ErrUnsupported, m.TokenizerProblem)
	}
	if err == nil && (!c.Defined() || m.adapter != nil) {
		c, err = r.addModel(ctx, m.Model)
	}
	if err != nil {
		return fmt.Errorf("init %s: %w", r.file.Init, err)
	}
	m.cid = c
	r.base = &m
	return r.file.StartFrom(job.Base{CID: c, Spec: m.Spec})
}

// addModel puts a model into the store as this program writes it, so that what else lies in its folder does not travel. The
// folder of a model that this program wrote keeps its CID.
func (n *Node) addModel(ctx context.Context, m hf.Model) (c cid.Cid, err error) {
	parent, err := n.home.sub("tmp")
	if err != nil {
		return c, err
	}
	tmp, err := os.MkdirTemp(parent, "capanode-init-*")
	if err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	dir := filepath.Join(tmp, "model")
	if err := hf.Write(dir, m); err != nil {
		return c, err
	}
	return n.store.AddPath(ctx, dir, storage.PutOptions{Class: storage.Cached, Cut: safetensors.Cut})
}

// keepBase protects the model that the run starts from until the run has ended.
func (r *requester) keepBase(ctx context.Context) error {
	if r.base == nil {
		return nil
	}
	r.log.Init = r.base.cid.String()
	return r.store.Pin(ctx, initPin(r.run.String()), r.base.cid)
}

// initName is the CID of the model that the run starts from, or nothing.
func (r *requester) initName() string {
	if r.rec.Init == nil {
		return ""
	}
	return r.rec.Init.String()
}

// tokenizerOfBase takes the tokenizer of the model that the run starts from. A dataset or a job that names another is a mistake.
func (r *requester) tokenizerOfBase(ctx context.Context) error {
	tok, d := r.base.Tokenizer, r.file.Data
	switch {
	case d.CID != "":
		if err := r.tokenizerOf(ctx, d.CID); err != nil {
			return err
		}
		if have := r.text.tok.Name(); have != tok.Name() {
			return fmt.Errorf("%w: dataset %s is made of tokens of %s, the model of init reads %s: name the text in data.paths instead", ErrJob, d.CID, have, tok.Name())
		}
	case r.file.NamesTokenizer():
		named, _, err := chosenTokenizer(ctx, r.bytes(), d, r.o.JobPath)
		if err != nil {
			return fmt.Errorf("%w: data.tokenizer: %w", ErrJob, elsewhere(err))
		}
		if named == nil || named.Name() != tok.Name() {
			return fmt.Errorf("%w: data.tokenizer is %s, the model of init reads %s: leave data.tokenizer out", ErrJob, d.Tokenizer, tok.Name())
		}
	}
	r.text.tok, r.text.vocab = tok, tok.Vocab()
	return nil
}

// frozen returns what the run's model must hold besides what is trained; nothing where all of it is, or adapters alone are.
func (r *requester) frozen() (frozen, error) {
	if len(r.rec.Freeze) == 0 {
		return frozen{}, nil
	}
	program, err := r.rec.Program()
	if err != nil {
		return frozen{}, err
	}
	s, err := engine.NewState(program.Params, r.rec.Seed)
	if err == nil && r.base != nil {
		err = startAt(s, r.base.Model)
	}
	if err != nil {
		return frozen{}, err
	}
	return frozen{s.Frozen, s.Fixed}, nil
}

// startAt gives a fresh state the weights of a model. What the model does not have, such as adapters, stays as it is.
func startAt(s *engine.State, m hf.Model) error {
	found := 0
	for _, part := range []struct {
		params []engine.Param
		flat   []float32
	}{{s.Params, s.Weights}, {s.Frozen, s.Fixed}} {
		for _, p := range part.params {
			i := slices.IndexFunc(m.Params, func(q engine.Param) bool { return q.Name == p.Name })
			if i < 0 {
				continue
			}
			q := m.Params[i]
			if !slices.Equal(p.Shape, q.Shape) {
				return fmt.Errorf("parameter %s is %v, the model of init has %v: %w", p.Name, p.Shape, q.Shape, engine.ErrShape)
			}
			copy(part.flat[p.Offset:p.Offset+p.Size()], m.Weights[q.Offset:])
			found++
		}
	}
	if found != len(m.Params) {
		return fmt.Errorf("%d of the %d parameters of the model of init belong to the run's: %w", found, len(m.Params), engine.ErrShape)
	}
	return nil
}

// fetchBase brings the model that the run starts from and keeps it as long as the run goes on here.
func (t *task) fetchBase(ctx context.Context) error {
	if t.rec.Init == nil {
		return nil
	}
	_, params, err := t.rec.Trained()
	if err != nil {
		return err
	}
	if err := t.p.fetch.FetchWithin(ctx, t.rec.Init.Cid, 4*params+modelSlack, t.blobs.near()); err != nil {
		return fmt.Errorf("fetch the model that run %s starts from: %w", t.run, err)
	}
	return t.p.store.Pin(ctx, initPin(t.run.String()), t.rec.Init.Cid)
}

// start gives a fresh engine the weights that the run starts from. All members read the same folder, so all start at one state.
func (t *task) start(ctx context.Context, eng engine.Engine) error {
	s := eng.State()
	if t.rec.Init != nil {
		c := t.rec.Init.Cid
		if t.p.holdsAdapter(ctx, c) {
			return fmt.Errorf("run %s: %w: it starts from %s, an adapter and no model", t.run, ErrJob, c)
		}
		m, err := t.p.readModel(ctx, c)
		if err != nil {
			return fmt.Errorf("run %s: %w", t.run, err)
		}
		if m.Spec != t.rec.Model {
			return fmt.Errorf("run %s: %w: its model is not that of %s, which it starts from", t.run, ErrJob, c)
		}
		if err := startAt(s, m.Model); err != nil {
			return fmt.Errorf("run %s: %w: %w", t.run, ErrJob, err)
		}
	}
	if len(t.rec.Freeze) > 0 {
		t.fixed = frozen{s.Frozen, s.Fixed}
	}
	return nil
}
