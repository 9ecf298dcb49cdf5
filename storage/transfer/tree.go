package transfer

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
	// maxFolderDepth and maxFolderEntries bound what one folder may unfold to; maxFolderNodes bounds the bytes of nodes
	// that are held in memory until everything below them has arrived.
	maxFolderDepth   = 64
	maxFolderEntries = 1 << 17
	maxFolderNodes   = 32 << 20
	// filesAtOnce is how many files of a folder are fetched at the same time.
	filesAtOnce = 8
)

// tree is one object with everything below it.
type tree struct {
	s           *session
	limit       int64 // of bytes; 0 means any size
	wantFolders bool

	mu        sync.Mutex
	bytes     int64 // of files and blocks that are missing, for the limit
	seen      map[cid.Cid]bool
	folders   []unixfs.Block // parents before their children
	files     []unixfs.Block // roots of files that are missing
	blocks    []cid.Cid      // raw blocks and records
	nodeBytes int
}

// fetch walks the folders level by level, then fetches what they hold, then stores the folders from the deepest level up:
// what a stopped fetch leaves in the store is whole files and, at most, folders that the next fetch looks into again.
func (t *tree) fetch(ctx context.Context, root cid.Cid) error {
	level := []cid.Cid{root}
	for depth := 0; len(level) > 0; depth++ {
		if depth > maxFolderDepth {
			return fmt.Errorf("transfer: fetch %s: folders nest deeper than %d: %w", root, maxFolderDepth, storage.ErrTooLarge)
		}
		var next []cid.Cid
		err := parallel(ctx, len(level), func(ctx context.Context, i int) error {
			below, err := t.visit(ctx, level[i])
			t.mu.Lock()
			defer t.mu.Unlock()
			next = append(next, below...)
			return err
		})
		if err != nil {
			return err
		}
		level = next
	}
	err := parallel(ctx, len(t.files)+len(t.blocks), func(ctx context.Context, i int) error {
		if i < len(t.files) {
			return t.file(ctx, t.files[i])
		}
		return t.block(ctx, t.blocks[i-len(t.files)])
	})
	if err != nil {
		return err
	}
	for i := len(t.folders) - 1; i >= 0; i-- {
		b := t.folders[i]
		if _, err := t.s.f.store.PutBlock(ctx, b.CID, b.Data, storage.PutOptions{Class: storage.Cached}); err != nil {
			return err
		}
	}
	return nil
}

// visit sorts an object by what it is and returns the children of a folder.
func (t *tree) visit(ctx context.Context, c cid.Cid) ([]cid.Cid, error) {
	t.s.hold(c)
	if c.Type() != cid.DagProtobuf {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.blocks = append(t.blocks, c)
		return nil, nil
	}
	info, err := t.s.f.store.Stat(ctx, c)
	if err == nil && info.Kind == storage.File && !info.Damaged {
		return nil, nil
	}
	if err != nil && !errors.Is(err, storage.ErrNotFound) {
		return nil, err
	}
	data, err := t.s.node(ctx, c)
	if err != nil {
		return nil, err
	}
	n, err := unixfs.Decode(data)
	if err != nil {
		return nil, fmt.Errorf("transfer: fetch %s: %w", c, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.nodeBytes += len(data); t.nodeBytes > maxFolderNodes {
		return nil, fmt.Errorf("transfer: fetch %s: nodes of more than %d bytes: %w", c, maxFolderNodes, storage.ErrTooLarge)
	}
	if n.Kind == unixfs.File {
		if err := t.grow(c, n.FileSize); err != nil {
			return nil, err
		}
		t.files = append(t.files, unixfs.Block{CID: c, Data: data})
		return nil, nil
	}
	if !t.wantFolders {
		return nil, fmt.Errorf("transfer: read %s: it is a folder: %w", c, storage.ErrWrongKind)
	}
	t.folders = append(t.folders, unixfs.Block{CID: c, Data: data})
	var below []cid.Cid
	for _, l := range n.Links {
		if !t.seen[l.CID] {
			t.seen[l.CID] = true
			below = append(below, l.CID)
		}
	}
	if len(t.seen) > maxFolderEntries {
		return nil, fmt.Errorf("transfer: fetch %s: more than %d entries: %w", c, maxFolderEntries, storage.ErrTooLarge)
	}
	return below, nil
}

// grow counts the bytes of one more object against the limit; mu is held.
func (t *tree) grow(c cid.Cid, bytes uint64) error {
	if t.limit == 0 {
		return nil
	}
	if bytes > uint64(t.limit-t.bytes) {
		return fmt.Errorf("transfer: fetch %s: %d bytes after %d, limit %d: %w", c, bytes, t.bytes, t.limit, storage.ErrTooLarge)
	}
	t.bytes += int64(bytes)
	return nil
}

// block fetches a raw block or a record.
func (t *tree) block(ctx context.Context, c cid.Cid) error {
	store := t.s.f.store
	if has, err := store.Has(ctx, c); has || err != nil {
		return err
	}
	data, err := t.s.node(ctx, c)
	if err != nil {
		return err
	}
	t.mu.Lock()
	err = t.grow(c, uint64(len(data)))
	t.mu.Unlock()
	if err != nil {
		return err
	}
	t.s.found(int64(len(data)), int64(len(data)))
	_, err = store.PutBlock(ctx, c, data, storage.PutOptions{Class: storage.Cached})
	return err
}

// node returns the block that a CID names, from the store or from a source.
func (s *session) node(ctx context.Context, c cid.Cid) ([]byte, error) {
	block, err := s.f.store.GetBlock(ctx, c, nil)
	if err == nil || !errors.Is(err, storage.ErrNotFound) && !errors.Is(err, storage.ErrCorrupt) {
		return block, err
	}
	want, err := unixfs.DigestOf(c)
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex
	p := newPlan(c, []int{0}, s.f.opts.Hedge, func(_ int, data []byte) error {
		if unixfs.Sum(data) != want {
			return fmt.Errorf("transfer: block %s: %w", c, storage.ErrCorrupt)
		}
		mu.Lock()
		defer mu.Unlock()
		block = append([]byte{}, data...)
		return nil
	})
	p.whole = true
	if err := s.pull(ctx, p); err != nil {
		return nil, err
	}
	mu.Lock()
	defer mu.Unlock()
	return block, nil
}

// file fetches a file of several leaves, one fetch per file at a time.
func (t *tree) file(ctx context.Context, root unixfs.Block) error {
	for again := 0; ; again++ {
		err := t.fileOnce(ctx, root)
		if again == maxAgain || !errors.Is(err, storage.ErrIncomplete) {
			return err
		}
	}
}

// maxAgain is how often a file is begun again because an object that it shared blocks with was deleted before it was complete.
const maxAgain = 3

func (t *tree) fileOnce(ctx context.Context, root unixfs.Block) error {
	f := t.s.f
	d, err := f.begin(ctx, root.CID)
	if err != nil {
		return err
	}
	defer f.end(root.CID, d)
	d.part, err = f.store.Begin(ctx, root.CID, func(c cid.Cid) ([]byte, error) {
		if c == root.CID {
			return root.Data, nil
		}
		return t.s.node(ctx, c)
	})
	if errors.Is(err, storage.ErrExists) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := t.leaves(ctx, d); err != nil {
		return errors.Join(err, d.part.Close())
	}
	_, err = d.part.Commit(ctx)
	return err
}

// leaves brings in the missing leaves of a file: from other objects in the store, then from the sources.
func (t *tree) leaves(ctx context.Context, d *download) error {
	part, f := d.part, t.s.f
	layout := part.Layout()
	buf := f.buffer()
	for _, i := range part.Missing() {
		block, err := f.store.GetBlock(ctx, layout.Leaves[i].CID(cid.Raw), buf[:])
		if err == nil {
			err = part.Write(i, block)
		}
		if err != nil && !errors.Is(err, storage.ErrNotFound) && !errors.Is(err, storage.ErrCorrupt) {
			f.recycle(buf)
			return err
		}
	}
	f.recycle(buf)
	missing := part.Missing()
	left := int64(0)
	for _, i := range missing {
		left += layout.LeafSize(i)
	}
	t.s.found(layout.Size, layout.Size-left)
	offered := f.opts.Seed.offer(part)
	defer offered.withdraw()
	if len(missing) == 0 {
		close(d.ready)
		return nil
	}
	p := newPlan(layout.Root, missing, f.opts.Hedge, part.Write)
	p.landed = func(i, size int) {
		offered.arrived(i)
		t.s.found(0, int64(size))
	}
	p.blockSize, p.start, p.layout = layout.Largest(), f.start(layout.Root, len(layout.Leaves)), layout
	d.plan = p
	close(d.ready)
	return t.s.pull(ctx, p)
}

// parallel runs f for 0 to n-1 on a few goroutines and returns the first error, which stops the rest.
func parallel(ctx context.Context, n int, f func(ctx context.Context, i int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	todo := make(chan int)
	for range min(n, filesAtOnce) {
		wg.Go(func() {
			for i := range todo {
				if err := f(ctx, i); err != nil {
					cancel(err)
				}
			}
		})
	}
feed:
	for i := range n {
		select {
		case todo <- i:
		case <-ctx.Done():
			break feed
		}
	}
	close(todo)
	wg.Wait()
	return context.Cause(ctx)
}
