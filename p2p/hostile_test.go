package p2p_test

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	pubsub "github.com/libp2p/go-libp2p-pubsub"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/capacloud/capanode/p2p"
	"github.com/capacloud/capanode/p2p/nettest"
	"github.com/capacloud/capanode/p2p/wire"
)

// garbage returns n random bytes; what they are does not matter, so no seed is kept.
func garbage(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// alive checks that the host still serves an honest peer.
func alive(t *testing.T, h *p2p.Host) {
	t.Helper()
	const proto = "/capanode-test/alive/1.0.0"
	h.Handle(proto, p2p.Limits{}, func(_ context.Context, s p2p.Stream) {
		defer s.Close()
		io.Copy(s, s)
	})
	honest := start(t, p2p.Config{Bootstrap: h.Addrs()})
	if _, err := honest.Bootstrap(t.Context()); err != nil {
		t.Fatalf("an honest peer cannot connect: %v", err)
	}
	s, err := honest.Open(t.Context(), h.ID(), proto)
	if err != nil {
		t.Fatalf("an honest peer cannot open a stream: %v", err)
	}
	defer s.Reset()
	s.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := s.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(s, make([]byte, 1)); err != nil {
		t.Fatalf("an honest peer gets no answer: %v", err)
	}
}

func TestGarbageOnRawConnections(t *testing.T) {
	h := start(t, p2p.Config{})
	for i := range 20 {
		for _, text := range h.Addrs() {
			part := strings.Split(text, "/")
			c, err := net.Dial(part[3], net.JoinHostPort(part[2], part[4]))
			if err != nil {
				t.Fatal(err)
			}
			c.SetDeadline(time.Now().Add(10 * time.Second))
			c.Write(garbage(1 + 500*i))
			if part[3] == "tcp" {
				c.(*net.TCPConn).CloseWrite()
				io.Copy(io.Discard, c) // until the host hangs up
			}
			c.Close()
		}
	}
	alive(t, h)
}

// stranger is a bare libp2p host connected to h: a peer that need not follow our rules.
func stranger(t *testing.T, h *p2p.Host) (open func(protocol.ID) io.ReadWriteCloser, gossip *pubsub.PubSub) {
	t.Helper()
	inner, err := libp2p.New(libp2p.ListenAddrStrings(tcpOnly...), libp2p.DisableMetrics(), libp2p.DisableRelay())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(func() { cancel(); inner.Close() })
	if gossip, err = pubsub.NewGossipSub(ctx, inner, pubsub.WithFloodPublish(true),
		pubsub.WithGossipSubProtocols([]protocol.ID{p2p.GossipProtocol("test")}, func(pubsub.GossipSubFeature, protocol.ID) bool { return true })); err != nil {
		t.Fatal(err)
	}
	info, err := peer.AddrInfoFromString(h.Addrs()[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := inner.Connect(t.Context(), *info); err != nil {
		t.Fatal(err)
	}
	return func(proto protocol.ID) io.ReadWriteCloser {
		s, err := inner.NewStream(t.Context(), h.ID(), proto)
		if err != nil {
			t.Fatalf("open %s: %v", proto, err)
		}
		s.SetDeadline(time.Now().Add(10 * time.Second))
		return s
	}, gossip
}

func TestGarbageOnStreams(t *testing.T) {
	h := start(t, p2p.Config{Role: p2p.Bootstrap})
	failed := make(chan error, 1)
	const framed = "/capanode-test/framed/1.0.0"
	h.Handle(framed, p2p.Limits{}, func(_ context.Context, s p2p.Stream) {
		defer s.Reset()
		var record struct {
			N uint64 `cbor:"n"`
		}
		failed <- wire.ReadRecord(s, 1024, &record)
	})
	const broken = "/capanode-test/broken/1.0.0"
	h.Handle(broken, p2p.Limits{}, func(_ context.Context, s p2p.Stream) { panic("bug in a handler") })
	open, _ := stranger(t, h)
	for _, text := range []string{"\xff\xff\xff\xff", "\x00\x00\x00\x03\xa1\x61", "\x00\x00\x00\x02\xff\xff"} {
		s := open(framed)
		io.WriteString(s, text)
		if c, ok := s.(interface{ CloseWrite() error }); ok {
			c.CloseWrite()
		}
		if err := <-failed; err == nil {
			t.Errorf("%x is taken for a record", text)
		}
		s.Close()
	}
	for _, proto := range []protocol.ID{p2p.GossipProtocol("test"), "/capanode/test/kad/1.0.0", "/ipfs/id/push/1.0.0", "/ipfs/ping/1.0.0"} {
		s := open(proto)
		s.Write(garbage(4096))
		s.Close()
	}
	s := open(broken)
	s.Write([]byte("x"))
	if _, err := s.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("a handler that panics does not reset its stream: %v", err)
	}
	alive(t, h)
}

func TestForeignTopicsAreNotTracked(t *testing.T) {
	h := start(t, p2p.Config{})
	_, gossip := stranger(t, h)
	join := func(name string) *pubsub.Topic {
		topic, err := gossip.Join(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := topic.Subscribe(); err != nil {
			t.Fatal(err)
		}
		return topic
	}
	join("somebody-elses-topic")
	theirs := join("/capanode/test/ours")
	ours, err := h.Join("/capanode/test/ours", func(_ peer.ID, data []byte) p2p.Verdict {
		if len(data) == 0 {
			panic("bug in a validator")
		}
		return p2p.Accept
	})
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	nettest.Eventually(t, "the stranger is seen", func() bool { return len(ours.Peers()) == 1 })
	nettest.Eventually(t, "the host is seen", func() bool { return len(theirs.ListPeers()) == 1 })
	publish := func(data []byte) {
		if err := theirs.Publish(t.Context(), data); err != nil {
			t.Fatal(err)
		}
	}
	publish(nil)
	publish([]byte("fine"))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if m, err := ours.Next(ctx); err != nil || string(m.Data) != "fine" {
		t.Errorf("got %d bytes, %v", len(m.Data), err)
	}
	publish(garbage(2 * p2p.MaxGossip)) // the host hangs up on it
	silence, stop := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer stop()
	if m, err := ours.Next(silence); err == nil {
		t.Errorf("a message of %d bytes is delivered", len(m.Data))
	}
	alive(t, h)
}
