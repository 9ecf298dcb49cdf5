package node

import (
	"context"
	"fmt"
	"os"

	storagebench "github.com/capacloud/capanode/storage/bench"
)

// StorageBenchOptions says what the storage benchmark compares with.
type StorageBenchOptions struct {
	PeerBinary string // path of kubo's program `ipfs`; empty means that nothing is compared with it
}

const methodStorage = "256 MiB that do not compress are imported into one store and fetched into others through libp2p hosts on loopback, in one process, from one peer and from four. " +
	"All end hashed, on disk and synced; arrived is until the last byte is verified and written, before the sync. The raw stream moves as many bytes between the same hosts, " +
	"unhashed and unstored, once before and once after; disk is as many bytes written to one file and synced. cpu_seconds_per_gb is of both ends together, over the fetch " +
	"from one. The fetches over links of a set speed are between hosts that talk TCP through a relay in this process, which delays and paces: 256 MiB over one line of 500 Mbit/s and 25 ms one way, to a " +
	"durable object, with a bare stream over the same line after it; 48 MiB from one and from four sources of 100 Mbit/s each. The relay shares the processors and models no losses. " +
	"A file of 512 MiB in the page cache is then copied into a store, against the same bytes written and synced; and indexed where it lies, " +
	"on all cores, against sha2-256 on one. A store with 100,000 cached objects, of which 4,000 have files, is collected while one reader opens a file and reads " +
	"1 MiB of it over and over, and while a small durable write is made ten times a second.\n\n" + methodDelta +
	"\n\nWith --peer-binary, whole commands of this program and of kubo handle one file of 256 MiB, " +
	"every process by itself, over TCP on loopback, in turn, three times; medians count, and each file is compared with the original. A fetch (`storage get`, " +
	"`ipfs get`) goes to a new, empty node and ends with a copy in its store and one in a file: synced both here, neither there. kubo's daemons are up and peered " +
	"before its time begins; this program's time includes starting and stopping its node. kubo_get is kubo as it comes (blocks of 256 KiB); kubo_tuned has raw leaves of 1 MiB " +
	"and 10 MiB under way instead of 1. An import (`storage add`, `ipfs add` without a daemon and with the same layout, which gives the same CID) goes into a new store. " +
	"Processor seconds are of all processes that take part, per 10⁹ bytes."

// BenchStorage is the storage benchmark with options.
func BenchStorage(o StorageBenchOptions) Bench {
	return Bench{"storage", "Import and fetch over loopback, against a raw stream and, with --peer-binary, against kubo in the same run", methodStorage,
		[]string{"fetch_mb_per_second", "fetch_over_raw_stream", "arrived_over_raw_stream", "share_of_500_mbit_at_25_ms", "four_over_one_at_100_mbit",
			"fetch_over_kubo_get", "fetch_over_kubo_tuned", "fetch4_over_fetch1",
			"import_mb_per_second", "import_in_place_mb_per_second", "import_over_kubo_add", "gc_100k_seconds", "read_p99_gc_over_idle",
			"checkpoint_delta_share", "checkpoint_delta_share_frozen", "encode_mb_per_second_per_core", "cpu_seconds_per_gb"},
		func(ctx context.Context, r *BenchReport) error {
			if err := benchStorage(ctx, r); err != nil || o.PeerBinary == "" {
				return err
			}
			return benchPeer(ctx, r, o)
		}}
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
