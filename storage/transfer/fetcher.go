package transfer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/p2p"
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

// Options tunes a fetcher. Zero fields take the defaults.
type Options struct {
	Window int           // blocks of up to 1 MiB that one source may have under way; default 8
	Stall  time.Duration // a source that takes longer for one block is dropped; default 15 s
	Hedge  time.Duration // a block owed for longer is asked of an idle source, too; default 1 s
	Find   time.Duration // how long a fetch waits for a first or another source; default 10 s
	Dial   time.Duration // how long opening a stream may take; default 5 s
	Logger *slog.Logger  // nil discards
}

// withDefaults fills the zero fields.
func (o Options) withDefaults() Options {
	if o.Window <= 0 {
		o.Window = 8
	}
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{{&o.Stall, 15 * time.Second}, {&o.Hedge, time.Second}, {&o.Find, 10 * time.Second}, {&o.Dial, 5 * time.Second}} {
		if *d.field <= 0 {
			*d.field = d.value
		}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// Fetcher fetches objects into a store. Its methods are safe for concurrent use.
type Fetcher struct {
	net    p2p.Network
	router p2p.Router
	store  *storage.Store
	opts   Options
	log    *slog.Logger
	down   counters

	mu    sync.Mutex
	files map[cid.Cid]chan struct{} // files being fetched; closed when done
}

// NewFetcher makes a fetcher. The router finds sources beside those that a caller names; it may be nil.
func NewFetcher(net p2p.Network, router p2p.Router, store *storage.Store, opts Options) *Fetcher {
	opts = opts.withDefaults()
	return &Fetcher{net: net, router: router, store: store, opts: opts, log: opts.Logger, files: map[cid.Cid]chan struct{}{}}
}

// Stats returns what was fetched.
func (f *Fetcher) Stats() Stats { return f.down.stats() }

// Fetch makes an object complete in the store: a record, a file, or a folder with everything below it. Links inside
// records are not followed. Sources are the given peers and those that the router names. What is here already is not
// asked for; what a stopped fetch left behind is resumed; a damaged object is repaired.
//
// The object arrives as [storage.Cached]: pin it, or hold it before, if it must stay. When no source is left the error is
// [ErrNoProviders], at the latest Options.Find after the last source disappeared, and also [storage.ErrCorrupt] if a
// source was dropped for bad bytes.
func (f *Fetcher) Fetch(ctx context.Context, c cid.Cid, from []peer.ID) error {
	return f.fetch(ctx, c, from, bound{folders: true})
}

// FetchWithin is Fetch for an object that a stranger names: one with more than limit bytes in all its files and blocks is
// [storage.ErrTooLarge]. What is here already does not count.
func (f *Fetcher) FetchWithin(ctx context.Context, c cid.Cid, limit int64, from []peer.ID) error {
	return f.fetch(ctx, c, from, bound{folders: true, bytes: limit})
}

// ReadAll returns the content of a file or record of at most limit bytes, from the store if it is there, else fetched. A
// larger one is [storage.ErrTooLarge] and not fetched.
func (f *Fetcher) ReadAll(ctx context.Context, c cid.Cid, limit int64, from []peer.ID) ([]byte, error) {
	defer f.store.Hold(c)()
	b, err := f.store.ReadAll(ctx, c, limit)
	if !errors.Is(err, storage.ErrNotFound) && !errors.Is(err, storage.ErrCorrupt) {
		return b, err
	}
	if err := f.fetch(ctx, c, from, bound{bytes: limit}); err != nil {
		return nil, err
	}
	return f.store.ReadAll(ctx, c, limit)
}

// bound says what a fetch takes.
type bound struct {
	folders bool
	bytes   int64 // at most; 0 means any size
}

func (f *Fetcher) fetch(ctx context.Context, c cid.Cid, from []peer.ID, limit bound) error {
	defer f.store.Hold(c)()
	if c.Type() != cid.DagProtobuf {
		if has, err := f.store.Has(ctx, c); has || err != nil {
			return err
		}
	}
	s := f.session(ctx, c, from)
	defer s.close()
	t := &tree{s: s, limit: limit, seen: map[cid.Cid]bool{c: true}}
	return t.fetch(ctx, c)
}

// tree is one object with everything below it.
type tree struct {
	s     *session
	limit bound

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
	if !t.limit.folders {
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
	if t.limit.bytes == 0 {
		return nil
	}
	if bytes > uint64(t.limit.bytes-t.bytes) {
		return fmt.Errorf("transfer: fetch %s: %d bytes after %d, limit %d: %w", c, bytes, t.bytes, t.limit.bytes, storage.ErrTooLarge)
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
	unlock, err := t.s.f.lock(ctx, root.CID)
	if err != nil {
		return err
	}
	defer unlock()
	store := t.s.f.store
	part, err := store.Begin(ctx, root.CID, func(c cid.Cid) ([]byte, error) {
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
	if err := t.leaves(ctx, part); err != nil {
		return errors.Join(err, part.Close())
	}
	_, err = part.Commit(ctx)
	return err
}

// leaves brings in the missing leaves of a file: from other objects in the store, then from the sources.
func (t *tree) leaves(ctx context.Context, part *storage.Partial) error {
	buf := make([]byte, unixfs.BlockSize)
	for _, i := range part.Missing() {
		block, err := t.s.f.store.GetBlock(ctx, part.Layout().Leaves[i].CID(cid.Raw), buf)
		if err == nil {
			err = part.Write(i, block)
		}
		if err != nil && !errors.Is(err, storage.ErrNotFound) && !errors.Is(err, storage.ErrCorrupt) {
			return err
		}
	}
	missing := part.Missing()
	if len(missing) == 0 {
		return nil
	}
	return t.s.pull(ctx, newPlan(part.Layout().Root, missing, t.s.f.opts.Hedge, part.Write))
}

// lock waits until nobody else fetches the file.
func (f *Fetcher) lock(ctx context.Context, c cid.Cid) (unlock func(), err error) {
	for {
		f.mu.Lock()
		busy := f.files[c]
		if busy == nil {
			done := make(chan struct{})
			f.files[c] = done
			f.mu.Unlock()
			return func() {
				f.mu.Lock()
				defer f.mu.Unlock()
				delete(f.files, c)
				close(done)
			}, nil
		}
		f.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
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
