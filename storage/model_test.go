package storage_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/ipfs/go-cid"
	"pgregory.net/rapid"

	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/storetest"
	"github.com/capacloud/capanode/storage/unixfs"
)

// model is what a store must hold, as simple as it can be said.
type model struct {
	fs    *vfs.MemFS
	s     *storage.Store
	owned map[cid.Cid]bool
	pins  map[string]cid.Cid
	data  map[cid.Cid][]byte // every object that was ever put
}

const modelQuota = 300 << 10

func (m *model) open(t *rapid.T) {
	s, err := storage.Open(context.Background(), "/store", storage.Options{FS: m.fs, Quota: modelQuota})
	if err != nil {
		t.Fatal(err)
	}
	m.s = s
}

func (m *model) pick(t *rapid.T) cid.Cid {
	var all []cid.Cid
	for c := range m.data {
		all = append(all, c)
	}
	if len(all) == 0 {
		return unixfs.RawCID(nil)
	}
	slices.SortFunc(all, func(a, b cid.Cid) int { return bytes.Compare(a.Bytes(), b.Bytes()) })
	return rapid.SampledFrom(all).Draw(t, "object")
}

func (m *model) pinned(c cid.Cid) bool {
	for _, p := range m.pins {
		if p == c {
			return true
		}
	}
	return false
}

func (m *model) put(t *rapid.T) {
	size := rapid.SampledFrom([]int{0, 1, 1000, 20 << 10, 70 << 10, 120 << 10}).Draw(t, "size")
	b := storetest.Bytes(rapid.Uint64Range(0, 5).Draw(t, "seed"), size)
	opts := storage.PutOptions{
		Class: rapid.SampledFrom([]storage.Class{storage.Owned, storage.Cached}).Draw(t, "class"),
		Pin:   rapid.SampledFrom([]string{"", "", "a", "b"}).Draw(t, "pin"),
	}
	c, err := m.s.PutBytes(context.Background(), b, opts)
	if errors.Is(err, storage.ErrQuota) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	m.data[c] = b
	m.owned[c] = m.owned[c] || opts.Class == storage.Owned
	if opts.Pin != "" {
		m.pins[opts.Pin] = c
	}
}

func (m *model) remove(t *rapid.T) {
	c := m.pick(t)
	err := m.s.Delete(context.Background(), c)
	switch {
	case m.pinned(c):
		if !errors.Is(err, storage.ErrPinned) {
			t.Fatalf("delete pinned %s: %v", c, err)
		}
		return
	case m.owned[c] && err != nil, err != nil && !errors.Is(err, storage.ErrNotFound):
		t.Fatalf("delete %s: %v", c, err)
	}
	delete(m.owned, c)
}

func (m *model) pin(t *rapid.T) {
	c, name := m.pick(t), rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "pin")
	err := m.s.Pin(context.Background(), name, c)
	if err == nil {
		m.pins[name] = c
	} else if !errors.Is(err, storage.ErrNotFound) || m.owned[c] || m.pinned(c) {
		t.Fatalf("pin %s: %v", c, err)
	}
}

func (m *model) unpin(t *rapid.T) {
	name := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "pin")
	_, known := m.pins[name]
	if err := m.s.Unpin(context.Background(), name); (err == nil) != known {
		t.Fatalf("unpin %s: %v", name, err)
	}
	delete(m.pins, name)
}

func (m *model) collect(t *rapid.T) {
	ctx := context.Background()
	if _, err := m.s.GC(ctx); err != nil {
		t.Fatal(err)
	}
	list, err := m.s.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, info := range list {
		if !m.owned[info.CID] && !m.pinned(info.CID) {
			t.Fatalf("%s survives a collection", info.CID)
		}
	}
}

func (m *model) reopen(t *rapid.T) {
	before := m.s.Usage()
	if err := m.s.Close(); err != nil {
		t.Fatal(err)
	}
	m.open(t)
	if after := m.s.Usage(); after != before {
		t.Fatalf("usage %+v, before the restart %+v", after, before)
	}
}

// check holds the store to the model: the quota is kept to the byte, what is owned or pinned is there, whole, and all
// accounts add up.
func (m *model) check(t *rapid.T) {
	ctx := context.Background()
	list, err := m.s.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var sum int64
	present := map[cid.Cid]bool{}
	for _, info := range list {
		sum += info.Size
		present[info.CID] = true
		if want, ok := m.data[info.CID]; !ok || int64(len(want)) != info.Size {
			t.Fatalf("unknown object %+v", info)
		}
		if (info.Class == storage.Owned) != m.owned[info.CID] {
			t.Fatalf("%+v, want owned %v", info, m.owned[info.CID])
		}
	}
	if u := m.s.Usage(); u.Used != sum || u.Reserved != 0 || u.Used > modelQuota {
		t.Fatalf("usage %+v for %d bytes", u, sum)
	}
	for c := range m.data {
		if (m.owned[c] || m.pinned(c)) != present[c] && !present[c] {
			t.Fatalf("%s (owned %v, pinned %v) is gone", c, m.owned[c], m.pinned(c))
		}
	}
	var pins []storage.Pin
	for name, c := range m.pins {
		pins = append(pins, storage.Pin{Name: name, CID: c})
	}
	slices.SortFunc(pins, func(a, b storage.Pin) int { return bytes.Compare([]byte(a.Name), []byte(b.Name)) })
	if got, err := m.s.Pins(ctx); err != nil || fmt.Sprint(got) != fmt.Sprint(pins) {
		t.Fatalf("pins %v, %v; want %v", got, err, pins)
	}
}

// TestModel compares random operations with the model.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &model{fs: vfs.NewMem(), owned: map[cid.Cid]bool{}, pins: map[string]cid.Cid{}, data: map[cid.Cid][]byte{}}
		m.open(t)
		defer func() { m.s.Close() }()
		t.Repeat(map[string]func(*rapid.T){
			"": m.check, "put": m.put, "put again": m.put, "delete": m.remove, "pin": m.pin, "unpin": m.unpin,
			"collect": m.collect, "reopen": m.reopen,
		})
		if rep, err := m.s.Verify(context.Background()); err != nil || len(rep.Faults) != 0 {
			t.Fatalf("%+v, %v", rep, err)
		}
	})
}
