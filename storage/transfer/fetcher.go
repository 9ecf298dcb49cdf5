package transfer

import (
	"context"
	"errors"
	"hash/fnv"
	"log/slog"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/p2p"
	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/encode"
	"github.com/capacloud/capanode/storage/unixfs"
)

// Options tunes a fetcher. Zero fields take the defaults.
type Options struct {
	Memory int64         // bytes that all fetches together have asked for and not yet written; default 64 MiB, at least 4 MiB
	Rate   int64         // bytes per second that all fetches together take in; 0 means no limit
	Stall  time.Duration // a source that takes longer for 64 KiB is dropped; default 15 s
	Hedge  time.Duration // a block that a slow or silent source has owed for longer is asked of another, too; default 1 s
	Find   time.Duration // how long a fetch waits for a first or another source; default 10 s
	Dial   time.Duration // how long opening a stream may take; default 5 s
	Bans   *Bans         // who sent bad blocks before; nil remembers nobody
	Raw    bool          // take no encoded blocks
	Seed   *Server       // offers what has arrived before all has; nil offers only what is complete
	Logger *slog.Logger  // nil discards
}

// withDefaults fills the zero fields.
func (o Options) withDefaults() Options {
	if o.Memory <= 0 {
		o.Memory = 64 << 20
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
	mem    *memory
	rate   *bucket
	bufs   sync.Pool // *[unixfs.MaxBlock]byte

	decoders sync.Pool // *encode.Decoder

	mu    sync.Mutex
	files map[cid.Cid]*download // files being fetched
	news  chan struct{}         // closed and replaced when files changes
}

// NewFetcher makes a fetcher. The router finds sources beside those that a caller names; it may be nil.
func NewFetcher(net p2p.Network, router p2p.Router, store *storage.Store, opts Options) *Fetcher {
	opts = opts.withDefaults()
	return &Fetcher{
		net: net, router: router, store: store, opts: opts, log: opts.Logger,
		mem: newMemory(opts.Memory), rate: newBucket(opts.Rate),
		bufs:  sync.Pool{New: func() any { return new([unixfs.MaxBlock]byte) }},
		files: map[cid.Cid]*download{}, news: make(chan struct{}),

		decoders: sync.Pool{New: func() any { return encode.NewDecoder() }},
	}
}

// encodings lists how blocks may come.
func (f *Fetcher) encodings() encode.Set {
	if f.opts.Raw {
		return 0
	}
	return encode.All
}

// Stats returns what was fetched.
func (f *Fetcher) Stats() Stats { return f.down.stats() }

// Memory returns the bytes that all fetches have asked for and not yet written, now and at most so far. They never exceed
// Options.Memory.
func (f *Fetcher) Memory() (used, peak int64) { return f.mem.usage() }

// Ask says where to get an object from, and how much of it.
type Ask struct {
	From     []peer.ID      // peers to ask, besides those that the router names
	Seeds    []string       // web servers that have the content, see [CheckSeed]
	Limit    int64          // refuse an object with more bytes than this in all its files and blocks; 0 means no limit
	Progress func(Progress) // called from one goroutine, some times a second and once at the end; nil means nobody looks
}

// Fetch makes an object complete in the store: a record, a file, or a folder with everything below it. Links inside
// records are not followed. Sources are the given peers and those that the router names. What is here already is not
// asked for; what a stopped fetch left behind is resumed; a damaged object is repaired.
//
// The object arrives as [storage.Cached]: pin it, or hold it before, if it must stay. When no source is left the error is
// [ErrNoProviders], at the latest Options.Find after the last source disappeared, and also [storage.ErrCorrupt] if a
// source was dropped for bad bytes. Its text names every source that was asked and why it did not deliver.
func (f *Fetcher) Fetch(ctx context.Context, c cid.Cid, from []peer.ID) error {
	return f.fetch(ctx, c, Ask{From: from}, true)
}

// FetchWithin is Fetch for an object that a stranger names: one with more than limit bytes in all its files and blocks is
// [storage.ErrTooLarge]. What is here already does not count.
func (f *Fetcher) FetchWithin(ctx context.Context, c cid.Cid, limit int64, from []peer.ID) error {
	return f.fetch(ctx, c, Ask{From: from, Limit: limit}, true)
}

// FetchAs is Fetch with everything that an Ask can say. A seed that is no usable URL is [ErrSeed].
func (f *Fetcher) FetchAs(ctx context.Context, c cid.Cid, what Ask) error {
	return f.fetch(ctx, c, what, true)
}

// ReadAll returns the content of a file or record of at most limit bytes, from the store if it is there, else fetched. A
// larger one is [storage.ErrTooLarge] and not fetched.
func (f *Fetcher) ReadAll(ctx context.Context, c cid.Cid, limit int64, from []peer.ID) ([]byte, error) {
	defer f.store.Hold(c)()
	b, err := f.store.ReadAll(ctx, c, limit)
	if !errors.Is(err, storage.ErrNotFound) && !errors.Is(err, storage.ErrCorrupt) {
		return b, err
	}
	if err := f.fetch(ctx, c, Ask{From: from, Limit: limit}, false); err != nil {
		return nil, err
	}
	return f.store.ReadAll(ctx, c, limit)
}

func (f *Fetcher) fetch(ctx context.Context, c cid.Cid, what Ask, folders bool) error {
	for _, url := range what.Seeds {
		if err := CheckSeed(url); err != nil {
			return err
		}
	}
	defer f.store.Hold(c)()
	if c.Type() != cid.DagProtobuf {
		if has, err := f.store.Has(ctx, c); has || err != nil {
			return err
		}
	}
	s := f.session(ctx, c, what)
	defer s.close()
	t := &tree{s: s, limit: what.Limit, wantFolders: folders, seen: map[cid.Cid]bool{c: true}}
	return t.fetch(ctx, c)
}

// start returns where the search for work in a file begins: somewhere else for each node, so that those who fetch the same file
// at the same time have different blocks to give to each other.
func (f *Fetcher) start(c cid.Cid, blocks int) int {
	h := fnv.New64a()
	_, _ = h.Write([]byte(f.net.ID()))
	_, _ = h.Write(c.Bytes())
	return int(h.Sum64() % uint64(blocks))
}

// download is one file that is being fetched.
type download struct {
	done  chan struct{} // closed when the fetch has ended, well or not
	ready chan struct{} // closed once the fields below are set
	part  *storage.Partial
	plan  *plan // nil when nothing was missing
}

// begin waits until nobody else fetches the file, and registers a fetch of it.
func (f *Fetcher) begin(ctx context.Context, c cid.Cid) (*download, error) {
	for {
		f.mu.Lock()
		other := f.files[c]
		if other == nil {
			d := &download{done: make(chan struct{}), ready: make(chan struct{})}
			f.files[c] = d
			f.tell()
			f.mu.Unlock()
			return d, nil
		}
		f.mu.Unlock()
		select {
		case <-other.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// end takes a fetch off the list.
func (f *Fetcher) end(c cid.Cid, d *download) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.files, c)
	close(d.done)
	f.tell()
}

// tell is called with mu held.
func (f *Fetcher) tell() {
	close(f.news)
	f.news = make(chan struct{})
}

// running returns the fetch of a file, nil if there is none, and a channel that is closed when that changes.
func (f *Fetcher) running(c cid.Cid) (*download, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.files[c], f.news
}
