package node

import (
	"context"
	"fmt"
	"math"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/market/offer"
	"github.com/capacloud/capanode/p2p/memnet"
	"github.com/capacloud/capanode/trainer/job"
	"github.com/capacloud/capanode/trainer/model"
)

func TestBestAddress(t *testing.T) {
	const id = "/p2p/12D3KooWCYhhQnuAotvufBDNJZUe6HD3K4Gg3PAR3zHwLGiVFE7A"
	for _, c := range []struct {
		all  []string
		want int // index; -1 is none
	}{
		{nil, -1},
		{[]string{"nonsense"}, -1},
		{[]string{"/ip4/127.0.0.1/udp/1/quic-v1" + id, "/ip4/127.0.0.1/tcp/1" + id}, 1},
		{[]string{"/ip4/127.0.0.1/tcp/1" + id, "/ip4/192.0.2.1/udp/1/quic-v1" + id}, 1},
		{[]string{"/ip4/192.0.2.1/udp/1/quic-v1" + id, "/ip4/192.0.2.1/tcp/1" + id, "/ip6/::1/tcp/1" + id}, 1},
		{[]string{"nonsense", "/ip6/::1/tcp/1" + id}, 1},
	} {
		want := ""
		if c.want >= 0 {
			want = c.all[c.want]
		}
		if got := bestAddress(c.all); got != want {
			t.Errorf("%v: %q, want %q", c.all, got, want)
		}
	}
}

func TestNeighboursAreBounded(t *testing.T) {
	net := memnet.New()
	n := onMemory(t, net, "middle")
	first := net.Node("first")
	if err := n.net.Connect(context.Background(), peer.AddrInfo{ID: first.ID()}); err != nil {
		t.Fatal(err)
	}
	for i := range 2 * maxNeighbours {
		if err := n.net.Connect(context.Background(), peer.AddrInfo{ID: net.Node(fmt.Sprint(i)).ID()}); err != nil {
			t.Fatal(err)
		}
	}
	got := n.neighbours(first.ID())
	if len(got) != maxNeighbours || got[0] != first.ID() {
		t.Errorf("%d neighbours, the first is %s", len(got), got[0])
	}
	seen := map[peer.ID]bool{}
	for _, id := range got {
		if seen[id] || id == n.id {
			t.Errorf("%s is listed twice or is this node", id)
		}
		seen[id] = true
	}
}

func TestEstimateFollowsTheSlowest(t *testing.T) {
	offers := []offer.Offer{
		{Peer: "a", Beacon: offer.Beacon{PerfMFLOPS: 1000, Price: 3_600_000, Rate: 2_000_000}},
		{Peer: "b", Beacon: offer.Beacon{PerfMFLOPS: 500, Price: 7_200_000}},
		{Peer: "c", Beacon: offer.Beacon{PerfMFLOPS: 1, Price: 1}}, // one more than the job takes
	}
	r := &requester{Node: &Node{id: "self"}, rec: job.Record{Peers: 2}}
	e := PlanEvent{Peers: 2, WorkUnits: 200}
	r.estimate(&e, offers)
	// 100 units of 1 GFLOP each at 0.5 GFLOP/s are 200 s; 200 s at 3.6 and 7.2 credits an hour are 0.2 and 0.4, and 100 units
	// at 2 credits a million 0.0002.
	if e.SecondsGuess != 200*roundOverhead || math.Abs(e.CostLow-0.6002) > 1e-9 || math.Abs(e.CostHigh-1.2002) > 1e-9 {
		t.Errorf("%v s, %v to %v credits", e.SecondsGuess, e.CostLow, e.CostHigh)
	}
	none := PlanEvent{Peers: 2, WorkUnits: 200}
	r.estimate(&none, nil)
	if none.SecondsGuess != 0 || none.CostHigh != 0 {
		t.Errorf("without offers: %+v", none)
	}
}

// A model near every limit must look too large, not small because the sum wrapped around.
func TestMemoryNeededCannotWrap(t *testing.T) {
	spec, err := model.Preset("llama-110m")
	if err != nil {
		t.Fatal(err)
	}
	spec.Context = model.MaxContext
	for _, rows := range []uint64{1 << 10, 1 << 16, 1 << 28, 1 << 34, math.MaxInt32, math.MaxUint64} {
		need, err := memoryNeeded(job.Record{Model: spec, MicroBatch: rows, Context: model.MaxContext})
		if err == nil && need < 1<<40 {
			t.Errorf("%d rows need %d bytes", rows, need)
		}
	}
}
