package transfer_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/p2p"
	"github.com/capacloud/capanode/p2p/wire"
	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/storetest"
	"github.com/capacloud/capanode/storage/transfer"
	"github.com/capacloud/capanode/storage/unixfs"
)

// small is a file of many small leaves, held in memory: cheap to serve ten thousand times.
type small struct {
	cid  cid.Cid
	root []byte
	data []byte
	leaf int
}

func newSmall(t *testing.T, leaf, count int) *small {
	t.Helper()
	s := &small{data: storetest.Bytes(7, leaf*count), leaf: leaf}
	n := unixfs.Node{Kind: unixfs.File, FileSize: uint64(len(s.data))}
	for i := range count {
		n.Links = append(n.Links, unixfs.Link{CID: unixfs.RawCID(s.block(i)), Tsize: uint64(leaf)})
		n.BlockSizes = append(n.BlockSizes, uint64(leaf))
	}
	var err error
	if s.root, err = n.Encode(); err != nil {
		t.Fatal(err)
	}
	s.cid = unixfs.NodeCID(s.root)
	return s
}

func (s *small) block(i int) []byte { return s.data[i*s.leaf : (i+1)*s.leaf] }

// serve answers for the file; change may alter a block, of which it gets a copy.
func (s *small) serve(change func(block []byte)) p2p.Handler {
	return func(_ context.Context, stream p2p.Stream) {
		for {
			var req transfer.Request
			if wire.ReadRecord(stream, transfer.MaxRequest, &req) != nil {
				return
			}
			switch {
			case req.Have:
				stream.Write(frame(3, 0, append([]byte{2}, make([]byte, 12)...)))
			case len(req.Ranges) == 0:
				stream.Write(frame(0, 0, s.root))
			}
			for _, r := range req.Ranges {
				for i := r.First; i < r.First+r.Count; i++ {
					block := bytes.Clone(s.block(int(i)))
					change(block)
					if _, err := stream.Write(frame(0, i, block)); err != nil {
						return
					}
				}
			}
		}
	}
}

func frame(status byte, block uint32, payload []byte) []byte {
	b := binary.BigEndian.AppendUint32([]byte{status}, block)
	b = binary.BigEndian.AppendUint32(append(b, 0), uint32(len(payload)))
	b = binary.BigEndian.AppendUint32(b, uint32(len(payload)))
	return append(b, payload...)
}

// Ten thousand flipped bits from hostile sources: none gets into the store, every fetch succeeds, and no source has more than
// three of its blocks looked at after it has sent a bad one.
func TestFlippedBits(t *testing.T) {
	flips := 10_000
	if testing.Short() {
		flips = 500
	}
	w := newWorld(t)
	file := newSmall(t, 512, 48)
	const liars = 16
	var sent [liars]atomic.Int64
	var from []peer.ID
	for i := range liars {
		random := rand.New(rand.NewPCG(1, uint64(i)))
		var mu sync.Mutex
		from = append(from, w.evil(fmt.Sprint("liar ", i), file.serve(func(block []byte) {
			mu.Lock()
			defer mu.Unlock()
			bit := random.IntN(8 * len(block))
			block[bit/8] ^= 1 << (bit % 8)
			sent[i].Add(1)
		})))
	}
	from = append(from, w.evil("honest", file.serve(func([]byte) {})))
	total := int64(0)
	refused := uint64(0)
	for round := 0; total < int64(flips); round++ {
		b := w.node(fmt.Sprint("b", round%4), storage.Options{})
		fetch := transfer.NewFetcher(b, nil, b.store, fast)
		if err := fetch.Fetch(t.Context(), file.cid, from); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		got, err := b.store.ReadAll(t.Context(), file.cid, 1<<20)
		if err != nil || !bytes.Equal(got, file.data) {
			t.Fatalf("round %d: %d bytes, %v", round, len(got), err)
		}
		if stats := fetch.Stats(); stats.Refused > 3*liars {
			t.Fatalf("round %d: %d bad blocks were looked at from %d sources", round, stats.Refused, liars)
		} else {
			refused += stats.Refused
		}
		if err := b.store.Delete(t.Context(), file.cid); err != nil {
			t.Fatal(err)
		}
		total = 0
		for i := range sent {
			total += sent[i].Load()
		}
	}
	t.Logf("%d flipped bits were sent, %d blocks of them hashed and refused", total, refused)
}

// A source that lies in three fetches is not asked in the fourth, nor after a restart, until a day has passed.
func TestBans(t *testing.T) {
	w := newWorld(t)
	path := filepath.Join(t.TempDir(), "bans.json")
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	clock := func() time.Time { return now }
	file := newSmall(t, 512, 8)
	asked := 0
	liar := w.evil("liar", func(ctx context.Context, s p2p.Stream) {
		asked++
		file.serve(func(b []byte) { b[0]++ })(ctx, s)
	})
	b := w.node("b", storage.Options{})
	try := func() error {
		bans, err := transfer.OpenBans(path, clock)
		if err != nil {
			t.Fatal(err)
		}
		opts := fast
		opts.Bans = bans
		return transfer.NewFetcher(b, nil, b.store, opts).Fetch(t.Context(), file.cid, []peer.ID{liar})
	}
	for range 3 {
		wantErr(t, try(), storage.ErrCorrupt)
	}
	before := asked
	err := try()
	wantErr(t, err, transfer.ErrNoProviders)
	if asked != before || !strings.Contains(err.Error(), "banned until 2026-01-03T03:04:05Z") {
		t.Errorf("asked %d times more: %v", asked-before, err)
	}
	now = now.Add(24 * time.Hour)
	wantErr(t, try(), storage.ErrCorrupt)
	if asked != before+1 {
		t.Errorf("asked %d times after a day", asked-before)
	}
}

// Many slow sources hold no more than the budget, and it comes back.
func TestMemoryBudget(t *testing.T) {
	skipShort(t)
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		const budget = 8 * mib
		data := storetest.Bytes(1, 24*mib)
		a := w.node("a", storage.Options{})
		c := a.put(t, data)
		from := []peer.ID{a.ID()}
		for i := range 30 {
			from = append(from, w.evil(fmt.Sprint("slow ", i), blocks(a.store, func(n int, frame []byte) ([]byte, error) {
				time.Sleep(time.Duration(n) * 200 * time.Millisecond)
				return frame, nil
			})))
		}
		b := w.node("b", storage.Options{})
		b.fetch = transfer.NewFetcher(b, b, b.store, transfer.Options{Memory: budget})
		if err := b.fetch.Fetch(t.Context(), c, from); err != nil {
			t.Fatal(err)
		}
		b.check(t, c, data)
		used, peak := b.fetch.Memory()
		if used != 0 || peak > budget || peak < mib {
			t.Errorf("%d bytes in use after the fetch, %d at most, budget %d", used, peak, budget)
		}
	})
}

// A server answers a hundred clients that do not read with its budget of blocks, and serves an honest one meanwhile.
func TestServerMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.node("a", storage.Options{})
		data := storetest.Bytes(1, 6*mib)
		c := a.put(t, data)
		a.server = transfer.Serve(a, a.store, transfer.ServeOptions{Memory: 8 * mib})
		for i := range 3 { // each may hold two of the eight blocks
			n := w.net.Node(fmt.Sprint("sink ", i))
			t.Cleanup(func() { n.Close() })
			for range 8 {
				s, err := n.Open(t.Context(), a.ID(), transfer.Protocol)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { s.Reset() })
				req := transfer.Request{CID: wire.Link{Cid: c}, Ranges: []transfer.Range{{First: 0, Count: 6}}}
				if err := wire.WriteRecord(s, req); err != nil {
					t.Fatal(err)
				}
			}
		}
		synctest.Wait()
		if used, share := a.server.Sending(); used > 6 || share > 2 {
			t.Errorf("%d blocks in memory, %d for one peer", used, share)
		}
		b := w.node("b", storage.Options{})
		start := time.Now()
		if err := b.fetch.Fetch(t.Context(), c, []peer.ID{a.ID()}); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("an honest client waited %v", took)
		}
		b.check(t, c, data)
	})
}

// Limits hold to the byte per second: of one peer, of all, and of the fetching side.
func TestRates(t *testing.T) {
	const size, rate = 8 * mib, 4 * mib
	for name, limit := range map[string]struct {
		serve transfer.ServeOptions
		fetch transfer.Options
	}{
		"server": {serve: transfer.ServeOptions{Rate: rate}},
		"peer":   {serve: transfer.ServeOptions{PerPeer: rate}},
		"client": {fetch: transfer.Options{Rate: rate}},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			a, b := w.node("a", storage.Options{}), w.node("b", storage.Options{})
			c := a.put(t, storetest.Bytes(1, size))
			a.server = transfer.Serve(a, a.store, limit.serve)
			b.fetch = transfer.NewFetcher(b, b, b.store, limit.fetch)
			start := time.Now()
			if err := b.fetch.Fetch(t.Context(), c, []peer.ID{a.ID()}); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(start).Seconds(); took < 1.8 || took > 2.2 {
				t.Errorf("%s: %.2f s for %d bytes at %d a second", name, took, size, rate)
			}
		})
	}
}

// What nobody has ends in time with a word on everybody who was asked.
func TestNobodyHasIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		b := w.node("b", storage.Options{})
		b.fetch = transfer.NewFetcher(b, b, b.store, transfer.Options{})
		var from []peer.ID
		for i := range 5 {
			from = append(from, w.node(fmt.Sprint("without ", i), storage.Options{}).ID())
		}
		mute := w.evil("mute", func(ctx context.Context, s p2p.Stream) { io.Copy(io.Discard, s) })
		start := time.Now()
		err := b.fetch.Fetch(t.Context(), unixfs.NodeCID([]byte("x")), append(from, mute))
		wantErr(t, err, transfer.ErrNoProviders)
		for _, id := range from {
			if !strings.Contains(err.Error(), id.String()+" (does not have it, ") {
				t.Errorf("%v does not say that %s does not have it", err, id)
			}
		}
		if !strings.Contains(err.Error(), mute.String()) {
			t.Errorf("%v does not name the silent one", err)
		}
		// The silent one gets two tries of 15 s each.
		if took := time.Since(start); took > 31*time.Second {
			t.Errorf("gave up after %v", took)
		}
		start = time.Now()
		err = b.fetch.Fetch(t.Context(), unixfs.NodeCID([]byte("x")), from)
		if took := time.Since(start); !errors.Is(err, transfer.ErrNoProviders) || took > 10*time.Second {
			t.Errorf("%v after %v", err, took)
		}
	})
}
