package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"

	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/p2p"
	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/transfer"
	"github.com/capacloud/capanode/trainer/generate"
	"github.com/capacloud/capanode/trainer/hf"
)

// Use says which home a tool works on.
type Use struct {
	Home   string
	Config Config
	Log    *slog.Logger
	From   []string // addresses of nodes, of this network or IPFS nodes, that are asked first for what is not here
	Seeds  []string // web servers that have what is fetched, see [transfer.CheckSeed]
	Emit   Emit     // receives a [FetchEvent] now and then while something is fetched; nil means nobody looks
}

// with opens the home for one tool.
func (u Use) with(ctx context.Context, f func(*Node) error) (err error) {
	n, err := openNode(ctx, u.Home, u.Config, u.Log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.Close()) }()
	n.from, n.ask = u.From, u.asking()
	return f(n)
}

// need makes sure that an object is in the store, fetching it from the network when it is not.
func (n *Node) need(ctx context.Context, c cid.Cid) error {
	if ok, err := n.complete(ctx, c); ok || err != nil {
		return err
	}
	if n.net == nil {
		if err := n.join(ctx, p2p.Researcher); err != nil {
			return err
		}
		if len(n.from) == 0 {
			if err := n.reach(ctx); err != nil {
				return err
			}
		}
	}
	err := n.fetchAnyhow(ctx, c)
	if errors.Is(err, transfer.ErrNoProviders) {
		if broken, verr := n.broken(ctx, c); broken || verr != nil {
			err = errors.Join(fmt.Errorf("%s is damaged here: %w: no peer could repair it: %w", c, storage.ErrCorrupt, err), verr)
		}
	}
	return elsewhere(err)
}

// elsewhere adds what to do to the error of an object that nobody delivers.
func elsewhere(err error) error {
	if errors.Is(err, transfer.ErrNoProviders) {
		return fmt.Errorf("%w: try again when its owner is online, or pass --bootstrap ADDR of a network where somebody has it", err)
	}
	return err
}

// broken tells whether an object was here as a whole, and is not any more.
func (n *Node) broken(ctx context.Context, c cid.Cid) (bool, error) {
	info, err := n.store.Stat(ctx, c)
	if !errors.Is(err, storage.ErrNotFound) {
		return err == nil && info.Damaged, err
	}
	pins, err := n.store.Pins(ctx)
	return slices.ContainsFunc(pins, func(p storage.Pin) bool { return p.CID == c }), err
}

// complete tells whether an object, and for a folder everything in it, is here and unharmed.
func (n *Node) complete(ctx context.Context, c cid.Cid) (bool, error) {
	info, err := n.store.Stat(ctx, c)
	if errors.Is(err, storage.ErrNotFound) || err == nil && info.Damaged {
		return false, nil
	}
	if err != nil || info.Kind != storage.Directory {
		return err == nil, err
	}
	entries, err := n.store.Entries(ctx, c)
	for _, e := range entries {
		if ok, err := n.complete(ctx, e.CID); !ok || err != nil {
			return false, err
		}
	}
	return err == nil, err
}

// resolve turns what a person names into the CID of a model folder: a CID, a run's ID, or a job's name.
func (n *Node) resolve(what string) (cid.Cid, error) {
	run, err := n.runs.find(what)
	if err == nil {
		if run.Checkpoint == "" {
			return cid.Undef, fmt.Errorf("run %s has no checkpoint yet: %w", what, ErrNotFound)
		}
		return parseCID(run.Checkpoint)
	}
	if c, cerr := cid.Decode(what); cerr == nil {
		return c, nil
	}
	return cid.Undef, err
}

// clearEmpty removes a folder that is empty, so that an export can take its place at once.
func clearEmpty(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) || err == nil && len(entries) > 0 {
		return nil // the export itself refuses what is there
	}
	if err != nil {
		return err
	}
	return os.Remove(dir)
}

// ExportOptions say in which form a model is written.
type ExportOptions struct {
	Type  string // of the weights: fp32, bf16 or fp16; "" leaves every file as it is stored
	Merge bool   // an adapter as the model that it belongs to with the adapter merged into it; so it is with a Type, too
}

// Export writes the model that a CID or run names to a folder that must not exist or be empty.
func Export(ctx context.Context, u Use, what, dir string, o ExportOptions) (model string, err error) {
	var as hf.Type
	if o.Type != "" {
		if as, err = hf.ParseType(o.Type); err != nil {
			return "", fmt.Errorf("%w: %w; choose fp32, bf16 or fp16", ErrUsage, err)
		}
	}
	entries, err := os.ReadDir(dir)
	if err == nil && len(entries) > 0 {
		return "", fmt.Errorf("%w: %s is not empty; choose another folder, nothing is overwritten", ErrUsage, dir)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("%w: %s: %w; choose a folder that is new or empty", ErrUsage, dir, err)
	}
	err = u.with(ctx, func(n *Node) error {
		c, err := n.resolve(what)
		if err != nil {
			return err
		}
		model = c.String()
		if err := n.needFolder(ctx, c); err != nil {
			return err
		}
		if err := clearEmpty(dir); err != nil {
			return err
		}
		if o.Type == "" && !(o.Merge && n.holdsAdapter(ctx, c)) {
			return n.exportSound(ctx, c, dir)
		}
		return n.exportAs(ctx, c, dir, as)
	})
	return model, err
}

// exportAs writes a model with weights of another type than the stored ones.
func (n *Node) exportAs(ctx context.Context, c cid.Cid, dir string, as hf.Type) error {
	var m readModel
	if err := n.sound(ctx, c, func() (err error) { m, err = n.readModel(ctx, c); return err }); err != nil {
		return err
	}
	if m.Tokenizer == nil {
		return fmt.Errorf("model %s: its tokenizer is not one that this version knows, so its files cannot be written anew; export without --dtype: %w", c, hf.ErrUnsupported)
	}
	m.Type = as
	if m.adapter != nil {
		m.Model = merged(m.Model)
	}
	return hf.Write(dir, m.Model)
}

// needFolder fetches an object that must be a folder, as models are.
func (n *Node) needFolder(ctx context.Context, c cid.Cid) error {
	if err := n.need(ctx, c); err != nil {
		return err
	}
	info, err := n.store.Stat(ctx, c)
	if err == nil && info.Kind != storage.Directory {
		err = fmt.Errorf("%s is no model folder but a %s: %w; `capanode checkpoint list` shows the models of this home", c, info.Kind, storage.ErrWrongKind)
	}
	return err
}

// Pull fetches a model and pins it, so that it stays and others can fetch it from here.
func Pull(ctx context.Context, u Use, what string) (p hf.Provenance, model string, err error) {
	err = u.with(ctx, func(n *Node) error {
		c, err := n.resolve(what)
		if err != nil {
			return err
		}
		if err := n.needFolder(ctx, c); err != nil {
			return err
		}
		m, err := n.readModel(ctx, c)
		if err != nil {
			return err
		}
		p, model = m.Provenance, c.String()
		return n.store.Pin(ctx, checkpointPin(p.Run, p.Round), c)
	})
	return p, model, err
}

// VerifyModel rehashes every block of a model folder and checks that it loads.
func VerifyModel(ctx context.Context, u Use, what string) (r storage.Report, p hf.Provenance, err error) {
	err = u.with(ctx, func(n *Node) error {
		c, err := n.resolve(what)
		if err != nil {
			return err
		}
		if r, err = n.store.Verify(ctx, c); err != nil {
			return err
		}
		if len(r.Faults) > 0 {
			return fmt.Errorf("model %s: %w", c, storage.ErrCorrupt)
		}
		m, err := n.readModel(ctx, c)
		p = m.Provenance
		return err
	})
	return r, p, err
}

// SampleOptions says how to continue a prompt.
type SampleOptions struct {
	Use
	Model       string // folder, CID, run or job name
	Prompt      string
	Tokens      int
	Temperature float64
	TopK        int
	TopP        float64
	Seed        uint64
	Threads     int
}

// Sample continues a prompt and calls emit with each piece of text as it is drawn.
func Sample(ctx context.Context, o SampleOptions, emit func(text []byte) error) error {
	m, err := loadModel(ctx, o.Use, o.Model)
	if err != nil {
		return err
	}
	if err := continues(m, o.Model); err != nil {
		return err
	}
	eng, err := modelEngine(m, o.Threads)
	if err != nil {
		return err
	}
	defer eng.Close()
	prompt := m.Tokenizer.Encode(nil, []byte(o.Prompt))
	if len(prompt) == 0 {
		prompt = []int32{m.Tokenizer.EndOfText()}
	}
	return generate.Generate(ctx, eng, prompt, generate.Options{
		Vocab: m.Spec.Vocab, Context: m.Spec.Context, Max: o.Tokens, Stop: []int32{m.Tokenizer.EndOfText()},
		Temperature: o.Temperature, TopK: o.TopK, TopP: o.TopP, Seed: o.Seed,
	}, func(token int32) error { return emit(m.Tokenizer.Decode(nil, []int32{token})) })
}

// loadModel reads a model from a folder, or from the store and the network.
func loadModel(ctx context.Context, u Use, what string) (m hf.Model, err error) {
	if info, serr := os.Stat(what); serr == nil && info.IsDir() && !isAdapter(hf.Dir(what)) {
		return readForUse(what)
	}
	err = u.with(ctx, func(n *Node) error {
		read, _, err := n.load(ctx, what)
		m = read.Model
		return err
	})
	if err == nil && m.Tokenizer == nil {
		err = fmt.Errorf("model %s: %w: %w", what, hf.ErrUnsupported, m.TokenizerProblem)
	}
	return m, err
}

// readForUse reads a model folder together with its tokenizer, without which there is no text.
func readForUse(dir string) (hf.Model, error) {
	m, err := hf.Read(dir)
	if err == nil && m.Tokenizer == nil {
		err = fmt.Errorf("model %s: %w: %w", dir, hf.ErrUnsupported, m.TokenizerProblem)
	}
	return m, err
}
