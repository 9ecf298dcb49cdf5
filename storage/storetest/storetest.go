// Package storetest owns the conformance suite of the object store: what every [storage.Store] promises, on whatever file
// system it lives. It refuses to look inside a store: crash and corruption tests, which must, live in package storage.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/p2p/wire"
	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/unixfs"
)

// Home is where a store of the suite lives.
type Home struct {
	FS  vfs.FS // of the store and of the user's files beside it
	Dir string // exists; the suite makes folders in it
	// Opened is called for each store that the suite opens, before it uses it; nil does nothing.
	Opened func(t *testing.T, s *storage.Store, dir string, opts storage.Options)
}

// Opener opens a store that is closed and forgotten when the test ends.
type Opener func(t *testing.T, opts storage.Options) *storage.Store

// opener opens each store in a home of its own.
func opener(home func(*testing.T) Home) Opener {
	return func(t *testing.T, opts storage.Options) *storage.Store {
		s := home(t).open(t, opts)
		t.Cleanup(func() { closeStore(t, s) })
		return s
	}
}

func closeStore(t *testing.T, s *storage.Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// open opens the store of the home; the caller closes it.
func (h Home) open(t *testing.T, opts storage.Options) *storage.Store {
	t.Helper()
	opts.FS = h.FS
	dir := h.FS.PathJoin(h.Dir, "store")
	s := must(storage.Open(context.Background(), dir, opts))(t)
	if h.Opened != nil {
		h.Opened(t, s, dir, opts)
	}
	return s
}

// write makes a file of the user, durably, and returns its path.
func (h Home) write(t *testing.T, name string, b []byte) string {
	t.Helper()
	path := h.FS.PathJoin(h.Dir, name)
	f, err := h.FS.Create(path, vfs.WriteCategoryUnspecified)
	if err == nil {
		_, err = f.Write(bytes.Clone(b))
		err = errors.Join(err, f.Sync(), f.Close(), syncDir(h.FS, h.Dir))
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// Bytes returns n reproducible bytes that do not compress.
func Bytes(seed uint64, n int) []byte {
	var key [32]byte
	key[0], key[1], key[2] = byte(seed), byte(seed>>8), byte(seed>>16)
	b := make([]byte, n)
	rand.NewChaCha8(key).Read(b)
	return b
}

// Run holds the stores that live in such homes to the suite.
func Run(t *testing.T, home func(*testing.T) Home) {
	open := opener(home)
	for _, c := range []struct {
		name string
		test func(*testing.T, Opener)
	}{
		{"RoundTrip", testRoundTrip},
		{"Reader", testReader},
		{"Record", testRecord},
		{"Folder", testFolder},
		{"PinsAndGC", testPinsAndGC},
		{"Quota", testQuota},
		{"Partial", testPartial},
		{"Blocks", testBlocks},
		{"NotFound", testNotFound},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, open) })
	}
	for _, c := range []struct {
		name string
		test func(*testing.T, Home)
	}{
		{"InPlace", testInPlace},
		{"InPlaceChanges", testInPlaceChanges},
		{"InPlaceGivesWay", testInPlaceGivesWay},
		{"Leases", testLeases},
		{"NextUse", testNextUse},
		{"Scrub", testScrub},
		{"ScrubResumes", testScrubResumes},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, home(t)) })
	}
}

func must[T any](v T, err error) func(t *testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error %v, want %v", err, want)
	}
}

func testRoundTrip(t *testing.T, open Opener) {
	ctx := context.Background()
	s := open(t, storage.Options{})
	const mib = unixfs.BlockSize
	var total int64
	for i, size := range []int{0, 1, storage.InlineLimit, storage.InlineLimit + 1, mib - 1, mib, mib + 1, 5*mib + 12345} {
		data := Bytes(uint64(i), size)
		info := must(s.Put(ctx, io.MultiReader(bytes.NewReader(data)), storage.PutOptions{}))(t)
		if again := must(s.PutBytes(ctx, data, storage.PutOptions{}))(t); again != info.CID {
			t.Fatalf("%d bytes: second put gives %s, first %s", size, again, info.CID)
		}
		if info.Size != int64(size) || (size <= mib) != (info.Kind == storage.Block) {
			t.Fatalf("%d bytes: %+v", size, info)
		}
		if size <= mib && info.CID != unixfs.RawCID(data) {
			t.Fatalf("%d bytes: CID %s is not the raw leaf's", size, info.CID)
		}
		if got := must(s.ReadAll(ctx, info.CID, int64(size)))(t); !bytes.Equal(got, data) {
			t.Fatalf("%d bytes: other bytes come back", size)
		}
		if size > 0 {
			_, err := s.ReadAll(ctx, info.CID, int64(size)-1)
			wantErr(t, err, storage.ErrTooLarge)
		}
		total += info.Size
	}
	list := must(s.List(ctx))(t)
	rep := must(s.Verify(ctx))(t)
	if len(list) != 8 || rep.Objects != 8 || rep.Bytes != total || len(rep.Faults) != 0 {
		t.Fatalf("%d objects, report %+v, want 8 with %d bytes", len(list), rep, total)
	}
}

func testReader(t *testing.T, open Opener) {
	ctx := context.Background()
	s := open(t, storage.Options{})
	data := Bytes(1, 3*unixfs.BlockSize+777)
	c := must(s.PutBytes(ctx, data, storage.PutOptions{}))(t)
	r := must(s.Open(ctx, c))(t)
	defer r.Close()
	if r.Size() != int64(len(data)) || r.Blocks() != 4 {
		t.Fatalf("size %d in %d blocks", r.Size(), r.Blocks())
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		off, n := rng.IntN(len(data)), rng.IntN(1<<18)
		got := make([]byte, n)
		m, err := r.ReadAt(got, int64(off))
		want := data[off:min(off+n, len(data))]
		if !bytes.Equal(got[:m], want) || (m < n) != (err == io.EOF) || (err != nil && err != io.EOF) {
			t.Fatalf("ReadAt(%d bytes, %d) = %d, %v", n, off, m, err)
		}
	}
	if at := must(r.Seek(-100, io.SeekEnd))(t); at != int64(len(data)-100) {
		t.Fatalf("seek to %d", at)
	}
	if tail := must(io.ReadAll(r))(t); !bytes.Equal(tail, data[len(data)-100:]) {
		t.Fatal("other bytes after seek")
	}
	if _, err := r.Seek(-1, io.SeekStart); err == nil {
		t.Fatal("seek before the start succeeds")
	}
	// The bytes stay readable after deletion.
	if err := s.Delete(ctx, c); err != nil {
		t.Fatal(err)
	}
	must(r.Seek(0, io.SeekStart))(t)
	if all := must(io.ReadAll(r))(t); !bytes.Equal(all, data) {
		t.Fatal("other bytes after deletion")
	}
}

func testRecord(t *testing.T, open Opener) {
	ctx := context.Background()
	s := open(t, storage.Options{})
	for _, n := range []int{3, 200_000} {
		rec := must(wire.Marshal(map[string][]byte{"payload": Bytes(2, n)}))(t)
		c := must(s.PutRecord(ctx, rec, storage.PutOptions{Pin: "r"}))(t)
		if c != wire.RecordCID(rec) {
			t.Fatalf("CID %s", c)
		}
		if got := must(s.ReadAll(ctx, c, wire.MaxRecord))(t); !bytes.Equal(got, rec) {
			t.Fatal("another record comes back")
		}
	}
	_, err := s.PutBlock(ctx, wire.RecordCID([]byte("x")), []byte("y"), storage.PutOptions{})
	wantErr(t, err, storage.ErrCorrupt)
}

// Tree writes a folder with nested and empty folders and returns its path.
func Tree(t *testing.T) string {
	dir := filepath.Join(t.TempDir(), "tree")
	for name, size := range map[string]int{"config.json": 300, "model/weights.bin": 2*unixfs.BlockSize + 9, "model/empty": 0, ".hidden": 1} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, Bytes(uint64(size), size), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "void"), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// SameTree fails the test if two folders differ.
func SameTree(t *testing.T, got, want string) {
	t.Helper()
	list := func(root string) map[string]string {
		out := map[string]string{}
		err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			rel, _ := filepath.Rel(root, path)
			out[rel] = "folder"
			if !d.IsDir() {
				b, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				out[rel] = unixfs.RawCID(b).String()
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	if g, w := fmt.Sprint(list(got)), fmt.Sprint(list(want)); g != w {
		t.Fatalf("folder differs:\n%s\nwant\n%s", g, w)
	}
}

func testFolder(t *testing.T, open Opener) {
	ctx := context.Background()
	s := open(t, storage.Options{})
	dir := Tree(t)
	c := must(s.AddPath(ctx, dir, storage.PutOptions{Pin: "tree"}))(t)
	dest := filepath.Join(t.TempDir(), "out")
	if err := s.Export(ctx, c, dest); err != nil {
		t.Fatal(err)
	}
	SameTree(t, dest, dir)
	wantErr(t, s.Export(ctx, c, dest), storage.ErrExists)
	_, err := s.Open(ctx, c)
	wantErr(t, err, storage.ErrWrongKind)

	if removed := must(s.GC(ctx))(t); removed.Objects != 0 {
		t.Fatalf("collected %+v of a pinned folder", removed)
	}
	entries := must(s.Entries(ctx, c))(t)
	wantErr(t, s.Delete(ctx, entries[0].CID), storage.ErrPinned)
	if err := s.Unpin(ctx, "tree"); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(ctx, c); err != nil {
		t.Fatal(err)
	}
	must(s.GC(ctx))(t)
	if left := must(s.List(ctx))(t); len(left) != 0 {
		t.Fatalf("%d objects are left: %v", len(left), left)
	}

	single := filepath.Join(dir, "config.json")
	file := must(s.AddPath(ctx, single, storage.PutOptions{}))(t)
	out := filepath.Join(t.TempDir(), "file")
	for range 2 { // a file replaces a file
		if err := s.Export(ctx, file, out); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(single, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	_, err = s.AddPath(ctx, dir, storage.PutOptions{})
	wantErr(t, err, storage.ErrWrongKind)
}

func testPinsAndGC(t *testing.T, open Opener) {
	ctx := context.Background()
	s := open(t, storage.Options{})
	owned := must(s.PutBytes(ctx, Bytes(1, 100), storage.PutOptions{}))(t)
	pinned := must(s.PutBytes(ctx, Bytes(2, 100), storage.PutOptions{Class: storage.Cached, Pin: "keep"}))(t)
	cached := must(s.PutBytes(ctx, Bytes(3, 2<<20), storage.PutOptions{Class: storage.Cached}))(t)
	held := must(s.PutBytes(ctx, Bytes(4, 100), storage.PutOptions{Class: storage.Cached}))(t)
	release := s.Hold(held)
	pins := must(s.Pins(ctx))(t)
	if len(pins) != 1 || pins[0] != (storage.Pin{Name: "keep", CID: pinned}) {
		t.Fatalf("pins %v", pins)
	}
	wantErr(t, s.Delete(ctx, pinned), storage.ErrPinned)
	wantErr(t, s.Pin(ctx, "x", unixfs.RawCID([]byte("absent"))), storage.ErrNotFound)
	wantErr(t, s.Unpin(ctx, "x"), storage.ErrNotFound)

	if got := must(s.GC(ctx))(t); got.Objects != 1 || got.Bytes < 2<<20 {
		t.Fatalf("collected %+v, want the cached object alone", got)
	}
	release()
	must(s.GC(ctx))(t)
	for c, want := range map[cid.Cid]bool{owned: true, pinned: true, cached: false, held: false} {
		if has := must(s.Has(ctx, c))(t); has != want {
			t.Fatalf("%s present: %v, want %v", c, has, want)
		}
	}
	// A pin moves; the object it leaves is free again.
	if err := s.Pin(ctx, "keep", owned); err != nil {
		t.Fatal(err)
	}
	must(s.GC(ctx))(t)
	if must(s.Has(ctx, pinned))(t) {
		t.Fatal("an object outlives its moved pin")
	}
	if u := s.Usage(); u.Used != 100 || u.Reserved != 0 {
		t.Fatalf("usage %+v, want 100 bytes", u)
	}
}

func testQuota(t *testing.T, open Opener) {
	ctx := context.Background()
	const quota = 3 << 20
	s := open(t, storage.Options{Quota: quota})
	a := must(s.PutBytes(ctx, Bytes(1, 1<<20), storage.PutOptions{Class: storage.Cached}))(t)
	b := must(s.PutBytes(ctx, Bytes(2, 1<<20), storage.PutOptions{Class: storage.Cached}))(t)
	must(s.PutBytes(ctx, Bytes(3, 1<<20), storage.PutOptions{}))(t)
	must(s.ReadAll(ctx, a, 1<<20))(t) // now b is the least recently used
	must(s.PutBytes(ctx, Bytes(4, 10), storage.PutOptions{}))(t)
	if must(s.Has(ctx, b))(t) || !must(s.Has(ctx, a))(t) {
		t.Fatal("the object used last was evicted first")
	}
	for _, size := range []int{quota, quota + 1} {
		_, err := s.PutBytes(ctx, Bytes(5, size), storage.PutOptions{})
		wantErr(t, err, storage.ErrQuota)
		_, err = s.Put(ctx, bytes.NewReader(Bytes(5, size)), storage.PutOptions{})
		wantErr(t, err, storage.ErrQuota)
	}
	if u := s.Usage(); u.Reserved != 0 || u.Used > quota || u.Used < 1<<20 {
		t.Fatalf("usage %+v after refusals", u)
	}
	must(s.PutBytes(ctx, Bytes(6, 1<<19), storage.PutOptions{}))(t)
}

// Nodes returns the interior nodes of a file object by CID, as a source of [storage.Store.Begin].
func Nodes(ctx context.Context, s *storage.Store) func(cid.Cid) ([]byte, error) {
	return func(c cid.Cid) ([]byte, error) { return s.GetBlock(ctx, c, nil) }
}

func testPartial(t *testing.T, open Opener) {
	ctx := context.Background()
	from, to := open(t, storage.Options{}), open(t, storage.Options{})
	data := Bytes(9, 4*unixfs.BlockSize+5)
	c := must(from.PutBytes(ctx, data, storage.PutOptions{}))(t)
	r := must(from.Open(ctx, c))(t)
	defer r.Close()
	buf := make([]byte, unixfs.BlockSize)

	p := must(to.Begin(ctx, c, Nodes(ctx, from)))(t)
	_, err := to.Begin(ctx, c, Nodes(ctx, from))
	wantErr(t, err, storage.ErrBusy)
	wantErr(t, p.Write(0, buf), storage.ErrCorrupt)
	wantErr(t, p.Write(7, buf), storage.ErrCorrupt)
	for _, i := range []int{4, 1, 1} {
		if err := p.Write(i, must(r.Block(i, buf))(t)); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if must(to.Has(ctx, c))(t) {
		t.Fatal("an unfinished object is present")
	}
	p = must(to.Begin(ctx, c, Nodes(ctx, from)))(t)
	if got := fmt.Sprint(p.Missing()); got != "[0 2 3]" {
		t.Fatalf("missing %s after resume", got)
	}
	for _, i := range p.Missing() {
		if err := p.Write(i, must(r.Block(i, buf))(t)); err != nil {
			t.Fatal(err)
		}
	}
	if info := must(p.Commit(ctx))(t); info.Class != storage.Cached {
		t.Fatalf("fetched object is %s", info.Class)
	}
	if got := must(to.ReadAll(ctx, c, 1<<30))(t); !bytes.Equal(got, data) {
		t.Fatal("other bytes were fetched")
	}
	_, err = to.Begin(ctx, c, Nodes(ctx, from))
	wantErr(t, err, storage.ErrExists)
	if u, v := to.Usage(), from.Usage(); u.Used != v.Used || u.Reserved != 0 {
		t.Fatalf("usage %+v, source %+v", u, v)
	}
	// An abandoned fetch is collected.
	other := must(from.PutBytes(ctx, Bytes(10, 2<<20), storage.PutOptions{}))(t)
	p = must(to.Begin(ctx, other, Nodes(ctx, from)))(t)
	if got := must(to.GC(ctx))(t); got.Objects != 1 {
		t.Fatalf("collected %+v beside a running fetch", got)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	must(to.GC(ctx))(t)
	if u := to.Usage(); u.Used != 0 {
		t.Fatalf("usage %+v after collection", u)
	}
}

func testBlocks(t *testing.T, open Opener) {
	ctx := context.Background()
	s := open(t, storage.Options{})
	data := Bytes(5, 2*unixfs.BlockSize+100)
	c := must(s.PutBytes(ctx, data, storage.PutOptions{}))(t)
	node := must(unixfs.Decode(must(s.GetBlock(ctx, c, nil))(t)))(t)
	var joined []byte
	for _, l := range node.Links {
		joined = append(joined, must(s.GetBlock(ctx, l.CID, nil))(t)...)
	}
	if !bytes.Equal(joined, data) {
		t.Fatal("the leaves are not the file")
	}
	// A block that two objects share outlives one of them.
	leaf := data[:unixfs.BlockSize]
	single := must(s.PutBytes(ctx, leaf, storage.PutOptions{}))(t)
	if err := s.Delete(ctx, c); err != nil {
		t.Fatal(err)
	}
	if got := must(s.GetBlock(ctx, single, nil))(t); !bytes.Equal(got, leaf) {
		t.Fatal("another block comes back")
	}
	_, err := s.GetBlock(ctx, node.Links[1].CID, nil)
	wantErr(t, err, storage.ErrNotFound)
}

func testNotFound(t *testing.T, open Opener) {
	ctx := context.Background()
	s := open(t, storage.Options{})
	c := unixfs.RawCID([]byte("nobody has this"))
	_, err := s.Open(ctx, c)
	wantErr(t, err, storage.ErrNotFound)
	_, err = s.Stat(ctx, c)
	wantErr(t, err, storage.ErrNotFound)
	_, err = s.GetBlock(ctx, c, nil)
	wantErr(t, err, storage.ErrNotFound)
	wantErr(t, s.Delete(ctx, c), storage.ErrNotFound)
	wantErr(t, s.Export(ctx, c, filepath.Join(t.TempDir(), "x")), storage.ErrNotFound)
	v0 := cid.NewCidV0(unixfs.RawCID(nil).Hash())
	if _, err := s.Stat(ctx, v0); !errors.Is(err, unixfs.ErrUnsupported) {
		t.Fatalf("CIDv0: %v", err)
	}
}
