package storage_test

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/storetest"
	"github.com/capacloud/capanode/storage/unixfs"
)

// TestQuotaToTheByte fills a quota exactly, with what fits it and with one byte more, from nothing, beside others and through
// an eviction, which takes no object more than it needs.
func TestQuotaToTheByte(t *testing.T) {
	ctx := t.Context()
	const size = storage.InlineLimit + 5
	put := func(s *storage.Store, seed uint64, n int, class storage.Class) (cid.Cid, error) {
		return s.PutBytes(ctx, storetest.Bytes(seed, n), storage.PutOptions{Class: class})
	}
	open := func(quota int64) *storage.Store {
		s, err := storage.Open(ctx, "/store", storage.Options{FS: vfs.NewMem(), Quota: quota})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	used := func(s *storage.Store, want int64) {
		t.Helper()
		if u := s.Usage(); u.Used != want || u.Reserved != 0 {
			t.Errorf("usage %+v, want %d", u, want)
		}
	}
	s := open(2 * size)
	if _, err := put(s, 1, 2*size+1, storage.Owned); !errors.Is(err, storage.ErrQuota) {
		t.Errorf("a byte too many: %v", err)
	}
	one, err := put(s, 2, size, storage.Owned)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := put(s, 3, size+1, storage.Owned); !errors.Is(err, storage.ErrQuota) {
		t.Errorf("a byte too many beside another object: %v", err)
	}
	used(s, size)
	if _, err := put(s, 4, size, storage.Owned); err != nil {
		t.Errorf("exactly the quota: %v", err)
	}
	used(s, 2*size)
	if _, err := put(s, 5, 1, storage.Owned); !errors.Is(err, storage.ErrQuota) {
		t.Errorf("one byte beyond a full quota: %v", err)
	}
	if err := s.Delete(ctx, one); err != nil {
		t.Fatal(err)
	}
	if _, err := put(s, 6, size, storage.Owned); err != nil {
		t.Errorf("exactly what was freed: %v", err)
	}
	used(s, 2*size)

	s = open(size)
	if _, err := put(s, 7, size, storage.Owned); err != nil {
		t.Errorf("one object of exactly the quota: %v", err)
	}

	s = open(3 * size)
	var cached []cid.Cid
	for seed := range uint64(3) {
		c, err := put(s, 10+seed, size, storage.Cached)
		if err != nil {
			t.Fatal(err)
		}
		cached = append(cached, c)
	}
	used(s, 3*size)
	if _, err := put(s, 20, size, storage.Owned); err != nil {
		t.Errorf("exactly what one eviction frees: %v", err)
	}
	used(s, 3*size)
	for i, c := range cached {
		if has, err := s.Has(ctx, c); err != nil || has != (i > 0) {
			t.Errorf("object %d of three is here: %v, %v; the oldest alone had to go", i, has, err)
		}
	}
}

// TestOrderOfRemoval fills a store with one object of each rank and makes room for one at a time: a fetch that nobody goes on with
// goes first, then what an order has used up, what nobody spoke of, what is wanted late, what is wanted soon. Each was used
// before those that must survive it, or after: the ranks decide.
func TestOrderOfRemoval(t *testing.T) {
	ctx := t.Context()
	donor, err := storage.OpenMem()
	if err != nil {
		t.Fatal(err)
	}
	defer donor.Close()
	data := storetest.Bytes(1, 2*unixfs.BlockSize)
	half, err := donor.PutBytes(ctx, data, storage.PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	root, err := donor.GetBlock(ctx, half, nil)
	if err != nil {
		t.Fatal(err)
	}
	size := len(data) + len(root) // of each object in bytes of the quota
	s, err := storage.Open(ctx, "/store", storage.Options{FS: vfs.NewMem(), Quota: int64(5 * size)})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	put := func(seed uint64, class storage.Class) cid.Cid {
		t.Helper()
		c, err := s.PutBytes(ctx, storetest.Bytes(seed, len(data)), storage.PutOptions{Class: class})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	soon, late, unknown, useless := put(2, storage.Cached), put(3, storage.Cached), put(4, storage.Cached), put(5, storage.Cached)
	p, err := s.Begin(ctx, half, storetest.Nodes(ctx, donor))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(p.Write(0, data[:unixfs.BlockSize]), p.Close()); err != nil {
		t.Fatal(err)
	}
	order := s.Follow([]cid.Cid{useless, soon, late}, false)
	defer order.Close()
	order.Advance(1)
	here := func() (out []string) {
		for _, x := range []struct {
			name string
			cid  cid.Cid
		}{{"useless", useless}, {"unknown", unknown}, {"late", late}, {"soon", soon}} {
			if has, err := s.Has(ctx, x.cid); err != nil {
				t.Fatal(err)
			} else if has {
				out = append(out, x.name)
			}
		}
		return out
	}
	for i := range uint64(5) {
		put(10+i, storage.Owned)
		if got := here(); len(got) != int(4-i) || i < 4 && got[len(got)-1] != "soon" || i < 3 && got[len(got)-2] != "late" ||
			i < 2 && got[len(got)-3] != "unknown" || i < 1 && got[0] != "useless" {
			t.Errorf("after %d evictions these are here: %q", i+1, got)
		}
		if _, err := s.OpenStopped(ctx, half); !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("the abandoned fetch after %d evictions: %v", i+1, err)
		}
	}
}

// everything copies a file system with all that was written before each write, synced or not: what a process that is killed leaves.
type everything struct {
	mem *vfs.MemFS

	mu    sync.Mutex
	on    bool
	taken []*vfs.MemFS
}

func (e *everything) String() string { return "copies" }

func (e *everything) MaybeError(op errorfs.Op) error {
	if op.Kind.ReadOrWrite() != errorfs.OpIsWrite || op.Kind == errorfs.OpFileClose {
		return nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.on {
		return nil
	}
	copied := vfs.NewMem()
	_, err := vfs.Clone(e.mem, copied, "/store", "/store")
	e.taken = append(e.taken, copied)
	return err
}

// TestKilledWhileCollecting ends the process at each write of a collection. A file goes after the index has let go of it, durably:
// there is never an entry without its file, nor, after the next start, a file without an entry.
func TestKilledWhileCollecting(t *testing.T) {
	ctx, mem := t.Context(), vfs.NewMem()
	copies := &everything{mem: mem}
	s, err := storage.Open(ctx, "/store", storage.Options{FS: errorfs.Wrap(mem, copies)})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	const objects = 5
	for seed := range uint64(objects) {
		if _, err := s.PutBytes(ctx, storetest.Bytes(seed, storage.InlineLimit+1), storage.PutOptions{Class: storage.Cached}); err != nil {
			t.Fatal(err)
		}
	}
	copies.mu.Lock()
	copies.on = true
	copies.mu.Unlock()
	if gone, err := s.GC(ctx); err != nil || gone.Objects != objects {
		t.Fatalf("%+v, %v", gone, err)
	}
	copies.mu.Lock()
	defer copies.mu.Unlock()
	copies.on = false
	if len(copies.taken) < objects {
		t.Fatalf("%d writes for %d files", len(copies.taken), objects)
	}
	for i, fs := range copies.taken {
		if err := wholeOrGone(ctx, fs, objects); err != nil {
			t.Errorf("killed before write %d of %d: %v", i, len(copies.taken), err)
		}
	}
}

// wholeOrGone checks that a store has all of its objects whole or none, and no file beside them.
func wholeOrGone(ctx context.Context, fs vfs.FS, objects int) error {
	s, err := storage.Open(ctx, "/store", storage.Options{FS: fs})
	if err != nil {
		return err
	}
	defer s.Close()
	rep, err := s.Verify(ctx)
	if err != nil {
		return err
	}
	for _, f := range rep.Faults {
		err = errors.Join(err, f.Err)
	}
	files, lerr := storetest.ObjectFiles(fs, "/store", ".obj")
	list, serr := s.List(ctx)
	if err = errors.Join(err, lerr, serr); err == nil && (len(files) != len(list) || len(list) != 0 && len(list) != objects) {
		err = errors.New("some objects are gone, or files are left over")
	}
	return err
}
