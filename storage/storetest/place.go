package storetest

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/unixfs"
)

// testInPlace adds files of each form where they lie: the CID is that of a copy, the bytes come back, nothing is copied, nothing
// is collected, and deletion leaves the file alone.
func testInPlace(t *testing.T, h Home) {
	ctx := context.Background()
	s := h.open(t, storage.Options{Quota: 64 << 10})
	defer func() { closeStore(t, s) }()
	donor := must(storage.OpenMem())(t)
	defer closeStore(t, donor)
	data, paths := map[cid.Cid][]byte{}, map[cid.Cid]string{}
	for i, size := range []int{0, 1, storage.InlineLimit + 1, unixfs.BlockSize, 3*unixfs.BlockSize + 5} {
		b := Bytes(uint64(i), size)
		path := h.write(t, string(rune('a'+i)), b)
		info := must(s.AddInPlace(ctx, path, storage.PutOptions{}))(t)
		if info.Class != storage.External || info.Path == "" || info.Size != int64(size) || info.Damaged {
			t.Fatalf("%+v", info)
		}
		if want := must(donor.PutBytes(ctx, b, storage.PutOptions{}))(t); info.CID != want {
			t.Fatalf("%d bytes: CID %s, a copy has %s", size, info.CID, want)
		}
		data[info.CID], paths[info.CID] = b, path
	}
	if u := s.Usage(); u.Used > 1000 || u.Reserved != 0 { // interior nodes
		t.Fatalf("usage %+v for files in place", u)
	}
	if files := must(ObjectFiles(h.FS, h.FS.PathJoin(h.Dir, "store"), ""))(t); len(files) != 0 {
		t.Fatalf("the store has files: %v", files)
	}
	if got := must(s.GC(ctx))(t); got.Objects != 0 {
		t.Fatalf("collected %+v", got)
	}
	closeStore(t, s)
	s = h.open(t, storage.Options{Quota: 64 << 10})
	for c, want := range data {
		if got := must(s.ReadAll(ctx, c, 1<<30))(t); !bytes.Equal(got, want) {
			t.Fatalf("%d bytes: other bytes come back", len(want))
		}
	}
	if rep := must(s.Verify(ctx))(t); rep.Objects != 5 || len(rep.Faults) != 0 {
		t.Fatalf("%+v", rep)
	}
	for c, path := range paths {
		if err := s.Delete(ctx, c); err != nil {
			t.Fatal(err)
		}
		if st, err := h.FS.Stat(path); err != nil || st.Size() != int64(len(data[c])) {
			t.Fatalf("%s after its deletion from the store: %v", path, err)
		}
	}
	if u := s.Usage(); u.Used != 0 {
		t.Fatalf("usage %+v of an empty store", u)
	}
	_, err := s.AddInPlace(ctx, h.FS.PathJoin(h.Dir, "absent"), storage.PutOptions{})
	if err == nil {
		t.Fatal("a file that is not there was added")
	}
	_, err = s.AddInPlace(ctx, h.Dir, storage.PutOptions{})
	wantErr(t, err, storage.ErrWrongKind)
}

// testInPlaceChanges changes a file behind the store's back in each way: no wrong byte comes out, the object is marked, and adding
// it again, or putting it back, heals it.
func testInPlaceChanges(t *testing.T, h Home) {
	ctx := context.Background()
	s := h.open(t, storage.Options{})
	defer func() { closeStore(t, s) }()
	const size = 2*unixfs.BlockSize + 9
	good := Bytes(1, size)
	for name, change := range map[string]func(b []byte) []byte{
		"one bit":   func(b []byte) []byte { b[unixfs.BlockSize+3] ^= 4; return b },
		"shorter":   func(b []byte) []byte { return b[:len(b)-1] },
		"longer":    func(b []byte) []byte { return append(b, 0) },
		"emptied":   func([]byte) []byte { return nil },
		"all of it": func([]byte) []byte { return Bytes(2, size) },
	} {
		path := h.write(t, "file", good)
		c := must(s.AddInPlace(ctx, path, storage.PutOptions{Pin: "mine"}))(t).CID
		must(s.GC(ctx))(t)           // of what the path was before
		r := must(s.Open(ctx, c))(t) // somebody who is being served meanwhile
		h.write(t, "file", change(bytes.Clone(good)))
		for i := range 3 {
			b, err := r.Block(i, make([]byte, unixfs.BlockSize)) // the file that was open may live on
			if err == nil && !bytes.HasPrefix(good[i*unixfs.BlockSize:], b) {
				t.Fatalf("%s: wrong bytes come out of an open reader", name)
			}
		}
		r.Close()
		_, err := s.ReadAll(ctx, c, size)
		wantErr(t, err, storage.ErrChanged)
		wantErr(t, err, storage.ErrCorrupt)
		if info := must(s.Stat(ctx, c))(t); !info.Damaged || must(s.Has(ctx, c))(t) {
			t.Fatalf("%s: %+v", name, info)
		}
		rep := must(s.Verify(ctx))(t)
		if len(rep.Faults) != 1 || !errors.Is(rep.Faults[0].Err, storage.ErrChanged) {
			t.Fatalf("%s: %+v", name, rep)
		}
		h.write(t, "file", good) // another file, the same bytes
		if rep := must(s.Verify(ctx))(t); len(rep.Faults) != 0 {
			t.Fatalf("%s, put back: %+v", name, rep)
		}
		if got := must(s.ReadAll(ctx, c, size))(t); !bytes.Equal(got, good) {
			t.Fatalf("%s, put back: other bytes", name)
		}
		// What the path is now takes the place of what it was.
		other := change(bytes.Clone(good))
		h.write(t, "file", other)
		now := must(s.AddInPlace(ctx, path, storage.PutOptions{Pin: "mine"}))(t)
		if got := must(s.ReadAll(ctx, now.CID, 1<<30))(t); !bytes.Equal(got, other) {
			t.Fatalf("%s, added again: other bytes", name)
		}
		must(s.GC(ctx))(t)
		if list := must(s.List(ctx))(t); len(list) != 1 || list[0].CID != now.CID {
			t.Fatalf("%s, added again: %+v", name, list)
		}
	}
	path := h.write(t, "file", good)
	c := must(s.AddInPlace(ctx, path, storage.PutOptions{Pin: "mine"}))(t).CID
	if err := h.FS.Remove(path); err != nil {
		t.Fatal(err)
	}
	_, err := s.ReadAll(ctx, c, size)
	wantErr(t, err, storage.ErrChanged)
	if must(s.Has(ctx, c))(t) {
		t.Fatal("a file that is gone is here")
	}
	h.write(t, "file", good) // as when its disk is attached again: nobody has to be told
	if got := must(s.ReadAll(ctx, c, size))(t); !bytes.Equal(got, good) {
		t.Fatal("other bytes after it came back")
	}
}

// testInPlaceGivesWay puts the same content in place, as a copy, and by a fetch that repairs it.
func testInPlaceGivesWay(t *testing.T, h Home) {
	ctx := context.Background()
	s := h.open(t, storage.Options{})
	defer closeStore(t, s)
	donor := must(storage.OpenMem())(t)
	defer closeStore(t, donor)
	data := Bytes(3, 2*unixfs.BlockSize+1)
	must(donor.PutBytes(ctx, data, storage.PutOptions{}))(t)
	whole := donor.Usage().Used
	path := h.write(t, "file", data)

	c := must(s.PutBytes(ctx, data, storage.PutOptions{Class: storage.Cached}))(t)
	if info := must(s.AddInPlace(ctx, path, storage.PutOptions{}))(t); info.Class != storage.External || info.CID != c {
		t.Fatalf("%+v in place of a cached copy", info)
	}
	if u := s.Usage(); u.Used >= 1000 {
		t.Fatalf("usage %+v: the cached copy is still there", u)
	}
	must(s.PutBytes(ctx, data, storage.PutOptions{}))(t)
	if info := must(s.Stat(ctx, c))(t); info.Class != storage.Owned || s.Usage().Used != whole {
		t.Fatalf("%+v and %+v, want a copy of %d bytes", info, s.Usage(), whole)
	}
	if info := must(s.AddInPlace(ctx, path, storage.PutOptions{}))(t); info.Class != storage.Owned {
		t.Fatalf("%+v: an owned copy was given up", info)
	}
	if err := s.Delete(ctx, c); err != nil {
		t.Fatal(err)
	}

	must(s.AddInPlace(ctx, path, storage.PutOptions{}))(t)
	bad := bytes.Clone(data)
	bad[0] ^= 1
	h.write(t, "file", bad)
	_, err := s.ReadAll(ctx, c, 1<<30)
	wantErr(t, err, storage.ErrChanged)
	p := must(s.Begin(ctx, c, Nodes(ctx, donor)))(t)
	if got := p.Missing(); !slices.Equal(got, []int{0}) {
		t.Fatalf("the repair wants the blocks %v", got)
	}
	if err := p.Write(0, data[:unixfs.BlockSize]); err != nil {
		t.Fatal(err)
	}
	if info := must(p.Commit(ctx))(t); info.Class != storage.Owned || s.Usage().Used != whole {
		t.Fatalf("%+v, %+v after the repair", info, s.Usage())
	}
	if got := must(s.ReadAll(ctx, c, 1<<30))(t); !bytes.Equal(got, data) {
		t.Fatal("other bytes after the repair")
	}
	f := must(h.FS.Open(path))(t)
	defer f.Close()
	got := make([]byte, 1)
	if _, err := f.ReadAt(got, 0); err != nil || got[0] != bad[0] {
		t.Fatalf("the repair touched the user's file: %v", err)
	}
}

// testLeases leases objects for a while, across restarts.
func testLeases(t *testing.T, h Home) {
	ctx := context.Background()
	now := time.Unix(1_800_000_000, 0).UTC()
	opts := storage.Options{Now: func() time.Time { return now }}
	s := h.open(t, opts)
	defer func() { closeStore(t, s) }()
	a := must(s.PutBytes(ctx, Bytes(1, 100), storage.PutOptions{Class: storage.Cached}))(t)
	b := must(s.PutBytes(ctx, Bytes(2, 100), storage.PutOptions{Class: storage.Cached, Pin: "for good"}))(t)
	for _, until := range []time.Time{now, now.Add(-time.Second)} {
		if err := s.Lease(ctx, "l", a, until); err == nil {
			t.Fatalf("a lease until %s at %s", until, now)
		}
	}
	for _, hours := range []time.Duration{1, 3} { // the second extends the first
		if err := s.Lease(ctx, "l", a, now.Add(hours*time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	wantErr(t, s.Lease(ctx, "for good", a, now.Add(time.Hour)), storage.ErrExists)
	if err := s.Lease(ctx, "for good", b, now.Add(time.Hour)); err != nil { // and stays for good
		t.Fatal(err)
	}
	now = now.Add(2 * time.Hour)
	closeStore(t, s)
	s = h.open(t, opts)
	want := []storage.Pin{{Name: "for good", CID: b}, {Name: "l", CID: a, Until: now.Add(time.Hour)}}
	if got := must(s.Pins(ctx))(t); !slices.Equal(got, want) {
		t.Fatalf("pins %v, want %v", got, want)
	}
	wantErr(t, s.Delete(ctx, a), storage.ErrPinned)
	if got := must(s.GC(ctx))(t); got.Objects != 0 {
		t.Fatalf("collected %+v of what is leased", got)
	}
	now = now.Add(time.Hour)
	wantErr(t, s.Unpin(ctx, "l"), storage.ErrNotFound)
	if got := must(s.GC(ctx))(t); got.Objects != 1 || must(s.Has(ctx, a))(t) || !must(s.Has(ctx, b))(t) {
		t.Fatalf("collected %+v after the lease", got)
	}
}

// testNextUse fills the quota with objects that an order names and with one that none does.
func testNextUse(t *testing.T, h Home) {
	ctx := context.Background()
	s := h.open(t, storage.Options{Quota: 1000})
	defer closeStore(t, s)
	put := func(seed uint64) cid.Cid {
		return must(s.PutBytes(ctx, Bytes(seed, 200), storage.PutOptions{Class: storage.Cached}))(t)
	}
	absent := func(all ...cid.Cid) (out []int) {
		for i, c := range all {
			if !must(s.Has(ctx, c))(t) {
				out = append(out, i)
			}
		}
		return out
	}
	a, b, c, d := put(1), put(2), put(3), put(4)
	free := put(5)
	all := []cid.Cid{a, b, c, d, free}
	o := s.Follow([]cid.Cid{a, b, c, d, b}, false)
	defer o.Close()
	o.Used(free) // which it does not name
	o.Used(a)    // is over; next are b, c, d
	for i, want := range [][]int{
		{0},          // what will not be used again
		{0, 4},       // what nobody knows of
		{0, 3, 4},    // the farthest next use, though it was used last
		{0, 2, 3, 4}, // and so on
	} {
		must(s.ReadAll(ctx, d, 200))
		must(s.PutBytes(ctx, Bytes(uint64(10+i), 200), storage.PutOptions{}))(t)
		if got := absent(all...); !slices.Equal(got, want) {
			t.Fatalf("after %d evictions %v are gone, want %v", i+1, got, want)
		}
	}
	if err := s.Disown(ctx, unixfs.RawCID(Bytes(10, 200)), unixfs.RawCID(Bytes(11, 200))); err != nil {
		t.Fatal(err)
	}
	o.Close()
	loop := s.Follow([]cid.Cid{unixfs.RawCID(Bytes(10, 200)), b}, true)
	defer loop.Close()
	loop.Advance(1) // b is next, then the epoch starts over
	must(s.GC(ctx))(t)
	if got := absent(b, unixfs.RawCID(Bytes(10, 200))); len(got) != 2 {
		t.Fatal("a collection kept what only an order names")
	}
}
