package bench

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"log/slog"
	"testing"

	"github.com/libp2p/go-libp2p/core/crypto"
	"go.uber.org/goleak"

	"github.com/capacloud/capanode/p2p"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		goleak.IgnoreAnyFunction("github.com/libp2p/go-flow-metrics.(*sweeper).run")) // one for the process, by design
}

func start(ctx context.Context, role p2p.Role, bootstrap []string) (Node, error) {
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		return nil, err
	}
	h, err := p2p.NewHost(ctx, p2p.Config{
		Identity: key, Network: "bench", Role: role, Listen: []string{"/ip4/127.0.0.1/tcp/0"}, Bootstrap: bootstrap, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return nil, err
	}
	if _, err := h.Bootstrap(ctx); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return h, nil
}

func TestRunMeasuresEverything(t *testing.T) {
	f, err := Run(t.Context(), Options{Dir: t.TempDir(), Repeat: 3, Cold: 2, Handshakes: 5, Offers: 300, Large: 600, Queries: 5, Start: start})
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", text)
	var figures map[string]any
	if err := json.Unmarshal(text, &figures); err != nil {
		t.Fatal(err)
	}
	baseline, ok := figures["baseline"].(map[string]any)
	if !ok {
		t.Fatalf("no baseline in %s", text)
	}
	delete(figures, "baseline")
	for _, group := range []map[string]any{figures, baseline} {
		for name, v := range group {
			if n, ok := v.(float64); !ok || n <= 0 {
				t.Errorf("%s is %v", name, v)
			}
		}
	}
	if f.FirstLeaseP50 > f.FirstLeaseP95 || f.HandshakeP50 > f.HandshakeP99 || f.QueryP50 > f.QueryP99 || f.LargeP50 > f.LargeP99 {
		t.Errorf("percentiles fall: %s", text)
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Run(ctx, Options{Dir: t.TempDir(), Offers: 10, Large: 10, Start: start}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want context.Canceled", err)
	}
	if _, err := Run(t.Context(), Options{}); err == nil {
		t.Error("no nodes, and no error")
	}
}

func TestPercentile(t *testing.T) {
	for _, c := range []struct {
		n    int
		p    float64
		want float64
	}{{1, 0.5, 1}, {1, 0.99, 1}, {2, 0.5, 1}, {3, 0.5, 2}, {20, 0.95, 19}, {21, 0.95, 20}, {100, 0.99, 99}, {300, 0.99, 297}} {
		var ascending []float64
		for i := range c.n {
			ascending = append(ascending, float64(i+1))
		}
		if got := percentile(ascending, c.p); got != c.want {
			t.Errorf("percentile %g of 1 to %d: %g, want %g", c.p, c.n, got, c.want)
		}
	}
}
