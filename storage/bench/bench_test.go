package bench_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/p2p"
	"github.com/capacloud/capanode/p2p/memnet"
	"github.com/capacloud/capanode/storage/bench"
)

func memory(_ context.Context, servers int) (bench.Nodes, error) {
	net := memnet.New()
	client := net.Node("client")
	out := bench.Nodes{Client: client}
	closers := []func() error{client.Close}
	for i := range servers {
		n := net.Node(fmt.Sprint("server ", i))
		out.Servers, closers = append(out.Servers, n), append(closers, n.Close)
	}
	out.Close = closeAll(closers)
	return out, nil
}

func closeAll(closers []func() error) func() error {
	return func() (err error) {
		for _, c := range closers {
			err = errors.Join(err, c())
		}
		return err
	}
}

// hosts are libp2p hosts on loopback that listen as told.
func hosts(listen string) func(context.Context, int) (bench.Nodes, error) {
	return func(ctx context.Context, servers int) (bench.Nodes, error) {
		return hostsVia(listen)(ctx, servers, func(addr string) (string, error) { return addr, nil })
	}
}

// hostsVia are hosts of which the client reaches the servers elsewhere than where they listen.
func hostsVia(listen string) func(context.Context, int, func(string) (string, error)) (bench.Nodes, error) {
	return func(ctx context.Context, servers int, via func(string) (string, error)) (out bench.Nodes, err error) {
		var closers []func() error
		start := func() *p2p.Host {
			key, _, kerr := crypto.GenerateEd25519Key(rand.Reader)
			h, herr := p2p.NewHost(ctx, p2p.Config{Identity: key, Network: "bench", Listen: []string{listen}})
			if err = errors.Join(err, kerr, herr); herr == nil {
				closers = append(closers, h.Close)
			}
			return h
		}
		client := start()
		out.Client = client
		for range servers {
			if h := start(); err == nil {
				addr, verr := via(h.Addrs()[0])
				if err = verr; err == nil {
					err = connect(ctx, client, addr)
				}
				out.Servers = append(out.Servers, h)
			}
		}
		out.Close = closeAll(closers)
		if err != nil {
			err = errors.Join(err, out.Close())
		}
		return out, err
	}
}

func connect(ctx context.Context, client *p2p.Host, addr string) error {
	info, err := peer.AddrInfoFromString(addr)
	if err != nil {
		return err
	}
	return client.Connect(ctx, *info)
}

// TestRunShaped fetches over short links: every figure is there, nothing is left, and nodes that go around the links are noticed.
func TestRunShaped(t *testing.T) {
	tcp := hostsVia("/ip4/127.0.0.1/tcp/0")
	o := bench.ShapedOptions{Long: 2 << 20, Wide: 2 << 20, Dir: t.TempDir(), Nodes: tcp}
	s, err := bench.RunShaped(t.Context(), o)
	if err != nil || s.Long <= 0 || s.Long > 1 || s.Four <= 0 || s.Twice < 0 {
		t.Fatalf("%+v, %v", s, err)
	}
	if left, err := os.ReadDir(o.Dir); err != nil || len(left) > 0 {
		t.Errorf("%d left, %v", len(left), err)
	}
	o.Nodes = func(ctx context.Context, n int, _ func(string) (string, error)) (bench.Nodes, error) {
		return tcp(ctx, n, func(addr string) (string, error) { return addr, nil })
	}
	if _, err := bench.RunShaped(t.Context(), o); err == nil {
		t.Error("no link was used, and it was measured")
	}
	o.Long = 1
	if _, err := bench.RunShaped(t.Context(), o); err == nil {
		t.Error("one byte was measured")
	}
}

func TestRun(t *testing.T) {
	f, err := bench.Run(t.Context(), bench.Options{Size: 9<<20 + 5, Dir: t.TempDir(), Nodes: memory})
	if err != nil {
		t.Fatal(err)
	}
	if f.Import <= 0 || f.Fetch <= 0 || f.Raw <= 0 || f.Ratio <= 0 || f.Fetch4 <= 0 || f.Arrived < f.Fetch || f.Disk <= 0 {
		t.Fatalf("%+v", f)
	}
	if _, err := bench.Run(t.Context(), bench.Options{Size: 1, Nodes: memory}); err == nil {
		t.Fatal("one byte was measured")
	}
}

// BenchmarkFetch reports fetches of 256 MiB beside a bare stream and a bare file in the same run.
func BenchmarkFetch(b *testing.B) {
	for name, nodes := range map[string]func(context.Context, int) (bench.Nodes, error){
		"memory": memory, "tcp": hosts("/ip4/127.0.0.1/tcp/0"), "quic": hosts("/ip4/127.0.0.1/udp/0/quic-v1"),
	} {
		b.Run(name, func(b *testing.B) {
			sum := map[string]float64{}
			n := 0.0
			for b.Loop() {
				f, err := bench.Run(b.Context(), bench.Options{Size: 256 << 20, Dir: b.TempDir(), Nodes: nodes})
				if err != nil {
					b.Fatal(err)
				}
				for unit, v := range map[string]float64{
					"import-MB/s": f.Import, "fetch-MB/s": f.Fetch, "arrived-MB/s": f.Arrived, "fetch4-MB/s": f.Fetch4, "arrived4-MB/s": f.Arrived4,
					"raw-MB/s": f.Raw, "disk-MB/s": f.Disk, "fetch/raw": f.Ratio, "arrived/raw": f.Arrived / f.Raw, "cpu-s/GB": f.CPU, "raw-cpu-s/GB": f.RawCPU,
				} {
					sum[unit] += v
				}
				n++
			}
			for unit, v := range sum {
				b.ReportMetric(v/n, unit)
			}
		})
	}
}

// BenchmarkShaped reports fetches over links of a set speed.
func BenchmarkShaped(b *testing.B) {
	for b.Loop() {
		s, err := bench.RunShaped(b.Context(), bench.ShapedOptions{Dir: b.TempDir(), Nodes: hostsVia("/ip4/127.0.0.1/tcp/0")})
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(s.Long, "of-500Mbit/s-25ms")
		b.ReportMetric(s.Four, "four/one-of-100Mbit/s")
		b.ReportMetric(s.Twice, "sent-twice")
	}
}
