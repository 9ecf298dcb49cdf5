package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/hf"
	"github.com/capacloud/capanode/trainer/job"
	"github.com/capacloud/capanode/trainer/peft"
)

// readModel is a model folder that was read. The model is whole: an adapter is merged into the model that it belongs to.
type readModel struct {
	hf.Model
	adapter *peft.Adapter // what the folder holds, when that is an adapter
	cid     cid.Cid       // where it is known
	bytes   int64         // of the folder
}

// isAdapter tells whether a folder holds an adapter.
func isAdapter(src hf.Source) bool {
	f, err := src.Open(peft.ConfigFile)
	return err == nil && f.Close() == nil
}

// holdsAdapter is isAdapter for a folder in the store.
func (n *Node) holdsAdapter(ctx context.Context, c cid.Cid) bool {
	entries, err := n.store.Entries(ctx, c)
	return err == nil && slices.ContainsFunc(entries, func(e storage.Entry) bool { return e.Name == peft.ConfigFile })
}

// load reads the model that a person names: a folder, or the CID, run or job of one that is in the store or the network.
func (n *Node) load(ctx context.Context, what string) (m readModel, c cid.Cid, err error) {
	if info, serr := os.Stat(what); serr == nil && info.IsDir() {
		m, err = n.readFolder(ctx, hf.Dir(what))
		return m, cid.Undef, err
	}
	if c, err = n.resolve(what); err != nil {
		return m, c, err
	}
	if err = n.needFolder(ctx, c); err != nil {
		return m, c, err
	}
	err = n.sound(ctx, c, func() (err error) { m, err = n.readModel(ctx, c); return err })
	return m, c, err
}

// readFolder reads a folder with a model, or with an adapter whose model is here or can be fetched.
func (n *Node) readFolder(ctx context.Context, src hf.Source) (m readModel, err error) {
	if !isAdapter(src) {
		m.Model, err = hf.ReadFrom(src)
		return m, err
	}
	head, err := peft.ReadHead(src)
	if err != nil {
		return m, err
	}
	if !head.Base.Defined() {
		return m, fmt.Errorf("the adapter does not name its model by CID: %w: merge it into its model with the program that made it", hf.ErrUnsupported)
	}
	if err := n.needFolder(ctx, head.Base); err != nil {
		return m, fmt.Errorf("the adapter's model: %w", err)
	}
	if n.holdsAdapter(ctx, head.Base) {
		return m, fmt.Errorf("the adapter belongs to %s, which is an adapter, too: %w", head.Base, hf.ErrFormat)
	}
	if m, err = n.readModel(ctx, head.Base); err != nil {
		return m, err
	}
	program, err := m.Spec.Program()
	if err != nil {
		return m, err
	}
	a, err := head.ReadWeights(src, program)
	if err == nil {
		err = a.LoRA.Merge(a.Pairs, m.Params, m.Weights, a.Params, a.Weights)
	}
	m.adapter, m.Provenance = &a, a.Provenance
	return m, err
}

// trained returns the weights that the run's members agreed on, which prove that a model is theirs. What they did not train must be
// what the run began with.
func (m readModel) trained(r job.Record, fixed frozen) ([]float32, error) {
	l, pairs, adapters, err := r.LoRA()
	switch {
	case err != nil:
		return nil, err
	case adapters != (m.adapter != nil):
		return nil, errors.New("it is an adapter where a model is due, or a model where an adapter is")
	case adapters:
		a := m.adapter
		if a.LoRA.Rank != l.Rank || a.LoRA.Alpha != l.Alpha || !slices.Equal(a.Pairs, pairs) || m.Provenance.Init != r.Init.String() {
			return nil, errors.New("its rank, alpha, modules or model are not the run's")
		}
		return a.Weights, nil
	case len(r.Freeze) == 0:
		return m.Weights, nil
	}
	program, err := r.Program()
	if err != nil {
		return nil, err
	}
	params, _, err := engine.Split(program.Params)
	if err != nil {
		return nil, err
	}
	view := func(name string) []float32 {
		i := slices.IndexFunc(m.Params, func(p engine.Param) bool { return p.Name == name })
		p := m.Params[i]
		return m.Weights[p.Offset : p.Offset+p.Size()]
	}
	for _, p := range fixed.params {
		if !slices.Equal(view(p.Name), fixed.flat[p.Offset:p.Offset+p.Size()]) {
			return nil, fmt.Errorf("%s is frozen, and has changed", p.Name)
		}
	}
	var all []float32
	for _, p := range params {
		all = append(all, view(p.Name)...)
	}
	return all, nil
}

// writeModel writes what a run has trained so far: its adapter, or its model.
func (t *task) writeModel(dir string, weights []float32, p hf.Provenance) error {
	program, err := t.rec.Program()
	if err != nil {
		return err
	}
	trained, _, err := engine.Split(program.Params)
	if err != nil {
		return err
	}
	l, pairs, adapters, err := t.rec.LoRA()
	if err != nil {
		return err
	}
	if adapters {
		return peft.Write(dir, peft.Adapter{LoRA: l, Pairs: pairs, Params: trained, Weights: weights, Context: t.rec.Model.Context, Tokenizer: t.tok, Provenance: p})
	}
	whole, total, err := engine.Layout(program.Params)
	if err != nil {
		return err
	}
	m := hf.Model{Spec: t.rec.Model, Params: whole, Weights: weights, Tokenizer: t.tok, Provenance: p}
	if len(t.rec.Freeze) > 0 {
		m.Weights = make([]float32, total)
		var parts = []frozen{{trained, weights}, t.fixed}
		for _, part := range parts {
			for _, q := range part.params {
				to := whole[slices.IndexFunc(whole, func(w engine.Param) bool { return w.Name == q.Name })]
				copy(m.Weights[to.Offset:to.Offset+to.Size()], part.flat[q.Offset:])
			}
		}
	}
	return hf.Write(dir, m)
}

// merged is a model with its adapter in it as a model of its own: its weights are no state that a run agreed on.
func merged(m hf.Model) hf.Model {
	m.Provenance.State, m.Provenance.Head, m.Provenance.Momentum = "", "", ""
	return m
}

// adapterDir is where the adapter of a run goes whose merged model goes to out.
func adapterDir(out string) string { return out + "-adapter" }

// adapterDestination checks early that the adapter will have a place to go.
func (r *requester) adapterDestination() error {
	if r.file.LoRA.Rank == 0 {
		return nil
	}
	dir := adapterDir(r.outDir)
	entries, err := os.ReadDir(dir)
	if len(entries) > 0 && adapterRun(dir) == "" || err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: %s, where the adapter goes, is not empty; choose another --out, nothing is overwritten", ErrUsage, dir)
	}
	return nil
}

// adapterRun is the run whose adapter a folder holds, or nothing.
func adapterRun(dir string) string {
	head, err := peft.ReadHead(hf.Dir(dir))
	if err != nil {
		return ""
	}
	return head.Provenance.Run
}

// deliver writes the model to where it was asked for; of a run that trains an adapter the merged model, and the adapter beside it.
func (r *requester) deliver(ctx context.Context, m *pulled) error {
	if m.model.adapter == nil {
		return r.store.Export(ctx, m.cid, r.log.Out)
	}
	dir := adapterDir(r.log.Out)
	if adapterRun(dir) != r.run.String() {
		if err := clearEmpty(dir); err != nil {
			return err
		}
		if err := r.store.Export(ctx, m.cid, dir); err != nil {
			return err
		}
	}
	return hf.Write(r.log.Out, merged(m.model.Model))
}
