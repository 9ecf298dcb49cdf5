package p2p_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/p2p"
	"github.com/capacloud/capanode/p2p/nettest"
	"github.com/capacloud/capanode/p2p/peertest"
)

// half starts n providers that know some bootstrap nodes, talk on one topic and have found each other.
func half(t *testing.T, n int, boots []string) (hosts []*p2p.Host, topics []p2p.Topic) {
	t.Helper()
	for range n {
		h := start(t, p2p.Config{Bootstrap: boots, Listen: tcpOnly})
		topic, err := h.Join("/capanode/test/merge", nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := h.Bootstrap(t.Context()); err != nil {
			t.Fatal(err)
		}
		hosts, topics = append(hosts, h), append(topics, topic)
	}
	nettest.Eventually(t, "a half swarm finds itself", func() bool {
		return !slices.ContainsFunc(hosts, func(h *p2p.Host) bool { return !meets(h, hosts) })
	})
	return hosts, topics
}

// meets tells whether a host is connected with all others.
func meets(h *p2p.Host, all []*p2p.Host) bool {
	connected := h.Connected()
	return !slices.ContainsFunc(all, func(o *p2p.Host) bool { return o != h && !slices.Contains(connected, o.ID()) })
}

// spoken publishes on each topic until everyone has heard everyone, and returns how long that took.
func spoken(t *testing.T, hosts []*p2p.Host, topics []p2p.Topic) time.Duration {
	t.Helper()
	heard := make([]map[peer.ID]bool, len(topics))
	for i := range heard {
		heard[i] = map[peer.ID]bool{}
	}
	said, last := 0, time.Time{}
	news := make(chan func(), 256)
	for i, topic := range topics {
		go func() {
			for {
				m, err := topic.Next(t.Context())
				if err != nil {
					return
				}
				select {
				case news <- func() { heard[i][m.From] = true }:
				case <-t.Context().Done():
					return
				}
			}
		}()
	}
	return nettest.Eventually(t, "everyone hears everyone", func() bool {
		for len(news) > 0 {
			(<-news)()
		}
		if time.Since(last) > 250*time.Millisecond {
			said, last = said+1, time.Now()
			for _, topic := range topics {
				_ = topic.Publish(t.Context(), fmt.Appendf(nil, "%d", said)) // it is said again
			}
		}
		return !slices.ContainsFunc(heard, func(h map[peer.ID]bool) bool { return len(h) < len(hosts)-1 })
	})
}

// standby is a bootstrap node that does not run yet: its address, and how to start it there.
func standby(t *testing.T) (address string, cfg p2p.Config) {
	t.Helper()
	key := peertest.NewKey(t)
	cfg = p2p.Config{Role: p2p.Bootstrap, Identity: key, Listen: tcpOnly}
	h := start(t, cfg)
	address = h.Addrs()[0]
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	cfg.Listen = []string{strings.Split(address, "/p2p/")[0]}
	return address, cfg
}

// Two half swarms whose lists of bootstrap nodes overlap are one swarm soon, whichever way they come to overlap.
func TestC16HalfSwarmsMerge(t *testing.T) {
	t.Run("one list has a node that is down at first", func(t *testing.T) {
		one, two := start(t, p2p.Config{Role: p2p.Bootstrap, Listen: tcpOnly}), start(t, p2p.Config{Role: p2p.Bootstrap, Listen: tcpOnly})
		late, cfg := standby(t)
		a, at := half(t, 3, append(one.Addrs(), late))
		b, bt := half(t, 3, append(two.Addrs(), late))
		start(t, cfg)
		all := append(a, b...)
		took := spoken(t, all, append(at, bt...))
		met := nettest.Eventually(t, "all meet", func() bool {
			return !slices.ContainsFunc(all, func(h *p2p.Host) bool { return !meets(h, all) })
		})
		t.Logf("after %v everyone hears everyone, after %v all are connected", took, took+met)
	})
	t.Run("a newcomer knows a node of each", func(t *testing.T) {
		one, two := start(t, p2p.Config{Role: p2p.Bootstrap, Listen: tcpOnly}), start(t, p2p.Config{Role: p2p.Bootstrap, Listen: tcpOnly})
		a, at := half(t, 3, one.Addrs())
		b, bt := half(t, 3, two.Addrs())
		c, ct := half(t, 1, append(one.Addrs(), two.Addrs()...))
		all := slices.Concat(a, b, c)
		took := spoken(t, all, slices.Concat(at, bt, ct))
		met := nettest.Eventually(t, "all meet", func() bool {
			return !slices.ContainsFunc(all, func(h *p2p.Host) bool { return !meets(h, all) })
		})
		t.Logf("after %v everyone hears everyone, after %v all are connected", took, took+met)
	})
}
