package transfer_test

import (
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/storetest"
	"github.com/capacloud/capanode/storage/transfer"
)

// A fetch that was stopped is a source for others after a restart, for as long as it is there; when it goes on, or has been
// collected, or the file has come in another way, what is served is what is there then.
func TestStoppedFetchIsServedAfterARestart(t *testing.T) {
	ctx := t.Context()
	w := newWorld(t)
	a, b := w.node("a", storage.Options{}), w.node("b", storage.Options{})
	data := storetest.Bytes(1, 12*mib)
	c := a.put(t, data)
	sent := 0
	dying := w.evil("dying", blocks(a.store, func(_ int, frame []byte) ([]byte, error) {
		if sent++; sent > 6 { // the root and five leaves
			return nil, errStop
		}
		return frame, nil
	}))
	wantErr(t, b.fetch.Fetch(ctx, c, []peer.ID{dying}), transfer.ErrNoProviders)
	restart := func() {
		if err := b.store.Close(); err != nil {
			t.Fatal(err)
		}
		var err error
		if b.store, err = storage.Open(ctx, "/store", storage.Options{FS: b.fs}); err != nil {
			t.Fatal(err)
		}
		b.server = transfer.Serve(b, b.store, transfer.ServeOptions{})
		options := fast
		options.Seed = b.server
		b.fetch = transfer.NewFetcher(b, b, b.store, options)
	}
	restart()

	// Alone it gives what it has, and says no to the rest.
	d := w.node("d", storage.Options{})
	wantErr(t, d.fetch.Fetch(ctx, c, []peer.ID{b.ID()}), transfer.ErrNoProviders)
	if got := d.fetch.Stats().Blocks; got != 6 {
		t.Errorf("%d blocks of a stopped fetch with the root and five leaves", got)
	}
	// And so does who has it from there; the rest comes from somebody else.
	e := w.node("e", storage.Options{})
	before := a.server.Stats().Blocks
	if err := e.fetch.Fetch(ctx, c, []peer.ID{d.ID(), a.ID()}); err != nil {
		t.Fatal(err)
	}
	e.check(t, c, data)
	if b.server.Stats().Blocks+d.server.Stats().Blocks < 6 || a.server.Stats().Blocks == before {
		t.Errorf("served: %+v, %+v, %+v", a.server.Stats(), b.server.Stats(), d.server.Stats())
	}

	// It goes on, and what it has then is served whole.
	if err := b.fetch.Fetch(ctx, c, []peer.ID{a.ID()}); err != nil {
		t.Fatal(err)
	}
	b.check(t, c, data)
	g := w.node("g", storage.Options{})
	if err := g.fetch.Fetch(ctx, c, []peer.ID{b.ID()}); err != nil {
		t.Fatal(err)
	}
	g.check(t, c, data)

	// The other one is collected; nothing of it is left, and nothing is served.
	if gone, err := d.store.GC(ctx); err != nil || gone.Objects != 1 {
		t.Fatalf("%+v, %v", gone, err)
	}
	h := w.node("h", storage.Options{})
	wantErr(t, h.fetch.Fetch(ctx, c, []peer.ID{d.ID()}), transfer.ErrNoProviders)
	if err := d.fetch.Fetch(ctx, c, []peer.ID{a.ID()}); err != nil {
		t.Fatal(err)
	}
	d.check(t, c, data)
}

// The file of a stopped fetch comes in as a copy: from then on all of it is served.
func TestStoppedFetchGivesWay(t *testing.T) {
	ctx := t.Context()
	w := newWorld(t)
	a, b, d := w.node("a", storage.Options{}), w.node("b", storage.Options{}), w.node("d", storage.Options{})
	data := storetest.Bytes(2, 8*mib)
	c := a.put(t, data)
	sent := 0
	dying := w.evil("dying", blocks(a.store, func(_ int, frame []byte) ([]byte, error) {
		if sent++; sent > 3 {
			return nil, errStop
		}
		return frame, nil
	}))
	wantErr(t, b.fetch.Fetch(ctx, c, []peer.ID{dying}), transfer.ErrNoProviders)
	wantErr(t, d.fetch.Fetch(ctx, c, []peer.ID{b.ID()}), transfer.ErrNoProviders) // b knows its stopped fetch now
	if b.put(t, data) != c {
		t.Fatal("another CID")
	}
	if err := d.fetch.Fetch(ctx, c, []peer.ID{b.ID()}); err != nil {
		t.Fatal(err)
	}
	d.check(t, c, data)
}
