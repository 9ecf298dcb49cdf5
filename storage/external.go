package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/p2p/wire"
	"github.com/capacloud/capanode/storage/unixfs"
)

// settled is how old a file's last change must be for its time to tell it from a later one: clocks of file systems are coarse.
const settled = 2 * time.Second

// external says where a file in place lies and what it was when its bytes were last known to match.
type external struct {
	Path  []byte `cbor:"path"`  // absolute
	MTime int64  `cbor:"mtime"` // unix nanoseconds
	Inode uint64 `cbor:"inode"` // 0 where the system has none
}

// match says how a file in place compares with what was added. The order matters: from touched on it may differ.
type match int

const (
	same    match = iota
	touched       // it was written or replaced since, at the same size: its bytes decide
	other         // it has another size, or is no file
	gone          // there is nothing
)

func pathKey(path []byte) []byte { return append([]byte{keyPath}, path...) }

// compare looks at the file of an external object, not at its bytes.
func (s *Store) compare(rec record) match {
	st, err := s.fs.Stat(string(rec.External.Path))
	if err != nil {
		return gone
	}
	return rec.External.compare(st, rec.Size)
}

func (x *external) compare(st fs.FileInfo, size int64) match {
	switch {
	case !st.Mode().IsRegular() || st.Size() != size:
		return other
	case st.ModTime().UnixNano() != x.MTime || inodeOf(st) != x.Inode:
		return touched
	}
	return same
}

// forgetPath writes the removal of a path's entry into the batch, unless the path is another object's by now.
func (s *Store) forgetPath(batch *pebble.Batch, c cid.Cid, path []byte) error {
	b, err := s.get(pathKey(path))
	if errors.Is(err, ErrNotFound) || err == nil && string(b) != c.KeyString() {
		return nil
	}
	return errors.Join(err, batch.Delete(pathKey(path), nil))
}

// openExternal opens the file of an external object.
func (s *Store) openExternal(c cid.Cid, rec record) (vfs.File, error) {
	switch s.compare(rec) {
	case gone:
		return nil, fmt.Errorf("%s is gone: %w", rec.External.Path, errChanged())
	case other:
		return nil, fmt.Errorf("%s is another file now: %w", rec.External.Path, s.damaged(c, rec))
	}
	f, err := s.fs.Open(string(rec.External.Path))
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%s is gone: %w", rec.External.Path, errChanged())
	}
	return f, err
}

func errChanged() error {
	return fmt.Errorf("%w: %w: put it back, add it again, or fetch the object", ErrChanged, ErrCorrupt)
}

// AddInPlace makes a file of the user an object without copying it: it is read and hashed once, and from then on served from
// where it lies. The store never writes to it or removes it. It costs the quota only the interior nodes. A file that changes
// while it is read is [ErrChanged]; one that was added before and has not changed since is not read again. Content of which the
// store owns a copy stays that copy.
func (s *Store) AddInPlace(ctx context.Context, path string, opts PutOptions) (Info, error) {
	info, err := s.addInPlace(ctx, path, opts)
	if err != nil {
		return Info{}, fmt.Errorf("storage: add %s in place: %w", path, s.diskError(err))
	}
	return info, nil
}

func (s *Store) addInPlace(ctx context.Context, path string, opts PutOptions) (Info, error) {
	if err := errors.Join(ctx.Err(), checkPut(opts)); err != nil {
		return Info{}, err
	}
	path, err := s.outside(path)
	if err != nil {
		return Info{}, err
	}
	st, err := s.fs.Stat(path)
	if err != nil {
		return Info{}, err
	}
	if !st.Mode().IsRegular() {
		return Info{}, fmt.Errorf("it is no regular file: %w", ErrWrongKind)
	}
	rec := record{
		Kind: Block, Class: opts.Class, Size: st.Size(), BlockSize: st.Size(), Created: s.now().Unix(),
		External: &external{Path: []byte(path), MTime: st.ModTime().UnixNano(), Inode: inodeOf(st)},
	}
	if info, ok, err := s.addKnown(rec, opts); ok || err != nil {
		return info, err
	}
	layout, err := s.hashFile(ctx, path, rec)
	if err != nil {
		return Info{}, err
	}
	if err := s.retire(path, layout.Root); err != nil {
		return Info{}, err
	}
	o := &newObject{cid: layout.Root, rec: rec, opts: opts}
	if len(layout.Nodes) > 0 {
		o.layout = layout
		o.rec.Kind, o.rec.BlockSize, o.rec.Nodes = File, layout.BlockSize, len(layout.Nodes)
		for _, n := range layout.Nodes {
			o.rec.NodeBytes += int64(len(n.Data))
		}
	}
	if err := s.reserve(ctx, o.rec.charge()); err != nil {
		return Info{}, err
	}
	return s.commit(o)
}

// outside makes a path absolute and refuses the store's own files: they come and go as the store likes.
func (s *Store) outside(path string) (string, error) {
	if _, memory := vfs.Root(s.fs).(*vfs.MemFS); memory {
		return path, nil
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	dir, err := filepath.Abs(s.dir)
	if err != nil {
		return "", err
	}
	for _, p := range []*string{&path, &dir} {
		if real, err := filepath.EvalSymlinks(*p); err == nil {
			*p = real
		}
	}
	if strings.HasPrefix(path, dir+string(filepath.Separator)) {
		return "", fmt.Errorf("it is inside the store %s: %w", s.dir, ErrWrongKind)
	}
	return path, nil
}

// addKnown adds a file that was added before and has not changed since, without reading it.
func (s *Store) addKnown(rec record, opts PutOptions) (info Info, ok bool, err error) {
	b, err := s.get(pathKey(rec.External.Path))
	if err != nil {
		return Info{}, false, ignoreMissing(err)
	}
	c, err := cid.Cast(b)
	if err != nil {
		return Info{}, false, nil
	}
	s.gate.RLock()
	defer s.gate.RUnlock()
	mu := s.stripe(c)
	mu.Lock()
	defer mu.Unlock()
	old, err := s.record(c)
	if err != nil {
		return Info{}, false, ignoreMissing(err)
	}
	x := old.External
	if x == nil || old.Damaged || old.Size != rec.Size || x.MTime != rec.External.MTime || x.Inode != rec.External.Inode ||
		string(x.Path) != string(rec.External.Path) || old.Created*int64(time.Second)-x.MTime < int64(settled) {
		return Info{}, false, nil
	}
	batch := s.db.NewBatch()
	defer batch.Close()
	old.Class = min(old.Class, opts.Class)
	err = s.putRecord(batch, c, old)
	if opts.Pin != "" {
		err = errors.Join(err, batch.Set(pinKey(opts.Pin), b, nil))
	}
	if err == nil {
		s.changed(c)
		err = s.apply(batch, pebble.Sync)
	}
	if err != nil {
		return Info{}, false, err
	}
	s.protected(protection{c, true})
	if opts.keep != nil {
		opts.keep(c)
	}
	return s.info(c, old), true, nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

// retire gives up the object that a path was before: the file has other content now, so nobody can read it any more.
func (s *Store) retire(path string, now cid.Cid) error {
	b, err := s.get(pathKey([]byte(path)))
	if err != nil || string(b) == now.KeyString() {
		return ignoreMissing(err)
	}
	old, err := cid.Cast(b)
	if err != nil {
		return fmt.Errorf("storage: index entry of %s: %w", path, err)
	}
	return ignoreMissing(s.amend(old, func(rec *record) {
		if rec.External != nil && string(rec.External.Path) == path {
			rec.Damaged, rec.Class = true, Cached
		}
	}))
}

// hashFile reads a file once, on all cores, and lays it out. The file must be what rec says before and after.
func (s *Store) hashFile(ctx context.Context, path string, rec record) (*unixfs.Layout, error) {
	count := max(1, (rec.Size+unixfs.BlockSize-1)/unixfs.BlockSize)
	if count > unixfs.MaxLeaves {
		return nil, fmt.Errorf("more than %d blocks: %w", unixfs.MaxLeaves, ErrTooLarge)
	}
	f, err := s.fs.Open(path)
	if err != nil {
		return nil, err
	}
	leaves := make([]unixfs.Digest, count)
	err = s.hashBlocks(ctx, f, leaves, rec.Size)
	st, serr := f.Stat()
	if err = errors.Join(err, serr, f.Close()); err != nil {
		return nil, err
	}
	if rec.External.compare(st, rec.Size) != same || s.compare(rec) != same {
		return nil, fmt.Errorf("it was written while it was read: add it again when nothing writes to it: %w", ErrChanged)
	}
	return unixfs.Build(leaves, rec.Size)
}

// hashBlocks fills the digests of all blocks of a file, as many at once as there are cores.
func (s *Store) hashBlocks(ctx context.Context, f vfs.File, leaves []unixfs.Digest, size int64) error {
	workers := min(runtime.GOMAXPROCS(0), len(leaves))
	errs := make([]error, workers)
	var next atomic.Int64
	var failed atomic.Bool
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			buf := s.buffer()
			defer s.recycle(buf)
			for i := next.Add(1) - 1; i < int64(len(leaves)) && !failed.Load(); i = next.Add(1) - 1 {
				off := i * unixfs.BlockSize
				block := buf[:min(unixfs.BlockSize, size-off)]
				n, err := f.ReadAt(block, off)
				if n < len(block) && (err == nil || errors.Is(err, io.EOF)) {
					err = fmt.Errorf("it ends at byte %d, %d were there before: %w", off+int64(n), size, ErrChanged)
				} else if n == len(block) {
					err = ctx.Err()
				}
				if err != nil {
					errs[w] = err
					failed.Store(true)
					return
				}
				leaves[i] = unixfs.Sum(block)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// amend changes the record of an object.
func (s *Store) amend(c cid.Cid, change func(*record)) error {
	mu := s.stripe(c)
	mu.Lock()
	defer mu.Unlock()
	rec, err := s.record(c)
	if err != nil {
		return err
	}
	before, err := wire.Marshal(rec)
	if err != nil {
		return err
	}
	change(&rec)
	after, err := wire.Marshal(rec)
	if err != nil || string(after) == string(before) {
		return err
	}
	s.changed(c)
	return s.set(cidKey(keyObject, c), after, pebble.Sync)
}
