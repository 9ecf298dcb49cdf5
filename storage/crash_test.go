package storage_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/storetest"
	"github.com/capacloud/capanode/storage/unixfs"
)

// crashes copies a file system before each write, together with what the store had promised by then.
type crashes struct {
	mem *vfs.MemFS
	rng *rand.Rand

	mu       sync.Mutex
	promised map[cid.Cid]bool // acknowledged: true stored, false deleted
	open     cid.Cid          // whose operation has not returned
	taken    []crash
}

type crash struct {
	fs       *vfs.MemFS
	unsynced int
	promised map[cid.Cid]bool
	open     cid.Cid
}

func (c *crashes) MaybeError(op errorfs.Op) error {
	if op.Kind.ReadOrWrite() != errorfs.OpIsWrite || op.Kind == errorfs.OpFileClose {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	unsynced := []int{0, 0, 50, 100}[c.rng.IntN(4)]
	fs := c.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: unsynced, RNG: c.rng})
	c.taken = append(c.taken, crash{fs, unsynced, maps.Clone(c.promised), c.open})
	return nil
}

func (c *crashes) String() string { return "crash copies" }

// start says which object the next operation is about; done says what it promises.
func (c *crashes) start(id cid.Cid) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open = id
}

func (c *crashes) done(stored bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.promised[c.open] = stored
	c.open = cid.Undef
}

// TestCrashAtAnyWrite loses power between any two writes: what was acknowledged is there and whole, what was not leaves
// no trace, and the accounts are right.
func TestCrashAtAnyWrite(t *testing.T) {
	for seed := range uint64(3) {
		crashAtAnyWrite(t, seed)
	}
}

func crashAtAnyWrite(t *testing.T, seed uint64) {
	ctx := context.Background()
	c := &crashes{mem: vfs.NewCrashableMem(), rng: rand.New(rand.NewPCG(seed, seed)), promised: map[cid.Cid]bool{}}
	s := open(t, "/store", storage.Options{FS: errorfs.Wrap(c.mem, c)})
	donor, err := storage.OpenMem()
	if err != nil {
		t.Fatal(err)
	}
	defer donor.Close()

	data := map[cid.Cid][]byte{}
	for i, size := range []int{100, storage.InlineLimit + 5, unixfs.BlockSize + 9, 2*unixfs.BlockSize + 1, 7} {
		b := storetest.Bytes(uint64(i), size)
		id, err := donor.PutBytes(ctx, b, storage.PutOptions{})
		if err != nil {
			t.Fatal(err)
		}
		data[id] = b
		c.start(id)
		if i == 3 {
			fetch(t, donor, s, id)
		} else if _, err := s.PutBytes(ctx, b, storage.PutOptions{Pin: fmt.Sprint(i)}); err != nil {
			t.Fatal(err)
		}
		c.done(true)
	}
	for i, id := range []int{2, 0} {
		pins, err := s.Pins(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range pins {
			if p.Name == fmt.Sprint(id) {
				if err := s.Unpin(ctx, p.Name); err != nil {
					t.Fatal(err)
				}
				c.start(p.CID)
				if err := s.Delete(ctx, p.CID); err != nil {
					t.Fatal(i, err)
				}
				c.done(false)
			}
		}
	}
	if len(c.taken) < 50 {
		t.Fatalf("only %d crashes", len(c.taken))
	}
	for i, at := range c.taken {
		checkCrash(t, at, data, fmt.Sprintf("seed %d, crash %d with %d %% of what was not synced", seed, i, at.unsynced))
	}
}

// fetch copies an object through a partial.
func fetch(t *testing.T, from, to *storage.Store, c cid.Cid) {
	t.Helper()
	ctx := context.Background()
	p, err := to.Begin(ctx, c, storetest.Nodes(ctx, from))
	if err != nil {
		t.Fatal(err)
	}
	for i := range p.Layout().Leaves {
		b, err := from.GetBlock(ctx, p.Layout().Leaves[i].CID(cid.Raw), nil)
		if err == nil {
			err = p.Write(i, b)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := p.Commit(ctx); err != nil {
		t.Fatal(err)
	}
}

func checkCrash(t *testing.T, at crash, data map[cid.Cid][]byte, when string) {
	t.Helper()
	ctx := context.Background()
	s, err := storage.Open(ctx, "/store", storage.Options{FS: at.fs})
	if err != nil {
		t.Fatalf("%s: reopen: %v", when, err)
	}
	defer s.Close()
	for c, stored := range at.promised {
		if c == at.open {
			continue
		}
		got, err := s.ReadAll(ctx, c, 1<<30)
		if stored && (err != nil || !bytes.Equal(got, data[c])) {
			t.Errorf("%s: %s of %d bytes: %v", when, c, len(data[c]), err)
		}
		if !stored && !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("%s: deleted %s: %v", when, c, err)
		}
	}
	rep, err := s.Verify(ctx)
	if err != nil || len(rep.Faults) != 0 {
		t.Errorf("%s: %+v, %v", when, rep, err)
	}
	list, err := s.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	files := 0
	for _, info := range list {
		if info.Size > storage.InlineLimit {
			files++
		}
	}
	if found := objectFiles(t, at.fs, ".obj"); len(found) != files {
		t.Errorf("%s: %d object files for %d objects: %v", when, len(found), files, found)
	}
	if found := objectFiles(t, at.fs, ".tmp"); len(found) != 0 {
		t.Errorf("%s: leftovers %v", when, found)
	}
	if _, err := s.GC(ctx); err != nil {
		t.Errorf("%s: %v", when, err)
	}
}

// objectFiles lists the files below objects/ with a suffix.
func objectFiles(t *testing.T, fs vfs.FS, suffix string) []string {
	t.Helper()
	var out []string
	dirs, err := fs.List("/store/objects")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		names, err := fs.List(path.Join("/store/objects", dir))
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range names {
			if strings.HasSuffix(n, suffix) {
				out = append(out, path.Join("/store/objects", dir, n))
			}
		}
	}
	return out
}

// TestFullDisk gets ENOSPC at every write of an object's file in turn: the error has its type and the store goes on.
func TestFullDisk(t *testing.T) {
	ctx := context.Background()
	var mu sync.Mutex
	left := -1
	inject := errorfs.InjectorFunc(func(op errorfs.Op) error {
		mu.Lock()
		defer mu.Unlock()
		if op.Kind.ReadOrWrite() == errorfs.OpIsRead || !strings.Contains(op.Path, "/objects/") || op.Kind == errorfs.OpRemove {
			return nil
		}
		if left--; left == -1 {
			return syscall.ENOSPC
		}
		return nil
	})
	s := open(t, "/store", storage.Options{FS: errorfs.Wrap(vfs.NewMem(), inject)})
	data := storetest.Bytes(1, 2*unixfs.BlockSize+1)
	failures := 0
	for n := 0; ; n++ {
		mu.Lock()
		left = n
		mu.Unlock()
		_, err := s.PutBytes(ctx, data, storage.PutOptions{})
		if err == nil {
			break
		}
		if failures++; !errors.Is(err, storage.ErrNoSpace) {
			t.Fatalf("write %d: %v", n, err)
		}
		if u := s.Usage(); u.Used+u.Reserved != 0 {
			t.Fatalf("write %d: usage %+v after a failure", n, u)
		}
	}
	if failures < 4 {
		t.Fatalf("only %d writes failed", failures)
	}
	if rep, err := s.Verify(ctx); err != nil || rep.Objects != 1 || len(rep.Faults) != 0 {
		t.Fatalf("%+v, %v", rep, err)
	}
}

func TestDiskMargin(t *testing.T) {
	ctx := context.Background()
	mem := vfs.NewMem()
	s := open(t, "/store", storage.Options{FS: mem})
	mem.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: storage.DiskMargin + 99})
	if _, err := s.PutBytes(ctx, make([]byte, 100), storage.PutOptions{}); !errors.Is(err, storage.ErrNoSpace) {
		t.Fatalf("100 bytes into 99: %v", err)
	}
	if _, err := s.PutBytes(ctx, make([]byte, 99), storage.PutOptions{}); err != nil {
		t.Fatal(err)
	}
}

func TestLocked(t *testing.T) {
	dir := t.TempDir()
	open(t, dir, storage.Options{})
	if s, err := storage.Open(context.Background(), dir, storage.Options{}); !errors.Is(err, storage.ErrLocked) {
		t.Fatalf("%v, %v", s, err)
	}
}
