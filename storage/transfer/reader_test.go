package transfer_test

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/p2p/memnet"
	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/storetest"
	"github.com/capacloud/capanode/storage/transfer"
	"github.com/capacloud/capanode/storage/unixfs"
)

// Reads wait for their bytes and pull them to the front: the last megabyte of a file is here long before the file is.
func TestReadWhileFetching(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := w.node("a", storage.Options{}), w.node("b", storage.Options{})
		data := storetest.Bytes(1, 40*mib+5)
		c := a.put(t, data)
		w.net.ShapeLink(a.ID(), b.ID(), memnet.Link{Bandwidth: 10 * mib})
		start := time.Now()
		r, err := b.fetch.Open(t.Context(), c, transfer.Ask{From: []peer.ID{a.ID()}})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		for _, off := range []int64{35*mib - 3, 40 * mib, 0} {
			want := data[off:min(off+10, int64(len(data)))]
			got := make([]byte, 10)
			n, err := r.ReadAt(got, off)
			if !bytes.Equal(got[:n], want) || (err == io.EOF) != (n < 10) || err != nil && err != io.EOF {
				t.Fatalf("at %d: %x, %v, want %x", off, got[:n], err, want)
			}
		}
		if took := time.Since(start); took > 3*time.Second {
			t.Errorf("three reads took %v of the four seconds that the file takes", took)
		}
		if has, _ := b.store.Has(t.Context(), c); has {
			t.Error("the file was complete before it was read")
		}
		all, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(all, data) {
			t.Fatalf("%d bytes, %v", len(all), err)
		}
	})
}

func TestReaderContract(t *testing.T) {
	w := newWorld(t)
	a, b := w.node("a", storage.Options{}), w.node("b", storage.Options{})
	for _, size := range []int{0, 100, 3*mib + 5} {
		data := storetest.Bytes(2, size)
		c := a.put(t, data)
		for range 2 { // while it is fetched, then from the store
			r, err := b.fetch.Open(t.Context(), c, transfer.Ask{From: []peer.ID{a.ID()}})
			if err != nil {
				t.Fatal(err)
			}
			if size < mib { // the contract's test reads byte by byte, block by block
				if err := iotest.TestReader(r, data); err != nil {
					t.Error(err)
				}
			}
			if _, err := r.Seek(0, io.SeekStart); err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, data) || r.Size() != int64(size) {
				t.Errorf("%d bytes of %d, %v", len(got), size, err)
			}
			if err := errors.Join(r.Close(), r.Close()); err != nil {
				t.Error(err)
			}
			if _, err := r.Read(make([]byte, 1)); err == nil {
				t.Error("a closed reader reads")
			}
		}
	}
	folder, err := a.store.AddPath(t.Context(), storetest.Tree(t), storage.PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.fetch.Open(t.Context(), folder, transfer.Ask{From: []peer.ID{a.ID()}})
	wantErr(t, err, storage.ErrWrongKind)
	_, err = b.fetch.Open(t.Context(), unixfs.RawCID([]byte("nobody has this")), transfer.Ask{From: []peer.ID{a.ID()}})
	wantErr(t, err, transfer.ErrNoProviders)
}

// Closing a reader ends its fetch, wakes its reads, and keeps what has arrived.
func TestReaderClosedEarly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := w.node("a", storage.Options{}), w.node("b", storage.Options{})
		data := storetest.Bytes(1, 20*mib)
		c := a.put(t, data)
		w.net.ShapeLink(a.ID(), b.ID(), memnet.Link{Bandwidth: mib})
		r, err := b.fetch.Open(t.Context(), c, transfer.Ask{From: []peer.ID{a.ID()}})
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error)
		go func() {
			_, err := io.ReadAll(r)
			ended <- err
		}()
		time.Sleep(5 * time.Second)
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if err := <-ended; err == nil {
			t.Error("a read of a closed reader ended well")
		}
		w.net.UnshapeLinks()
		before := a.server.Stats().Blocks
		if err := b.fetch.Fetch(t.Context(), c, []peer.ID{a.ID()}); err != nil {
			t.Fatal(err)
		}
		if again := a.server.Stats().Blocks - before; again > 18 {
			t.Errorf("%d of 20 blocks were fetched after five had arrived", again)
		}
		b.check(t, c, data)
	})
}

// A fetch reports what it does, to the end.
func TestProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := w.node("a", storage.Options{}), w.node("b", storage.Options{})
		none := w.node("none", storage.Options{})
		c := a.put(t, storetest.Bytes(1, 10*mib))
		w.net.ShapeLink(a.ID(), b.ID(), memnet.Link{Bandwidth: 2 * mib})
		var events []transfer.Progress
		err := b.fetch.FetchAs(t.Context(), c, transfer.Ask{
			From: []peer.ID{none.ID(), a.ID()}, Progress: func(p transfer.Progress) { events = append(events, p) },
		})
		if err != nil {
			t.Fatal(err)
		}
		last := events[len(events)-1]
		if len(events) < 10 || !last.Ended || last.Done != 10*mib || last.Total != 10*mib || last.ETA != 0 {
			t.Fatalf("%d events, the last is %+v", len(events), last)
		}
		for i, p := range events[8 : len(events)-1] {
			eta := time.Duration(float64(p.Total-p.Done) / (2 * mib) * float64(time.Second))
			if p.Ended || p.Rate < 1.5*mib || p.Rate > 2.5*mib || p.ETA < eta/2 || p.ETA > 2*eta || p.Done < events[i+7].Done {
				t.Errorf("event %d: %+v", i+8, p)
			}
			if len(p.Sources) != 2 || p.Sources[1].Source != a.ID().String() || p.Sources[1].State != "active" || p.Sources[1].Bytes < p.Done-mib {
				t.Errorf("event %d: sources %+v", i+8, p.Sources)
			}
		}
	})
}
