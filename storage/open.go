package storage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"syscall"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// indexCache is the memory in bytes for blocks of the index.
const indexCache = 16 << 20

func (s *Store) open(ctx context.Context) error {
	_, err := s.fs.Stat(s.dir)
	fresh := errors.Is(err, fs.ErrNotExist)
	if err := s.fs.MkdirAll(s.incoming(), 0o700); err != nil {
		return s.unwritable(err)
	}
	if fresh { // else the first synced write would be durable in a folder that is not
		if err := s.syncDir(s.fs.PathDir(s.dir)); err != nil {
			return err
		}
	}
	lock, err := s.fs.Lock(s.fs.PathJoin(s.dir, "LOCK"))
	switch {
	case errors.Is(err, syscall.EROFS), errors.Is(err, fs.ErrPermission) && errors.As(err, new(*fs.PathError)): // not of the lock
		return s.unwritable(err)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: %w", ErrLocked, err)
	case err != nil:
		return err
	}
	s.lock = lock
	cache := pebble.NewCache(indexCache)
	defer cache.Unref()
	s.db, err = pebble.Open(s.fs.PathJoin(s.dir, "index"), &pebble.Options{
		FS:                 manifestFS{s.fs},
		FormatMajorVersion: pebble.FormatNewest,
		Logger:             indexLogger{s.log},
		Cache:              cache,
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

// manifestFS makes the names of pebble's manifests durable before anything says that they are current. Pebble relies on a file
// system that keeps changes of a folder in their order; not all do.
type manifestFS struct{ vfs.FS }

// Unwrap implements [vfs.FS].
func (m manifestFS) Unwrap() vfs.FS { return m.FS }

// Create implements [vfs.FS].
func (m manifestFS) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := m.FS.Create(name, category)
	if err != nil || !strings.HasPrefix(m.PathBase(name), "MANIFEST") {
		return f, err
	}
	dir, err := m.OpenDir(m.PathDir(name))
	if err == nil {
		err = errors.Join(dir.Sync(), dir.Close())
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (s *Store) checkVersion() error {
	key := append([]byte{keyMeta}, "version"...)
	b, err := s.get(key)
	if errors.Is(err, ErrNotFound) {
		if err := s.checkFresh(); err != nil {
			return err
		}
		return s.set(key, []byte{formatVersion}, pebble.Sync)
	}
	if err != nil {
		return err
	}
	switch {
	case len(b) == 1 && b[0] == formatVersion:
		return nil
	case len(b) == 1 && b[0] == 1: // what it holds is valid in version 2
		return s.set(key, []byte{formatVersion}, pebble.Sync)
	}
	return fmt.Errorf("store format %x, this program reads %d: update the program", b, formatVersion)
}

// checkFresh refuses an index that is new beside objects that are not: they would be removed as leftovers.
func (s *Store) checkFresh() error {
	dirs, err := s.fs.List(s.objects())
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		names, err := s.fs.List(s.fs.PathJoin(s.objects(), dir))
		if err != nil {
			return err
		}
		if slices.ContainsFunc(names, func(name string) bool { return strings.HasSuffix(name, objectSuffix) }) {
			return fmt.Errorf("its index is gone, and objects are here: restore %s, or move the store away", s.fs.PathJoin(s.dir, "index"))
		}
	}
	return nil
}

// diskError gives a full disk its type.
func (s *Store) diskError(err error) error {
	if errors.Is(err, ErrNoSpace) {
		return err
	}
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w: free some, or let `capanode storage gc` do it", ErrNoSpace, err)
	}
	if errors.Is(err, syscall.EROFS) {
		return s.unwritable(err)
	}
	return err
}

// unwritable gives a folder that may not be written its type.
func (s *Store) unwritable(err error) error {
	if errors.Is(err, ErrReadOnly) {
		return err
	}
	if errors.Is(err, syscall.EROFS) || errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w: %w: make %s writable for this user, or choose another folder", ErrReadOnly, err, s.dir)
	}
	return s.diskError(err)
}

// unopened says what to do about an index that pebble does not open. What the operating system refuses is no damage, unless
// it is that a file is gone.
func (s *Store) unopened(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) && errno != syscall.ENOENT {
		return s.unwritable(err)
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

// Fatalf must not return: pebble calls it when its log cannot be written, and nothing that follows would be durable. Where
// that happens inside one of our own writes, guard turns it into an error; elsewhere it ends the program, and the next start
// recovers.
func (l indexLogger) Fatalf(format string, args ...any) {
	f := &indexFailure{errors.New("index: " + fmt.Sprintf(format, args...))}
	for _, a := range args {
		if err, ok := a.(error); ok { // keeps the type of the cause
			f.err = fmt.Errorf("index: %w", err)
		}
	}
	l.log.Error(f.Error())
	panic(f)
}

// indexFailure is why the index cannot be written any more.
type indexFailure struct{ err error }

func (f *indexFailure) Error() string { return "storage: " + f.err.Error() }

// guard runs one write of the index. After the first that fails for good, every further one is refused: the store must be
// opened again.
func (s *Store) guard(write func() error) (err error) {
	if f := s.failure.Load(); f != nil {
		return s.failed(f)
	}
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		f, ok := p.(*indexFailure)
		if !ok {
			panic(p)
		}
		s.failure.CompareAndSwap(nil, f)
		err = s.failed(f)
	}()
	return write()
}

func (s *Store) failed(f *indexFailure) error {
	return fmt.Errorf("%w: %w: nothing acknowledged is lost; open the store again", ErrFailed, s.diskError(f.err))
}

// apply commits a batch.
func (s *Store) apply(batch *pebble.Batch, how *pebble.WriteOptions) error {
	return s.guard(func() error { return batch.Commit(how) })
}

func (s *Store) set(key, value []byte, how *pebble.WriteOptions) error {
	return s.guard(func() error { return s.db.Set(key, value, how) })
}

func (s *Store) unset(key []byte, how *pebble.WriteOptions) error {
	return s.guard(func() error { return s.db.Delete(key, how) })
}

// flush makes every write of the index so far durable.
func (s *Store) flush() error {
	return s.guard(func() error { return s.db.LogData(nil, pebble.Sync) })
}
