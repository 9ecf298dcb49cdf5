package storage

import (
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/p2p/wire"
	"github.com/capacloud/capanode/storage/unixfs"
)

// newObject is an object on its way into the index. Its bytes are inline, in a synced temporary file, or in a file in place.
type newObject struct {
	cid    cid.Cid
	rec    record
	inline []byte
	temp   string
	layout *unixfs.Layout // files only
	shared bitmap         // leaves that are not in temp; nil when all are
	opts   PutOptions
	// partial says that the object was being fetched: its file is the partial's, and used counts it already; else its charge is
	// reserved.
	partial bool
}

// change is what a commit does beside its batch.
type change struct {
	used   int64    // bytes that the store grows by
	unfile []string // files that no index entry names any more
	moved  bool     // the temporary file has its final name
}

// commit makes the object durable: rename, sync of the folder, synced index batch. The object's charge must be reserved
// or charged before; a reservation is settled here, also on failure.
func (s *Store) commit(o *newObject) (Info, error) {
	s.gate.RLock()
	defer s.gate.RUnlock()
	mu := s.stripe(o.cid)
	mu.Lock()
	defer mu.Unlock()

	batch := s.db.NewBatch()
	defer batch.Close()
	var reserved int64
	if !o.partial {
		reserved = o.rec.charge()
	}
	ch, err := s.prepare(batch, o)
	if err == nil {
		s.changed(o.cid)
		err = s.apply(batch, pebble.Sync)
	}
	if err != nil {
		if !errors.Is(err, ErrFailed) { // else nobody knows what is durable: the next Open does
			s.undo(o, ch)
		}
		s.settle(0, -reserved)
		return Info{}, fmt.Errorf("storage: commit %s: %w", o.cid, s.diskError(err))
	}
	for _, name := range ch.unfile {
		s.discard(name)
	}
	s.settle(ch.used, -reserved)
	if o.opts.Pin != "" || o.rec.Class == Owned || o.rec.Kind == Directory {
		s.protected(protection{o.cid, o.opts.Pin != "" || o.rec.Class == Owned})
	}
	if o.opts.keep != nil {
		o.opts.keep(o.cid)
	}
	return s.info(o.cid, o.rec), nil
}

// undo takes back what a failed commit did to files. A partial keeps its file under the name that its index entry means.
func (s *Store) undo(o *newObject, ch change) {
	_, name := s.objectPath(o.cid)
	switch {
	case o.partial && ch.moved:
		if err := s.fs.Rename(name, o.temp); err != nil {
			s.log.Warn("the progress of a fetch is lost", "cid", o.cid, "err", err)
		}
	case ch.moved:
		s.discard(name)
	case !o.partial:
		s.discard(o.temp)
	}
}

// prepare moves the object's file into place and fills the batch.
func (s *Store) prepare(batch *pebble.Batch, o *newObject) (ch change, err error) {
	old, err := s.record(o.cid)
	present := err == nil
	if err != nil && !errors.Is(err, ErrNotFound) {
		return ch, err
	}
	if present {
		ch.used -= old.charge()
		o.rec.Class = min(old.Class, o.rec.Class)
	}
	if o.opts.Pin != "" {
		if err := batch.Set(pinKey(o.opts.Pin), o.cid.Bytes(), nil); err != nil {
			return ch, err
		}
	}
	if err := s.endPartial(batch, o, &ch); err != nil {
		return ch, err
	}
	keep := false
	if present {
		if keep, err = s.keeps(o.cid, old, o.rec); err != nil {
			return ch, err
		}
	}
	if keep {
		// The same bytes are here already; only what is wanted of them may change.
		if o.temp != "" {
			ch.unfile = append(ch.unfile, o.temp)
		}
		old.Class = o.rec.Class
		o.rec = old
		ch.used += old.charge()
		return ch, s.putRecord(batch, o.cid, o.rec)
	}
	ch.used += o.rec.charge()
	if present {
		if err := s.replace(batch, o, old, &ch); err != nil {
			return ch, err
		}
	}
	if err := s.checkShared(o); err != nil {
		return ch, err
	}
	if err := s.moveIn(o, &ch); err != nil {
		return ch, err
	}
	return ch, s.indexObject(batch, o)
}

// keeps tells whether an object that is here serves instead of a new one of the same content. Bytes of the store's own are
// never given up for a file in place, unless they are only cached and nobody shares them; a file in place gives way to a copy.
func (s *Store) keeps(c cid.Cid, old, rec record) (bool, error) {
	switch {
	case old.Damaged:
		return false, nil
	case old.External != nil:
		return false, nil
	case rec.External == nil || old.Class == Owned:
		return true, nil
	}
	return s.needed(c, nil)
}

// replace writes the removal of those entries into the batch that the new object does not overwrite.
func (s *Store) replace(batch *pebble.Batch, o *newObject, old record, ch *change) error {
	var errs []error
	if old.External != nil {
		errs = append(errs, s.forgetPath(batch, o.cid, old.External.Path))
	}
	if old.Inline && !o.rec.Inline {
		errs = append(errs, batch.Delete(cidKey(keyValue, o.cid), nil))
	}
	if old.filed() && !o.rec.filed() {
		_, name := s.objectPath(o.cid)
		ch.unfile = append(ch.unfile, name)
	}
	return errors.Join(errs...)
}

// endPartial writes the end of a fetch into the batch: of the object's own, or of one that somebody has abandoned and that the
// object makes pointless. One that is under way ends by itself.
func (s *Store) endPartial(batch *pebble.Batch, o *newObject, ch *change) error {
	if o.partial {
		ch.used -= o.rec.charge()
		return s.unlistFetch(batch, o.cid)
	}
	rec, err := s.partial(o.cid)
	if errors.Is(err, ErrNotFound) || s.isActive(o.cid) {
		return nil
	}
	if err != nil {
		return err
	}
	ch.used -= rec.Charge
	_, name := s.partialPath(o.cid)
	ch.unfile = append(ch.unfile, name)
	return s.unlistFetch(batch, o.cid)
}

// settle changes the accounts by bytes in use and bytes reserved.
func (s *Store) settle(used, reserved int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used += used
	s.reserved += reserved
	if used+reserved < 0 {
		close(s.freed)
		s.freed = make(chan struct{})
	}
}

// moveIn renames the object's temporary file to its final name, durably.
func (s *Store) moveIn(o *newObject, ch *change) error {
	if !o.rec.filed() {
		return nil
	}
	dir, name := s.objectPath(o.cid)
	if err := s.makeDir(dir); err != nil {
		return err
	}
	if err := s.fs.Rename(o.temp, name); err != nil {
		return err
	}
	ch.moved = true
	return s.syncDir(dir)
}

func (s *Store) putRecord(batch *pebble.Batch, c cid.Cid, rec record) error {
	b, err := wire.Marshal(rec)
	if err != nil {
		return err
	}
	return batch.Set(cidKey(keyObject, c), b, nil)
}
