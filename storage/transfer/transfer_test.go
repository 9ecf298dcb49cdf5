package transfer_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/goleak"

	"github.com/capacloud/capanode/p2p"
	"github.com/capacloud/capanode/p2p/memnet"
	"github.com/capacloud/capanode/p2p/wire"
	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/storetest"
	"github.com/capacloud/capanode/storage/transfer"
	"github.com/capacloud/capanode/storage/unixfs"
)

func TestMain(m *testing.M) {
	if order := os.Getenv(victim); order != "" {
		os.Exit(fetchAndExit(order))
	}
	goleak.VerifyTestMain(m,
		goleak.IgnoreAnyFunction("github.com/libp2p/go-flow-metrics.(*sweeper).run")) // one for the process, by design
}

const mib = unixfs.BlockSize

// fast are options that let faults be noticed within a test.
var fast = transfer.Options{Stall: 300 * time.Millisecond, Hedge: 50 * time.Millisecond, Find: 2 * time.Second, Dial: time.Second}

// world is a network in memory with a store per node.
type world struct {
	t   *testing.T
	net *memnet.Net
}

func newWorld(t *testing.T) *world { return &world{t, memnet.New()} }

// node is one honest member.
type node struct {
	*memnet.Node
	store  *storage.Store
	server *transfer.Server
	fetch  *transfer.Fetcher
	fs     *vfs.MemFS
}

func (w *world) node(name string, opts storage.Options) *node {
	w.t.Helper()
	n := &node{Node: w.net.Node(name), fs: vfs.NewMem()}
	opts.FS = n.fs
	var err error
	if n.store, err = storage.Open(context.Background(), "/store", opts); err != nil {
		w.t.Fatal(err)
	}
	n.server = transfer.Serve(n, n.store, transfer.ServeOptions{})
	seeding := fast
	seeding.Seed = n.server
	n.fetch = transfer.NewFetcher(n, n, n.store, seeding)
	w.t.Cleanup(func() {
		n.Close()
		if err := n.store.Close(); err != nil {
			w.t.Error(err)
		}
	})
	return n
}

// evil adds a member that serves the protocol with a handler of its own. It returns its ID.
func (w *world) evil(name string, handler p2p.Handler) peer.ID {
	n := w.net.Node(name)
	n.Handle(transfer.Protocol, p2p.Limits{}, func(ctx context.Context, s p2p.Stream) {
		defer s.Reset()
		handler(ctx, s)
	})
	w.t.Cleanup(func() { n.Close() })
	return n.ID()
}

func (n *node) put(t *testing.T, data []byte) cid.Cid {
	t.Helper()
	c, err := n.store.PutBytes(context.Background(), data, storage.PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// check fails the test unless the node's object has these bytes.
func (n *node) check(t *testing.T, c cid.Cid, want []byte) {
	t.Helper()
	got, err := n.store.ReadAll(context.Background(), c, 1<<30)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%d bytes of %d, %v", len(got), len(want), err)
	}
}

func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error %v, want %v", err, want)
	}
}

func TestFetchEveryKind(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	a, b := w.node("a", storage.Options{}), w.node("b", storage.Options{})
	for _, size := range []int{0, 10, storage.InlineLimit + 1, mib, 5*mib + 3} {
		data := storetest.Bytes(1, size)
		c := a.put(t, data)
		if err := b.fetch.Fetch(ctx, c, []peer.ID{a.ID()}); err != nil {
			t.Fatal(err)
		}
		b.check(t, c, data)
	}
	rec, err := wire.Marshal(map[string]int{"step": 7})
	if err != nil {
		t.Fatal(err)
	}
	c, err := a.store.PutRecord(ctx, rec, storage.PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	got, err := b.fetch.ReadAll(ctx, c, wire.MaxRecord, []peer.ID{a.ID()})
	if err != nil || !bytes.Equal(got, rec) {
		t.Fatalf("record %x, %v", got, err)
	}

	dir := storetest.Tree(t)
	folder, err := a.store.AddPath(ctx, dir, storage.PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.fetch.Fetch(ctx, folder, []peer.ID{a.ID()}); err != nil {
		t.Fatal(err)
	}
	dest := filepath.Join(t.TempDir(), "copy")
	if err := b.store.Export(ctx, folder, dest); err != nil {
		t.Fatal(err)
	}
	storetest.SameTree(t, dest, dir)

	// What is here is not asked for again, and what was fetched is served onwards.
	asked := b.fetch.Stats()
	if err := b.fetch.Fetch(ctx, folder, []peer.ID{a.ID()}); err != nil {
		t.Fatal(err)
	}
	if again := b.fetch.Stats(); again != asked {
		t.Fatalf("complete folder fetched again: %+v after %+v", again, asked)
	}
	third := w.node("c", storage.Options{})
	if err := third.fetch.Fetch(ctx, folder, []peer.ID{b.ID()}); err != nil {
		t.Fatal(err)
	}
	if up, down := a.server.Stats(), asked; up.Bytes != down.Bytes || up.Blocks != down.Blocks {
		t.Fatalf("served %+v, fetched %+v", up, down)
	}
}

func TestReadAllLimits(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	a, b := w.node("a", storage.Options{}), w.node("b", storage.Options{})
	c := a.put(t, storetest.Bytes(1, 3*mib))
	_, err := b.fetch.ReadAll(ctx, c, 3*mib-1, []peer.ID{a.ID()})
	wantErr(t, err, storage.ErrTooLarge)
	folder, err := a.store.AddPath(ctx, storetest.Tree(t), storage.PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.fetch.ReadAll(ctx, folder, 1<<30, []peer.ID{a.ID()})
	wantErr(t, err, storage.ErrWrongKind)
	if u := b.store.Usage(); u.Used+u.Reserved != 0 {
		t.Fatalf("usage %+v after refusals", u)
	}
}

// What a stranger names is fetched within a limit, which counts the whole folder before its files are asked for.
func TestFetchWithin(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	a, b := w.node("a", storage.Options{}), w.node("b", storage.Options{})
	dir := t.TempDir()
	for i, size := range []int{2 * mib, 2*mib + 1, 10} {
		if err := os.WriteFile(filepath.Join(dir, strconv.Itoa(i)), storetest.Bytes(uint64(i), size), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	folder, err := a.store.AddPath(ctx, dir, storage.PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	from := []peer.ID{a.ID()}
	wantErr(t, b.fetch.FetchWithin(ctx, folder, 4*mib, from), storage.ErrTooLarge)
	if got := b.fetch.Stats().Bytes; got > mib {
		t.Errorf("%d bytes were fetched of a folder that is too large", got)
	}
	if err := b.fetch.FetchWithin(ctx, folder, 4*mib+11, from); err != nil {
		t.Error(err)
	}
	block := a.put(t, storetest.Bytes(9, mib))
	wantErr(t, b.fetch.FetchWithin(ctx, block, mib-1, from), storage.ErrTooLarge)
}

func TestQuotaStopsAFetch(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	a, b := w.node("a", storage.Options{}), w.node("b", storage.Options{Quota: 2 * mib})
	for _, size := range []int{4 * mib, 2 * mib} { // nodes count, too
		err := b.fetch.Fetch(ctx, a.put(t, storetest.Bytes(1, size)), []peer.ID{a.ID()})
		wantErr(t, err, storage.ErrQuota)
	}
	if u := b.store.Usage(); u.Used+u.Reserved != 0 {
		t.Fatalf("usage %+v after refusals", u)
	}
}

func TestSeveralSourcesShareTheWork(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	data := storetest.Bytes(1, 20*mib)
	var from []peer.ID
	var sources []*node
	var c cid.Cid
	for i := range 3 {
		n := w.node(fmt.Sprint("source ", i), storage.Options{})
		c = n.put(t, data)
		from, sources = append(from, n.ID()), append(sources, n)
	}
	b := w.node("b", storage.Options{})
	if err := b.fetch.Fetch(ctx, c, from); err != nil {
		t.Fatal(err)
	}
	b.check(t, c, data)
	for i, n := range sources {
		if n.server.Stats().Blocks == 0 {
			t.Errorf("source %d was not used", i)
		}
	}
}

func TestRouterFindsSources(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	a, b := w.node("a", storage.Options{}), w.node("b", storage.Options{})
	data := storetest.Bytes(1, 2*mib)
	c := a.put(t, data)
	if err := a.Provide(ctx, c); err != nil {
		t.Fatal(err)
	}
	// The named source does not have it: the router must be asked.
	empty := w.node("empty", storage.Options{})
	if err := b.fetch.Fetch(ctx, c, []peer.ID{empty.ID()}); err != nil {
		t.Fatal(err)
	}
	b.check(t, c, data)
}

func TestNoProviders(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	b := w.node("b", storage.Options{})
	c := unixfs.NodeCID([]byte("nobody has this"))
	err := b.fetch.Fetch(ctx, c, nil)
	wantErr(t, err, transfer.ErrNoProviders)

	empty := w.node("empty", storage.Options{})
	mute := w.net.Node("speaks something else")
	t.Cleanup(func() { mute.Close() })
	gone := w.net.Node("gone")
	gone.Close()
	start := time.Now()
	err = b.fetch.Fetch(ctx, c, []peer.ID{empty.ID(), mute.ID(), gone.ID()})
	wantErr(t, err, transfer.ErrNoProviders)
	if errors.Is(err, storage.ErrCorrupt) {
		t.Errorf("nobody sent bad bytes: %v", err)
	}
	for _, id := range []peer.ID{empty.ID(), mute.ID(), gone.ID()} {
		if !strings.Contains(err.Error(), id.String()) {
			t.Errorf("%v does not name %s", err, id)
		}
	}
	if took := time.Since(start); took > fast.Find+2*time.Second {
		t.Errorf("gave up after %v", took)
	}
}

// blocks is an honest server of one object, in the hands of a test: spoil may change or stop each answer.
func blocks(store *storage.Store, spoil func(n int, frame []byte) ([]byte, error)) p2p.Handler {
	return func(ctx context.Context, s p2p.Stream) {
		for n := 0; ; {
			var req transfer.Request
			if err := wire.ReadRecord(s, transfer.MaxRequest, &req); err != nil {
				return
			}
			answer := func(number uint32, block []byte) error {
				frame := binary.BigEndian.AppendUint32([]byte{0}, number)
				frame = binary.BigEndian.AppendUint32(append(frame, 0), uint32(len(block)))
				frame = binary.BigEndian.AppendUint32(frame, uint32(len(block)))
				frame, err := spoil(n, append(frame, block...))
				n++
				if err != nil { // what was sent still arrives
					s.CloseWrite()
					io.Copy(io.Discard, s)
					return err
				}
				_, err = s.Write(frame)
				return err
			}
			if req.Have { // it has everything
				head := []byte{3, 0, 0, 0, 0, 0, 0, 0, 0, 13, 0, 0, 0, 13, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
				if _, err := s.Write(head); err != nil {
					return
				}
				continue
			}
			if len(req.Ranges) == 0 {
				block, err := store.GetBlock(ctx, req.CID.Cid, nil)
				if err != nil || answer(0, block) != nil {
					return
				}
				continue
			}
			r, err := store.Open(ctx, req.CID.Cid)
			if err != nil {
				return
			}
			for _, run := range req.Ranges {
				for i := run.First; i < run.First+run.Count && err == nil; i++ {
					var block []byte
					if block, err = r.Block(int(i), make([]byte, mib)); err == nil {
						err = answer(i, block)
					}
				}
			}
			if r.Close(); err != nil {
				return
			}
		}
	}
}

var errStop = errors.New("the source stops here")

// faults are ways in which a source can go wrong; n counts its answers.
func faults() map[string]func(n int, frame []byte) ([]byte, error) {
	after := func(k int, f func([]byte) ([]byte, error)) func(int, []byte) ([]byte, error) {
		return func(n int, frame []byte) ([]byte, error) {
			if n < k {
				return frame, nil
			}
			return f(frame)
		}
	}
	return map[string]func(int, []byte) ([]byte, error){
		"dies":         after(3, func([]byte) ([]byte, error) { return nil, errStop }),
		"dies inside":  after(3, func(b []byte) ([]byte, error) { return b[:len(b)/2], nil }),
		"falls silent": after(3, func([]byte) ([]byte, error) { return nil, nil }),
		"flips a bit": after(3, func(b []byte) ([]byte, error) {
			b = bytes.Clone(b)
			b[len(b)-1] ^= 1
			return b, nil
		}),
		"lies about the size": after(2, func(b []byte) ([]byte, error) {
			b = bytes.Clone(b)
			copy(b[6:10], []byte{0xff, 0xff, 0xff, 0xff})
			return b, nil
		}),
		"sends short blocks": after(2, func(b []byte) ([]byte, error) {
			return append(append(b[:5:5], 0, 0, 0, 0, 1, 0, 0, 0, 1), 'x'), nil
		}),
		"answers for another block": after(2, func(b []byte) ([]byte, error) {
			b = bytes.Clone(b)
			b[4] ^= 0x55
			return b, nil
		}),
		"sends an unknown status": after(2, func(b []byte) ([]byte, error) {
			return append([]byte{99}, b[1:]...), nil
		}),
		"repeats itself": after(1, func(b []byte) ([]byte, error) { return append(bytes.Clone(b), b...), nil }),
		"denies halfway": after(3, func(b []byte) ([]byte, error) { return append(append([]byte{1}, b[1:5]...), make([]byte, 9)...), nil }),
	}
}

func TestFaultySourceBesideAnHonestOne(t *testing.T) {
	for name, spoil := range faults() {
		t.Run(name, func(t *testing.T) {
			ctx := context.Background()
			w := newWorld(t)
			a, b := w.node("a", storage.Options{}), w.node("b", storage.Options{})
			data := storetest.Bytes(1, 6*mib+5)
			c := a.put(t, data)
			bad := w.evil("evil", blocks(a.store, spoil))
			if err := b.fetch.Fetch(ctx, c, []peer.ID{bad, a.ID()}); err != nil {
				t.Fatal(err)
			}
			b.check(t, c, data)
		})
	}
}

func TestFaultySourceAlone(t *testing.T) {
	corrupt := map[string]bool{"flips a bit": true, "sends short blocks": true}
	for name, spoil := range faults() {
		if name == "dies" || name == "dies inside" {
			continue // delivers again after each reconnection, so it gets there
		}
		t.Run(name, func(t *testing.T) {
			ctx := context.Background()
			w := newWorld(t)
			a, b := w.node("a", storage.Options{}), w.node("b", storage.Options{})
			c := a.put(t, storetest.Bytes(1, 6*mib+5))
			total := 0
			bad := w.evil("evil", blocks(a.store, func(_ int, frame []byte) ([]byte, error) {
				total++
				return spoil(total, frame)
			}))
			err := b.fetch.Fetch(ctx, c, []peer.ID{bad})
			wantErr(t, err, transfer.ErrNoProviders)
			if errors.Is(err, storage.ErrCorrupt) != corrupt[name] {
				t.Errorf("error %v", err)
			}
			if has, _ := b.store.Has(ctx, c); has {
				t.Error("an unfinished object is present")
			}
		})
	}
}

func TestEndlessStream(t *testing.T) {
	w := newWorld(t)
	b := w.node("b", storage.Options{})
	bad := w.evil("evil", func(ctx context.Context, s p2p.Stream) {
		junk := make([]byte, 1<<16)
		for ctx.Err() == nil {
			if _, err := s.Write(junk); err != nil {
				return
			}
		}
	})
	err := b.fetch.Fetch(context.Background(), unixfs.RawCID([]byte("x")), []peer.ID{bad})
	wantErr(t, err, transfer.ErrNoProviders)
}

func TestResumeAfterADeadSource(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	a, b := w.node("a", storage.Options{}), w.node("b", storage.Options{})
	data := storetest.Bytes(1, 12*mib)
	c := a.put(t, data)
	total := 0
	dying := w.evil("dying", blocks(a.store, func(_ int, frame []byte) ([]byte, error) {
		if total++; total > 6 {
			return nil, errStop
		}
		return frame, nil
	}))
	wantErr(t, b.fetch.Fetch(ctx, c, []peer.ID{dying}), transfer.ErrNoProviders)
	if err := b.fetch.Fetch(ctx, c, []peer.ID{a.ID()}); err != nil {
		t.Fatal(err)
	}
	b.check(t, c, data)
	// The root node and five leaves came from the dying source; the root is asked for again.
	if up := a.server.Stats(); up.Blocks != 12-5+1 {
		t.Fatalf("%d blocks were fetched again or twice", up.Blocks-(12-5+1))
	}
}

func TestFetchRepairs(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	a, b := w.node("a", storage.Options{}), w.node("b", storage.Options{})
	data := storetest.Bytes(1, 6*mib)
	c := a.put(t, data)
	b.put(t, data)
	text := c.String()
	path := filepath.Join("/store/objects", text[len(text)-3:len(text)-1], text+".obj")
	f, err := b.fs.OpenReadWrite(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{data[3*mib+17] ^ 4}, 3*mib+17); err != nil {
		t.Fatal(err)
	}
	f.Close()

	r, err := b.store.Open(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	n, err := io.Copy(io.Discard, r)
	wantErr(t, err, storage.ErrCorrupt)
	if n > 3*mib {
		t.Fatalf("%d bytes left the store", n)
	}
	r.Close()
	if got, err := b.fetch.ReadAll(ctx, c, 6*mib, []peer.ID{a.ID()}); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%d bytes after repair, %v", len(got), err)
	}
	if up := a.server.Stats(); up.Blocks != 1 {
		t.Fatalf("repair fetched %d blocks", up.Blocks)
	}
	info, err := b.store.Stat(ctx, c)
	if err != nil || info.Class != storage.Owned || info.Damaged {
		t.Fatalf("%+v, %v after repair", info, err)
	}
	if rep, err := b.store.Verify(ctx); err != nil || len(rep.Faults) != 0 {
		t.Fatalf("%+v, %v", rep, err)
	}
}

// TestServerRefuses sends what a hostile client may send.
func TestServerRefuses(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	a, b := w.node("a", storage.Options{}), w.node("b", storage.Options{})
	c := a.put(t, storetest.Bytes(1, 2*mib))
	link := wire.Link{Cid: c}
	many := make([]transfer.Range, transfer.MaxRanges+1)
	for i := range many {
		many[i] = transfer.Range{First: uint32(i), Count: 1}
	}
	for name, send := range map[string]func(io.Writer) error{
		"oversized frame": func(s io.Writer) error { return wire.WriteFrame(s, make([]byte, transfer.MaxRequest+1)) },
		"no CBOR":         func(s io.Writer) error { return wire.WriteFrame(s, []byte("garbage")) },
		"no CID":          func(s io.Writer) error { return wire.WriteRecord(s, transfer.Request{}) },
		"too many ranges": func(s io.Writer) error { return wire.WriteRecord(s, transfer.Request{CID: link, Ranges: many}) },
		"too many blocks": func(s io.Writer) error {
			return wire.WriteRecord(s, transfer.Request{CID: link, Ranges: []transfer.Range{{0, transfer.MaxBlocks + 1}}})
		},
		"overflowing range": func(s io.Writer) error {
			return wire.WriteRecord(s, transfer.Request{CID: link, Ranges: []transfer.Range{{1<<32 - 1, 2}}})
		},
		"empty range": func(s io.Writer) error {
			return wire.WriteRecord(s, transfer.Request{CID: link, Ranges: []transfer.Range{{0, 0}}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := b.Open(ctx, a.ID(), transfer.Protocol)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Reset()
			s.SetDeadline(time.Now().Add(5 * time.Second))
			if err := send(s); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Read(make([]byte, 1)); !errors.Is(err, p2p.ErrReset) {
				t.Fatalf("read gives %v, want a reset", err)
			}
		})
	}
	// Asking for what is not there costs the server fourteen bytes.
	s, err := b.Open(ctx, a.ID(), transfer.Protocol)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Reset()
	s.SetDeadline(time.Now().Add(5 * time.Second))
	absent := transfer.Request{CID: wire.Link{Cid: unixfs.NodeCID([]byte("?"))}, Ranges: []transfer.Range{{5, 500}}}
	if err := errors.Join(wire.WriteRecord(s, absent), s.CloseWrite()); err != nil {
		t.Fatal(err)
	}
	if all, err := io.ReadAll(s); err != nil || !bytes.Equal(all, []byte{1, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0}) {
		t.Fatalf("answer %x, %v", all, err)
	}
}
