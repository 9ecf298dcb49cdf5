// Package memnet owns a network in memory: the twin of [p2p.Host] for tests. Nodes of one [Net] see each other at once, and
// a test can kill nodes and cut the network. There are no sockets and no clocks other than package time, so it runs inside
// testing/synctest.
//
// At first everything arrives at once, and gossip in each author's order. [Net.Shape] gives links latency, jitter, bandwidth
// and loss. A node has one uplink and sends one thing after another; gossip goes from its author straight to each
// subscriber, one copy after another. Streams stay in order; opening and resetting one takes no time. It refuses to model
// downlinks, congestion and lost packets of streams, and how gossip is passed on.
package memnet

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/capacloud/capanode/p2p"
	"github.com/capacloud/capanode/p2p/internal/gate"
)

// Net is a set of nodes that can reach each other unless it is partitioned.
type Net struct {
	mu        sync.Mutex // guards everything below and the maps of every node
	nodes     map[peer.ID]*Node
	side      map[peer.ID]int             // side of the partition; 0 when not named in it
	providers map[string]map[peer.ID]bool // by multihash, as in the DHT
	traffic   traffic
}

// New returns an empty network.
func New() *Net {
	return &Net{
		nodes: make(map[peer.ID]*Node), side: make(map[peer.ID]int), providers: make(map[string]map[peer.ID]bool),
		traffic: traffic{links: make(map[route]Link), sent: make(map[route]uint64), idle: make(map[peer.ID]time.Time)},
	}
}

// Node returns the running node of that name, or starts it. The name decides the key, so a node that was closed or killed
// comes back with the same identity and nothing else.
func (n *Net) Node(name string) *Node {
	seed := sha256.Sum256([]byte("capanode memnet node " + name))
	key, _, err := crypto.GenerateEd25519Key(bytes.NewReader(seed[:]))
	if err != nil {
		panic(err) // 32 bytes are what the key needs
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		panic(err) // an Ed25519 key always has an ID
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if node := n.nodes[id]; node != nil {
		return node
	}
	ctx, stop := context.WithCancel(context.Background())
	node := &Node{
		net: n, name: name, id: id, key: key, ctx: ctx, stop: stop,
		services: make(map[protocol.ID]*service), topics: make(map[string]*topic), streams: make(map[*stream]bool),
	}
	n.nodes[id] = node
	return node
}

// Kill ends a node as a crash does: its streams are reset on both ends, its topics fall silent, nobody is told. Gossip that
// has left it arrives; what still waits for its uplink does not, so that a message may reach some and not others. What it
// announced stays announced, as it does in a DHT. Killing an unknown node does nothing.
func (n *Net) Kill(id peer.ID) {
	n.mu.Lock()
	node := n.nodes[id]
	n.mu.Unlock()
	if node != nil {
		node.die()
	}
}

// Partition cuts the network into the groups; nodes in no group form one more. Streams across the cut are reset, and gossip
// that is on its way across it is lost.
func (n *Net) Partition(groups ...[]peer.ID) {
	n.mu.Lock()
	clear(n.side)
	for i, group := range groups {
		for _, id := range group {
			n.side[id] = i + 1
		}
	}
	n.lose(func(from, to peer.ID, _ incoming) bool { return n.side[from] != n.side[to] })
	var cut []*stream
	for id, node := range n.nodes {
		for s := range node.streams {
			if n.side[id] != n.side[s.remote] {
				cut = append(cut, s)
			}
		}
	}
	n.mu.Unlock()
	for _, s := range cut {
		s.Reset()
	}
}

// lose drops gossip that is on its way. The caller holds n.mu.
func (n *Net) lose(which func(from, to peer.ID, m incoming) bool) {
	for id, node := range n.nodes {
		for _, t := range node.topics {
			t.mu.Lock()
			t.arrived = slices.DeleteFunc(t.arrived, func(m incoming) bool {
				return m.at.After(time.Now()) && which(m.From, id, m)
			})
			t.mu.Unlock()
		}
	}
}

// Heal ends a partition.
func (n *Net) Heal() { n.Partition() }

// peerOf returns the running node that from can reach under the ID, or nil. The caller holds n.mu.
func (n *Net) peerOf(from *Node, to peer.ID) *Node {
	node := n.nodes[to]
	if node == nil || node == from || n.side[from.id] != n.side[to] {
		return nil
	}
	return node
}

// Node is one node of a [Net]. It implements [p2p.Network] and [p2p.Router].
type Node struct {
	net  *Net
	name string
	id   peer.ID
	key  crypto.PrivKey
	ctx  context.Context
	stop context.CancelFunc
	work sync.WaitGroup // handlers and topic pumps

	// guarded by net.mu
	services map[protocol.ID]*service
	topics   map[string]*topic
	streams  map[*stream]bool
}

type service struct {
	limits  p2p.Limits
	handler p2p.Handler
	gate    *gate.Gate
}

var (
	_ p2p.Network = (*Node)(nil)
	_ p2p.Router  = (*Node)(nil)
)

// ID implements [p2p.Network].
func (n *Node) ID() peer.ID { return n.id }

// Key implements [p2p.Network].
func (n *Node) Key() crypto.PrivKey { return n.key }

// String returns the name that the test gave.
func (n *Node) String() string { return n.name }

// Close stops the node, resets its streams and waits for its handlers. A handler must not call it.
func (n *Node) Close() error {
	n.die()
	n.work.Wait()
	return nil
}

func (n *Node) die() {
	n.net.mu.Lock()
	if n.net.nodes[n.id] == n {
		delete(n.net.nodes, n.id)
	}
	if n.ctx.Err() == nil {
		now := time.Now()
		n.net.lose(func(from, _ peer.ID, m incoming) bool { return from == n.id && m.left.After(now) })
		n.net.traffic.forget(n.id)
	}
	n.stop()
	streams := slices.Collect(maps.Keys(n.streams))
	topics := slices.Collect(maps.Values(n.topics))
	clear(n.topics)
	n.net.mu.Unlock()
	for _, s := range streams {
		s.Reset()
	}
	for _, t := range topics {
		t.end()
	}
}

// alive returns an error when the node was closed. The caller holds net.mu, so that nothing starts after die.
func (n *Node) alive() error {
	if n.ctx.Err() != nil {
		return fmt.Errorf("memnet: node %s: %w", n.name, p2p.ErrClosed)
	}
	return nil
}

// Open implements [p2p.Network].
func (n *Node) Open(ctx context.Context, to peer.ID, proto protocol.ID) (p2p.Stream, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("memnet: open %s to %s: %w", proto, to, err)
	}
	n.net.mu.Lock()
	defer n.net.mu.Unlock()
	if err := n.alive(); err != nil {
		return nil, err
	}
	remote := n.net.peerOf(n, to)
	if remote == nil {
		return nil, fmt.Errorf("memnet: open %s to %s: %w", proto, to, p2p.ErrUnreachable)
	}
	svc := remote.services[proto]
	if svc == nil {
		return nil, fmt.Errorf("memnet: open %s to %s: %w", proto, to, p2p.ErrNoProtocol)
	}
	there, back := newFlow(&n.net.traffic, n.id, to), newFlow(&n.net.traffic, to, n.id)
	near := &stream{node: n, remote: to, in: back, out: there}
	if !svc.gate.Enter(n.id) {
		there.abort(p2p.ErrReset)
		back.abort(p2p.ErrReset)
		return near, nil
	}
	far := &stream{node: remote, remote: n.id, in: there, out: back}
	n.streams[near], remote.streams[far] = true, true
	remote.work.Go(func() { svc.serve(remote.ctx, far) })
	return near, nil
}

func (s *service) serve(ctx context.Context, far *stream) {
	defer s.gate.Leave(far.remote)
	far.SetDeadline(time.Now().Add(s.limits.Idle))
	s.handler(ctx, far)
}

func (n *Node) forget(s *stream) {
	n.net.mu.Lock()
	defer n.net.mu.Unlock()
	delete(n.streams, s)
}

// Handle implements [p2p.Network].
func (n *Node) Handle(proto protocol.ID, limits p2p.Limits, handler p2p.Handler) {
	limits = limits.WithDefaults()
	n.net.mu.Lock()
	defer n.net.mu.Unlock()
	n.services[proto] = &service{limits, handler, gate.New(limits.Streams, limits.StreamsPerPeer)}
}

// Connect implements [p2p.Router].
func (n *Node) Connect(ctx context.Context, to peer.AddrInfo) error {
	n.net.mu.Lock()
	defer n.net.mu.Unlock()
	if err := n.alive(); err != nil {
		return err
	}
	if n.net.peerOf(n, to.ID) == nil {
		return fmt.Errorf("memnet: connect to %s: %w", to.ID, p2p.ErrUnreachable)
	}
	return ctx.Err()
}

// Connected implements [p2p.Router]: all nodes that this one can reach.
func (n *Node) Connected() []peer.ID {
	n.net.mu.Lock()
	defer n.net.mu.Unlock()
	var ids []peer.ID
	if n.alive() == nil {
		for id := range n.net.nodes {
			if n.net.peerOf(n, id) != nil {
				ids = append(ids, id)
			}
		}
	}
	return sorted(ids)
}

// Provide implements [p2p.Router].
func (n *Node) Provide(ctx context.Context, c cid.Cid) error {
	if !c.Defined() {
		return fmt.Errorf("memnet: provide: undefined CID")
	}
	n.net.mu.Lock()
	defer n.net.mu.Unlock()
	if err := n.alive(); err != nil {
		return err
	}
	key := string(c.Hash())
	if n.net.providers[key] == nil {
		n.net.providers[key] = make(map[peer.ID]bool)
	}
	n.net.providers[key][n.id] = true
	return ctx.Err()
}

// Providers implements [p2p.Router]. Nodes that stopped since are still returned, as by a DHT.
func (n *Node) Providers(ctx context.Context, c cid.Cid, limit int) ([]peer.ID, error) {
	if !c.Defined() {
		return nil, fmt.Errorf("memnet: providers: undefined CID")
	}
	n.net.mu.Lock()
	defer n.net.mu.Unlock()
	if err := n.alive(); err != nil {
		return nil, err
	}
	var ids []peer.ID
	for id := range n.net.providers[string(c.Hash())] {
		if id != n.id {
			ids = append(ids, id)
		}
	}
	ids = sorted(ids)
	return ids[:max(0, min(limit, len(ids)))], ctx.Err()
}

func sorted(ids []peer.ID) []peer.ID {
	slices.SortFunc(ids, func(a, b peer.ID) int { return strings.Compare(string(a), string(b)) })
	return ids
}
