package p2p_test

import (
	"context"
	"testing"
	"time"

	"github.com/capacloud/capanode/p2p"
	"github.com/capacloud/capanode/p2p/nettest"
)

// TestFindsByNameAtOnce: a node that has just connected to a bootstrap node opens a stream to a third peer of which it knows
// the name only.
func TestFindsByNameAtOnce(t *testing.T) {
	boot := start(t, p2p.Config{Role: p2p.Bootstrap, Listen: tcpOnly})
	far := start(t, p2p.Config{Role: p2p.Provider, Listen: tcpOnly, Bootstrap: boot.Addrs()})
	far.Handle("/capanode-test/found/1.0.0", p2p.Limits{}, func(_ context.Context, s p2p.Stream) { s.Close() })
	if _, err := far.Bootstrap(t.Context()); err != nil {
		t.Fatal(err)
	}
	nettest.Eventually(t, "the bootstrap node knows the provider", func() bool {
		found := start(t, p2p.Config{Role: p2p.Researcher, Listen: tcpOnly, Bootstrap: boot.Addrs()})
		if _, err := found.Bootstrap(t.Context()); err != nil {
			t.Fatal(err)
		}
		return reaches(t, found, far)
	})
	for range 10 {
		h := start(t, p2p.Config{Role: p2p.Researcher, Listen: tcpOnly, Bootstrap: boot.Addrs()})
		if _, err := h.Bootstrap(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !reaches(t, h, far) {
			t.Fatal("not found")
		}
	}
}

func reaches(t *testing.T, from, to *p2p.Host) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	s, err := from.Open(ctx, to.ID(), "/capanode-test/found/1.0.0")
	if err != nil {
		t.Log(err)
		return false
	}
	s.Reset()
	return true
}
