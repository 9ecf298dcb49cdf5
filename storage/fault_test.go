package storage_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
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

// nth fails the n-th operation on paths that contain part, once.
type nth struct {
	part   string
	writes bool // writes only
	err    error

	mu   sync.Mutex
	left int // operations before the one that fails; negative fails none
	hit  bool
}

func (n *nth) String() string { return "the n-th operation" }

func (n *nth) MaybeError(op errorfs.Op) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.hit || n.left < 0 || !strings.Contains(op.Path, n.part) || n.writes && op.Kind.ReadOrWrite() != errorfs.OpIsWrite {
		return nil
	}
	if n.left--; n.left >= 0 {
		return nil
	}
	n.hit = true
	return &fs.PathError{Op: "inject", Path: op.Path, Err: n.err}
}

func (n *nth) arm(left int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.left, n.hit = left, false
}

func (n *nth) fired() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.hit
}

// scripted is a short life of a store: what each line does must succeed without faults.
type scripted struct {
	fs    vfs.FS
	donor *storage.Store
	file  cid.Cid // of the donor, two blocks
	data  []byte
}

func newScript(t *testing.T, inject errorfs.Injector) *scripted {
	t.Helper()
	mem := vfs.NewMem()
	donor, err := storage.OpenMem()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { donor.Close() })
	sc := &scripted{fs: errorfs.Wrap(mem, inject), donor: donor, data: storetest.Bytes(1, unixfs.BlockSize+5)}
	if sc.file, err = donor.PutBytes(t.Context(), sc.data, storage.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	f, err := mem.Create("/mine", vfs.WriteCategoryUnspecified)
	if err == nil {
		_, err = f.Write(storetest.Bytes(2, 100<<10))
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	return sc
}

// run does it all and stops at the first error. What it keeps lists what was acknowledged.
func (sc *scripted) run(ctx context.Context, s *storage.Store, kept map[cid.Cid][]byte) error {
	small, mid := storetest.Bytes(3, 500), storetest.Bytes(4, 90<<10)
	for _, b := range [][]byte{small, mid} {
		c, err := s.PutBytes(ctx, b, storage.PutOptions{Pin: fmt.Sprint(len(b))})
		if err != nil {
			return err
		}
		kept[c] = b
	}
	info, err := s.AddInPlace(ctx, "/mine", storage.PutOptions{})
	if err != nil {
		return err
	}
	kept[info.CID] = storetest.Bytes(2, 100<<10)
	p, err := s.Begin(ctx, sc.file, storetest.Nodes(ctx, sc.donor))
	if err != nil && !errors.Is(err, storage.ErrExists) {
		return err
	}
	if err == nil {
		for _, i := range p.Missing() {
			off := int64(i) * unixfs.BlockSize
			if err := p.Write(i, sc.data[off:off+p.Layout().LeafSize(i)]); err != nil {
				return errors.Join(err, p.Close())
			}
		}
		if _, err := p.Commit(ctx); err != nil {
			return err
		}
	}
	if err := s.Pin(ctx, "file", sc.file); err != nil {
		return err
	}
	kept[sc.file] = sc.data
	gone, err := s.PutBytes(ctx, storetest.Bytes(5, 80<<10), storage.PutOptions{Class: storage.Cached})
	if err != nil {
		return err
	}
	if _, err := s.GC(ctx); err != nil {
		return err
	}
	if has, err := s.Has(ctx, gone); has || err != nil {
		return fmt.Errorf("collected %s is here: %v, %w", gone, has, err)
	}
	_, err = s.ReadAll(ctx, sc.file, 1<<30)
	return err
}

// TestFaults fails every operation on an object's file in turn, with a full disk and with a disk that fails: the error keeps its
// type, what was acknowledged is there and whole, the accounts are right, and the same store then does all of it.
func TestFaults(t *testing.T) {
	stride := 1
	if testing.Short() {
		stride = 5
	}
	for _, kind := range []error{syscall.ENOSPC, syscall.EIO} {
		t.Run(kind.Error(), func(t *testing.T) {
			ctx := t.Context()
			faults := 0
			for n := 0; ; n += stride {
				inject := &nth{part: "objects/", err: kind, left: -1, writes: kind == syscall.ENOSPC}
				sc := newScript(t, inject)
				s, err := storage.Open(ctx, "/store", storage.Options{FS: sc.fs, Quota: 8 << 20})
				if err != nil {
					t.Fatal(err)
				}
				kept := map[cid.Cid][]byte{}
				inject.arm(n)
				err = sc.run(ctx, s, kept)
				fired := inject.fired()
				inject.arm(-1)
				if err != nil {
					faults++
					if !errors.Is(err, kind) || kind == syscall.ENOSPC && !errors.Is(err, storage.ErrNoSpace) {
						t.Fatalf("operation %d: %v", n, err)
					}
				}
				for _, when := range []string{"at once", "after a restart"} {
					if err := soundAfter(ctx, sc, s, kept); err != nil {
						t.Fatalf("operation %d, %s: %v", n, when, err)
					}
					if err := s.Close(); err != nil {
						t.Fatal(err)
					}
					if s, err = storage.Open(ctx, "/store", storage.Options{FS: sc.fs, Quota: 8 << 20}); err != nil {
						t.Fatal(err)
					}
				}
				err = errors.Join(checkLeftovers(s, sc.fs, "/store"), s.Close())
				if err != nil {
					t.Fatalf("operation %d: %v", n, err)
				}
				if !fired {
					break
				}
			}
			t.Logf("%d faults", faults)
			if faults < 15/stride {
				t.Fatalf("only %d faults", faults)
			}
		})
	}
}

// soundAfter checks a store after a fault, then does everything again without one.
func soundAfter(ctx context.Context, sc *scripted, s *storage.Store, kept map[cid.Cid][]byte) error {
	if u := s.Usage(); u.Reserved != 0 {
		return fmt.Errorf("usage %+v", u)
	}
	for range 2 {
		for c, want := range kept {
			if got, err := s.ReadAll(ctx, c, 1<<30); err != nil || !bytes.Equal(got, want) {
				return fmt.Errorf("%s: other bytes: %w", c, err)
			}
		}
		rep, err := s.Verify(ctx)
		if err != nil || len(rep.Faults) != 0 {
			return fmt.Errorf("%+v, %w", rep, err)
		}
		if err := sc.run(ctx, s, kept); err != nil {
			return fmt.Errorf("again: %w", err)
		}
	}
	return nil
}

// TestIndexFaults fails every write of the index in turn: no panic, an error with its type, and nothing that was acknowledged is
// lost when the store is opened again.
func TestIndexFaults(t *testing.T) {
	ctx := t.Context()
	step := 3
	if long() {
		step = 1
	}
	faults := 0
	for n := 0; ; n += step {
		inject := &nth{part: ".log", err: syscall.ENOSPC, left: -1, writes: true}
		sc := newScript(t, inject)
		s, err := storage.Open(ctx, "/store", storage.Options{FS: sc.fs})
		if err != nil {
			t.Fatal(err)
		}
		kept := map[cid.Cid][]byte{}
		inject.arm(n)
		err = sc.run(ctx, s, kept)
		fired := inject.fired()
		inject.arm(-1)
		if err != nil {
			faults++
			if !errors.Is(err, storage.ErrFailed) || !errors.Is(err, storage.ErrNoSpace) {
				t.Fatalf("write %d: %v", n, err)
			}
			if err := s.Pin(ctx, "more", sc.file); !errors.Is(err, storage.ErrFailed) && !errors.Is(err, storage.ErrNotFound) {
				t.Fatalf("write %d: a broken index takes a pin: %v", n, err)
			}
		}
		_ = s.Close() // the index cannot be flushed
		if s, err = storage.Open(ctx, "/store", storage.Options{FS: sc.fs}); err != nil {
			t.Fatalf("write %d: %v", n, err)
		}
		if err := soundAfter(ctx, sc, s, kept); err != nil {
			t.Fatalf("write %d: %v", n, err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if !fired {
			break
		}
	}
	t.Logf("%d faults", faults)
	if faults < 3 {
		t.Fatalf("only %d faults", faults)
	}
}

// TestReadOnly opens and uses a store in a folder that may not be written.
func TestReadOnly(t *testing.T) {
	for _, kind := range []error{syscall.EROFS, syscall.EACCES} {
		for _, first := range []string{"/store", "LOCK", "index"} { // what is refused first
			mem := vfs.NewMem()
			denied := errorfs.InjectorFunc(func(op errorfs.Op) error {
				if op.Kind.ReadOrWrite() == errorfs.OpIsWrite && op.Kind != errorfs.OpFileClose && strings.Contains(op.Path, first) {
					return &fs.PathError{Op: "write", Path: op.Path, Err: kind}
				}
				return nil
			})
			_, err := storage.Open(t.Context(), "/store", storage.Options{FS: errorfs.Wrap(mem, denied)})
			if !errors.Is(err, storage.ErrReadOnly) || !strings.Contains(err.Error(), "make /store writable") {
				t.Errorf("%v at %s: %v", kind, first, err)
			}
		}
	}
}

// flips is how many bits TestBitFlips turns over.
func flips() int {
	switch {
	case long():
		return 10_000
	case testing.Short():
		return 100
	}
	return 500
}

// TestBitFlips turns over single bits of what is stored, in files of the store, files in place, inline values and leaf tables,
// and reads in every way: no wrong byte comes out, whatever was flipped.
func TestBitFlips(t *testing.T) {
	ctx := t.Context()
	mem := vfs.NewMem()
	s, err := storage.Open(ctx, "/store", storage.Options{FS: mem})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	data := map[cid.Cid][]byte{}
	files := map[cid.Cid]string{}
	put := func(b []byte) cid.Cid {
		c, err := s.PutBytes(ctx, b, storage.PutOptions{})
		if err != nil {
			t.Fatal(err)
		}
		data[c] = b
		return c
	}
	inline := put(storetest.Bytes(1, 700))
	for i, size := range []int{storage.InlineLimit + 1, 200 << 10, 2*unixfs.BlockSize + 77} {
		c := put(storetest.Bytes(uint64(10+i), size))
		for _, name := range objectFiles(t, mem, c.String()+".obj") {
			files[c] = name
		}
	}
	for i, size := range []int{50, 300 << 10, unixfs.BlockSize + 3} {
		name, b := fmt.Sprint("/mine", i), storetest.Bytes(uint64(20+i), size)
		damageOrMake(t, mem, name, b)
		info, err := s.AddInPlace(ctx, name, storage.PutOptions{})
		if err != nil {
			t.Fatal(err)
		}
		data[info.CID], files[info.CID] = b, name
	}
	all := make([]cid.Cid, 0, len(data))
	for c := range data {
		all = append(all, c)
	}
	rng := rand.New(rand.NewPCG(8, 9))
	caught := 0
	for n := range flips() {
		c := all[n%len(all)]
		want := data[c]
		at := rng.IntN(len(want))
		var undo func()
		if c == inline || n%5 == 4 && c.Type() == cid.DagProtobuf {
			undo, err = storage.FlipIndexBit(s, c, rng)
			if err != nil {
				t.Fatal(err)
			}
		} else {
			b, err := mem.UnsafeGetFileDataBuffer(files[c])
			if err != nil {
				t.Fatal(err)
			}
			b[at] ^= 1 << rng.IntN(8)
			was := want[at]
			undo = func() { b[at] = was }
		}
		if readWrong(t, s, c, want, at, rng) {
			caught++
		}
		undo()
		if rep, err := s.Verify(ctx, c); err != nil || len(rep.Faults) != 0 {
			t.Fatalf("flip %d: %+v, %v after it was undone", n, rep, err)
		}
	}
	if caught != flips() {
		t.Errorf("%d of %d flips were noticed", caught, flips())
	}
}

func damageOrMake(t *testing.T, mem vfs.FS, name string, b []byte) {
	t.Helper()
	f, err := mem.Create(name, vfs.WriteCategoryUnspecified)
	if err == nil {
		_, err = f.Write(append([]byte(nil), b...))
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// readWrong reads an object with one wrong bit in one of the ways there are. It fails the test when a wrong byte comes out, and
// tells whether the damage was noticed.
func readWrong(t *testing.T, s *storage.Store, c cid.Cid, want []byte, at int, rng *rand.Rand) bool {
	t.Helper()
	ctx := t.Context()
	var got []byte
	var err error
	from := 0
	switch rng.IntN(4) {
	case 0:
		got, err = s.ReadAll(ctx, c, 1<<30)
	case 1:
		r, oerr := s.Open(ctx, c)
		if err = oerr; err == nil {
			got, err = io.ReadAll(r)
			r.Close()
		}
	case 2: // the bit is inside what is asked for
		from = max(0, at-rng.IntN(1000))
		r, oerr := s.Open(ctx, c)
		if err = oerr; err == nil {
			got = make([]byte, min(len(want)-from, at-from+1+rng.IntN(1000)))
			var n int
			n, err = r.ReadAt(got, int64(from))
			got = got[:n]
			r.Close()
		}
	case 3:
		leaf := c
		if from = at / unixfs.BlockSize * unixfs.BlockSize; c.Type() == cid.DagProtobuf {
			leaf = unixfs.RawCID(want[from:min(len(want), from+unixfs.BlockSize)])
		}
		got, err = s.GetBlock(ctx, leaf, nil)
	}
	if !bytes.HasPrefix(want[from:], got) {
		t.Fatalf("%s: wrong bytes come out", c)
	}
	if err == nil {
		rep, verr := s.Verify(ctx, c) // an index may be wrong in a place that this read did not need
		return verr == nil && len(rep.Faults) == 1
	}
	return errors.Is(err, storage.ErrCorrupt)
}
