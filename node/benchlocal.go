package node

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	marketbench "github.com/capacloud/capanode/market/bench"
	"github.com/capacloud/capanode/p2p"
	"github.com/capacloud/capanode/storage"
	storagebench "github.com/capacloud/capanode/storage/bench"
	"github.com/capacloud/capanode/storage/dataset"
	trainerbench "github.com/capacloud/capanode/trainer/bench"
	"github.com/capacloud/capanode/trainer/codec"
	"github.com/capacloud/capanode/trainer/data"
	"github.com/capacloud/capanode/trainer/data/corpus"
	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/engine/gomlx"
	"github.com/capacloud/capanode/trainer/engine/native"
	"github.com/capacloud/capanode/trainer/job"
	"github.com/capacloud/capanode/trainer/tokenizer"
)

const methodAveraging = "dense_averaging_mb_per_second is 64 MB of float32 through the whole average of two peers on all cores: encode the own update as int8, decode " +
	"both, take the mean; the best of three; dense_int4_averaging_mb_per_second and sparse_averaging_mb_per_second are the same with int4 and top64. The losses of three peers and of one are of llama-tiny on bytes of Go's packages bufio, bytes, fmt, io, slices, sort, strconv and " +
	"strings: three peers train 12 rounds of 20 steps, a single peer 36, both with batch 8, context 64, seed 1 and the job file's defaults, each peer on its third of the " +
	"processors (at least one), through signed rounds over the in-memory network. Both are given the same number of tokens, of which the three commit less where an update comes late; both are measured on 256 held-out windows. The single " +
	"peer takes three times the optimiser steps. bytes_per_token count the updates that all members of the " +
	"three sent (up) and fetched (down).\n\nThe comparison of methods trains one model (llama-tiny, context 32, batch 8 a peer) for the same number of steps with each method, in one " +
	"process without a network, on the same text; its losses and bytes are the same to the digit on every machine. Every method runs at the best settings that were found for it " +
	"by sweeps of inner and outer learning rates and momenta (docs/decisions/0003-averaging-defaults.md). Bytes are what one peer downloads, which is what it uploads in the mean; the " +
	"unit is data-parallel training with a float32 ring all-reduce every step, a ring costs 2(N−1)/N payloads each way, an all-gather N−1 blobs; blobs count with their headers, signed " +
	"round headers do not. loss_over_data_parallel and loss_over_diloco (exact, with as many rounds as the program takes) are quotients of losses; bytes_over_data_parallel is what the program moved for them at four peers; front_budgets_won counts " +
	"the budgets, of five, at which its loss is the lowest. The program is what a run of the auto pace does on quick links: rounds of gradients where the budget pays for one in every step, else rounds of local steps (docs/decisions/0006-gradient-rounds.md); local_steps_loss_over_data_parallel is of a job that excludes gradients. NoLoCo's peers, and the program's at 1/1000, keep weights of their own: their loss is the mean of the peers'. " +
	"Models as small as this one overstate the loss of all methods with local steps; the order of the methods is what carries over."

const methodMarket = "One bootstrap node, eight sellers and a buyer in one process, each a libp2p host on loopback with its own journal on disk. Every book holds " +
	"10,000 generated offers with valid signatures besides the sellers'. first_lease is from the planner's start on such a book (parse the query, search, " +
	"choose) to one ACTIVE lease; gang3 and gang8 the same to three and eight, all or none; 50 times each, everything closed in between. cold_lease is of a new " +
	"host with an empty book that knows the bootstrap node only: it starts, joins, copies the book and leases; 20 times. handshake is a lease alone, quote to " +
	"ACTIVE on both sides, 300 times; every step of it is synced to both journals. Rates and queries (three conditions, no limit, over that book and over one of 100,000 offers) are of one core. The baselines " +
	"are one fsync, one round trip on a new stream, one Ed25519 check, and the query's conditions written out as a loop."

// loopback starts a host on this machine's own interface that has joined the network of the bootstrap addresses.
func loopback(ctx context.Context, role p2p.Role, bootstrap []string) (*p2p.Host, error) {
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	h, err := p2p.NewHost(ctx, p2p.Config{
		Identity: key, Network: "bench", Role: role, Bootstrap: bootstrap, Logger: slog.New(slog.DiscardHandler),
		Listen: []string{"/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"},
	})
	if err != nil {
		return nil, err
	}
	if _, err := h.Bootstrap(ctx); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return h, nil
}

func benchMarket(ctx context.Context, r *BenchReport) error {
	f, err := marketbench.Run(ctx, marketbench.Options{
		Start: func(ctx context.Context, role p2p.Role, bootstrap []string) (marketbench.Node, error) {
			return loopback(ctx, role, bootstrap)
		},
	})
	if err != nil {
		return err
	}
	return r.take(f)
}

func benchStorage(ctx context.Context, r *BenchReport) error {
	f, err := storagebench.Run(ctx, storagebench.Options{Size: 256 << 20, Nodes: loopbackNodes})
	if err != nil {
		return err
	}
	r.Figures["fetch_mb_per_second"], r.Figures["fetch_over_raw_stream"] = f.Fetch, f.Ratio
	r.Figures["arrived_mb_per_second"], r.Figures["arrived_over_raw_stream"] = f.Arrived, f.Arrived/f.Raw
	r.Figures["fetch4_mb_per_second"], r.Figures["fetch4_over_fetch1"], r.Figures["arrived4_over_arrived1"] = f.Fetch4, f.Fetch4/f.Fetch, f.Arrived4/f.Arrived
	if f.CPU > 0 {
		r.Figures["cpu_seconds_per_gb"], r.Baseline["raw_stream_cpu_seconds_per_gb"] = f.CPU, f.RawCPU
	}
	r.Baseline["raw_stream_mb_per_second"], r.Baseline["disk_mb_per_second"] = f.Raw, f.Disk
	s, err := storagebench.RunShaped(ctx, storagebench.ShapedOptions{Nodes: shapedNodes})
	if err != nil {
		return err
	}
	r.Figures["share_of_500_mbit_at_25_ms"], r.Figures["four_over_one_at_100_mbit"], r.Figures["sent_twice_by_four"] = s.Long, s.Four, s.Twice
	r.Baseline["raw_stream_share_of_500_mbit_at_25_ms"] = s.Raw
	store, err := storagebench.RunStore(ctx, storagebench.StoreOptions{Size: 512 << 20})
	if err != nil {
		return err
	}
	if err := r.take(store); err != nil {
		return err
	}
	return benchDelta(ctx, r)
}

// loopbackNodes starts hosts on loopback that one client knows.
func loopbackNodes(ctx context.Context, servers int) (out storagebench.Nodes, err error) {
	var hosts []*p2p.Host
	out.Close = func() (err error) {
		for _, h := range slices.Backward(hosts) {
			err = errors.Join(err, h.Close())
		}
		return err
	}
	var known []string
	for i := range servers + 1 {
		role := p2p.Bootstrap
		if i == servers {
			role = p2p.Provider
		}
		h, err := loopback(ctx, role, known)
		if err != nil {
			return out, errors.Join(err, out.Close())
		}
		hosts, known = append(hosts, h), append(known, h.Addrs()...)
		if out.Client = h; i < servers {
			out.Servers = append(out.Servers, h)
		}
	}
	return out, nil
}

// shapedNodes starts hosts on loopback of which one client knows the others, which do not know each other: it can reach them
// in no other way than the one it is given.
func shapedNodes(ctx context.Context, servers int, via func(addr string) (string, error)) (out storagebench.Nodes, err error) {
	var hosts []*p2p.Host
	out.Close = func() (err error) {
		for _, h := range slices.Backward(hosts) {
			err = errors.Join(err, h.Close())
		}
		return err
	}
	var known []string
	for i := range servers + 1 {
		role, boot := p2p.Bootstrap, []string(nil)
		if i == servers {
			role, boot = p2p.Provider, known
		}
		h, err := loopback(ctx, role, boot)
		if err != nil {
			return out, errors.Join(err, out.Close())
		}
		hosts = append(hosts, h)
		if i == servers {
			out.Client = h
			return out, nil
		}
		out.Servers = append(out.Servers, h)
		tcp := slices.IndexFunc(h.Addrs(), func(a string) bool { return strings.Contains(a, "/tcp/") })
		if tcp < 0 {
			return out, errors.Join(fmt.Errorf("no TCP address among %q", h.Addrs()), out.Close())
		}
		addr, err := via(h.Addrs()[tcp])
		if err != nil {
			return out, errors.Join(err, out.Close())
		}
		known = append(known, addr)
	}
	return out, nil
}

// benchCodecs are the codecs that are measured, under the names that their figures begin with.
var benchCodecs = []struct {
	name  string
	codec codec.Codec
}{
	{"fp32", codec.FP32{}}, {"int8", codec.Int8{}}, {"four_bit", codec.Int4{}}, {"sparse", codec.Top{K: 64}}, {"top512", codec.Top{K: 512}},
}

func benchCodec(ctx context.Context, r *BenchReport) error {
	var codecs []codec.Codec
	for _, c := range benchCodecs {
		codecs = append(codecs, c.codec)
	}
	figures, core, all, err := trainerbench.Codecs(ctx, codecs, trainerbench.Options{Repeat: 7})
	if err != nil {
		return err
	}
	r.Baseline["copy_mb_per_second_per_core"], r.Baseline["copy_mb_per_second"] = core, all
	for i, f := range figures {
		name := benchCodecs[i].name
		r.Figures[name+"_bits_per_parameter"] = f.Bits
		r.Figures[name+"_error_normal"], r.Figures[name+"_error_laplace"] = f.ErrorNormal, f.ErrorHeavyTail
		for _, x := range []struct {
			what      string
			core, all float64
		}{{"encode", f.Core.Encode, f.All.Encode}, {"decode", f.Core.Decode, f.All.Decode}, {"add", f.Core.Add, f.All.Add}} {
			r.Figures[name+"_"+x.what+"_mb_per_second_per_core"], r.Figures[name+"_"+x.what+"_mb_per_second"] = x.core, x.all
			r.Figures[name+"_"+x.what+"_over_copy"] = x.core / core
		}
	}
	return nil
}

func benchAveraging(ctx context.Context, r *BenchReport) (err error) {
	dir, err := os.MkdirTemp("", "capanode-bench-*")
	if err != nil {
		return fmt.Errorf("bench: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	store, err := storage.Open(ctx, dir, storage.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	var o trainerbench.Options
	paths, err := goSources(ctx)
	if err == nil {
		if o.Training, err = benchTraining(ctx, store, paths); err != nil {
			return err
		}
	} else {
		r.Missing = append(r.Missing, fmt.Sprintf("corpus of Go's own sources (%v)", err))
	}
	f, err := trainerbench.Averaging(ctx, o)
	if err != nil {
		return err
	}
	r.Figures["dense_averaging_mb_per_second"], r.Figures["dense_int4_averaging_mb_per_second"] = f.Averaging, f.Averaging4
	r.Figures["sparse_averaging_mb_per_second"] = f.Sparse
	r.Baseline["copy_mb_per_second_per_core"] = f.Copy
	if f.TokensThree > 0 {
		r.Figures["validation_loss_3_peers"], r.Figures["loss_ratio_3_over_1"] = f.LossThree, f.LossThree/f.LossOne
		r.Figures["bytes_per_token_up"], r.Figures["bytes_per_token_down"] = f.Up/float64(f.TokensThree), f.Down/float64(f.TokensThree)
		r.Figures["training_seconds_3_peers"], r.Figures["tokens_3_peers"] = f.SecondsThree, float64(f.TokensThree)
		r.Baseline["validation_loss_1_peer"], r.Baseline["training_seconds_1_peer"], r.Baseline["tokens_1_peer"] = f.LossOne, f.SecondsOne, float64(f.TokensOne)
	}
	return nil
}

// goSources names folders of the Go installation's own sources: text that is the same wherever this Go version is.
func goSources(ctx context.Context) ([]string, error) {
	root := os.Getenv("GOROOT")
	if root == "" {
		out, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output() // a trimmed binary does not know itself
		if err != nil {
			return nil, fmt.Errorf("go env GOROOT: %w", err)
		}
		root = strings.TrimSpace(string(out))
	}
	var paths []string
	for _, name := range []string{"bufio", "bytes", "fmt", "io", "slices", "sort", "strconv", "strings"} {
		path := filepath.Join(root, "src", name)
		if _, err := os.Stat(path); err != nil {
			return nil, err
		}
		paths = append(paths, path)
	}
	return paths, nil
}

// benchTraining is the run of which three peers are compared with one, set up as a job file would.
func benchTraining(ctx context.Context, store *storage.Store, paths []string) (*trainerbench.Training, error) {
	file := job.Defaults()
	file.Name, file.Model.Preset, file.Market.Peers = "bench", "llama-tiny", 3
	file.Rounds.Pace = job.PaceFixed
	file.Train.Rounds, file.Rounds.LocalSteps, file.Train.Batch, file.Train.Context = 12, 20, 8, 64
	manifest, link, _, err := data.Build(ctx, data.Options{
		Name: "go", Corpus: corpus.Options{Paths: paths, Include: []string{".go"}}, Tokenizer: tokenizer.Byte{}, ValFraction: 0.05, Context: file.Train.Context,
		Peers: file.Market.Peers, Seed: file.Train.Seed,
	}, store)
	if err != nil {
		return nil, err
	}
	read := dataset.ReadFunc(func(ctx context.Context, c cid.Cid, limit int64) ([]byte, error) { return store.ReadAll(ctx, c, limit) })
	source, err := data.NewSource(manifest, read, data.SourceOptions{Context: file.Train.Context, Vocab: tokenizer.Byte{}.Vocab()})
	if err != nil {
		return nil, err
	}
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	owner, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	rec, err := file.Bind(owner, job.Dataset{CID: link.Cid, Tokenizer: manifest.Tokenizer.Kind, Vocab: int(manifest.Tokenizer.Vocab)}, 0)
	if err != nil {
		return nil, err
	}
	validation, err := source.Validation(ctx, file.Train.Batch, 256)
	if err != nil {
		return nil, err
	}
	plan, err := workerPlan(rec)
	if err != nil {
		return nil, err
	}
	threads := max(1, runtime.NumCPU()/file.Market.Peers)
	return &trainerbench.Training{
		Plan: plan, Data: source, Validation: validation, Numerics: native.Numerics(),
		Engine: func() (engine.Engine, error) { return buildEngine(rec, gomlx.Device{}, 0, threads) },
	}, nil
}
