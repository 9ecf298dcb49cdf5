package ipfs

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/ipfs/boxo/bitswap"
	"github.com/ipfs/boxo/bitswap/network/bsnet"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/p2p"
	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/storetest"
	"github.com/capacloud/capanode/storage/transfer"
	"github.com/capacloud/capanode/storage/unixfs"
)

func store(t *testing.T, fs vfs.FS) *storage.Store {
	t.Helper()
	s, err := storage.Open(t.Context(), "/store", storage.Options{FS: fs})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func node(t *testing.T) *p2p.Host {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	h, err := p2p.NewHost(t.Context(), p2p.Config{Identity: key, Network: "test", Listen: []string{"/ip4/127.0.0.1/tcp/0"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}

func connect(t *testing.T, from, to *p2p.Host) {
	t.Helper()
	info, err := peer.AddrInfoFromString(to.Addrs()[0])
	if err == nil {
		err = from.Connect(t.Context(), *info)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func trader(t *testing.T, h *p2p.Host, s *storage.Store, o Options) *Exchange {
	t.Helper()
	x := Start(h, s, o)
	t.Cleanup(func() { x.Close() })
	return x
}

// A file and a folder go from one node to another in one fetch each, and a second fetch asks for nothing.
func TestFetch(t *testing.T) {
	ctx := t.Context()
	a, b := node(t), node(t)
	from, to := store(t, vfs.NewMem()), store(t, vfs.NewMem())
	server := trader(t, a, from, Options{Serve: true})
	client := trader(t, b, to, Options{})
	connect(t, b, a)
	if !client.Speaks(a.ID()) {
		t.Fatal("the server does not tell what it speaks")
	}
	dir := storetest.Tree(t)
	folder, err := from.AddPath(ctx, dir, storage.PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	data := append(storetest.Bytes(9, 5*unixfs.BlockSize+3), make([]byte, 3*unixfs.BlockSize)...)
	file, err := from.PutBytes(ctx, data, storage.PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		for _, c := range []cid.Cid{folder, file} {
			if err := client.Fetch(ctx, c, 0, []peer.ID{a.ID()}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got, err := to.ReadAll(ctx, file, 1<<30); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	out := t.TempDir() + "/out"
	if err := to.Export(ctx, folder, out); err != nil {
		t.Fatal(err)
	}
	storetest.SameTree(t, out, dir)
	if s, err := server.Stats(); err != nil || s.BytesOut < uint64(len(data))-2<<20 || s.BytesOut > uint64(len(data))+8<<20 {
		t.Errorf("served %+v, %v", s, err)
	}
	if err := client.Fetch(ctx, file, 0, nil); err != nil {
		t.Error(err)
	}
	limited := store(t, vfs.NewMem())
	c := node(t)
	third := trader(t, c, limited, Options{})
	connect(t, c, a)
	if err := third.Fetch(ctx, file, 1<<20, []peer.ID{a.ID()}); !errors.Is(err, storage.ErrTooLarge) {
		t.Errorf("a limit of 1 MiB: %v", err)
	}
}

// A node that does not serve answers no want, and one that lacks a block does not deliver it: the error names who was asked.
func TestNobodyHasIt(t *testing.T) {
	ctx := t.Context()
	a, b, mute := node(t), node(t), node(t)
	trader(t, a, store(t, vfs.NewMem()), Options{Serve: true})
	held := store(t, vfs.NewMem())
	trader(t, mute, held, Options{})
	client := trader(t, b, store(t, vfs.NewMem()), Options{Patience: 3 * time.Second})
	connect(t, b, a)
	connect(t, b, mute)
	c, err := held.PutBytes(ctx, []byte("kept to itself"), storage.PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	err = client.Fetch(ctx, c, 0, []peer.ID{a.ID()})
	if !errors.Is(err, transfer.ErrNoProviders) || !strings.Contains(err.Error(), a.ID().String()) {
		t.Errorf("one that lacks it: %v", err)
	}
	err = client.Fetch(ctx, c, 0, []peer.ID{mute.ID()})
	if !errors.Is(err, transfer.ErrNoProviders) || errors.Is(err, storage.ErrCorrupt) {
		t.Errorf("one that does not serve: %v", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	cancel()
	if err := client.Fetch(ctx, c, 0, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// A block that is damaged in our store never leaves it.
func TestDamagedBlockStays(t *testing.T) {
	ctx := t.Context()
	a, b := node(t), node(t)
	fs := vfs.NewMem()
	from, to := store(t, fs), store(t, vfs.NewMem())
	trader(t, a, from, Options{Serve: true})
	client := trader(t, b, to, Options{Patience: 3 * time.Second})
	connect(t, b, a)
	data := storetest.Bytes(9, 4*unixfs.BlockSize)
	c, err := from.PutBytes(ctx, data, storage.PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	key := c.String()
	f, err := fs.OpenReadWrite("/store/objects/"+key[len(key)-3:len(key)-1]+"/"+key+".obj", vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{data[2<<20] ^ 1}, 2<<20); err != nil {
		t.Fatal(err)
	}
	f.Close()
	err = client.Fetch(ctx, c, 0, []peer.ID{a.ID()})
	if !errors.Is(err, transfer.ErrNoProviders) || errors.Is(err, storage.ErrCorrupt) || !strings.Contains(err.Error(), "not there") {
		t.Errorf("%v", err)
	}
	if has, err := to.Has(ctx, c); has || err != nil {
		t.Error(has, err)
	}
	// Whole again, it is served again, and what arrived before is not sent twice.
	if _, err := from.PutBytes(ctx, data, storage.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := client.Fetch(ctx, c, 0, []peer.ID{a.ID()}); err != nil {
		t.Fatal(err)
	}
	if got, err := to.ReadAll(ctx, c, 1<<30); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
}

// rotten is the view of a node that does not hash what it reads, as kubo by default.
type rotten struct {
	view
	bad cid.Cid
}

func (r rotten) Get(ctx context.Context, c cid.Cid) (blocks.Block, error) {
	b, err := r.view.Get(ctx, c)
	if err == nil && c == r.bad {
		wrong := bytes.Clone(b.RawData())
		wrong[len(wrong)/2] ^= 1
		return blocks.NewBlockWithCid(wrong, c)
	}
	return b, err
}

// A peer that sends wrong bytes is named, and none of them is kept.
func TestWrongBytesAreRefused(t *testing.T) {
	ctx := t.Context()
	a, b := node(t), node(t)
	from, to := store(t, vfs.NewMem()), store(t, vfs.NewMem())
	data := storetest.Bytes(9, 4*unixfs.BlockSize)
	c, err := from.PutBytes(ctx, data, storage.PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	net := bsnet.NewFromIpfsHost(a.Bare(limits))
	bad := unixfs.RawCID(data[unixfs.BlockSize : 2*unixfs.BlockSize])
	server := bitswap.New(ctx, net, nil, rotten{view{from, slog.New(slog.DiscardHandler)}, bad})
	defer server.Close()
	client := trader(t, b, to, Options{Patience: 3 * time.Second})
	connect(t, b, a)
	err = client.Fetch(ctx, c, 0, []peer.ID{a.ID()})
	if !errors.Is(err, storage.ErrCorrupt) || !errors.Is(err, transfer.ErrNoProviders) || !strings.Contains(err.Error(), a.ID().String()) {
		t.Errorf("%v", err)
	}
	if has, err := to.Has(ctx, c); has || err != nil {
		t.Error(has, err)
	}
}

// The exchange dials nobody, and a peer gets no more streams than the limits say.
func TestLimits(t *testing.T) {
	ctx := t.Context()
	a, b := node(t), node(t)
	trader(t, a, store(t, vfs.NewMem()), Options{Serve: true})
	client := trader(t, b, store(t, vfs.NewMem()), Options{})
	if err := client.net.Connect(ctx, peer.AddrInfo{ID: a.ID()}); !errors.Is(err, p2p.ErrUnreachable) {
		t.Errorf("it dials: %v", err)
	}
	connect(t, b, a)
	var mu sync.Mutex
	refused := 0
	var wg sync.WaitGroup
	for range limits.StreamsPerPeer + 20 {
		wg.Go(func() {
			s, err := b.Open(ctx, a.ID(), Protocols[0])
			if err == nil {
				defer s.Reset()
				if err = s.SetDeadline(time.Now().Add(2 * time.Second)); err == nil {
					if _, err = s.Write([]byte{0x80}); err == nil { // half a length
						_, err = s.Read(make([]byte, 1))
					}
				}
			}
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				mu.Lock()
				defer mu.Unlock()
				refused++
			}
		})
	}
	wg.Wait()
	if refused < 20 {
		t.Errorf("%d streams of %d were refused", refused, limits.StreamsPerPeer+20)
	}
}

// After Close nothing answers, a fetch ends, and closing twice is harmless.
func TestClose(t *testing.T) {
	ctx := t.Context()
	a, b := node(t), node(t)
	server := trader(t, a, store(t, vfs.NewMem()), Options{Serve: true})
	client := trader(t, b, store(t, vfs.NewMem()), Options{})
	connect(t, b, a)
	done := make(chan error, 1)
	go func() { done <- client.Fetch(ctx, unixfs.RawCID([]byte("nobody")), 0, nil) }()
	if err := errors.Join(client.Close(), client.Close(), server.Close()); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		if err == nil {
			t.Error("fetched")
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the fetch goes on")
	}
}
