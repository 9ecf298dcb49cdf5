package bench_test

import (
	"context"
	"crypto/rand"
	"errors"
	"testing"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/p2p"
	"github.com/capacloud/capanode/p2p/memnet"
	"github.com/capacloud/capanode/storage/bench"
)

func memory(context.Context) (bench.Pair, error) {
	net := memnet.New()
	a, b := net.Node("a"), net.Node("b")
	return bench.Pair{Server: a, Client: b, Close: func() error { return errors.Join(a.Close(), b.Close()) }}, nil
}

// hosts are two libp2p hosts on loopback that listen as told.
func hosts(listen string) func(context.Context) (bench.Pair, error) {
	return func(ctx context.Context) (bench.Pair, error) {
		var out [2]*p2p.Host
		for i := range out {
			key, _, err := crypto.GenerateEd25519Key(rand.Reader)
			if err != nil {
				return bench.Pair{}, err
			}
			if out[i], err = p2p.NewHost(ctx, p2p.Config{Identity: key, Network: "bench", Listen: []string{listen}}); err != nil {
				return bench.Pair{}, err
			}
		}
		a, b := out[0], out[1]
		pair := bench.Pair{Server: a, Client: b, Close: func() error { return errors.Join(b.Close(), a.Close()) }}
		info, err := peer.AddrInfoFromString(a.Addrs()[0])
		if err != nil {
			return pair, errors.Join(err, pair.Close())
		}
		return pair, b.Connect(ctx, *info)
	}
}

func TestRun(t *testing.T) {
	f, err := bench.Run(t.Context(), bench.Options{Size: 9<<20 + 5, Dir: t.TempDir(), Pair: memory})
	if err != nil {
		t.Fatal(err)
	}
	if f.Import <= 0 || f.Fetch <= 0 || f.Raw <= 0 || f.Ratio <= 0 {
		t.Fatalf("%+v", f)
	}
	if _, err := bench.Run(t.Context(), bench.Options{Size: 1, Pair: memory}); err == nil {
		t.Fatal("one byte was measured")
	}
}

// BenchmarkFetch reports a fetch of 256 MiB beside a bare stream in the same run.
func BenchmarkFetch(b *testing.B) {
	for name, pair := range map[string]func(context.Context) (bench.Pair, error){
		"memory": memory, "tcp": hosts("/ip4/127.0.0.1/tcp/0"), "quic": hosts("/ip4/127.0.0.1/udp/0/quic-v1"),
	} {
		b.Run(name, func(b *testing.B) {
			var sum bench.Figures
			n := 0.0
			for b.Loop() {
				f, err := bench.Run(b.Context(), bench.Options{Size: 256 << 20, Dir: b.TempDir(), Pair: pair})
				if err != nil {
					b.Fatal(err)
				}
				sum.Import, sum.Fetch, sum.Raw, sum.Ratio = sum.Import+f.Import, sum.Fetch+f.Fetch, sum.Raw+f.Raw, sum.Ratio+f.Ratio
				n++
			}
			b.ReportMetric(sum.Import/n, "import-MB/s")
			b.ReportMetric(sum.Fetch/n, "fetch-MB/s")
			b.ReportMetric(sum.Raw/n, "raw-MB/s")
			b.ReportMetric(sum.Ratio/n, "fetch/raw")
		})
	}
}
