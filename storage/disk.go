package storage

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/ipfs/go-cid"
)

const (
	objectSuffix  = ".obj"
	partialSuffix = ".part"
)

func (s *Store) objects() string  { return s.fs.PathJoin(s.dir, "objects") }
func (s *Store) incoming() string { return s.fs.PathJoin(s.dir, "objects", "incoming") }

// objectPath returns the folder and the final name of an object's file. The folder is named by two characters before the
// last one: the last holds only a few bits of the hash.
func (s *Store) objectPath(c cid.Cid) (dir, name string) {
	text := c.String()
	dir = s.fs.PathJoin(s.objects(), text[len(text)-3:len(text)-1])
	return dir, s.fs.PathJoin(dir, text+objectSuffix)
}

func (s *Store) partialPath(c cid.Cid) (dir, name string) {
	dir, name = s.objectPath(c)
	return dir, strings.TrimSuffix(name, objectSuffix) + partialSuffix
}

// makeDir creates an object folder durably, once per run.
func (s *Store) makeDir(dir string) error {
	s.mu.Lock()
	known := s.dirs[dir]
	s.mu.Unlock()
	if known {
		return nil
	}
	if err := s.fs.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := s.syncDir(s.objects()); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dirs[dir] = true
	return nil
}

func (s *Store) syncDir(dir string) error {
	d, err := s.fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// tempFile creates a file that is removed at the next Open if nothing renames it first.
func (s *Store) tempFile() (vfs.File, string, error) {
	name := s.fs.PathJoin(s.incoming(), fmt.Sprintf("%d.tmp", s.tempSeq.Add(1)))
	f, err := s.fs.OpenReadWrite(name, vfs.WriteCategoryUnspecified)
	return f, name, err
}

// discard removes a file that no index entry names. Failing is harmless: the next Open removes it.
func (s *Store) discard(name string) {
	if name == "" {
		return
	}
	if err := s.fs.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Warn("cannot remove a leftover file", "path", name, "err", err)
	}
}

// recover brings files and accounts in line with the index after a stop of any kind: the index is the truth.
func (s *Store) recover(ctx context.Context) error {
	var broken []cid.Cid
	err := s.eachRecord(ctx, func(c cid.Cid, rec record) error {
		s.used += rec.charge()
		if !rec.filed() || rec.Damaged {
			return nil
		}
		_, name := s.objectPath(c)
		if rec.Shared > 0 {
			s.sharing.Store(true)
		}
		if st, err := s.fs.Stat(name); err != nil || !rec.fits(st.Size()) {
			broken = append(broken, c)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, c := range broken {
		s.log.Warn("an object's file is missing or has the wrong size", "cid", c)
		if err := s.amend(c, func(rec *record) { rec.Damaged = true }); err != nil {
			return err
		}
	}
	if err := s.recoverPartials(ctx); err != nil {
		return err
	}
	err = s.each(ctx, []byte{keyUse}, func(_, value []byte) error {
		if len(value) == 8 {
			s.useSeq.Store(max(s.useSeq.Load(), binary.BigEndian.Uint64(value)))
		}
		return nil
	})
	return errors.Join(err, s.removeLeftovers(ctx))
}

// recoverPartials charges unfinished fetches and forgets those whose file is gone. One that ended between the move of its file and
// the index gets its file back.
func (s *Store) recoverPartials(ctx context.Context) error {
	return s.eachPartial(ctx, func(c cid.Cid, rec partialRecord) error {
		dir, name := s.partialPath(c)
		if _, err := s.fs.Stat(name); err == nil {
			s.used += rec.Charge
			return nil
		}
		_, object := s.objectPath(c)
		if _, err := s.record(c); errors.Is(err, ErrNotFound) && s.fs.Rename(object, name) == nil {
			s.used += rec.Charge
			return s.syncDir(dir)
		}
		batch := s.db.NewBatch()
		defer batch.Close()
		if err := s.unlistFetch(batch, c); err != nil {
			return err
		}
		return s.apply(batch, pebble.Sync)
	})
}

// removeLeftovers deletes every file that the index does not name.
func (s *Store) removeLeftovers(ctx context.Context) error {
	dirs, err := s.fs.List(s.objects())
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		path := s.fs.PathJoin(s.objects(), dir)
		names, err := s.fs.List(path)
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := ctx.Err(); err != nil {
				return err
			}
			if !s.indexed(name) {
				s.log.Debug("removing a leftover file", "name", name)
				s.discard(s.fs.PathJoin(path, name))
			}
		}
	}
	return nil
}

// indexed reports whether the index names the file. A doubt keeps it.
func (s *Store) indexed(name string) bool {
	if text, ok := strings.CutSuffix(name, objectSuffix); ok {
		c, err := cid.Decode(text)
		if err != nil {
			return false
		}
		rec, err := s.record(c)
		return err == nil && rec.filed() || err != nil && !errors.Is(err, ErrNotFound)
	}
	text, ok := strings.CutSuffix(name, partialSuffix)
	if !ok {
		return false
	}
	c, err := cid.Decode(text)
	if err != nil {
		return false
	}
	_, err = s.get(cidKey(keyPartial, c))
	return !errors.Is(err, ErrNotFound)
}

// damaged remembers that an object's bytes do not match its CID, and returns [ErrCorrupt], for a file in place that is not what
// it was [ErrChanged] as well.
func (s *Store) damaged(c cid.Cid, rec record) error {
	if err := s.amend(c, func(rec *record) { rec.Damaged = true }); err != nil && !errors.Is(err, ErrNotFound) {
		s.log.Error("cannot mark a damaged object", "cid", c, "err", err)
	}
	s.log.Info("stored bytes do not match their CID", "cid", c) // who reads them has the error
	if rec.External != nil && s.compare(rec) != same {
		return errChanged()
	}
	return ErrCorrupt
}

// markDamaged is damaged for an object that is known by name only.
func (s *Store) markDamaged(c cid.Cid) {
	if rec, err := s.record(c); err == nil {
		_ = s.damaged(c, rec)
	}
}
