package storage

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"unicode/utf8"

	"github.com/cockroachdb/pebble/v2"
	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/storage/unixfs"
)

// Pin is a name that protects an object, and everything below it if it is a folder, from deletion and eviction. Links
// inside records are not followed.
type Pin struct {
	Name string
	CID  cid.Cid
}

// Removed counts what a collection or eviction removed.
type Removed struct {
	Objects int
	Bytes   int64
}

// gcStep is how many objects are removed per turn at the gate, so that readers and writers wait milliseconds.
const gcStep = 32

// maxFolderDepth bounds how deep folders may nest.
const maxFolderDepth = 64

func pinKey(name string) []byte { return append([]byte{keyPin}, name...) }

// checkPin checks a pin name; an empty one is an error only where a name is required.
func checkPin(name string, required bool) error {
	if len(name) > MaxPinName || !utf8.ValidString(name) || (required && name == "") {
		return fmt.Errorf("storage: pin name %.64q: want 1 to %d bytes of UTF-8", name, MaxPinName)
	}
	return nil
}

// Pin protects an object under a name. A name that is taken moves to the new object.
func (s *Store) Pin(ctx context.Context, name string, c cid.Cid) error {
	if err := checkPin(name, true); err != nil {
		return err
	}
	s.gate.Lock()
	defer s.gate.Unlock()
	if _, err := s.Stat(ctx, c); err != nil {
		return fmt.Errorf("pin %q: %w", name, err)
	}
	s.rootGen.Add(1)
	if err := s.db.Set(pinKey(name), c.Bytes(), pebble.Sync); err != nil {
		return fmt.Errorf("storage: pin %q: %w", name, err)
	}
	return nil
}

// Unpin removes a pin; the object stays until it is deleted or evicted.
func (s *Store) Unpin(ctx context.Context, name string) error {
	if err := errors.Join(ctx.Err(), checkPin(name, true)); err != nil {
		return err
	}
	s.gate.Lock()
	defer s.gate.Unlock()
	if _, err := s.get(pinKey(name)); err != nil {
		return fmt.Errorf("storage: unpin %q: %w", name, err)
	}
	if err := s.db.Delete(pinKey(name), pebble.Sync); err != nil {
		return fmt.Errorf("storage: unpin %q: %w", name, err)
	}
	return nil
}

// Pins lists the pins by name.
func (s *Store) Pins(ctx context.Context) ([]Pin, error) {
	var out []Pin
	err := s.each(ctx, []byte{keyPin}, func(key, value []byte) error {
		c, err := cid.Cast(value)
		if err != nil {
			return fmt.Errorf("storage: pin %q: %w", key, err)
		}
		out = append(out, Pin{string(key), c})
		return nil
	})
	return out, err
}

// Delete removes an object of any class. An object that a pin reaches is [ErrPinned]. The entries of a deleted folder stay
// as cached objects.
func (s *Store) Delete(ctx context.Context, c cid.Cid) error {
	for {
		if shared, err := s.delete(ctx, c); !shared || err != nil {
			return err
		}
		if err := s.bequeath(ctx, c, nil); err != nil {
			return err
		}
	}
}

// delete is one attempt; shared tells that it waits until the leaves that others need have moved.
func (s *Store) delete(ctx context.Context, c cid.Cid) (shared bool, err error) {
	s.gate.Lock()
	defer s.gate.Unlock()
	if _, err := s.record(c); err != nil {
		return false, err
	}
	pins, err := s.Pins(ctx)
	if err != nil {
		return false, err
	}
	reached := map[cid.Cid]bool{}
	for _, p := range pins {
		if err := s.mark(ctx, p.CID, reached, 0); err != nil {
			return false, err
		}
		if reached[c] {
			return false, fmt.Errorf("storage: delete %s: unpin %q first: %w", c, p.Name, ErrPinned)
		}
	}
	if shared, err = s.needed(c, nil); shared || err != nil {
		return shared, err
	}
	_, err = s.remove([]candidate{{cid: c}})
	return false, err
}

// Disown makes objects cached ones: they may be evicted unless a pin or an owned folder reaches them. Those that are not here
// are passed over.
func (s *Store) Disown(ctx context.Context, all ...cid.Cid) error {
	s.gate.Lock() // nobody changes a record meanwhile
	defer s.gate.Unlock()
	batch := s.db.NewBatch()
	defer batch.Close()
	for _, c := range all {
		rec, err := s.record(c)
		if errors.Is(err, ErrNotFound) || err == nil && rec.Class == Cached {
			continue
		}
		rec.Class = Cached
		if err == nil {
			err = s.putRecord(batch, c, rec)
		}
		if err = errors.Join(err, ctx.Err()); err != nil {
			return fmt.Errorf("storage: disown %s: %w", c, err)
		}
	}
	if batch.Empty() {
		return nil
	}
	if err := batch.Commit(pebble.Sync); err != nil {
		return fmt.Errorf("storage: disown: %w", s.diskError(err))
	}
	return nil
}

// GC removes every cached object that no pin, owned folder or running work reaches.
func (s *Store) GC(ctx context.Context) (Removed, error) { return s.evict(ctx, everything) }

// everything is more bytes than a store can hold.
const everything = 1 << 62

// mark adds an object and, for folders, everything below it to the set.
func (s *Store) mark(ctx context.Context, c cid.Cid, set map[cid.Cid]bool, depth int) error {
	if set[c] || depth > maxFolderDepth {
		return nil
	}
	set[c] = true
	if c.Type() != cid.DagProtobuf {
		return nil
	}
	rec, err := s.record(c)
	if errors.Is(err, ErrNotFound) || (err == nil && rec.Kind != Directory) {
		return nil
	}
	if err != nil {
		return err
	}
	node, err := s.directory(ctx, c)
	if err != nil {
		// A damaged folder protects nothing below it, but must not stop the collection of the rest.
		s.log.Warn("cannot read a folder while collecting", "cid", c, "err", err)
		return nil
	}
	for _, l := range node.Links {
		if err := s.mark(ctx, l.CID, set, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// directory reads and decodes a folder node.
func (s *Store) directory(ctx context.Context, c cid.Cid) (unixfs.Node, error) {
	rec, err := s.record(c)
	if err != nil {
		return unixfs.Node{}, err
	}
	if rec.Kind != Directory {
		return unixfs.Node{}, fmt.Errorf("storage: %s is no folder: %w", c, ErrWrongKind)
	}
	r, err := s.openRecord(ctx, c, rec)
	if err != nil {
		return unixfs.Node{}, err
	}
	defer r.Close()
	block, err := r.Block(0, make([]byte, r.Size()))
	if err != nil {
		return unixfs.Node{}, err
	}
	return unixfs.Decode(block)
}

// candidate is a cached object or an abandoned fetch that may go.
type candidate struct {
	cid     cid.Cid
	use     uint64 // LRU clock; abandoned fetches have 0 and go first
	bytes   int64
	partial bool
}

// evict removes unprotected cached objects, least recently used first, until want bytes are free or none is left.
func (s *Store) evict(ctx context.Context, want int64) (Removed, error) {
	var total Removed
	queue, gen, err := s.candidates(ctx)
	if s.sharing.Load() && want >= everything {
		slices.Reverse(queue) // the newer ones share with the older ones: then little has to move
	}
	for err == nil && len(queue) > 0 && total.Bytes < want {
		var step Removed
		next := queue[:front(queue, want-total.Bytes)]
		for _, c := range next {
			if err := s.bequeath(ctx, c.cid, leaving(next)); err != nil {
				s.log.Warn("an object that others share cannot go", "cid", c.cid, "err", err)
			}
		}
		s.gate.Lock()
		if gen != s.rootGen.Load() {
			queue, gen, err = s.candidates(ctx) // something was protected since
		}
		if err == nil {
			queue, step, err = s.evictStep(queue, want-total.Bytes)
		}
		s.gate.Unlock()
		total.Objects += step.Objects
		total.Bytes += step.Bytes
	}
	return total, err
}

// evictStep removes the front of the queue, with the gate held.
func (s *Store) evictStep(queue []candidate, want int64) ([]candidate, Removed, error) {
	n := front(queue, want)
	removed, err := s.remove(queue[:n])
	return queue[n:], removed, err
}

// front is how many candidates one step removes to free want bytes.
func front(queue []candidate, want int64) int {
	n := 0
	for sum := int64(0); n < len(queue) && n < gcStep && sum < want; n++ {
		sum += queue[n].bytes
	}
	return n
}

// candidates lists what may go, in the order in which it goes, and the root generation that the list holds for.
func (s *Store) candidates(ctx context.Context) ([]candidate, uint64, error) {
	gen := s.rootGen.Load()
	kept := map[cid.Cid]bool{}
	s.mu.Lock()
	roots := make([]cid.Cid, 0, len(s.holds))
	for c := range s.holds {
		roots = append(roots, c)
	}
	s.mu.Unlock()
	pins, err := s.Pins(ctx)
	if err != nil {
		return nil, gen, err
	}
	for _, p := range pins {
		roots = append(roots, p.CID)
	}
	var out []candidate
	err = s.eachRecord(ctx, func(c cid.Cid, rec record) error {
		if rec.Class == Owned {
			if rec.Kind == Directory {
				roots = append(roots, c)
			}
			return nil
		}
		out = append(out, candidate{cid: c, bytes: rec.charge()})
		return nil
	})
	for _, c := range roots {
		err = errors.Join(err, s.mark(ctx, c, kept, 0))
	}
	if err != nil {
		return nil, gen, err
	}
	out = slices.DeleteFunc(out, func(c candidate) bool { return kept[c.cid] })
	for i := range out {
		if b, err := s.get(cidKey(keyUse, out[i].cid)); err == nil && len(b) == 8 {
			out[i].use = binary.BigEndian.Uint64(b)
		}
	}
	err = s.eachPartial(ctx, func(c cid.Cid, rec partialRecord) error {
		if !s.isActive(c) {
			out = append(out, candidate{cid: c, bytes: rec.Charge, partial: true})
		}
		return nil
	})
	slices.SortStableFunc(out, func(a, b candidate) int { return cmp.Compare(a.use, b.use) })
	return out, gen, err
}

// remove deletes objects and abandoned fetches with the gate held: index first, so that a crash leaves a leftover file,
// never an entry without one. Objects that hold what others share stay.
func (s *Store) remove(list []candidate) (Removed, error) {
	var out Removed
	var files []string
	list, err := s.spare(list)
	if err != nil {
		return Removed{}, err
	}
	batch := s.db.NewBatch()
	defer batch.Close()
	for _, c := range list {
		bytes, file, err := s.unlist(batch, c)
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return Removed{}, err
		}
		out.Objects++
		out.Bytes += bytes
		files = append(files, file)
	}
	if err := batch.Commit(pebble.Sync); err != nil {
		return Removed{}, fmt.Errorf("storage: remove: %w", err)
	}
	s.settle(-out.Bytes, 0)
	for _, name := range files {
		s.discard(name)
	}
	return out, nil
}

// unlist writes the removal of one candidate into the batch and returns what it frees and its file.
func (s *Store) unlist(batch *pebble.Batch, c candidate) (bytes int64, file string, err error) {
	if c.partial {
		rec, err := s.partial(c.cid)
		if err != nil || s.isActive(c.cid) {
			return 0, "", errors.Join(ErrNotFound, err)
		}
		_, file = s.partialPath(c.cid)
		return rec.Charge, file, batch.Delete(cidKey(keyPartial, c.cid), nil)
	}
	rec, err := s.record(c.cid)
	if err != nil {
		return 0, "", err
	}
	if !rec.Inline {
		_, file = s.objectPath(c.cid)
	}
	return rec.charge(), file, s.unindex(batch, c.cid, rec)
}
