// Package assemble owns the way from single blocks to objects: it walks from a CID downwards, asks a source for the blocks that
// the store lacks, and stores files, folders and records from the leaves up. It refuses to know where blocks come from: an
// archive and a peer are both a [Source].
package assemble

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/unixfs"
)

const (
	// MaxDepth is the largest number of folders inside each other.
	MaxDepth = 64
	// MaxEntries bounds the objects below the roots.
	MaxEntries = 1 << 17
	// MaxNodeBytes bounds the folder nodes, which are held in memory until everything below them is stored.
	MaxNodeBytes = 32 << 20
	// filesAtOnce is how many files of several leaves are filled at the same time.
	filesAtOnce = 4
	// putsAtOnce is how many single blocks are stored at the same time, so that they share the synced writes of the index.
	putsAtOnce = 16
)

// Source gives blocks by their CIDs.
type Source interface {
	// Blocks calls have for each block of the list with its place in the list, in any order and possibly from several
	// goroutines at once; a CID may be in the list several times. The bytes need not be verified and may be used again when have returns. Blocks ends with the first
	// error of have, or when it cannot deliver one of them. It may be called several times at once.
	Blocks(ctx context.Context, list []cid.Cid, have func(i int, block []byte) error) error
}

// Options bounds what may come in and says what becomes of it.
type Options struct {
	Bytes int64                     // most content bytes that are not here already; more is [storage.ErrTooLarge]; 0 means any number
	Pin   func(root cid.Cid) string // names the pin of a root, once all are whole; nil means that they stay evictable
	// Undo removes everything again that was added when the rest fails. Otherwise what is whole stays, as cached objects, and
	// so do the leaves of files that are not: the next try asks for less.
	Undo bool
}

// Objects makes the objects of some CIDs complete in the store, with everything below those that are folders. Links inside
// records are not followed. Each block is verified; one that does not match is [storage.ErrCorrupt].
func Objects(ctx context.Context, store *storage.Store, roots []cid.Cid, from Source, o Options) error {
	w := &work{store: store, from: from, o: o, seen: map[cid.Cid]bool{}}
	defer w.release()
	err := w.run(ctx, roots)
	for i := 0; i < len(roots) && err == nil && o.Pin != nil; i++ {
		err = store.Pin(ctx, o.Pin(roots[i]), roots[i])
	}
	if err != nil && o.Undo {
		err = errors.Join(err, w.undo())
	}
	if err != nil {
		return fmt.Errorf("assemble: %w", err)
	}
	return nil
}

// work is some roots on their way in.
type work struct {
	store *storage.Store
	from  Source
	o     Options

	seen      map[cid.Cid]bool
	holds     []func()
	folders   []unixfs.Block // parents before their children
	files     []unixfs.Block // roots of files that are missing
	blocks    []cid.Cid      // raw blocks and records that are missing
	nodeBytes int

	mu    sync.Mutex
	bytes int64     // content that is missing
	added []cid.Cid // objects that were not here before
}

func (w *work) release() {
	for _, f := range w.holds {
		f()
	}
}

func (w *work) run(ctx context.Context, roots []cid.Cid) error {
	var level []cid.Cid
	for _, c := range roots {
		if w.see(c) {
			level = append(level, c)
		}
	}
	for depth := 0; len(level) > 0; depth++ {
		if depth > MaxDepth {
			return fmt.Errorf("folders nest deeper than %d: %w", MaxDepth, storage.ErrTooLarge)
		}
		var err error
		if level, err = w.level(ctx, level); err != nil {
			return err
		}
	}
	if err := w.single(ctx); err != nil {
		return err
	}
	if err := parallel(ctx, filesAtOnce, len(w.files), func(ctx context.Context, i int) error { return w.file(ctx, w.files[i]) }); err != nil {
		return err
	}
	for i := len(w.folders) - 1; i >= 0; i-- {
		if err := w.put(ctx, w.folders[i].CID, w.folders[i].Data); err != nil {
			return err
		}
	}
	return nil
}

// see counts an object once and protects it while the work goes on.
func (w *work) see(c cid.Cid) (first bool) {
	if w.seen[c] {
		return false
	}
	w.seen[c] = true
	w.holds = append(w.holds, w.store.Hold(c))
	return true
}

// level sorts the objects of one level by what they are and returns the children of its folders.
func (w *work) level(ctx context.Context, level []cid.Cid) (below []cid.Cid, err error) {
	var ask []cid.Cid
	nodes := map[cid.Cid][]byte{}
	for _, c := range level {
		info, err := w.store.Stat(ctx, c)
		if err != nil && !errors.Is(err, storage.ErrNotFound) {
			return nil, err
		}
		here := err == nil && !info.Damaged
		switch {
		case here && info.Kind == storage.Directory:
			if nodes[c], err = w.store.GetBlock(ctx, c, nil); err != nil {
				return nil, err
			}
		case here:
		case c.Type() == cid.DagProtobuf:
			ask = append(ask, c)
		default:
			w.blocks = append(w.blocks, c)
		}
	}
	if err := w.nodes(ctx, ask, nodes); err != nil {
		return nil, err
	}
	for _, c := range level {
		if data, ok := nodes[c]; ok {
			more, err := w.node(c, data)
			if err != nil {
				return nil, err
			}
			below = append(below, more...)
		}
	}
	return below, nil
}

// nodes asks the source for dag-pb blocks and adds them to the map.
func (w *work) nodes(ctx context.Context, ask []cid.Cid, into map[cid.Cid][]byte) error {
	if len(ask) == 0 {
		return nil
	}
	var mu sync.Mutex
	return w.from.Blocks(ctx, ask, func(i int, block []byte) error {
		if err := check(ask[i], block); err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		if w.nodeBytes += len(block); w.nodeBytes > MaxNodeBytes {
			return fmt.Errorf("nodes of more than %d bytes: %w", MaxNodeBytes, storage.ErrTooLarge)
		}
		into[ask[i]] = append([]byte(nil), block...)
		return nil
	})
}

// check verifies a block that the store itself does not verify when it takes it.
func check(c cid.Cid, block []byte) error {
	want, err := unixfs.DigestOf(c)
	if err != nil {
		return err
	}
	if len(block) > unixfs.MaxBlock {
		return fmt.Errorf("block %s of %d bytes, limit %d: %w", c, len(block), unixfs.MaxBlock, storage.ErrTooLarge)
	}
	if unixfs.Sum(block) != want {
		return fmt.Errorf("block %s: %w", c, storage.ErrCorrupt)
	}
	return nil
}

// node looks into a verified dag-pb block and returns the children of a folder that were not seen before.
func (w *work) node(c cid.Cid, data []byte) ([]cid.Cid, error) {
	n, err := unixfs.Decode(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c, err)
	}
	if n.Kind == unixfs.File {
		w.files = append(w.files, unixfs.Block{CID: c, Data: data})
		return nil, w.grow(c, n.FileSize)
	}
	w.folders = append(w.folders, unixfs.Block{CID: c, Data: data})
	var below []cid.Cid
	for _, l := range n.Links {
		if w.see(l.CID) {
			below = append(below, l.CID)
		}
	}
	if len(w.seen) > MaxEntries {
		return nil, fmt.Errorf("more than %d entries: %w", MaxEntries, storage.ErrTooLarge)
	}
	return below, nil
}

// grow counts content that is missing against the limit.
func (w *work) grow(c cid.Cid, bytes uint64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.o.Bytes > 0 && bytes > uint64(w.o.Bytes-w.bytes) {
		return fmt.Errorf("%s has %d bytes after %d, limit %d: %w", c, bytes, w.bytes, w.o.Bytes, storage.ErrTooLarge)
	}
	w.bytes += int64(min(bytes, 1<<62))
	return nil
}

// single brings in the objects that are one block each. They are stored in batches, side by side: each waits for the disk.
func (w *work) single(ctx context.Context) error {
	type one struct {
		c     cid.Cid
		block []byte
	}
	queue := make(chan one, putsAtOnce)
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var workers sync.WaitGroup
	for range min(putsAtOnce, len(w.blocks)) {
		workers.Go(func() {
			for x := range queue {
				if err := w.put(ctx, x.c, x.block); err != nil {
					stop(err)
				}
			}
		})
	}
	var err error
	if len(w.blocks) > 0 {
		err = w.from.Blocks(ctx, w.blocks, func(i int, block []byte) error {
			if err := w.grow(w.blocks[i], uint64(len(block))); err != nil {
				return err
			}
			select {
			case queue <- one{w.blocks[i], append([]byte(nil), block...)}:
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		})
	}
	close(queue)
	workers.Wait()
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	return err
}

// put stores an object of one block.
func (w *work) put(ctx context.Context, c cid.Cid, block []byte) error {
	_, before := w.store.Stat(ctx, c)
	if before != nil && !errors.Is(before, storage.ErrNotFound) {
		return before
	}
	_, err := w.store.PutBlock(ctx, c, block, storage.PutOptions{Class: storage.Cached})
	if err == nil {
		w.note(c, before)
	}
	return err
}

// note remembers an object that was not here before in any state: what was damaged must not be removed by an undo.
func (w *work) note(c cid.Cid, before error) {
	if !errors.Is(before, storage.ErrNotFound) {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.added = append(w.added, c)
}

// file brings in a file of several leaves.
func (w *work) file(ctx context.Context, root unixfs.Block) error {
	_, before := w.store.Stat(ctx, root.CID)
	if before != nil && !errors.Is(before, storage.ErrNotFound) {
		return before
	}
	part, err := w.store.Begin(ctx, root.CID, func(c cid.Cid) ([]byte, error) {
		if c == root.CID {
			return root.Data, nil
		}
		got := map[cid.Cid][]byte{}
		err := w.from.Blocks(ctx, []cid.Cid{c}, func(_ int, block []byte) error {
			got[c] = append([]byte(nil), block...)
			return nil // Begin verifies it
		})
		return got[c], err
	})
	if errors.Is(err, storage.ErrExists) {
		return nil
	}
	if err != nil {
		return err
	}
	fresh := before != nil // else it is a damaged object under repair
	if err = w.leaves(ctx, part); err == nil {
		_, err = part.Commit(ctx)
	}
	switch {
	case err == nil:
		w.note(root.CID, before)
		return nil
	case fresh && w.o.Undo:
		return errors.Join(err, part.Discard())
	}
	return errors.Join(err, part.Close())
}

// leaves fills a file: from other objects of the store where they have the same leaf, else from the source.
func (w *work) leaves(ctx context.Context, part *storage.Partial) error {
	layout := part.Layout()
	var missing []int
	var ask []cid.Cid
	buf := make([]byte, layout.BlockSize)
	for _, i := range part.Missing() {
		c := layout.Leaves[i].CID(cid.Raw)
		if _, err := w.store.BlockSize(ctx, c); err == nil {
			if block, err := w.store.GetBlock(ctx, c, buf); err == nil && part.Write(i, block) == nil {
				continue
			}
		}
		missing, ask = append(missing, i), append(ask, c)
	}
	if len(ask) == 0 {
		return ctx.Err()
	}
	return w.from.Blocks(ctx, ask, func(i int, block []byte) error { return part.Write(missing[i], block) })
}

// undo removes what was added, the last first, so that no folder loses its entries before it is gone itself.
func (w *work) undo() error {
	var errs []error
	for i := len(w.added) - 1; i >= 0; i-- {
		err := w.store.Delete(context.Background(), w.added[i])
		if err != nil && !errors.Is(err, storage.ErrNotFound) && !errors.Is(err, storage.ErrPinned) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// parallel calls f for 0 to n-1, several at once, until one fails.
func parallel(ctx context.Context, width, n int, f func(ctx context.Context, i int) error) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	next := make(chan int)
	var workers sync.WaitGroup
	for range min(width, n) {
		workers.Go(func() {
			for i := range next {
				if err := f(ctx, i); err != nil {
					stop(err)
				}
			}
		})
	}
	for i := range n {
		select {
		case next <- i:
		case <-ctx.Done():
		}
	}
	close(next)
	workers.Wait()
	return context.Cause(ctx)
}
