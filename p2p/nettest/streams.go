package nettest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/capacloud/capanode/p2p"
)

func p2pProto(name string) protocol.ID { return protocol.ID("/capanode-test/" + name + "/1.0.0") }

func echo(_ context.Context, s p2p.Stream) {
	if _, err := io.Copy(s, s); err != nil {
		s.Reset()
		return
	}
	s.Close()
}

func testEcho(t *testing.T, nodes []Node) {
	a, b := nodes[0], nodes[1]
	remote := make(chan peer.ID, 1)
	b.Handle(p2pProto("echo"), p2p.Limits{}, func(ctx context.Context, s p2p.Stream) {
		remote <- s.Remote()
		echo(ctx, s)
	})
	s := open(t, a, b, "echo")
	if s.Remote() != b.ID() {
		t.Errorf("remote of the opener is %s", s.Remote())
	}
	for _, text := range []string{"one", "two", "three"} {
		if _, err := s.Write([]byte(text)); err != nil {
			t.Fatalf("write: %v", err)
		}
		got := make([]byte, len(text))
		if _, err := io.ReadFull(s, got); err != nil || string(got) != text {
			t.Fatalf("read %q, %v; want %q", got, err, text)
		}
	}
	if got := <-remote; got != a.ID() {
		t.Errorf("remote of the handler is %s", got)
	}
	if err := s.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	if _, err := s.Write([]byte("x")); err == nil {
		t.Error("a closed stream takes bytes")
	}
}

func testHalfClose(t *testing.T, nodes []Node) {
	nodes[1].Handle(p2pProto("half"), p2p.Limits{}, func(_ context.Context, s p2p.Stream) {
		defer s.Close()
		if b, err := io.ReadAll(s); err == nil { // the end must arrive while the other direction is open
			s.Write(bytes.ToUpper(b))
		}
	})
	s := open(t, nodes[0], nodes[1], "half")
	if _, err := s.Write([]byte("question")); err != nil {
		t.Fatalf("write: %v", err)
	}
	if err := s.CloseWrite(); err != nil {
		t.Fatalf("close write: %v", err)
	}
	if got := readAll(t, s); string(got) != "QUESTION" {
		t.Errorf("answer %q", got)
	}
}

func testBigTransfer(t *testing.T, nodes []Node) {
	nodes[1].Handle(p2pProto("big"), p2p.Limits{}, echo)
	s := open(t, nodes[0], nodes[1], "big")
	data := make([]byte, 2<<20)
	source := rand.New(rand.NewPCG(1, 2))
	for i := range data {
		data[i] = byte(source.Uint32())
	}
	sent := make(chan error, 1)
	go func() {
		_, err := s.Write(data)
		sent <- errors.Join(err, s.CloseWrite())
	}()
	got := readAll(t, s)
	if err := <-sent; err != nil {
		t.Fatalf("write: %v", err)
	}
	if !bytes.Equal(got, data) {
		t.Errorf("%d bytes came back changed, %d were sent", len(got), len(data))
	}
}

func testReset(t *testing.T, nodes []Node) {
	failed := make(chan error, 1)
	nodes[1].Handle(p2pProto("reset"), p2p.Limits{}, func(_ context.Context, s p2p.Stream) {
		var b [1]byte
		if _, err := io.ReadFull(s, b[:]); err != nil || b[0] == 'r' {
			s.Reset()
			return
		}
		s.Write(b[:])
		_, err := s.Read(b[:])
		failed <- err
		s.Reset()
	})
	s := open(t, nodes[0], nodes[1], "reset")
	if _, err := s.Write([]byte("r")); err != nil {
		t.Fatalf("write: %v", err)
	}
	if _, err := s.Read(make([]byte, 1)); !errors.Is(err, p2p.ErrReset) {
		t.Errorf("read after the remote reset: %v", err)
	}
	s = open(t, nodes[0], nodes[1], "reset")
	if _, err := s.Write([]byte("w")); err != nil {
		t.Fatalf("write: %v", err)
	}
	if _, err := io.ReadFull(s, make([]byte, 1)); err != nil { // the handler is past its first read
		t.Fatalf("read: %v", err)
	}
	if err := s.Reset(); err != nil {
		t.Fatalf("reset: %v", err)
	}
	if err := <-failed; !errors.Is(err, p2p.ErrReset) {
		t.Errorf("the handler's read after the opener reset: %v", err)
	}
}

func testDeadline(t *testing.T, nodes []Node) {
	release := make(chan struct{})
	defer close(release)
	nodes[1].Handle(p2pProto("mute"), p2p.Limits{}, func(_ context.Context, s p2p.Stream) {
		io.ReadFull(s, make([]byte, 2))
		s.Write([]byte("x"))
		<-release
		s.Reset()
	})
	s := open(t, nodes[0], nodes[1], "mute")
	if _, err := s.Write([]byte("a")); err != nil {
		t.Fatalf("write: %v", err)
	}
	s.SetDeadline(time.Now().Add(50 * time.Millisecond))
	if _, err := s.Read(make([]byte, 1)); !isDeadline(err) {
		t.Fatalf("read past the deadline: %v", err)
	}
	s.SetDeadline(time.Now().Add(patience)) // a later deadline revives the stream
	if _, err := s.Write([]byte("b")); err != nil {
		t.Fatalf("write after a new deadline: %v", err)
	}
	if _, err := s.Read(make([]byte, 1)); err != nil {
		t.Fatalf("read after a new deadline: %v", err)
	}
	s.SetDeadline(time.Now().Add(50 * time.Millisecond)) // nobody reads: the window fills, then the write must give up
	var err error
	for chunk := make([]byte, 1<<20); err == nil; {
		_, err = s.Write(chunk)
	}
	if !isDeadline(err) {
		t.Errorf("write past the deadline: %v", err)
	}
}

func testIdle(t *testing.T, nodes []Node) {
	failed := make(chan error, 1)
	limits := p2p.Limits{Idle: 100 * time.Millisecond}
	nodes[1].Handle(p2pProto("idle"), limits, func(_ context.Context, s p2p.Stream) {
		_, err := io.ReadFull(s, make([]byte, 2))
		failed <- err
		s.Reset()
	})
	s := open(t, nodes[0], nodes[1], "idle")
	if _, err := s.Write([]byte("a")); err != nil {
		t.Fatalf("write: %v", err)
	}
	if err := <-failed; !isDeadline(err) {
		t.Errorf("a silent opener: %v", err)
	}
}

// hold opens a stream and says whether the handler took it. A refused one is reset.
func hold(t *testing.T, from, to Node, proto string) bool {
	t.Helper()
	s, err := from.Open(within(t), to.ID(), p2pProto(proto))
	if errors.Is(err, p2p.ErrReset) {
		return false
	}
	if err != nil {
		t.Fatalf("open %s: %v", proto, err)
	}
	t.Cleanup(func() { s.Reset() })
	s.SetDeadline(time.Now().Add(patience))
	_, werr := s.Write([]byte("a"))
	_, err = io.ReadFull(s, make([]byte, 1))
	if err != nil && !errors.Is(err, p2p.ErrReset) {
		t.Fatalf("a refused stream fails with %v (write: %v)", err, werr)
	}
	return err == nil
}

// holder answers one byte and keeps the stream until the test ends.
func holder(t *testing.T) p2p.Handler {
	release := make(chan struct{})
	t.Cleanup(func() { close(release) })
	return func(ctx context.Context, s p2p.Stream) {
		defer s.Reset()
		if _, err := io.ReadFull(s, make([]byte, 1)); err != nil {
			return
		}
		s.Write([]byte("b"))
		select {
		case <-release:
		case <-ctx.Done():
		}
	}
}

func testLimitPerPeer(t *testing.T, nodes []Node) {
	server := nodes[2]
	server.Handle(p2pProto("few"), p2p.Limits{Streams: 10, StreamsPerPeer: 2}, holder(t))
	for i, want := range []bool{true, true, false} {
		if got := hold(t, nodes[0], server, "few"); got != want {
			t.Fatalf("stream %d of the first peer: taken %v, want %v", i+1, got, want)
		}
	}
	if !hold(t, nodes[1], server, "few") {
		t.Error("the other peer suffers")
	}
}

func testLimitPerProtocol(t *testing.T, nodes []Node) {
	server := nodes[2]
	server.Handle(p2pProto("one"), p2p.Limits{Streams: 1, StreamsPerPeer: 1}, func(_ context.Context, s p2p.Stream) {
		var b [1]byte
		for {
			if _, err := s.Read(b[:]); err != nil {
				s.Reset()
				return
			}
			s.Write(b[:])
		}
	})
	first := open(t, nodes[0], server, "one")
	first.Write([]byte("a"))
	if _, err := io.ReadFull(first, make([]byte, 1)); err != nil {
		t.Fatalf("first stream: %v", err)
	}
	if hold(t, nodes[1], server, "one") {
		t.Fatal("a second peer exceeds the limit of the protocol")
	}
	first.Reset()
	Eventually(t, "the place is free again", func() bool { return hold(t, nodes[1], server, "one") })
}

func testUnknown(t *testing.T, nodes []Node) {
	if _, err := nodes[0].Open(within(t), nodes[1].ID(), p2pProto("nobody")); !errors.Is(err, p2p.ErrNoProtocol) {
		t.Errorf("unknown protocol: %v", err)
	}
	stranger := peer.ID("\x00\x24\x08\x01\x12\x20" + "01234567890123456789012345678901")
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, err := nodes[0].Open(ctx, stranger, p2pProto("nobody")); !errors.Is(err, p2p.ErrUnreachable) {
		t.Errorf("unknown peer: %v", err)
	}
	if err := nodes[0].Connect(ctx, peer.AddrInfo{ID: stranger}); !errors.Is(err, p2p.ErrUnreachable) {
		t.Errorf("connect to an unknown peer: %v", err)
	}
	gone, stop := context.WithCancel(t.Context())
	stop()
	if _, err := nodes[0].Open(gone, nodes[1].ID(), p2pProto("nobody")); !errors.Is(err, context.Canceled) {
		t.Errorf("open with a cancelled context: %v", err)
	}
}

func testHandlerContext(t *testing.T, nodes []Node) {
	started, ended := make(chan struct{}), make(chan struct{})
	nodes[1].Handle(p2pProto("ctx"), p2p.Limits{}, func(ctx context.Context, s p2p.Stream) {
		close(started)
		<-ctx.Done()
		s.Reset()
		close(ended)
	})
	s := open(t, nodes[0], nodes[1], "ctx")
	s.Write([]byte("a"))
	<-started
	if err := nodes[1].Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
	select {
	case <-ended:
	default:
		t.Error("close returned before the handler did")
	}
	if _, err := s.Read(make([]byte, 1)); err == nil {
		t.Error("a stream to a closed node still delivers")
	}
}
