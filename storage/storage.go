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
	"io/fs"
	"log/slog"
	"sync"
	"sync/atomic"
	"syscall"
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

	formatVersion = 1
)

var (
	// ErrNotFound reports an object, block or pin that the store does not hold.
	ErrNotFound = errors.New("not found in the store")
	// ErrCorrupt reports bytes that do not match their CID. None of them were delivered. Fetch the object again.
	ErrCorrupt = errors.New("stored bytes do not match their CID")
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
	// ErrWrongKind reports an operation on a folder that needs bytes, or the reverse.
	ErrWrongKind = errors.New("wrong kind of object")
)

// Class says who wants an object kept.
type Class uint8

const (
	// Owned objects are the user's: they stay until deleted by name.
	Owned Class = iota
	// Cached objects may be evicted at any time unless a pin or an owned folder reaches them.
	Cached
)

// String returns "owned" or "cached".
func (c Class) String() string {
	if c == Owned {
		return "owned"
	}
	return "cached"
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
	Blocks  int   // leaves
	Created time.Time
	Damaged bool // a block failed its hash; fetch the object again
}

// PutOptions says how to keep what is being put.
type PutOptions struct {
	Pin   string // pin the object under this name in the same commit; empty means no pin
	Class Class  // [Owned] by default; an object that is already owned stays owned
	Size  int64  // expected content bytes, reserved at once; 0 means unknown: reserved block by block

	// keep is called with the CID before anything could evict the new object.
	keep func(cid.Cid)
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
	gate    sync.RWMutex
	stripes [64]sync.Mutex // one commit per CID at a time
	rootGen atomic.Uint64  // grows whenever the set of protected objects may have grown
	useSeq  atomic.Uint64  // clock of the LRU order
	tempSeq atomic.Uint64

	mu       sync.Mutex // guards what follows
	used     int64
	reserved int64
	dirs     map[string]bool  // object folders known to exist durably
	holds    map[cid.Cid]int  // objects protected by running work
	active   map[cid.Cid]bool // partials that are open
}

// Open opens or creates the store in dir and removes what a crash left behind.
func Open(ctx context.Context, dir string, opts Options) (*Store, error) {
	s := &Store{
		dir: dir, fs: opts.FS, log: opts.Logger, now: opts.Now, quota: opts.Quota,
		dirs: map[string]bool{}, holds: map[cid.Cid]int{}, active: map[cid.Cid]bool{},
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

func (s *Store) open(ctx context.Context) error {
	_, err := s.fs.Stat(s.dir)
	fresh := errors.Is(err, fs.ErrNotExist)
	if err := s.fs.MkdirAll(s.incoming(), 0o700); err != nil {
		return err
	}
	if fresh { // else the first synced write would be durable in a folder that is not
		if err := s.syncDir(s.fs.PathDir(s.dir)); err != nil {
			return err
		}
	}
	lock, err := s.fs.Lock(s.fs.PathJoin(s.dir, "LOCK"))
	if err != nil {
		if errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EACCES) || !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w: %w", ErrLocked, err)
		}
		return err
	}
	s.lock = lock
	s.db, err = pebble.Open(s.fs.PathJoin(s.dir, "index"), &pebble.Options{
		FS:                 s.fs,
		FormatMajorVersion: pebble.FormatNewest,
		Logger:             indexLogger{s.log},
		MemTableSize:       8 << 20,
		MaxOpenFiles:       256,
	})
	if err != nil {
		return s.unopened(err)
	}
	if err := s.checkVersion(); err != nil {
		return err
	}
	if err := s.syncDir(s.dir); err != nil {
		return err
	}
	return s.recover(ctx)
}

// Close flushes the index. Readers and partials must be closed before.
func (s *Store) Close() error {
	var errs []error
	if s.db != nil {
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
	return rec.info(c), nil
}

// List describes every object, in the order of their binary CIDs.
func (s *Store) List(ctx context.Context) ([]Info, error) {
	var out []Info
	err := s.eachRecord(ctx, func(c cid.Cid, rec record) error {
		out = append(out, rec.info(c))
		return nil
	})
	return out, err
}

// Hold protects an object, present or not yet, from eviction until release is called. It is lost on restart: pins are not.
func (s *Store) Hold(c cid.Cid) (release func()) {
	s.mu.Lock()
	s.holds[c]++
	s.mu.Unlock()
	s.rootGen.Add(1)
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

// diskError gives a full disk its type.
func (s *Store) diskError(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}

// unopened says what to do about an index that pebble does not open. What the operating system refuses is no damage, unless
// it is that a file is gone.
func (s *Store) unopened(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) && errno != syscall.ENOENT {
		return err
	}
	return fmt.Errorf("%w: %w; nothing was removed: restore %s from a backup, or move %s away and add the files again",
		ErrDamaged, err, s.fs.PathJoin(s.dir, "index"), s.dir)
}

// indexLogger hands pebble's messages to slog.
type indexLogger struct{ log *slog.Logger }

func (l indexLogger) Infof(format string, args ...any) {
	if l.log.Enabled(context.Background(), slog.LevelDebug) {
		l.log.Debug("index: " + fmt.Sprintf(format, args...))
	}
}

func (l indexLogger) Errorf(format string, args ...any) {
	l.log.Error("index: " + fmt.Sprintf(format, args...))
}

// Fatalf must not return: pebble calls it when its log cannot be written, and nothing that follows would be durable.
func (l indexLogger) Fatalf(format string, args ...any) {
	msg := "index: " + fmt.Sprintf(format, args...)
	l.log.Error(msg)
	panic("storage: " + msg)
}
