package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/market"
	"github.com/capacloud/capanode/market/credit"
	"github.com/capacloud/capanode/market/lease"
	"github.com/capacloud/capanode/p2p"
	"github.com/capacloud/capanode/p2p/wire"
	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/dataset"
	"github.com/capacloud/capanode/trainer/data"
	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/hf"
	"github.com/capacloud/capanode/trainer/job"
	"github.com/capacloud/capanode/trainer/tokenizer"
	"github.com/capacloud/capanode/trainer/worker"
)

// TrainOptions says what a requester runs. Zero values leave the choice to the job file.
type TrainOptions struct {
	JobPath string
	Home    string
	Config  Config
	Log     *slog.Logger
	Stop    <-chan struct{} // closed to end after the round under way, checkpoint and settle
	Emit    Emit
	Confirm func() bool // asked before leasing; nil starts at once

	Local       int    // providers to start on this machine
	LocalDevice string // what they compute on: cpu, or cuda for one card each
	Binary      string // the capanode executable, for Local
	Peers       int
	MaxPrice    credit.Micro
	Budget      credit.Micro
	DryRun      bool
	Out         string // folder for the model; empty is NAME-model beside the caller
}

// requester is one run from the side of who pays for it.
type requester struct {
	*Node
	o     TrainOptions
	file  job.File
	rec   job.Record
	run   cid.Cid
	data  *data.Source
	base  *readModel // that the run starts from; nil starts from random weights
	local *Local
	log   Run
	text  text

	hurried func() bool // tells whether the caller wants to stop at once

	// Set by the planner.
	planned time.Time // when the book had the offers, for the time to the first lease
	guess   float64   // seconds of training
	params  int64     // of the model
	worker  worker.Plan
	memory  int64  // bytes that a member needs
	outDir  string // where the model goes, absolute

	final    cid.Cid // model of the last round, when an earlier process took it in
	foundRun string  // whose model is at outDir already
	exported bool    // it is this run's final one

	buyer    *market.Buyer
	verified *workLog
	observer *worker.Observer
	news     chan any      // to the conductor
	over     chan struct{} // closed when nobody listens to news any more
	hung     sync.Once     // guards the closing of over

	books   sync.Mutex                // guards history
	history map[peer.ID][]lease.Lease // every lease of this run

	// The conductor's own.
	gang      gang
	heard     map[peer.ID]time.Time
	claims    map[peer.ID]cid.Cid // newest checkpoint of each member
	models    map[cid.Cid]*pulled
	lastRound time.Time
}

// Train plans a job, leases slots, follows the run to its end and exports the model. It ends early when stop is closed
// ([ErrInterrupted], everything settled), when the budget is spent ([ErrBudget]) or when the context ends (at once; leases
// and rounds go on, and the next Train of the same job finds them).
func Train(ctx context.Context, o TrainOptions) (err error) {
	file, err := job.Read(o.JobPath)
	if err != nil {
		return err
	}
	if o.Local < 0 || o.Peers < 0 {
		return fmt.Errorf("%w: --local %d, --peers %d: write a count, or leave them out", ErrUsage, o.Local, o.Peers)
	}
	if o.LocalDevice != "" && o.LocalDevice != "cpu" && o.LocalDevice != "cuda" {
		return fmt.Errorf("%w: --device %q: write cpu or cuda", ErrUsage, o.LocalDevice)
	}
	if o.Local > 0 {
		o = o.onLoopback()
		if o.Peers == 0 {
			o.Peers = o.Local
		}
	}
	if o.Peers > 0 {
		file.Market.Peers = o.Peers
	}
	n, err := openNode(ctx, o.Home, o.Config, o.Log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.Close()) }()
	r := &requester{Node: n, o: o, file: file, hurried: func() bool { return ctx.Err() != nil }}
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	r.o.Stop = n.stopWith(inner, o.Stop)
	return r.pursue(inner)
}

// pursue is the whole of a run, from the corpus to the model.
func (r *requester) pursue(ctx context.Context) error {
	defer func() {
		if err := r.releaseRuns(context.WithoutCancel(ctx), r.log); err != nil {
			r.Node.log.Warn("release ended runs", "err", err)
		}
	}()
	steps := []func(context.Context) error{r.define, r.connect}
	if choice, err := r.file.Data.Choice(); err == nil && choice.File.Defined() || r.file.Data.CID != "" || r.initElsewhere() { // they may have to be fetched
		slices.Reverse(steps)
	}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return err
		}
	}
	if start, err := r.plan(ctx); err != nil || !start {
		return err
	}
	return r.conduct(ctx)
}

// onLoopback keeps a local run to this machine: its own network, loopback only, no discovery.
func (o TrainOptions) onLoopback() TrainOptions {
	o.Config.Network = fmt.Sprintf("local-%d", os.Getpid())
	o.Config.Listen = []string{"/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"}
	o.Config.Bootstrap = nil
	o.Config.MDNS = false
	return o
}

// define reads the corpus and makes the run's record. Nothing is leased yet, so a mistake in the job costs nobody anything.
func (r *requester) define(ctx context.Context) error {
	if err := r.destination(); err != nil {
		return err
	}
	if err := r.findBase(ctx); err != nil {
		return err
	}
	if err := r.findTokenizer(ctx); err != nil {
		return err
	}
	if err := r.fits(ctx); err != nil {
		return err
	}
	set, err := r.dataset(ctx)
	if err != nil {
		return err
	}
	if err := r.identify(set); err != nil {
		return err
	}
	raw, run, err := r.rec.Encode()
	if err != nil {
		return err
	}
	r.run = run
	if err := r.remember(ctx); err != nil {
		return err
	}
	if r.log.ID == "" {
		r.log = Run{ID: run.String(), Name: r.rec.Name, Role: "requester", State: RunPlanned, Started: time.Now().UTC(), Attempt: r.rec.Attempt}
	}
	r.log.Rounds, r.log.Steps, r.log.Dataset, r.log.Out = r.rec.Rounds, r.rec.Steps(), set.String(), r.outDir
	if err := r.keepBase(ctx); err != nil {
		return err
	}
	if _, err := r.store.PutRecord(ctx, raw, storage.PutOptions{Pin: jobPin(run.String()), Class: storage.Cached}); err != nil {
		return err
	}
	if r.data, err = openSource(ctx, r.bytes(), r.rec); err != nil {
		return elsewhere(err)
	}
	if _, err := r.data.Validation(ctx, 1, 1); err != nil { // found out now, not after the members are paid
		return fmt.Errorf("%w: %w", ErrJob, err)
	}
	if r.data.Shards() < int(r.rec.Peers) {
		return fmt.Errorf("%w: the dataset has %d shards, %d peers need one each: add text or lower market.peers", ErrJob, r.data.Shards(), r.rec.Peers)
	}
	return nil
}

// dataset returns the manifest's CID: the one that the job names, or that of the corpus read now.
func (r *requester) dataset(ctx context.Context) (cid.Cid, error) {
	if r.text.set.Defined() {
		return r.text.set, nil
	}
	d := r.file.Data
	paths := make([]string, len(d.Paths))
	for i, p := range d.Paths {
		paths[i] = besideJob(r.o.JobPath, p)
	}
	temp, err := r.dataTemp()
	if err != nil {
		return cid.Undef, err
	}
	o := data.Options{
		Name: r.file.Name, Corpus: corpusOptions(d, paths, r.file.Train.Seed), Filters: d.Filters, TempDir: temp,
		ValFraction: d.Validation, ShardTokens: uint64(d.ShardTokens), Context: r.file.Train.Context, Peers: r.file.Market.Peers, Seed: r.file.Train.Seed,
	}
	if r.text.tok == nil {
		if err := r.trainTokenizer(ctx, o); err != nil {
			return cid.Undef, err
		}
	}
	o.Tokenizer = r.text.tok
	_, link, report, err := data.Build(ctx, o, r.store)
	if err != nil {
		return cid.Undef, err
	}
	r.Node.log.Info("corpus", "documents", report.Kept, "bytes", report.Bytes, "duplicates", report.Duplicates, "binary", report.Read.Binary)
	for _, w := range report.Warnings() {
		r.emit(WarningEvent{Type: "warning", Warning: w})
	}
	if err := r.store.Pin(ctx, datasetPin(link.Cid.String()), link.Cid); err != nil {
		return cid.Undef, err
	}
	return link.Cid, nil
}

// identify finds which attempt of this job comes next: one that has not ended is continued, after one that is done a new
// one begins.
func (r *requester) identify(set cid.Cid) (err error) {
	for attempt := uint64(0); ; attempt++ {
		if r.rec, err = r.file.Bind(r.id, r.bound(set), attempt); err != nil {
			return err
		}
		_, run, err := r.rec.Encode()
		if err != nil {
			return err
		}
		old, err := r.runs.load(run.String())
		if errors.Is(err, ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		if old.State != RunDone && old.State != RunFailed {
			r.log = old
			return nil
		}
	}
}

// leastEnd is the end-of-text ID of a tokenizer that is not trained yet.
const leastEnd = 256

// bound is what the record says of a dataset made with the run's tokenizer.
func (r *requester) bound(set cid.Cid) job.Dataset {
	d := job.Dataset{CID: set, Vocab: r.text.vocab}
	if r.text.tok != nil {
		d.Tokenizer = r.text.tok.Name()
	}
	return d
}

// fits refuses a model that this machine cannot hold, before anything is read or allocated: a local run needs room for
// every member, any other for the finished model, which is measured here.
func (r *requester) fits(ctx context.Context) error {
	set := r.bound(wire.RecordCID(nil)) // memory does not depend on the dataset
	if r.text.tok == nil {
		set.Tokenizer = tokenizer.NameOf(leastEnd, wire.RecordCID(nil))
	}
	rec, err := r.file.Bind(r.id, set, 0)
	if err != nil {
		return err
	}
	if r.memory, err = memoryNeeded(rec); err != nil {
		return err
	}
	need, what := r.memory*int64(r.o.Local), fmt.Sprintf("%d local members need", r.o.Local)
	if r.o.Local == 0 {
		_, params, err := rec.Trained()
		if err != nil {
			return err
		}
		need, what = params*finishedBytes, "the finished model needs"
	}
	have, err := machineMemory(ctx)
	if err != nil || need <= have {
		return err
	}
	return fmt.Errorf("%w: model %s: %s %d MiB, this machine has %d MiB: %w: lower the model's sizes, train.micro_batch or train.context",
		ErrJob, rec.Model.Family, what, need>>20, have>>20, engine.ErrMemory)
}

func occupied(out string) error {
	return fmt.Errorf("%w: --out %s is not empty; choose another folder, nothing is overwritten", ErrUsage, out)
}

// destination checks early that the model will have a place to go.
func (r *requester) destination() error {
	if r.o.Out == "" {
		r.o.Out = r.file.Name + "-model"
	}
	out, err := filepath.Abs(r.o.Out)
	if err != nil {
		return fmt.Errorf("%w: --out %s: %w", ErrUsage, r.o.Out, err)
	}
	entries, err := os.ReadDir(out)
	if err == nil && len(entries) > 0 {
		m, rerr := hf.Read(out)
		if rerr != nil || m.Provenance.Run == "" {
			return occupied(out)
		}
		r.foundRun = m.Provenance.Run
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w: --out %s: %w", ErrUsage, out, err)
	}
	r.outDir = out
	if err := r.adapterDestination(); err != nil {
		return err
	}
	if r.o.DryRun {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return fmt.Errorf("--out %s: %w; choose a folder that can be written", out, err)
	}
	return nil
}

// connect joins the network and, for a local run, starts its providers.
func (r *requester) connect(ctx context.Context) error {
	role := p2p.Researcher
	if r.o.Local > 0 {
		role = p2p.Bootstrap // the children meet here
	}
	if err := r.alone(ctx); err != nil {
		return err
	}
	if err := r.join(ctx, role); err != nil {
		return err
	}
	if r.o.Local > 0 && !r.o.DryRun && !r.trained() {
		dir, err := r.home.sub("local")
		if err != nil {
			return err
		}
		r.local, err = StartLocal(LocalOptions{Binary: r.o.Binary, Dir: dir, N: r.o.Local, Network: r.cfg.Network, Bootstrap: r.addresses(),
			Device: r.o.LocalDevice, Plugin: r.cfg.Plugin, Precision: r.cfg.Precision})
		if err != nil {
			return err
		}
		r.onClose(func() error {
			grace := localGrace
			if r.hurried() {
				grace = 0
			}
			r.local.Stop(grace)
			return nil
		})
		return nil
	}
	return r.reach(ctx)
}

// localGrace is how long local providers may take to end.
const localGrace = 20 * time.Second

// bytes is the run's way to content: what is not here comes from whoever is connected, once the network is joined.
func (r *requester) bytes() blobs {
	return blobs{store: r.store, fetch: r.fetch, class: storage.Cached, near: func() []peer.ID {
		if r.net == nil {
			return nil
		}
		return r.net.Connected()
	}}
}

// openSource opens the run's dataset through a store. Until the context ends the store knows in which order its shards are used.
func openSource(ctx context.Context, b blobs, rec job.Record) (*data.Source, error) {
	var order atomic.Pointer[storage.Order]
	read := dataset.ReadFunc(func(ctx context.Context, c cid.Cid, limit int64) ([]byte, error) {
		raw, err := b.Get(ctx, c, nil, limit)
		if o := order.Load(); o != nil && err == nil {
			o.Used(c)
		}
		return raw, err
	})
	s, err := data.Open(ctx, rec.Dataset.Cid, read, data.SourceOptions{Context: int(rec.Context), Vocab: rec.Model.Vocab, Cache: cacheBytes})
	if err != nil {
		return nil, err
	}
	m := s.Manifest()
	if err := checkTokenizer(m, rec); err != nil {
		return nil, err
	}
	o := b.store.Follow(m.Files(dataset.Train), true)
	order.Store(o)
	context.AfterFunc(ctx, o.Close)
	return s, nil
}

// emit shows an event and appends it to the run's metrics.
func (r *requester) emit(event any) {
	if r.o.Emit != nil {
		r.o.Emit(event)
	}
	if r.log.State == RunPlanned || r.o.DryRun {
		return
	}
	if err := r.runs.metrics(r.log.ID, event); err != nil {
		r.Node.log.Warn("metrics", "err", err)
	}
}

func (r *requester) link() wire.Link { return wire.Link{Cid: r.run} }
