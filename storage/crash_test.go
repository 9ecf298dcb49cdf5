package storage_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/storetest"
	"github.com/capacloud/capanode/storage/unixfs"
)

// crash is a copy of a file system at one write, and what the store has to hold then.
type crash struct {
	fs       *vfs.MemFS
	step     int
	unsynced int // percent of what was not synced that is in the copy
}

// crashes copies a file system before every n-th write.
type crashes struct {
	mem   *vfs.MemFS
	every int

	mu     sync.Mutex
	rng    *rand.Rand
	writes int
	step   int // of the machine
	taken  []crash
}

func (c *crashes) MaybeError(op errorfs.Op) error {
	if op.Kind.ReadOrWrite() != errorfs.OpIsWrite || op.Kind == errorfs.OpFileClose {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.writes++; c.writes%c.every == 0 {
		unsynced := []int{0, 0, 50, 100}[c.rng.IntN(4)]
		c.taken = append(c.taken, crash{c.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: unsynced, RNG: c.rng}), c.step, unsynced})
	}
	return nil
}

func (c *crashes) String() string { return "crash copies" }

// TestCrashAtAnyWrite loses power between the writes of random operations: what was acknowledged is there and whole, what was
// not leaves no trace, and the accounts are right.
func TestCrashAtAnyWrite(t *testing.T) {
	seeds, steps, every := 2, 30, 5
	switch {
	case long():
		seeds, steps, every = 20, 100, 1
	case testing.Short():
		seeds, steps, every = 1, 15, 5
	}
	for seed := range uint64(seeds) {
		crashAtAnyWrite(t, seed, steps, every)
	}
}

func crashAtAnyWrite(t *testing.T, seed uint64, steps, every int) {
	c := &crashes{mem: vfs.NewCrashableMem(), every: every, rng: rand.New(rand.NewPCG(seed, 1))}
	choose := rand.New(rand.NewPCG(seed, 2))
	m, err := storetest.NewMachine(errorfs.Wrap(c.mem, c), c.mem, func(_ string, n int) int { return choose.IntN(n) })
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	var during *storetest.Model
	what := ""
	m.Start = func(op string) { what = op }
	m.Done = func(d *storetest.Model) { during = d }
	tested := 0
	for step := range steps {
		c.mu.Lock()
		c.step, c.taken = step, nil
		c.mu.Unlock()
		if err := m.Step(); err != nil {
			t.Fatalf("seed %d, step %d: %v", seed, step, err)
		}
		c.mu.Lock()
		taken := c.taken
		c.mu.Unlock()
		for i, at := range taken {
			tested++
			if err := checkCrash(at, during); err != nil {
				t.Fatalf("seed %d, step %d: %s, crash %d with %d %% of what was not synced: %v", seed, step, what, i, at.unsynced, err)
			}
		}
	}
	t.Logf("seed %d: %d crashes", seed, tested)
	if tested < steps/4 {
		t.Fatalf("only %d crashes", tested)
	}
}

func checkCrash(at crash, want *storetest.Model) error {
	ctx := context.Background()
	s, err := storage.Open(ctx, "/store", storage.Options{FS: at.fs, Quota: want.Quota, Now: func() time.Time { return want.Now }})
	if err != nil {
		return fmt.Errorf("reopen: %w", err)
	}
	defer s.Close()
	if err := want.Check(s, at.fs, "/store"); err != nil {
		return err
	}
	if err := checkLeftovers(s, at.fs, "/store"); err != nil {
		return err
	}
	rep, err := s.Verify(ctx)
	if err != nil {
		return err
	}
	for _, f := range rep.Faults {
		if !errors.Is(f.Err, storage.ErrChanged) && !want.Half[f.CID] && !want.Busy[f.CID] {
			return fmt.Errorf("%s: %w", f.CID, f.Err)
		}
	}
	if err := want.CheckBytes(s); err != nil {
		return err
	}
	_, err = s.GC(ctx)
	return errors.Join(err, want.Check(s, at.fs, "/store"))
}

// checkLeftovers finds files that no object has, and objects without one.
func checkLeftovers(s *storage.Store, fs vfs.FS, dir string) error {
	list, err := s.List(context.Background())
	if err != nil {
		return err
	}
	files := 0
	for _, info := range list {
		if info.Size > storage.InlineLimit && info.Class != storage.External {
			files++
		}
	}
	found, err := storetest.ObjectFiles(fs, dir, ".obj")
	temps, terr := storetest.ObjectFiles(fs, dir, ".tmp")
	if err = errors.Join(err, terr); err == nil && (len(found) != files || len(temps) != 0) {
		err = fmt.Errorf("%d object files for %d objects, leftovers %v", len(found), files, temps)
	}
	return err
}

// objectFiles lists the files below objects/ with a suffix.
func objectFiles(t *testing.T, fs vfs.FS, suffix string) []string {
	t.Helper()
	out, err := storetest.ObjectFiles(fs, "/store", suffix)
	if err != nil {
		t.Fatal(err)
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

// fetch copies a file through a partial.
func fetch(t *testing.T, from, to *storage.Store, c cid.Cid) {
	t.Helper()
	if err := killedFetch(t.Context(), to, from, c); err != nil {
		t.Fatal(err)
	}
}

// TestProgressOutlivesTheProcess ends a process while a fetch is under way: what was synced is there, and of what was not nothing,
// as the index keeps in memory what nobody asked it to sync. All but the last seconds of the fetch must be.
func TestProgressOutlivesTheProcess(t *testing.T) {
	ctx, mem, now := t.Context(), vfs.NewCrashableMem(), time.Unix(1_800_000_000, 0)
	data := storetest.Bytes(8, 40*unixfs.BlockSize)
	donor, err := storage.OpenMem()
	if err != nil {
		t.Fatal(err)
	}
	defer donor.Close()
	c, err := donor.PutBytes(ctx, data, storage.PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	open := func(fs vfs.FS) (*storage.Store, *storage.Partial) {
		s, err := storage.Open(ctx, "/store", storage.Options{FS: fs, Now: func() time.Time { return now }})
		if err != nil {
			t.Fatal(err)
		}
		p, err := s.Begin(ctx, c, storetest.Nodes(ctx, donor))
		if err != nil {
			t.Fatal(err)
		}
		return s, p
	}
	s, p := open(mem)
	defer s.Close()
	defer p.Close()
	now = now.Add(5 * time.Second) // before the first block: time does not move while others read it
	for i := range 36 {
		if err := p.Write(i, data[i*unixfs.BlockSize:(i+1)*unixfs.BlockSize]); err != nil {
			t.Fatal(err)
		}
	}
	storage.Checkpointed(p)
	s2, p2 := open(mem.CrashClone(vfs.CrashCloneCfg{}))
	defer s2.Close()
	defer p2.Close()
	if missing := len(p2.Missing()); missing > 8 {
		t.Errorf("%d of 40 blocks are missing after the end of a process that had 36", missing)
	}
}
