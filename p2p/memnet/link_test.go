package memnet_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/p2p"
	"github.com/capacloud/capanode/p2p/memnet"
)

// crowd starts nodes that all subscribe to one topic.
func crowd(t *testing.T, link memnet.Link, count int) (*memnet.Net, []*memnet.Node, []p2p.Topic) {
	net := memnet.New()
	net.Shape(link)
	var nodes []*memnet.Node
	var topics []p2p.Topic
	for i := range count {
		node := net.Node(fmt.Sprint("node ", i))
		t.Cleanup(func() { node.Close() })
		topic, err := node.Join("/capanode/x", nil)
		if err != nil {
			t.Fatal(err)
		}
		nodes, topics = append(nodes, node), append(topics, topic)
	}
	return net, nodes, topics
}

func TestLatency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, _, topics := crowd(t, memnet.Link{Latency: 40 * time.Millisecond}, 2)
		began := time.Now()
		topics[0].Publish(t.Context(), []byte("hello"))
		if _, err := topics[1].Next(t.Context()); err != nil || time.Since(began) != 40*time.Millisecond {
			t.Errorf("arrived after %v: %v", time.Since(began), err)
		}
	})
}

// A node's uplink carries one copy after another, and what a dead node had not sent yet never arrives.
func TestBandwidthIsTheSenders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, nodes, topics := crowd(t, memnet.Link{Bandwidth: 1000}, 4)
		topics[0].Publish(t.Context(), make([]byte, 500))
		time.Sleep(1100 * time.Millisecond)
		net.Kill(nodes[0].ID())
		got := 0
		for _, topic := range topics[1:] {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			if _, err := topic.Next(ctx); err == nil {
				got++
			}
			cancel()
		}
		if got != 2 {
			t.Errorf("%d of 3 copies arrived, want the 2 that left within 1.1 s at 2 copies a second", got)
		}
		again := net.Node("node 0")
		defer again.Close()
		topic, _ := again.Join("/capanode/x", nil)
		began := time.Now()
		topic.Publish(t.Context(), make([]byte, 100))
		for _, other := range topics[1:] {
			if _, err := other.Next(t.Context()); err != nil {
				t.Error(err)
			}
		}
		if took := time.Since(began); took != 300*time.Millisecond {
			t.Errorf("three copies of 100 bytes took %v, want 300ms: a node that comes back has an empty uplink", took)
		}
	})
}

func TestStreamOnSlowLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, nodes, topics := crowd(t, memnet.Link{Latency: time.Second, Jitter: 100 * time.Millisecond, Bandwidth: 1 << 20}, 2)
		sent := bytes.Repeat([]byte("0123456789abcdef"), 4<<20/16)
		began := time.Now()
		got := make(chan []byte, 1)
		nodes[1].Handle("/x", p2p.Limits{Idle: time.Hour}, func(_ context.Context, s p2p.Stream) {
			b, err := io.ReadAll(s)
			if err != nil {
				t.Error(err)
			}
			got <- b
		})
		s, err := nodes[0].Open(t.Context(), nodes[1].ID(), "/x")
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			time.Sleep(2 * time.Second)
			topics[0].Publish(t.Context(), make([]byte, 1<<10)) // shares the uplink with the stream, and waits for one piece at most
		}()
		go func() {
			at := time.Now()
			topics[1].Next(t.Context())
			if d := time.Since(at); d < 3*time.Second || d > 3200*time.Millisecond {
				t.Errorf("gossip beside a stream came after %v", d)
			}
		}()
		if _, err := s.Write(sent); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(began); d < 4*time.Second || d > 4100*time.Millisecond {
			t.Errorf("4 MiB left in %v, want 4 s at 1 MiB/s", d)
		}
		s.CloseWrite()
		if b := <-got; !bytes.Equal(b, sent) {
			t.Errorf("%d bytes arrived, want the %d that were sent", len(b), len(sent))
		}
		if d := time.Since(began); d < 5*time.Second || d > 5300*time.Millisecond {
			t.Errorf("4 MiB arrived in %v, want 5 s", d)
		}
		net.Kill(nodes[0].ID())
		if _, err := s.Write(sent); !errors.Is(err, p2p.ErrReset) {
			t.Errorf("write by a killed node: %v", err)
		}
	})
}

// arrivals publishes 200 messages and returns which arrive, in order.
func arrivals(t *testing.T, link memnet.Link) (order []int) {
	synctest.Test(t, func(t *testing.T) {
		_, _, topics := crowd(t, link, 2)
		for i := range 200 {
			topics[0].Publish(t.Context(), []byte{byte(i)})
		}
		for {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			m, err := topics[1].Next(ctx)
			cancel()
			if err != nil {
				return
			}
			order = append(order, int(m.Data[0]))
		}
	})
	return order
}

func TestLossAndJitterFollowTheSeed(t *testing.T) {
	link := memnet.Link{Latency: time.Second, Jitter: time.Second, Loss: 0.3, Seed: 5}
	first := arrivals(t, link)
	if len(first) < 120 || len(first) > 160 || slices.IsSorted(first) {
		t.Errorf("%d of 200 messages arrived, want about 140, out of order: %v", len(first), first)
	}
	if again := arrivals(t, link); !slices.Equal(again, first) {
		t.Errorf("the same seed gave other arrivals:\n%v\n%v", first, again)
	}
	link.Seed++
	if other := arrivals(t, link); slices.Equal(other, first) {
		t.Error("another seed gave the same arrivals")
	}
}

func TestShapeLinkAndPartitionInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, nodes, topics := crowd(t, memnet.Link{}, 3)
		net.ShapeLink(nodes[0].ID(), nodes[1].ID(), memnet.Link{Latency: time.Second})
		began := time.Now()
		topics[0].Publish(t.Context(), []byte("one"))
		if _, err := topics[2].Next(t.Context()); err != nil || time.Since(began) != 0 {
			t.Errorf("the other link took %v: %v", time.Since(began), err)
		}
		net.Partition([]peer.ID{nodes[0].ID()})
		net.Heal()
		topics[0].Publish(t.Context(), []byte("two"))
		if m, err := topics[1].Next(t.Context()); err != nil || string(m.Data) != "two" || time.Since(began) != time.Second {
			t.Errorf("%q after %v, %v: what was on its way when the network was cut is lost", m.Data, time.Since(began), err)
		}
		net.UnshapeLinks()
		topics[0].Publish(t.Context(), []byte("three"))
		if topics[1].Next(t.Context()); time.Since(began) != time.Second {
			t.Error("the link keeps its shape")
		}
	})
}
