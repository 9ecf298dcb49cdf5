package nettest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/p2p"
)

const topicName = p2p.TopicPrefix + "test/talk"

// joinAll subscribes each node and waits until everyone sees everyone.
func joinAll(t *testing.T, nodes []Node, validate p2p.Validator) []p2p.Topic {
	t.Helper()
	var topics []p2p.Topic
	for _, n := range nodes {
		topic, err := n.Join(topicName, validate)
		if err != nil {
			t.Fatalf("join: %v", err)
		}
		t.Cleanup(func() { topic.Close() })
		topics = append(topics, topic)
	}
	for _, topic := range topics {
		Eventually(t, "all see all on the topic", func() bool { return len(topic.Peers()) == len(nodes)-1 })
	}
	return topics
}

func next(t *testing.T, topic p2p.Topic) p2p.Message {
	t.Helper()
	m, err := topic.Next(within(t))
	if err != nil {
		t.Fatalf("next: %v", err)
	}
	return m
}

// silent fails when something arrives on the topic within a moment.
func silent(t *testing.T, topic p2p.Topic, why string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if m, err := topic.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%s: got %q, %v", why, m.Data, err)
	}
}

func testGossip(t *testing.T, nodes []Node) {
	topics := joinAll(t, nodes, nil)
	const count = 20
	for i := range count {
		if err := topics[0].Publish(within(t), fmt.Appendf(nil, "message %d", i)); err != nil {
			t.Fatalf("publish: %v", err)
		}
	}
	for i, topic := range topics[1:] {
		seen := make(map[string]bool)
		for len(seen) < count {
			m := next(t, topic)
			if m.From != nodes[0].ID() {
				t.Fatalf("author %s, want %s", m.From, nodes[0].ID())
			}
			if seen[string(m.Data)] {
				t.Fatalf("node %d got %q twice", i+1, m.Data)
			}
			seen[string(m.Data)] = true
		}
	}
	big := make([]byte, p2p.MaxGossip)
	if err := topics[1].Publish(within(t), big); err != nil {
		t.Fatalf("publish the largest message: %v", err)
	}
	for _, i := range []int{0, 2} {
		if m := next(t, topics[i]); len(m.Data) != len(big) || m.From != nodes[1].ID() {
			t.Errorf("node %d got %d bytes from %s", i, len(m.Data), m.From)
		}
	}
	silent(t, topics[1], "own messages come back")
	if err := topics[1].Publish(within(t), big); err != nil {
		t.Errorf("publish the same bytes again: %v", err)
	}
	silent(t, topics[0], "the same bytes arrive twice")
}

func testGossipValidator(t *testing.T, nodes []Node) {
	authors := make(chan peer.ID, 100)
	topics := joinAll(t, nodes, func(from peer.ID, data []byte) p2p.Verdict {
		authors <- from
		switch data[0] {
		case 'g':
			return p2p.Reject
		case 's':
			return p2p.Ignore
		}
		return p2p.Accept
	})
	for _, text := range []string{"garbage", "stale"} {
		if err := topics[0].Publish(within(t), []byte(text)); !errors.Is(err, p2p.ErrRefused) {
			t.Errorf("publish of own %s: %v", text, err)
		}
	}
	if err := topics[0].Publish(within(t), []byte("fine")); err != nil {
		t.Fatalf("publish: %v", err)
	}
	for _, topic := range topics[1:] {
		if m := next(t, topic); string(m.Data) != "fine" {
			t.Errorf("got %q", m.Data)
		}
	}
	for range 4 { // two refusals, one own message, at least one remote judgement
		if from := <-authors; from != nodes[0].ID() {
			t.Errorf("the validator sees author %s", from)
		}
	}
}

// testGossipRefusals publishes what the author accepts and the receiver does not.
func testGossipRefusals(t *testing.T, nodes []Node) {
	sender, err := nodes[0].Join(topicName, nil)
	if err != nil {
		t.Fatalf("join: %v", err)
	}
	defer sender.Close()
	receiver, err := nodes[1].Join(topicName, func(_ peer.ID, data []byte) p2p.Verdict {
		if string(data) == "fine" {
			return p2p.Accept
		}
		return p2p.Ignore
	})
	if err != nil {
		t.Fatalf("join: %v", err)
	}
	defer receiver.Close()
	Eventually(t, "the receiver is seen", func() bool { return len(sender.Peers()) == 1 })
	if err := sender.Publish(within(t), make([]byte, p2p.MaxGossip+1)); !errors.Is(err, p2p.ErrTooLarge) {
		t.Errorf("oversize: %v", err)
	}
	for _, text := range []string{"stale", "fine"} {
		if err := sender.Publish(within(t), []byte(text)); err != nil {
			t.Fatalf("publish: %v", err)
		}
	}
	if m := next(t, receiver); string(m.Data) != "fine" {
		t.Errorf("got %q", m.Data)
	}
	if _, err := nodes[0].Join(topicName, nil); !errors.Is(err, p2p.ErrJoined) {
		t.Errorf("second join: %v", err)
	}
	for _, name := range []string{"", "other/x", p2p.TopicPrefix, p2p.TopicPrefix + "a b", p2p.TopicPrefix + string(make([]byte, 200))} {
		if _, err := nodes[0].Join(name, nil); !errors.Is(err, p2p.ErrTopicName) {
			t.Errorf("join %q: %v", name, err)
		}
	}
}

func testGossipClose(t *testing.T, nodes []Node) {
	topics := joinAll(t, nodes, nil)
	ended := make(chan error, 1)
	go func() {
		_, err := topics[1].Next(context.WithoutCancel(t.Context()))
		ended <- err
	}()
	if err := topics[1].Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
	if err := <-ended; !errors.Is(err, p2p.ErrClosed) {
		t.Errorf("pending next: %v", err)
	}
	if err := topics[1].Publish(within(t), []byte("x")); !errors.Is(err, p2p.ErrClosed) {
		t.Errorf("publish on a closed topic: %v", err)
	}
	Eventually(t, "the peer is gone from the topic", func() bool { return len(topics[0].Peers()) == 0 })
	again, err := nodes[1].Join(topicName, nil)
	if err != nil {
		t.Fatalf("join again: %v", err)
	}
	defer again.Close()
	Eventually(t, "the peer is back", func() bool { return len(topics[0].Peers()) == 1 })
	if err := topics[0].Publish(within(t), []byte("welcome")); err != nil {
		t.Fatalf("publish: %v", err)
	}
	if m := next(t, again); string(m.Data) != "welcome" {
		t.Errorf("got %q", m.Data)
	}
	if err := nodes[1].Close(); err != nil {
		t.Fatalf("close the node: %v", err)
	}
	if _, err := again.Next(within(t)); !errors.Is(err, p2p.ErrClosed) {
		t.Errorf("next on a closed node: %v", err)
	}
}
