package transfer_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/p2p/memnet"
	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/storetest"
	"github.com/capacloud/capanode/storage/transfer"
)

// The tests of this file run in virtual time over shaped links: what they say about seconds is exact and the same everywhere.

// mbit is a bandwidth of one Mbit/s in bytes per second.
const mbit = 1e6 / 8

// skipShort keeps what moves many megabytes in small pieces out of the race detector's run; the swarm's test stays.
func skipShort(t *testing.T) {
	if testing.Short() {
		t.Skip("moves many megabytes")
	}
}

// fetchFrom fetches an object of so many MiB from sources with their own links and returns how long it took, and which share of
// its bytes was sent more than once.
func fetchFrom(t *testing.T, size int, links []memnet.Link, opts transfer.Options) (took time.Duration, twice float64) {
	t.Helper()
	w := newWorld(t)
	data := storetest.Bytes(1, size*mib)
	var from []peer.ID
	var servers []*node
	var c cid.Cid
	b := w.node("b", storage.Options{})
	b.fetch = transfer.NewFetcher(b, b, b.store, opts)
	for i, link := range links {
		n := w.node(fmt.Sprint("source ", i), storage.Options{})
		c = n.put(t, data)
		w.net.ShapeLink(n.ID(), b.ID(), link)
		w.net.ShapeLink(b.ID(), n.ID(), memnet.Link{Latency: link.Latency})
		from, servers = append(from, n.ID()), append(servers, n)
	}
	start := time.Now()
	if err := b.fetch.Fetch(t.Context(), c, from); err != nil {
		t.Fatal(err)
	}
	took = time.Since(start)
	var sent uint64
	for _, n := range servers {
		sent += n.server.Stats().Bytes
	}
	b.check(t, c, data)
	return took, float64(sent)/float64(len(data)) - 1
}

func TestLongFatLink(t *testing.T) {
	skipShort(t)
	synctest.Test(t, func(t *testing.T) {
		const size = 64
		link := memnet.Link{Latency: 25 * time.Millisecond, Bandwidth: 500 * mbit}
		took, _ := fetchFrom(t, size, []memnet.Link{link}, transfer.Options{})
		share := float64(size*mib) / took.Seconds() / float64(link.Bandwidth)
		t.Logf("%.1f %% of 500 Mbit/s at 25 ms one way", 100*share)
		if share < 0.85 {
			t.Errorf("%v for %d MiB: %.0f %% of the link, want 85", took, size, 100*share)
		}
	})
}

func TestFourShapedSources(t *testing.T) {
	skipShort(t)
	const size = 40
	link := memnet.Link{Latency: 5 * time.Millisecond, Bandwidth: 100 * mbit}
	var one, four time.Duration
	var twice float64
	synctest.Test(t, func(t *testing.T) { one, _ = fetchFrom(t, size, []memnet.Link{link}, transfer.Options{}) })
	synctest.Test(t, func(t *testing.T) {
		four, twice = fetchFrom(t, size, []memnet.Link{link, link, link, link}, transfer.Options{})
	})
	t.Logf("four sources of 100 Mbit/s: %.2f times as fast as one, %.2f %% sent twice", float64(one)/float64(four), 100*twice)
	if float64(one)/float64(four) < 3.2 {
		t.Errorf("%v from one, %v from four: want 3.2 times the rate", one, four)
	}
	if twice > 0.01 {
		t.Errorf("%.1f %% was sent more than once", 100*twice)
	}
}

// A source at a hundredth of the others' rate costs next to nothing.
func TestSlowSourceBesideFastOnes(t *testing.T) {
	skipShort(t)
	const size = 24
	fast, slow := memnet.Link{Latency: 5 * time.Millisecond, Bandwidth: 100 * mbit}, memnet.Link{Latency: 80 * time.Millisecond, Bandwidth: 1 * mbit}
	var alone, beside time.Duration
	synctest.Test(t, func(t *testing.T) { alone, _ = fetchFrom(t, size, []memnet.Link{fast, fast}, transfer.Options{}) })
	var twice float64
	synctest.Test(t, func(t *testing.T) {
		beside, twice = fetchFrom(t, size, []memnet.Link{fast, fast, slow}, transfer.Options{})
	})
	t.Logf("two sources: %v; with a slow third one: %v, %.1f %% sent twice", alone, beside, 100*twice)
	if beside > alone+2*time.Second {
		t.Errorf("%v without, %v with a slow source", alone, beside)
	}
}

// A source that dies, with or without a word, costs two seconds at most and no error.
func TestDeadSource(t *testing.T) {
	skipShort(t)
	const size = 24
	link := memnet.Link{Latency: 5 * time.Millisecond, Bandwidth: 100 * mbit}
	var whole time.Duration
	synctest.Test(t, func(t *testing.T) { whole, _ = fetchFrom(t, size, []memnet.Link{link, link}, transfer.Options{}) })
	for name, die := range map[string]func(*memnet.Net, *node, peer.ID){
		"resets its streams": func(net *memnet.Net, n *node, _ peer.ID) { net.Kill(n.ID()) },
		"falls silent": func(net *memnet.Net, n *node, to peer.ID) {
			net.ShapeLink(n.ID(), to, memnet.Link{Latency: time.Hour})
		},
	} {
		for _, part := range []float64{0.4, 0.9} {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				data := storetest.Bytes(1, size*mib)
				b, dying, staying := w.node("b", storage.Options{}), w.node("dying", storage.Options{}), w.node("staying", storage.Options{})
				b.fetch = transfer.NewFetcher(b, b, b.store, transfer.Options{})
				c := dying.put(t, data)
				staying.put(t, data)
				for _, n := range []*node{dying, staying} {
					w.net.ShapeLink(n.ID(), b.ID(), link)
				}
				start := time.Now()
				at := time.Duration(part * float64(whole))
				death := time.AfterFunc(at, func() { die(w.net, dying, b.ID()) })
				defer death.Stop()
				if err := b.fetch.Fetch(t.Context(), c, []peer.ID{dying.ID(), staying.ID()}); err != nil {
					t.Fatal(err)
				}
				b.check(t, c, data)
				// What is left at the death comes at the rate of the one that stays.
				should := at + time.Duration((1-part)*2*float64(whole))
				cost := time.Since(start) - should
				t.Logf("%s after %.0f %%: %v more than the one that stays needs", name, 100*part, cost)
				if cost > 2*time.Second {
					t.Errorf("%s after %.0f %%: the fetch took %v more", name, 100*part, cost)
				}
			})
		}
	}
}

// Those who fetch the same file at the same time give each other what they have: the one complete source, whose uplink is the
// bottleneck, need not send everything to everybody. What they had asked it for before they knew of each other, it sends more
// than once: that is a third of so small a file.
func TestSwarm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		size, leechers := 48, 4
		if testing.Short() {
			size = 16
		}
		w := newWorld(t)
		data := storetest.Bytes(1, size*mib)
		origin := w.node("origin", storage.Options{})
		c := origin.put(t, data)
		w.net.Shape(memnet.Link{Latency: 5 * time.Millisecond, Bandwidth: 100 * mbit})
		all := []peer.ID{origin.ID()}
		var nodes []*node
		for i := range leechers {
			n := w.node(fmt.Sprint("leecher ", i), storage.Options{})
			nodes, all = append(nodes, n), append(all, n.ID())
		}
		start := time.Now()
		errs := make(chan error, leechers)
		for _, n := range nodes {
			go func() { errs <- n.fetch.Fetch(t.Context(), c, all) }()
		}
		for range nodes {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		for _, n := range nodes {
			n.check(t, c, data)
		}
		sent := float64(origin.server.Stats().Bytes) / float64(len(data))
		alone := time.Duration(float64(leechers*len(data)) / (100 * mbit) * float64(time.Second))
		t.Logf("the origin sent the file %.2f times to %d nodes; %v, %v without help", sent, leechers, time.Since(start), alone)
		if sent > 2.5 && !testing.Short() {
			t.Errorf("the origin sent the file %.2f times to %d nodes", sent, leechers)
		}
	})
}
