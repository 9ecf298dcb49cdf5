package node

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/capacloud/capanode/p2p"
	storagebench "github.com/capacloud/capanode/storage/bench"
)

// StorageBenchOptions says what the storage benchmark compares with.
type StorageBenchOptions struct {
	PeerBinary string // path of kubo's program `ipfs`; empty means that nothing is compared with it
}

const methodStorage = "256 MiB that do not compress are imported into one store and fetched into another through two libp2p hosts on loopback, in one process. " +
	"Both end hashed, on disk and synced. The raw stream moves as many bytes between the same hosts, unhashed and unstored, once before and once " +
	"after. cpu_seconds_per_gb is of both ends together, over the fetch.\n\nWith --peer-binary, whole commands of this program and of kubo handle one file of 256 MiB, " +
	"every process by itself, over TCP on loopback, in turn, three times; medians count, and each file is compared with the original. A fetch (`storage get`, " +
	"`ipfs get`) goes to a new, empty node and ends with a copy in its store and one in a file: synced both here, neither there. kubo's daemons are up and peered " +
	"before its time begins; this program's time includes starting and stopping its node. kubo_get is kubo as it comes (blocks of 256 KiB); kubo_tuned has raw leaves of 1 MiB " +
	"and 10 MiB under way instead of 1. An import (`storage add`, `ipfs add` without a daemon and with the same layout, which gives the same CID) goes into a new store. " +
	"Processor seconds are of all processes that take part, per 10⁹ bytes."

// BenchStorage is the storage benchmark with options.
func BenchStorage(o StorageBenchOptions) Bench {
	return Bench{"storage", "Import and fetch over loopback, against a raw stream and, with --peer-binary, against kubo in the same run", methodStorage,
		[]string{"fetch_mb_per_second", "fetch_over_raw_stream", "fetch_over_kubo_get", "fetch_over_kubo_tuned", "fetch4_over_fetch1",
			"import_mb_per_second", "import_over_kubo_add", "gc_100k_seconds", "checkpoint_delta_share", "cpu_seconds_per_gb"},
		func(ctx context.Context, r *BenchReport) error {
			if err := benchStorage(ctx, r); err != nil || o.PeerBinary == "" {
				return err
			}
			return benchPeer(ctx, r, o)
		}}
}

func benchStorage(ctx context.Context, r *BenchReport) error {
	f, err := storagebench.Run(ctx, storagebench.Options{Size: 256 << 20, Pair: func(ctx context.Context) (p storagebench.Pair, err error) {
		server, err := loopback(ctx, p2p.Bootstrap, nil)
		if err != nil {
			return p, err
		}
		client, err := loopback(ctx, p2p.Provider, server.Addrs())
		if err != nil {
			return p, errors.Join(err, server.Close())
		}
		return storagebench.Pair{Server: server, Client: client, Close: func() error { return errors.Join(client.Close(), server.Close()) }}, nil
	}})
	if err != nil {
		return err
	}
	r.Figures["import_mb_per_second"], r.Figures["fetch_mb_per_second"], r.Figures["fetch_over_raw_stream"] = f.Import, f.Fetch, f.Ratio
	if f.CPU > 0 {
		r.Figures["cpu_seconds_per_gb"] = f.CPU
	}
	r.Baseline["raw_stream_mb_per_second"] = f.Raw
	return nil
}

// benchPeer compares commands with those of kubo.
func benchPeer(ctx context.Context, r *BenchReport, o StorageBenchOptions) error {
	if st, err := os.Stat(o.PeerBinary); err != nil || st.IsDir() {
		return fmt.Errorf("%w: --peer-binary %s: name the program `ipfs` of kubo, built for this machine", ErrUsage, o.PeerBinary)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	f, err := storagebench.Peer(ctx, storagebench.PeerOptions{Peer: o.PeerBinary, Self: self, Size: 256 << 20, Rounds: 3})
	if err != nil {
		return err
	}
	r.Figures["fetch_over_kubo_get"], r.Figures["fetch_over_kubo_tuned"], r.Figures["import_over_kubo_add"] = f.OverGet, f.OverTuned, f.OverAdd
	for _, x := range []struct {
		in   map[string]float64
		name string
		cost storagebench.Cost
	}{
		{r.Figures, "get_command", f.Fetch}, {r.Figures, "add_command", f.Import},
		{r.Baseline, "kubo_get", f.Get}, {r.Baseline, "kubo_tuned", f.Tuned}, {r.Baseline, "kubo_add", f.Add},
	} {
		x.in[x.name+"_mb_per_second"] = x.cost.Rate
		if x.cost.CPU > 0 {
			x.in[x.name+"_cpu_seconds_per_gb"] = x.cost.CPU
		}
	}
	return nil
}
