package memnet_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/goleak"

	"github.com/capacloud/capanode/p2p"
	"github.com/capacloud/capanode/p2p/memnet"
	"github.com/capacloud/capanode/p2p/nettest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConformance(t *testing.T) { conform(t, memnet.Link{}) }

// What arrives late is still what the interface promises.
func TestConformanceOnSlowLinks(t *testing.T) {
	conform(t, memnet.Link{Latency: 2 * time.Millisecond, Jitter: time.Millisecond, Bandwidth: 50 << 20, Seed: 1})
}

func conform(t *testing.T, link memnet.Link) {
	nettest.Run(t, func(t *testing.T, n int) []nettest.Node {
		net := memnet.New()
		net.Shape(link)
		var nodes []nettest.Node
		for i := range n {
			node := net.Node(fmt.Sprint("node ", i))
			t.Cleanup(func() { node.Close() })
			nodes = append(nodes, node)
		}
		return nodes
	})
}

func TestNameDecidesIdentity(t *testing.T) {
	net := memnet.New()
	a := net.Node("a")
	if net.Node("a") != a {
		t.Error("a running node is started twice")
	}
	net.Kill(a.ID())
	again := net.Node("a")
	defer again.Close()
	if again == a || again.ID() != a.ID() {
		t.Error("a node that comes back has the same ID and is new")
	}
	if _, err := a.Join("/capanode/x", nil); !errors.Is(err, p2p.ErrClosed) {
		t.Errorf("join on a killed node: %v", err)
	}
	if err := a.Close(); err != nil || again.Connect(t.Context(), peer.AddrInfo{ID: a.ID()}) == nil {
		t.Error("closing the dead node must not matter to the new one")
	}
	if net.Node("a") != again {
		t.Error("closing the dead node removed the new one")
	}
}

// pair starts two nodes with a stream from a to b; read gets the error of b's read.
func pair(t *testing.T, net *memnet.Net) (a, b *memnet.Node, s p2p.Stream, read chan error) {
	a, b = net.Node("a"), net.Node("b")
	t.Cleanup(func() { a.Close(); b.Close() })
	read = make(chan error, 1)
	b.Handle("/x", p2p.Limits{Idle: time.Hour}, func(_ context.Context, s p2p.Stream) {
		_, err := io.Copy(io.Discard, s)
		read <- err
	})
	s, err := a.Open(t.Context(), b.ID(), "/x")
	if err != nil {
		t.Fatal(err)
	}
	return a, b, s, read
}

func TestKillResetsStreamsAndSilencesTopics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := memnet.New()
		a, b, _, read := pair(t, net)
		ta, _ := a.Join("/capanode/x", nil)
		tb, _ := b.Join("/capanode/x", nil)
		net.Kill(a.ID())
		if err := <-read; !errors.Is(err, p2p.ErrReset) {
			t.Errorf("read from a killed node: %v", err)
		}
		if err := ta.Publish(t.Context(), nil); !errors.Is(err, p2p.ErrClosed) {
			t.Errorf("publish by a killed node: %v", err)
		}
		if ids := tb.Peers(); len(ids) != 0 {
			t.Errorf("a killed node still subscribes: %v", ids)
		}
	})
}

func TestPartition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := memnet.New()
		a, b, _, read := pair(t, net)
		ta, _ := a.Join("/capanode/x", nil)
		tb, _ := b.Join("/capanode/x", nil)
		net.Partition([]peer.ID{a.ID()})
		if err := <-read; !errors.Is(err, p2p.ErrReset) {
			t.Errorf("read across the cut: %v", err)
		}
		if _, err := a.Open(t.Context(), b.ID(), "/x"); !errors.Is(err, p2p.ErrUnreachable) {
			t.Errorf("open across the cut: %v", err)
		}
		if len(a.Connected()) != 0 || len(ta.Peers()) != 0 {
			t.Error("the other side is still visible")
		}
		ta.Publish(t.Context(), []byte("lost"))
		net.Heal()
		ta.Publish(t.Context(), []byte("found"))
		if m, err := tb.Next(t.Context()); err != nil || string(m.Data) != "found" {
			t.Errorf("after healing: %q, %v", m.Data, err)
		}
	})
}

// TestClock shows that deadlines follow the fake clock of a synctest bubble.
func TestClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, _, s, read := pair(t, memnet.New())
		start := time.Now()
		s.SetDeadline(start.Add(time.Minute))
		if _, err := s.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != time.Minute {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		if err := <-read; !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != time.Hour {
			t.Errorf("idle limit after %v: %v", time.Since(start), err)
		}
	})
}

// TestAuthorOrder floods one topic from two authors: each author's messages arrive in the order of publishing.
func TestAuthorOrder(t *testing.T) {
	net := memnet.New()
	a, b, c := net.Node("a"), net.Node("b"), net.Node("c")
	for _, n := range []*memnet.Node{a, b, c} {
		defer n.Close()
	}
	tc, _ := c.Join("/capanode/x", nil)
	const count = 500
	for _, author := range []*memnet.Node{a, b} {
		topic, _ := author.Join("/capanode/x", nil)
		go func() {
			for i := range count {
				topic.Publish(context.Background(), []byte{byte(i >> 8), byte(i)})
			}
		}()
	}
	last := map[peer.ID]int{a.ID(): -1, b.ID(): -1}
	for range 2 * count {
		m, err := tc.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if i := int(m.Data[0])<<8 | int(m.Data[1]); i != last[m.From]+1 {
			t.Fatalf("message %d after %d", i, last[m.From])
		}
		last[m.From]++
	}
}
