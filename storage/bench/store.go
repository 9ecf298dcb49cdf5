package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/unixfs"
)

const (
	// gcObjects is how many objects the collection removes; every gcFiled-th has a file, the others live in the index.
	gcObjects = 100_000
	gcFiled   = 25
	// gcKept is the content that is read meanwhile, in bytes.
	gcKept = 64 << 20
	// idleReads is how many reads the idle percentile is of.
	idleReads = 1500
)

// StoreOptions says what to measure of the store alone.
type StoreOptions struct {
	Size    int64  // content bytes of the imports, at least 2 MiB
	Objects int    // objects to collect; 0 means 100,000
	Dir     string // where stores and files are made and removed again; empty means the folder for temporary files
}

// StoreFigures are what the store does without a network. Throughputs are in MB/s (10⁶ bytes per second), over all bytes, from
// first call to durable result.
type StoreFigures struct {
	Import    float64 `json:"import_mb_per_second"`                   // file in the page cache → hashed, durable copy, on all cores
	OneCore   float64 `json:"import_one_core_mb_per_second"`          // the same with the runtime kept to one core
	OverWrite float64 `json:"import_over_disk_write"`                 // Import / Baseline.Write
	InPlace   float64 `json:"import_in_place_mb_per_second"`          // the same file indexed where it lies: read and hashed once, on all cores
	PlaceCore float64 `json:"import_in_place_one_core_mb_per_second"` // InPlace on one core
	OverHash  float64 `json:"import_in_place_over_hash"`              // InPlace / Baseline.Hash
	Again     float64 `json:"import_again_seconds"`                   // to add it in place once more, unchanged
	Overhead  float64 `json:"store_overhead_share"`                   // bytes of the store beyond the content of one copy, as a share of it

	GC       float64 `json:"gc_100k_seconds"`       // to collect 100,000 objects
	ReadIdle float64 `json:"read_ms_p99_idle"`      // to open a file object and read and hash 1 MiB of it
	ReadGC   float64 `json:"read_ms_p99_gc"`        // the same while the collection runs
	OverIdle float64 `json:"read_p99_gc_over_idle"` // ReadGC / ReadIdle
	WriteGC  float64 `json:"write_ms_max_gc"`       // longest wait of a small durable write while the collection runs

	Baseline  StoreBaseline `json:"baseline"`
	Collected int           `json:"-"` // objects that GC and the others are about
}

// StoreBaseline is what the machine allows, in the same run, in MB/s.
type StoreBaseline struct {
	Write float64 `json:"disk_write_mb_per_second"` // the bytes of an import written to a file and synced, nothing hashed
	Hash  float64 `json:"sha256_mb_per_second"`     // blocks of 1 MiB on one core
}

// RunStore measures the store alone. It needs about three times the size on disk, and 400 MB.
func RunStore(ctx context.Context, o StoreOptions) (f StoreFigures, err error) {
	if o.Size < 2<<20 {
		return f, fmt.Errorf("bench: size of %d bytes, want at least 2 MiB", o.Size)
	}
	if o.Objects == 0 {
		o.Objects = gcObjects
	}
	dir, err := os.MkdirTemp(o.Dir, "capanode-bench-*")
	if err != nil {
		return f, fmt.Errorf("bench: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := imports(ctx, dir, o.Size, &f); err != nil {
		return f, fmt.Errorf("bench: import: %w", err)
	}
	if err := collect(ctx, filepath.Join(dir, "gc"), o.Objects, &f); err != nil {
		return f, fmt.Errorf("bench: collect: %w", err)
	}
	f.OverWrite, f.OverHash, f.OverIdle = f.Import/f.Baseline.Write, f.InPlace/f.Baseline.Hash, f.ReadGC/f.ReadIdle
	return f, nil
}

// imports measures what becomes of one file in several ways.
func imports(ctx context.Context, dir string, size int64, f *StoreFigures) error {
	source, raw := filepath.Join(dir, "source"), filepath.Join(dir, "raw")
	mb := float64(size) / 1e6
	if _, err := writeNoise(source, size); err != nil {
		return err
	}
	took, err := writeNoise(raw, size)
	if err != nil {
		return err
	}
	f.Baseline.Write = mb / took.Seconds()
	if err := os.Remove(raw); err != nil {
		return err
	}
	f.Baseline.Hash = hashRate()
	home := filepath.Join(dir, "copies")
	if took, err = importCopy(ctx, home, source); err != nil {
		return err
	}
	f.Import = mb / took.Seconds()
	held, err := treeSize(home)
	if err != nil {
		return err
	}
	f.Overhead = float64(held-size) / float64(size)
	if err := os.RemoveAll(home); err != nil {
		return err
	}
	cores := runtime.GOMAXPROCS(1)
	took, err = importCopy(ctx, home, source)
	runtime.GOMAXPROCS(cores)
	if err != nil {
		return err
	}
	f.OneCore = mb / took.Seconds()

	s, err := storage.Open(ctx, filepath.Join(dir, "places"), storage.Options{})
	if err != nil {
		return err
	}
	old := time.Now().Add(-time.Hour) // so that its time of change can be trusted
	err = os.Chtimes(source, old, old)
	for _, figure := range []func(time.Duration){
		func(d time.Duration) { f.InPlace = mb / d.Seconds() }, func(d time.Duration) { f.Again = d.Seconds() },
	} {
		start := time.Now()
		if err == nil {
			_, err = s.AddInPlace(ctx, source, storage.PutOptions{})
		}
		figure(time.Since(start))
	}
	if err = errors.Join(err, s.Close()); err != nil {
		return err
	}
	if s, err = storage.Open(ctx, filepath.Join(dir, "places one core"), storage.Options{}); err != nil {
		return err
	}
	cores = runtime.GOMAXPROCS(1)
	start := time.Now()
	_, err = s.AddInPlace(ctx, source, storage.PutOptions{})
	f.PlaceCore = mb / time.Since(start).Seconds()
	runtime.GOMAXPROCS(cores)
	return errors.Join(err, s.Close(), os.RemoveAll(home), os.Remove(source))
}

// importCopy copies a file into a new store.
func importCopy(ctx context.Context, home, source string) (time.Duration, error) {
	s, err := storage.Open(ctx, home, storage.Options{})
	if err != nil {
		return 0, err
	}
	start := time.Now()
	_, err = s.AddPath(ctx, source, storage.PutOptions{})
	took := time.Since(start)
	return took, errors.Join(err, s.Close())
}

// writeNoise writes a file of noise durably.
func writeNoise(name string, size int64) (time.Duration, error) {
	f, err := os.Create(name)
	if err != nil {
		return 0, err
	}
	start := time.Now()
	_, err = io.CopyBuffer(struct{ io.Writer }{f}, io.LimitReader(newNoise(), size), make([]byte, 1<<20))
	err = errors.Join(err, f.Sync(), f.Close())
	return time.Since(start), err
}

// treeSize returns the bytes that a folder takes on the disk, as the file sizes say.
func treeSize(dir string) (sum int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		st, err := d.Info()
		if err == nil {
			sum += st.Size()
		}
		return err
	})
	return sum, err
}

// lazyFS forgets to sync while it is told to: filling a store for a measurement need not be durable.
type lazyFS struct {
	vfs.FS
	lazy *atomic.Bool
}

type lazyFile struct {
	vfs.File
	lazy *atomic.Bool
}

func (l lazyFS) Unwrap() vfs.FS { return l.FS }

func (l lazyFS) wrap(f vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return lazyFile{f, l.lazy}, nil
}

func (l lazyFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return l.wrap(l.FS.Create(name, c))
}

func (l lazyFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	return l.wrap(l.FS.OpenReadWrite(name, c, o...))
}

func (l lazyFS) OpenDir(name string) (vfs.File, error) { return l.wrap(l.FS.OpenDir(name)) }

func (f lazyFile) Sync() error {
	if f.lazy.Load() {
		return nil
	}
	return f.File.Sync()
}

func (f lazyFile) SyncData() error {
	if f.lazy.Load() {
		return nil
	}
	return f.File.SyncData()
}

// collect fills a store with objects that nobody wants, and measures their collection and what others notice of it.
func collect(ctx context.Context, dir string, objects int, f *StoreFigures) (err error) {
	lazy := &atomic.Bool{}
	lazy.Store(true)
	s, err := storage.Open(ctx, dir, storage.Options{FS: lazyFS{vfs.Default, lazy}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	kept, err := s.Put(ctx, io.LimitReader(newNoise(), gcKept), storage.PutOptions{Size: gcKept})
	if err != nil {
		return err
	}
	if err := fillStore(ctx, s, objects); err != nil {
		return err
	}
	lazy.Store(false)
	if _, err := s.PutBytes(ctx, []byte("settle"), storage.PutOptions{}); err != nil { // syncs the index
		return err
	}
	idle, err := reads(ctx, s, kept.CID, func(n int) bool { return n < idleReads })
	if err != nil {
		return err
	}
	f.ReadIdle = percentile(idle)

	var done atomic.Bool
	var others sync.WaitGroup
	var during []float64
	var rerr, werr error
	others.Go(func() { during, rerr = reads(ctx, s, kept.CID, func(int) bool { return !done.Load() }) })
	others.Go(func() { f.WriteGC, werr = longestWrite(ctx, s, &done) })
	start := time.Now()
	removed, err := s.GC(ctx)
	f.GC, f.Collected = time.Since(start).Seconds(), removed.Objects
	done.Store(true)
	others.Wait()
	f.ReadGC = percentile(during)
	if err = errors.Join(err, rerr, werr); err == nil && removed.Objects < objects {
		err = fmt.Errorf("%d of %d objects were collected", removed.Objects, objects)
	}
	return err
}

// fillStore puts cached objects, the most of them into the index.
func fillStore(ctx context.Context, s *storage.Store, objects int) error {
	errs := make([]error, 8)
	var wg sync.WaitGroup
	for w := range errs {
		wg.Go(func() {
			buf := make([]byte, storage.InlineLimit+1)
			for i := w; i < objects && errs[w] == nil; i += len(errs) {
				size := 512
				if i%gcFiled == 0 {
					size = len(buf)
				}
				binary.LittleEndian.PutUint64(buf, uint64(i)+1)
				_, errs[w] = s.PutBytes(ctx, buf[:size], storage.PutOptions{Class: storage.Cached})
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// reads opens a file object and reads one random block of it, again and again, and returns what each took in ms.
func reads(ctx context.Context, s *storage.Store, c cid.Cid, more func(n int) bool) ([]float64, error) {
	var took []float64
	rng := rand.New(rand.NewPCG(1, 1))
	buf := make([]byte, 1<<20)
	for n := 0; more(n); n++ {
		start := time.Now()
		r, err := s.Open(ctx, c)
		if err != nil {
			return nil, err
		}
		_, err = r.Block(rng.IntN(r.Blocks()), buf)
		if err = errors.Join(err, r.Close()); err != nil {
			return nil, err
		}
		took = append(took, float64(time.Since(start))/1e6)
	}
	return took, nil
}

// longestWrite puts small records, ten a second, and returns the longest wait in ms.
func longestWrite(ctx context.Context, s *storage.Store, done *atomic.Bool) (longest float64, err error) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for n := uint64(0); !done.Load() && err == nil; n++ {
		start := time.Now()
		_, err = s.PutBytes(ctx, binary.BigEndian.AppendUint64([]byte("written"), n), storage.PutOptions{})
		longest = max(longest, float64(time.Since(start))/1e6)
		<-tick.C
	}
	return longest, err
}

// percentile returns the 99th percentile, 0 of nothing.
func percentile(all []float64) float64 {
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	return all[len(all)*99/100]
}

// hashRate returns how many MB/s of blocks one core hashes.
func hashRate() float64 {
	block := make([]byte, 1<<20)
	const n = 128
	start := time.Now()
	for range n {
		sum := unixfs.Sum(block)
		block[0] ^= sum[0]
	}
	return n * float64(len(block)) / 1e6 / time.Since(start).Seconds()
}
