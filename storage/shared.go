package storage

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/storage/unixfs"
)

// Objects share leaves. A leaf that some file object of the store holds already is left out of the file of a new one: a hole
// is there, and a bit says so. Who has the bytes is not written down but looked up: the index names every object with a leaf of
// that digest, and at least one of them holds it (placeLeaf). Before the last holder goes, the bytes move to one that stays
// (bequeath), and with them their charge.

// bitmap is a set of leaf numbers; nil is empty.
type bitmap []byte

func newBitmap(n int) bitmap       { return make(bitmap, (n+7)/8) }
func (b bitmap) has(i int) bool    { return b != nil && b[i/8]&(1<<(i%8)) != 0 }
func (b bitmap) set(i int)         { b[i/8] |= 1 << (i % 8) }
func (b bitmap) clear(i int)       { b[i/8] &^= 1 << (i % 8) }
func (b bitmap) clone() bitmap     { return append(bitmap(nil), b...) }
func (b bitmap) fits(n int) bool   { return len(b) == (n+7)/8 }
func (r record) fits(n int64) bool { return n == r.Size || r.Shared > 0 && n >= r.End && n < r.Size }

// sharedBits returns which leaves of an object are not in its own file; nil when all are.
func (s *Store) sharedBits(c cid.Cid, rec record) (bitmap, error) {
	if rec.Shared == 0 {
		return nil, nil
	}
	b, err := s.get(cidKey(keyShared, c))
	if err != nil || !bitmap(b).fits(rec.blocks()) {
		return nil, fmt.Errorf("storage: %s: list of shared leaves: %w", c, errors.Join(ErrCorrupt, err))
	}
	return b, nil
}

// without marks the leaves that a record's own file does not have.
func (r *record) without(l *unixfs.Layout, shared bitmap) {
	r.Shared, r.End = 0, 0
	for i := range l.Leaves {
		if shared.has(i) {
			r.Shared += l.LeafSize(i)
		} else {
			r.End = l.LeafOffset(i) + l.LeafSize(i)
		}
	}
	if r.Shared == 0 {
		r.End = 0
	}
}

// ownDigests lists the leaves that a new object's file has; nil when it has all of them.
func (o *newObject) ownDigests() map[unixfs.Digest]bool {
	if o.shared == nil {
		return nil
	}
	own := map[unixfs.Digest]bool{}
	for i, d := range o.layout.Leaves {
		if !o.shared.has(i) {
			own[d] = true
		}
	}
	return own
}

// checkShared makes sure, with the gate held, that every leaf that a new object leaves out is here.
func (s *Store) checkShared(o *newObject) error {
	own := o.ownDigests()
	for i, d := range o.layoutLeaves() {
		if !o.shared.has(i) || own[d] {
			continue
		}
		holder, err := s.holder(d, o.cid)
		if err != nil {
			return err
		}
		if !holder.cid.Defined() {
			return fmt.Errorf("storage: %s block %d was shared with an object that is gone: %w", o.cid, i, ErrIncomplete)
		}
	}
	return nil
}

func (o *newObject) layoutLeaves() []unixfs.Digest {
	if o.shared == nil {
		return nil
	}
	return o.layout.Leaves
}

// holding is an object and the place of a leaf in it.
type holding struct {
	cid cid.Cid
	at  place
}

// errStop ends a walk over the index early.
var errStop = errors.New("stop")

// holders calls f for every file object that has the leaf, whether in its own file or not, until f returns false.
func (s *Store) holders(d unixfs.Digest, f func(holding) bool) error {
	err := s.each(context.Background(), append([]byte{keyBlock}, d[:]...), func(key, value []byte) error {
		where, err := decodePlace(value)
		if err != nil || where.kind != placeLeaf && where.kind != placeShared {
			return err
		}
		owner, err := cid.Cast(key)
		if err != nil {
			return fmt.Errorf("storage: index key: %w", err)
		}
		if !f(holding{owner, where}) {
			return errStop
		}
		return nil
	})
	if errors.Is(err, errStop) {
		return nil
	}
	return err
}

// holder returns an object other than one that has the leaf in its own file; its CID is undefined when there is none.
func (s *Store) holder(d unixfs.Digest, other cid.Cid) (found holding, err error) {
	err = s.holders(d, func(h holding) bool {
		if h.at.kind == placeLeaf && h.cid != other {
			found = h
		}
		return !found.cid.Defined()
	})
	return found, err
}

func notEOF(err error) error {
	if err == io.EOF {
		return nil
	}
	return err
}

// readLeaf reads a leaf from the file of an object that holds it and verifies it. It is no error of the disk that a file is
// short: the bytes are [ErrCorrupt] then.
func (s *Store) readLeaf(h holding, d unixfs.Digest, dst []byte) error {
	_, name := s.objectPath(h.cid)
	f, err := s.fs.Open(name)
	if err != nil {
		return err
	}
	n, err := f.ReadAt(dst, int64(h.at.offset))
	if err = errors.Join(notEOF(err), f.Close()); err != nil {
		return err
	}
	if unixfs.Sum(dst[:n]) != d {
		return ErrCorrupt
	}
	return nil
}

// find reads a leaf from whichever object holds it into dst, which has its size, verifies it, and returns that object.
// Holders with a bad copy are marked damaged. [ErrNotFound] means that nobody has it, [ErrCorrupt] that nobody has it whole.
func (s *Store) find(d unixfs.Digest, dst []byte) (owner cid.Cid, err error) {
	var all []holding // read after the walk: marking a holder writes to the index
	if err := s.holders(d, func(h holding) bool {
		// A stranger's file may claim any size for a leaf; that says nothing about who holds it.
		if h.at.kind == placeLeaf && h.at.length == uint64(len(dst)) {
			all = append(all, h)
		}
		return true
	}); err != nil {
		return cid.Undef, err
	}
	err = ErrNotFound
	for _, h := range all {
		if err = s.readLeaf(h, d, dst); err == nil {
			return h.cid, nil
		}
		if errors.Is(err, ErrCorrupt) {
			s.markDamaged(h.cid)
		}
	}
	return cid.Undef, err
}

// lent returns leaf i of an object, which is in another place.
func (r *Reader) lent(i int, dst []byte) ([]byte, error) {
	d, err := r.digest(i)
	if err == nil {
		_, err = r.s.find(d, dst)
	}
	if errors.Is(err, ErrNotFound) || errors.Is(err, ErrCorrupt) {
		err = r.s.damaged(r.cid, r.rec)
	}
	if err != nil {
		clear(dst)
		return nil, fmt.Errorf("storage: %s block %d, shared with another object: %w", r.cid, i, err)
	}
	return dst, nil
}

// bequestBytes is how much of a leaving object moves to others at a time.
const bequestBytes = 64 << 20

// bequest is one leaf that moves from an object that is about to go to one that shares it.
type bequest struct {
	digest   unixfs.Digest
	from, to holding
	bad      bool // the bytes are not what they should be: the heir is damaged
}

// bequeath moves every leaf that others share and only this object holds to one of them, so that it can go. The copies are
// made and synced outside the gate; who holds what changes in one synced batch. A crash before that batch leaves bytes in a
// hole, which nobody reads. Objects that leave together inherit nothing.
func (s *Store) bequeath(ctx context.Context, c cid.Cid, leaving map[cid.Cid]bool) error {
	for s.sharing.Load() {
		list, err := s.bequests(ctx, c, leaving, bequestBytes)
		if err != nil || len(list) == 0 {
			return err
		}
		if err := s.copyLeaves(list); err != nil {
			return fmt.Errorf("storage: move shared blocks out of %s: %w", c, s.diskError(err))
		}
		if err := s.handOver(c, leaving, list); err != nil {
			return fmt.Errorf("storage: move shared blocks out of %s: %w", c, s.diskError(err))
		}
	}
	return nil
}

// bequests lists leaves that only this object holds and another one shares, up to about limit bytes of them.
func (s *Store) bequests(ctx context.Context, c cid.Cid, leaving map[cid.Cid]bool, limit int64) ([]bequest, error) {
	rec, err := s.record(c)
	if errors.Is(err, ErrNotFound) || err == nil && rec.Kind != File {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []bequest
	listed := map[unixfs.Digest]bool{}
	for chunk := 0; chunk*leafChunk < rec.blocks() && limit > 0; chunk++ {
		leaves, err := s.leafChunkOf(c, chunk)
		if err = errors.Join(err, ctx.Err()); err != nil {
			return nil, err
		}
		for _, d := range leaves {
			if listed[d] || limit <= 0 {
				continue
			}
			b, err := s.bequest(c, leaving, d)
			if err != nil {
				return nil, err
			}
			if b.to.cid.Defined() {
				listed[d] = true
				out, limit = append(out, b), limit-int64(b.from.at.length)
			}
		}
	}
	return out, nil
}

// bequest says who should get a leaf when c goes: nobody, an undefined CID, when c does not hold it, when others do, or when
// none that stays shares it.
func (s *Store) bequest(c cid.Cid, leaving map[cid.Cid]bool, d unixfs.Digest) (bequest, error) {
	b := bequest{digest: d}
	var heir, other holding
	err := s.holders(d, func(h holding) bool {
		switch {
		case h.cid == c && h.at.kind == placeLeaf:
			b.from = h
		case h.cid == c || leaving[h.cid]:
		case h.at.kind == placeLeaf:
			other = h
		default:
			heir = h
		}
		return !other.cid.Defined()
	})
	if err == nil && b.from.cid.Defined() && !other.cid.Defined() {
		b.to = heir
	}
	return b, err
}

// needed tells whether an object that stays shares a leaf that of all that stay only this one holds.
func (s *Store) needed(c cid.Cid, leaving map[cid.Cid]bool) (bool, error) {
	if !s.sharing.Load() {
		return false, nil
	}
	list, err := s.bequests(context.Background(), c, leaving, 1)
	return len(list) > 0, err
}

// leaving lists the objects of a removal.
func leaving(list []candidate) map[cid.Cid]bool {
	out := make(map[cid.Cid]bool, len(list))
	for _, c := range list {
		if !c.partial {
			out[c.cid] = true
		}
	}
	return out
}

// spare takes out of a removal, with the gate held, whatever an object that stays needs. Each one that is spared may need others.
func (s *Store) spare(list []candidate) ([]candidate, error) {
	for s.sharing.Load() {
		going := leaving(list)
		rest := make([]candidate, 0, len(list))
		for _, c := range list {
			needed := false
			if !c.partial {
				var err error
				if needed, err = s.needed(c.cid, going); err != nil {
					return nil, err
				}
			}
			if !needed {
				rest = append(rest, c)
			}
		}
		if len(rest) == len(list) {
			break
		}
		list = rest
	}
	return list, nil
}

// copyLeaves writes leaves into the holes of their heirs' files and syncs those.
func (s *Store) copyLeaves(list []bequest) (err error) {
	files := map[cid.Cid]vfs.File{}
	defer func() {
		for _, f := range files {
			err = errors.Join(err, f.Close())
		}
	}()
	buf := s.buffer()
	defer s.recycle(buf)
	for i := range list {
		b := &list[i]
		leaf := buf[:min(b.from.at.length, uint64(len(buf)))]
		if err := s.readLeaf(b.from, b.digest, leaf); errors.Is(err, ErrCorrupt) {
			b.bad = true
			continue
		} else if err != nil {
			return err
		}
		f := files[b.to.cid]
		if f == nil {
			_, name := s.objectPath(b.to.cid)
			if f, err = s.fs.OpenReadWrite(name, vfs.WriteCategoryUnspecified); err != nil {
				return err
			}
			files[b.to.cid] = f
		}
		if _, err := f.WriteAt(leaf, int64(b.to.at.offset)); err != nil {
			return err
		}
	}
	for _, f := range files {
		if err := f.Sync(); err != nil {
			return err
		}
	}
	return nil
}

// handOver makes the copies count: heirs hold and pay, the giver shares.
func (s *Store) handOver(c cid.Cid, leaving map[cid.Cid]bool, list []bequest) error {
	s.gate.Lock() // nobody commits or removes while who holds what changes
	defer s.gate.Unlock()
	unlock := s.lockStripes() // and nobody is marked
	broken, err := s.handOverLocked(c, leaving, list)
	unlock()
	for _, id := range broken {
		s.markDamaged(id)
	}
	return err
}

func (s *Store) handOverLocked(c cid.Cid, leaving map[cid.Cid]bool, list []bequest) (broken []cid.Cid, err error) {
	objects := map[cid.Cid]*sharer{}
	batch := s.db.NewBatch()
	defer batch.Close()
	for _, b := range list {
		now, err := s.bequest(c, leaving, b.digest)
		if err != nil {
			return nil, err
		}
		if now != (bequest{digest: b.digest, from: b.from, to: b.to}) {
			continue // others came or went meanwhile: the next turn looks again
		}
		if b.bad {
			// Nobody can read it: to go on looking would keep the giver for ever.
			broken = append(broken, b.to.cid)
			if err := batch.Delete(blockKey(b.digest, b.to.cid), nil); err != nil {
				return nil, err
			}
			continue
		}
		for _, m := range []struct {
			h     holding
			kind  byte
			holds bool
		}{{b.from, placeShared, false}, {b.to, placeLeaf, true}} {
			o, err := s.sharer(objects, m.h.cid)
			if err == nil {
				at := m.h.at
				at.kind = m.kind
				o.turn(at, m.holds)
				err = batch.Set(blockKey(b.digest, m.h.cid), at.encode(), nil)
			}
			if err != nil {
				return nil, err
			}
		}
	}
	for id, o := range objects {
		if err := s.putSharer(batch, id, o); err != nil {
			return nil, err
		}
	}
	return broken, s.apply(batch, pebble.Sync)
}

// sharer is an object whose list of shared leaves changes.
type sharer struct {
	rec    record
	cuts   unixfs.Cuts
	shared bitmap
}

func (s *Store) sharer(known map[cid.Cid]*sharer, c cid.Cid) (*sharer, error) {
	if o := known[c]; o != nil {
		return o, nil
	}
	rec, err := s.record(c)
	if err != nil {
		return nil, err
	}
	o := &sharer{rec: rec}
	if o.cuts, err = s.cuts(c, rec); err == nil {
		o.shared, err = s.sharedBits(c, rec)
	}
	if err != nil {
		return nil, err
	}
	if o.shared == nil {
		o.shared = newBitmap(rec.blocks())
	}
	known[c] = o
	return o, nil
}

// turn notes that a leaf is now in the object's own file, or is no longer.
func (o *sharer) turn(at place, holds bool) {
	i := o.cuts.LeafAt(int64(at.offset))
	if holds {
		o.shared.clear(i)
		o.rec.Shared -= int64(at.length)
		o.rec.End = max(o.rec.End, int64(at.offset+at.length))
		return
	}
	if o.rec.Shared == 0 {
		o.rec.End = o.rec.Size // its file is as long as ever
	}
	o.shared.set(i)
	o.rec.Shared += int64(at.length)
}

func (s *Store) putSharer(batch *pebble.Batch, c cid.Cid, o *sharer) error {
	s.changed(c)
	if o.rec.Shared == 0 {
		o.rec.End = 0
		return errors.Join(s.putRecord(batch, c, o.rec), batch.Delete(cidKey(keyShared, c), nil))
	}
	return errors.Join(s.putRecord(batch, c, o.rec), batch.Set(cidKey(keyShared, c), o.shared, nil))
}
