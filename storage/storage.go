// Package storage owns the bytes of a node: objects named by CID, the index that says which of them are complete, pins,
// the quota and the removal of what nobody needs. It refuses to know what the bytes mean: models, offers and receipts are
// other rooms' words.
//
// Two kinds of content share one store and are told apart by the codec of their CID: bytes (raw leaves under UnixFS files
// and folders, see package unixfs) and records (one dag-cbor block). The disk layout is docs/protocol/store.md; the
// protocol that moves objects between nodes is package transfer.
//
// Every block is hashed before a byte of it leaves the store. An object that fails is marked damaged, reads as
// [ErrCorrupt] from then on, and a fetch repairs it.
package storage

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/storage/unixfs"
)

const (
	// InlineLimit is the largest single block in bytes that lives inside the index instead of in a file of its own.
	InlineLimit = 64 << 10
	// DiskMargin is what the store leaves free on its file system, in bytes, so that the index can always be written.
	DiskMargin = 64 << 20
	// MaxPinName is the longest pin name in bytes.
	MaxPinName = 256

	formatVersion = 2 // 1 had no files in place, no leases, no leaves of mixed size and no shared ones
)

var (
	// ErrNotFound reports an object, block or pin that the store does not hold.
	ErrNotFound = errors.New("not found in the store")
	// ErrCorrupt reports bytes that do not match their CID. None of them were delivered. Fetch the object again.
	ErrCorrupt = errors.New("stored bytes do not match their CID")
	// ErrChanged reports a file, indexed where it lies, that is not what was added: changed, replaced, moved or removed. No byte
	// of it was delivered. Errors that are this one are [ErrCorrupt] as well. Put the file back, or add it again.
	ErrChanged = errors.New("file added in place has changed")
	// ErrReadOnly reports a store folder that cannot be written.
	ErrReadOnly = errors.New("store folder cannot be written")
	// ErrFailed reports a store whose index could not be written. What was acknowledged is safe; open the store again.
	ErrFailed = errors.New("index of the store cannot be written")
	// ErrDamaged reports an index whose files do not open. The objects beside it are untouched.
	ErrDamaged = errors.New("index of the store is damaged")
	// ErrQuota reports that an object does not fit the store's quota, even after everything evictable is gone.
	ErrQuota = errors.New("storage quota exceeded")
	// ErrNoSpace reports that the file system is full. The store stays usable.
	ErrNoSpace = errors.New("no space left on the disk")
	// ErrPinned reports the removal of an object that a pin protects, by name or through a pinned folder.
	ErrPinned = errors.New("object is pinned")
	// ErrLocked reports a store directory that another process or Store has open.
	ErrLocked = errors.New("store is in use by another process")
	// ErrTooLarge reports content above the limit that the caller gave.
	ErrTooLarge = errors.New("object is larger than allowed")
	// ErrExists reports that an object is already complete, or that a destination path is taken.
	ErrExists = errors.New("already exists")
	// ErrBusy reports an object that is being fetched by somebody else right now.
	ErrBusy = errors.New("object is being fetched")
	// ErrIncomplete reports a commit for which leaves are missing that had been there. Begin or put again.
	ErrIncomplete = errors.New("blocks went missing before the commit")
	// ErrWrongKind reports an operation on a folder that needs bytes, or the reverse.
	ErrWrongKind = errors.New("wrong kind of object")
)

// Class says who wants an object kept.
type Class uint8

const (
	// Owned objects are the user's: they stay until deleted by name.
	Owned Class = iota
	// Cached objects may be evicted at any time unless a pin, a lease or an owned folder reaches them.
	Cached
	// External objects are files of the user that are indexed where they lie: never copied, never deleted, verified like all
	// others. Only [Info] says so: an object becomes one by [Store.AddInPlace] or [PutOptions].InPlace.
	External
)

// String returns "owned", "cached" or "external".
func (c Class) String() string {
	return [...]string{"owned", "cached", "external"}[min(c, External)]
}

// Kind is what an object holds.
type Kind uint8

const (
	// Block is one raw block: a file of at most 1 MiB.
	Block Kind = iota
	// File is a UnixFS file of several raw leaves.
	File
	// Directory is a UnixFS folder node; the entries are objects of their own.
	Directory
	// Record is one dag-cbor block.
	Record
)

// String returns "block", "file", "directory" or "record".
func (k Kind) String() string {
	return [...]string{"block", "file", "directory", "record"}[min(k, Record)]
}

// Options configures a store. The zero value is a store on disk without a quota.
type Options struct {
	Quota  int64            // largest sum of object bytes, cached and being fetched included; 0 means no limit
	Logger *slog.Logger     // nil discards
	FS     vfs.FS           // where files and index live; nil is the operating system
	Now    func() time.Time // creation times; nil is time.Now
}

// Info describes one object.
type Info struct {
	CID     cid.Cid
	Kind    Kind
	Class   Class
	Size    int64 // content bytes; for a directory the bytes of its own node
	Shared  int64 // of these, the bytes that the store holds once for this and another object, on the other's account
	Blocks  int   // leaves
	Created time.Time
	Damaged bool   // a block failed its hash, or a file in place is gone; fetch or add the object again
	Path    string // where the bytes of an external object lie; empty for all others
}

// PutOptions says how to keep what is being put.
type PutOptions struct {
	Pin     string // pin the object under this name in the same commit; empty means no pin
	Class   Class  // [Owned] by default, or [Cached]; an object that is already owned stays owned
	Size    int64  // expected content bytes, reserved at once; 0 means unknown: reserved block by block
	InPlace bool   // [Store.AddPath] only: index files where they lie instead of copying them
	Cut     Cutter // where the blocks of a file end, for [Store.PutFile] and [Store.AddPath]; nil cuts every 1 MiB

	// keep is called with the CID before anything could evict the new object.
	keep func(cid.Cid)
	// whole is asked before the commit whether what was read is one state of its source.
	whole func() error
}

// Usage is what the store holds, in bytes of objects.
type Usage struct {
	Used     int64 // complete objects and the full size of unfinished fetches
	Reserved int64 // promised to imports that are running
	Quota    int64 // 0 means no limit
}

// Store is an object store. All methods are safe for concurrent use.
type Store struct {
	dir   string
	fs    vfs.FS
	log   *slog.Logger
	seen  verified // which blocks were hashed since Open
	now   func() time.Time
	quota int64
	db    *pebble.DB
	lock  interface{ Close() error }
	bufs  sync.Pool // *[unixfs.BlockSize]byte

	// gate orders root changes: commits hold it shared, whatever removes objects or adds protection holds it alone.
	gate     sync.RWMutex
	stripes  [64]sync.Mutex // one commit per CID at a time
	evicting chan struct{}  // holds one token while something is collected
	sharing  atomic.Bool    // some object shares leaves with another one
	useSeq   atomic.Uint64  // clock of the LRU order
	recent   recent         // its newest part
	tempSeq  atomic.Uint64
	reads    atomic.Uint64 // blocks read for others, so that scrubbing can stand back
	failure  atomic.Pointer[indexFailure]

	mu         sync.Mutex // guards what follows
	used       int64
	reserved   int64
	freed      chan struct{}    // closed and replaced when bytes become free
	dirs       map[string]bool  // object folders known to exist durably
	holds      map[cid.Cid]int  // objects protected by running work
	active     map[cid.Cid]bool // partials that are open
	orders     map[*Order]bool  // known next uses
	collecting bool             // a collection is under way and must hear of new protection
	fresh      []protection     // since it began
	stale      map[cid.Cid]bool // records that changed since it began
}

// Open opens or creates the store in dir and removes what a crash left behind.
func Open(ctx context.Context, dir string, opts Options) (*Store, error) {
	s := &Store{
		dir: dir, fs: opts.FS, log: opts.Logger, now: opts.Now, quota: opts.Quota,
		dirs: map[string]bool{}, holds: map[cid.Cid]int{}, active: map[cid.Cid]bool{}, orders: map[*Order]bool{},
		evicting: make(chan struct{}, 1), freed: make(chan struct{}),
	}
	if s.fs == nil {
		s.fs = vfs.Default
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.now == nil {
		s.now = time.Now
	}
	s.bufs.New = func() any { return new([unixfs.BlockSize]byte) }
	if err := s.open(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("storage: open %s: %w", dir, s.diskError(err)), s.Close())
	}
	return s, nil
}

// OpenMem opens a store that lives in memory, for tests and short-lived nodes. It is the same code over an in-memory file
// system.
func OpenMem() (*Store, error) {
	return Open(context.Background(), "/store", Options{FS: vfs.NewMem()})
}

// Close flushes the index. Readers and partials must be closed before.
func (s *Store) Close() error {
	var errs []error
	if s.db != nil {
		if err := s.settleUses(); err != nil {
			s.log.Debug("the order of the last uses is lost", "err", err)
		}
		errs = append(errs, s.db.Close())
		s.db = nil
	}
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
		s.lock = nil
	}
	return errors.Join(errs...)
}

// Usage returns what the store holds now.
func (s *Store) Usage() Usage {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Usage{Used: s.used, Reserved: s.reserved, Quota: s.quota}
}

// Has reports whether the object is complete and not known to be damaged.
func (s *Store) Has(ctx context.Context, c cid.Cid) (bool, error) {
	info, err := s.Stat(ctx, c)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	return err == nil && !info.Damaged, err
}

// Stat describes an object. It does not touch its bytes.
func (s *Store) Stat(ctx context.Context, c cid.Cid) (Info, error) {
	if err := ctx.Err(); err != nil {
		return Info{}, err
	}
	rec, err := s.record(c)
	if err != nil {
		return Info{}, err
	}
	return s.info(c, rec), nil
}

// List describes every object, in the order of their binary CIDs.
func (s *Store) List(ctx context.Context) ([]Info, error) {
	var out []Info
	err := s.eachRecord(ctx, func(c cid.Cid, rec record) error {
		out = append(out, s.info(c, rec))
		return nil
	})
	return out, err
}

// Hold protects an object, present or not yet, from eviction until release is called. It is lost on restart: pins and leases
// are not.
func (s *Store) Hold(c cid.Cid) (release func()) {
	s.gate.RLock() // once this returns, no step of a collection that has not heard of it can follow
	defer s.gate.RUnlock()
	return s.hold(c)
}

// hold is Hold for those who have the gate already.
func (s *Store) hold(c cid.Cid) (release func()) {
	s.mu.Lock()
	s.holds[c]++
	s.mu.Unlock()
	s.protected(protection{c, true})
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.holds[c]--; s.holds[c] == 0 {
			delete(s.holds, c)
		}
	})
}

func (s *Store) buffer() *[unixfs.BlockSize]byte   { return s.bufs.Get().(*[unixfs.BlockSize]byte) }
func (s *Store) recycle(b *[unixfs.BlockSize]byte) { s.bufs.Put(b) }
func (s *Store) stripe(c cid.Cid) *sync.Mutex {
	key := c.KeyString()
	return &s.stripes[key[len(key)-1]%byte(len(s.stripes))]
}
