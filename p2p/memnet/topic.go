package memnet

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/p2p"
)

// forgetAfter is how long a node's own bytes are known, and not sent again.
const forgetAfter = 2 * time.Minute

// topic is one node's subscription. A pump judges what arrives, so that a validator never runs in the author's goroutine.
type topic struct {
	node     *Node
	name     string
	validate p2p.Validator

	mu      sync.Mutex
	changed sync.Cond
	arrived []incoming // not judged yet, in the order of arrival; some are still on their way
	ready   []p2p.Message
	closed  bool
	sent    map[string]time.Time // guarded by net.mu
}

// incoming is a message on its way to one subscriber.
type incoming struct {
	p2p.Message
	left, at time.Time // of leaving the author and of arriving
}

var _ p2p.Topic = (*topic)(nil)

// Join implements [p2p.Network].
func (n *Node) Join(name string, validate p2p.Validator) (p2p.Topic, error) {
	if err := p2p.CheckTopic(name); err != nil {
		return nil, err
	}
	if validate == nil {
		validate = func(peer.ID, []byte) p2p.Verdict { return p2p.Accept }
	}
	n.net.mu.Lock()
	defer n.net.mu.Unlock()
	if err := n.alive(); err != nil {
		return nil, err
	}
	if n.topics[name] != nil {
		return nil, fmt.Errorf("memnet: join %s: %w", name, p2p.ErrJoined)
	}
	t := &topic{node: n, name: name, validate: validate, sent: make(map[string]time.Time)}
	t.changed.L = &t.mu
	n.topics[name] = t
	n.work.Go(t.pump)
	return t, nil
}

func (t *topic) pump() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for !t.closed {
		if len(t.arrived) == 0 {
			t.changed.Wait()
			continue
		}
		m := t.arrived[0]
		if wait := time.Until(m.at); wait > 0 {
			timer := time.AfterFunc(wait, t.wake)
			t.changed.Wait()
			timer.Stop()
			continue
		}
		t.arrived = t.arrived[1:]
		t.mu.Unlock()
		verdict := t.validate(m.From, m.Data)
		t.mu.Lock()
		if verdict == p2p.Accept {
			t.ready = append(t.ready, m.Message)
			t.changed.Broadcast()
		}
	}
}

// Publish implements [p2p.Topic]. Like the real network it asks the node's own validator first.
func (t *topic) Publish(ctx context.Context, data []byte) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("memnet: publish on %s: %w", t.name, err)
	}
	if len(data) > p2p.MaxGossip {
		return fmt.Errorf("memnet: publish %d bytes on %s, limit %d: %w", len(data), t.name, p2p.MaxGossip, p2p.ErrTooLarge)
	}
	if t.validate(t.node.id, data) != p2p.Accept {
		return fmt.Errorf("memnet: publish on %s: %w", t.name, p2p.ErrRefused)
	}
	net := t.node.net
	net.mu.Lock()
	defer net.mu.Unlock()
	if t.node.topics[t.name] != t {
		return fmt.Errorf("memnet: publish on %s: %w", t.name, p2p.ErrClosed)
	}
	now := time.Now()
	if at, known := t.sent[string(data)]; known && now.Sub(at) < forgetAfter {
		return nil
	}
	maps.DeleteFunc(t.sent, func(_ string, at time.Time) bool { return now.Sub(at) >= forgetAfter })
	t.sent[string(data)] = now
	for _, other := range t.others() {
		trip := net.traffic.send(route{t.node.id, other.node.id}, len(data))
		if !trip.lost {
			other.deliver(incoming{p2p.Message{From: t.node.id, Data: bytes.Clone(data)}, trip.left, trip.arrives})
		}
	}
	return nil
}

// others lists the subscriptions that the node can reach, sorted by peer ID: on a narrow uplink the order is the order of
// arrival. The caller holds net.mu.
func (t *topic) others() []*topic {
	var list []*topic
	for id := range t.node.net.nodes {
		remote := t.node.net.peerOf(t.node, id)
		if remote != nil && remote.topics[t.name] != nil {
			list = append(list, remote.topics[t.name])
		}
	}
	slices.SortFunc(list, func(a, b *topic) int { return strings.Compare(string(a.node.id), string(b.node.id)) })
	return list
}

func (t *topic) deliver(m incoming) {
	t.mu.Lock()
	defer t.mu.Unlock()
	at := len(t.arrived)
	for at > 0 && t.arrived[at-1].at.After(m.at) {
		at--
	}
	t.arrived = slices.Insert(t.arrived, at, m)
	t.changed.Broadcast()
}

func (t *topic) wake() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.changed.Broadcast()
}

// Next implements [p2p.Topic].
func (t *topic) Next(ctx context.Context) (p2p.Message, error) {
	stop := context.AfterFunc(ctx, t.wake)
	defer stop()
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(t.ready) == 0 && !t.closed && ctx.Err() == nil {
		t.changed.Wait()
	}
	if err := ctx.Err(); err != nil {
		return p2p.Message{}, fmt.Errorf("memnet: next on %s: %w", t.name, err)
	}
	if t.closed {
		return p2p.Message{}, fmt.Errorf("memnet: next on %s: %w", t.name, p2p.ErrClosed)
	}
	m := t.ready[0]
	t.ready = t.ready[1:]
	return m, nil
}

// Peers implements [p2p.Topic].
func (t *topic) Peers() []peer.ID {
	t.node.net.mu.Lock()
	defer t.node.net.mu.Unlock()
	var ids []peer.ID
	if t.node.topics[t.name] == t {
		for _, other := range t.others() {
			ids = append(ids, other.node.id)
		}
	}
	return ids
}

// Close implements [p2p.Topic].
func (t *topic) Close() error {
	net := t.node.net
	net.mu.Lock()
	if t.node.topics[t.name] == t {
		delete(t.node.topics, t.name)
	}
	net.mu.Unlock()
	t.end()
	return nil
}

func (t *topic) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	t.arrived, t.ready = nil, nil
	t.changed.Broadcast()
}
