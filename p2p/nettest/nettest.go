// Package nettest owns the conformance suite of [p2p.Network] and [p2p.Router]: what the rest of the program may rely on,
// whichever implementation it runs on. It refuses to test what only one implementation promises.
package nettest

import (
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multihash"

	"github.com/capacloud/capanode/p2p"
)

// Node is what the suite needs of an implementation.
type Node interface {
	p2p.Network
	p2p.Router
	Close() error
}

// patience bounds each wait of the suite; only a failing test uses it up. It is longer than the 30 s after which QUIC gives
// up a silent peer, should the goodbye of a closing node get lost.
const patience = time.Minute

// Run runs the suite. The factory starts n nodes that can reach each other and closes them when its test ends.
func Run(t *testing.T, factory func(t *testing.T, n int) []Node) {
	for _, c := range []struct {
		name  string
		nodes int
		run   func(*testing.T, []Node)
	}{
		{"identity", 2, testIdentity},
		{"echo", 2, testEcho},
		{"half close", 2, testHalfClose},
		{"big transfer", 2, testBigTransfer},
		{"reset", 2, testReset},
		{"deadline", 2, testDeadline},
		{"idle limit", 2, testIdle},
		{"limit per peer", 3, testLimitPerPeer},
		{"limit per protocol", 3, testLimitPerProtocol},
		{"unknown protocol and peer", 2, testUnknown},
		{"handler context", 2, testHandlerContext},
		{"connected", 3, testConnected},
		{"gossip", 3, testGossip},
		{"gossip validator", 3, testGossipValidator},
		{"gossip refusals", 2, testGossipRefusals},
		{"gossip close", 2, testGossipClose},
		{"providers", 3, testProviders},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(t, factory(t, c.nodes)) })
	}
}

// Eventually polls until the condition holds and returns how long that took; it fails the test when the condition never does.
func Eventually(t testing.TB, what string, condition func() bool) time.Duration {
	t.Helper()
	begin := time.Now()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		if time.Since(begin) > patience {
			t.Fatalf("%s: not within %v", what, patience)
		}
		<-tick.C
	}
	return time.Since(begin)
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func open(t *testing.T, from, to Node, proto string) p2p.Stream {
	t.Helper()
	s, err := from.Open(within(t), to.ID(), p2pProto(proto))
	if err != nil {
		t.Fatalf("open %s: %v", proto, err)
	}
	t.Cleanup(func() { s.Reset() })
	if err := s.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatalf("set deadline: %v", err)
	}
	return s
}

func testIdentity(t *testing.T, nodes []Node) {
	for _, n := range nodes {
		id, err := peer.IDFromPrivateKey(n.Key())
		if err != nil || id != n.ID() {
			t.Errorf("the ID of the key is %s (%v), the node says %s", id, err, n.ID())
		}
	}
	if nodes[0].ID() == nodes[1].ID() {
		t.Error("two nodes share an ID")
	}
}

func testConnected(t *testing.T, nodes []Node) {
	a := nodes[0]
	for _, n := range nodes[1:] {
		if err := a.Connect(within(t), peer.AddrInfo{ID: n.ID()}); err != nil {
			t.Fatalf("connect: %v", err)
		}
	}
	ids := a.Connected()
	if !slices.IsSorted(ids) {
		t.Errorf("not sorted: %v", ids)
	}
	for _, n := range nodes[1:] {
		if !slices.Contains(ids, n.ID()) {
			t.Errorf("%s is missing in %v", n.ID(), ids)
		}
	}
	if slices.Contains(ids, a.ID()) {
		t.Error("a node is connected to itself")
	}
	if err := nodes[1].Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
	Eventually(t, "a closed node leaves the list", func() bool { return !slices.Contains(a.Connected(), nodes[1].ID()) })
	if _, err := a.Open(within(t), nodes[1].ID(), "/test/1"); !errors.Is(err, p2p.ErrUnreachable) {
		t.Errorf("open to a closed node: %v", err)
	}
	if _, err := nodes[1].Open(within(t), a.ID(), "/test/1"); !errors.Is(err, p2p.ErrClosed) {
		t.Errorf("open on a closed node: %v", err)
	}
}

func testProviders(t *testing.T, nodes []Node) {
	sum, err := multihash.Sum([]byte("an object"), multihash.SHA2_256, -1)
	if err != nil {
		t.Fatal(err)
	}
	c := cid.NewCidV1(cid.Raw, sum)
	if ids, err := nodes[0].Providers(within(t), c, 4); err != nil || len(ids) != 0 {
		t.Fatalf("before anyone provides: %v, %v", ids, err)
	}
	for _, n := range nodes[1:] {
		if err := n.Provide(within(t), c); err != nil {
			t.Fatalf("provide: %v", err)
		}
	}
	want := []peer.ID{nodes[1].ID(), nodes[2].ID()}
	slices.Sort(want)
	var got []peer.ID
	Eventually(t, "both providers are found", func() bool {
		if got, err = nodes[0].Providers(within(t), c, 4); err != nil {
			t.Fatalf("providers: %v", err)
		}
		slices.Sort(got)
		return slices.Equal(got, want)
	})
	if got, err = nodes[0].Providers(within(t), c, 1); err != nil || len(got) != 1 {
		t.Errorf("limit 1: %v, %v", got, err)
	}
	if got, err = nodes[1].Providers(within(t), c, 4); err != nil || slices.Contains(got, nodes[1].ID()) {
		t.Errorf("a node names itself: %v, %v", got, err)
	}
	if err := nodes[0].Provide(within(t), cid.Undef); err == nil {
		t.Error("an undefined CID can be provided")
	}
	if _, err := nodes[0].Providers(within(t), cid.Undef, 1); err == nil {
		t.Error("an undefined CID can be looked up")
	}
}

// readAll reads to the end of the stream.
func readAll(t *testing.T, s p2p.Stream) []byte {
	t.Helper()
	b, err := io.ReadAll(s)
	if err != nil {
		t.Fatalf("read: %v", err)
	}
	return b
}

func isDeadline(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }
