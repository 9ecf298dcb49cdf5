package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/capacloud/capanode/storage/unixfs"
)

// Cutter says where the blocks of a file should end, in ascending order, so that parts that files have in common become equal
// blocks. It returns nil for a file that it has no opinion of; what breaks the rules of [unixfs.CutAt] counts as that.
type Cutter func(r io.ReaderAt, size int64) []int64

// PutFile stores size bytes as one object, on all cores, and returns its CID. A file that opts.Cut cuts shares its blocks:
// those that other files of the store hold are not stored again. Any other file is stored as [Store.Put] does.
func (s *Store) PutFile(ctx context.Context, r io.ReaderAt, size int64, opts PutOptions) (Info, error) {
	opts.Size = size
	cuts, ok := opts.cuts(r, size)
	if !ok && size <= unixfs.BlockSize {
		return s.Put(ctx, io.NewSectionReader(r, 0, size), opts)
	}
	if err := checkPut(opts); err != nil {
		return Info{}, err
	}
	if !ok {
		return s.putFile(ctx, &importer{at: r, total: size}, opts)
	}
	info, err := s.putCut(ctx, r, cuts, opts, true)
	if errors.Is(err, ErrIncomplete) {
		info, err = s.putCut(ctx, r, cuts, opts, false) // who had shared its blocks is gone
	}
	if err != nil {
		return Info{}, fmt.Errorf("storage: put: %w", s.diskError(err))
	}
	return info, nil
}

// cuts asks the cutter about a file of more than one block.
func (o PutOptions) cuts(r io.ReaderAt, size int64) (unixfs.Cuts, bool) {
	if o.Cut == nil || size <= unixfs.BlockSize {
		return unixfs.Cuts{}, false
	}
	ends := o.Cut(r, size)
	cuts, err := unixfs.CutAt(ends)
	return cuts, err == nil && cuts.Size == size
}

// sharing is the import of a file whose cuts are known.
type sharing struct {
	s     *Store
	r     io.ReaderAt
	f     vfs.File
	cuts  unixfs.Cuts
	share bool // look for blocks that are here already
	next  atomic.Int64

	leaves []unixfs.Digest // each written by one worker

	mu       sync.Mutex
	seen     map[unixfs.Digest]bool
	shared   bitmap
	reserved int64
	holds    []func()
}

func (s *Store) putCut(ctx context.Context, r io.ReaderAt, cuts unixfs.Cuts, opts PutOptions, share bool) (Info, error) {
	f, name, err := s.tempFile()
	if err != nil {
		return Info{}, err
	}
	im := &sharing{
		s: s, r: r, f: f, cuts: cuts, share: share, leaves: make([]unixfs.Digest, cuts.Count()),
		seen: map[unixfs.Digest]bool{}, shared: newBitmap(cuts.Count()),
	}
	defer func() {
		for _, free := range im.holds {
			free()
		}
	}()
	err = im.run(ctx)
	if err == nil && opts.whole != nil {
		err = opts.whole()
	}
	err = errors.Join(err, f.Sync(), f.Close())
	var layout *unixfs.Layout
	if err == nil {
		layout, err = unixfs.BuildCuts(im.leaves, cuts)
	}
	var o *newObject
	if err == nil {
		o = im.object(layout, opts)
		o.temp = name
		if more := o.rec.charge() - im.reserved; more > 0 {
			if err = s.reserve(ctx, more); err == nil {
				im.reserved += more
			}
		}
	}
	if err != nil {
		s.discard(name)
		s.settle(0, -im.reserved)
		return Info{}, err
	}
	return s.commit(o)
}

// object describes what was read.
func (im *sharing) object(l *unixfs.Layout, opts PutOptions) *newObject {
	rec := record{
		Kind: File, Class: opts.Class, Size: l.Size, BlockSize: l.BlockSize, Leaves: len(l.Ends), Nodes: len(l.Nodes),
		Created: im.s.now().Unix(),
	}
	for _, n := range l.Nodes {
		rec.NodeBytes += int64(len(n.Data))
	}
	rec.without(l, im.shared)
	if rec.Shared == 0 {
		im.shared = nil
	}
	return &newObject{cid: l.Root, rec: rec, layout: l, shared: im.shared, opts: opts}
}

// run lets each core read, hash and write blocks until all are done.
func (im *sharing) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var workers sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			buf, other := im.s.buffer(), im.s.buffer()
			defer im.s.recycle(buf)
			defer im.s.recycle(other)
			for ctx.Err() == nil {
				i := int(im.next.Add(1) - 1)
				if i >= len(im.leaves) {
					return
				}
				if err := im.block(ctx, i, buf[:im.cuts.LeafSize(i)], other[:im.cuts.LeafSize(i)]); err != nil {
					cancel(err)
				}
			}
		})
	}
	workers.Wait()
	return context.Cause(ctx)
}

// block brings in one block: shared if somebody holds it, else written.
func (im *sharing) block(ctx context.Context, i int, block, other []byte) error {
	at := im.cuts.LeafOffset(i)
	if n, err := im.r.ReadAt(block, at); n < len(block) {
		return fmt.Errorf("read %d bytes at %d: %w", len(block), at, err)
	}
	d := unixfs.Sum(block)
	im.leaves[i] = d
	if im.twin(i, d) {
		return nil
	}
	if im.share {
		owner, err := im.s.find(d, other)
		if err == nil {
			free := im.s.Hold(owner)
			im.mu.Lock()
			defer im.mu.Unlock()
			im.holds = append(im.holds, free)
			im.shared.set(i)
			return nil
		}
		if !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrCorrupt) {
			return err
		}
	}
	if err := im.s.reserve(ctx, int64(len(block))); err != nil {
		return err
	}
	im.mu.Lock()
	im.reserved += int64(len(block))
	im.mu.Unlock()
	_, err := im.f.WriteAt(block, at)
	return err
}

// twin tells whether the same block is elsewhere in the file; only one of them is stored.
func (im *sharing) twin(i int, d unixfs.Digest) bool {
	im.mu.Lock()
	defer im.mu.Unlock()
	if im.seen[d] {
		im.shared.set(i)
		return true
	}
	im.seen[d] = true
	return false
}
