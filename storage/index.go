package storage

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/p2p/wire"
	"github.com/capacloud/capanode/storage/unixfs"
)

// Key spaces of the index. Every CID in a key has cidLen bytes, so that prefixes never overlap.
const (
	keyObject  = 'o' // cid → record
	keyValue   = 'v' // cid → bytes of an inline object
	keyLeaves  = 'l' // cid, chunk number → up to leafChunk digests
	keyNode    = 'n' // cid, node number → interior dag-pb node of a file
	keyBlock   = 'b' // digest, cid → where in that object the block is
	keyPin     = 'p' // name → cid
	keyPartial = 't' // cid → partialRecord
	keyUse     = 'u' // cid → LRU clock
	keyMeta    = 'm' // name → value

	cidLen    = 36
	leafChunk = 1024
)

// record is the index entry of a complete object.
type record struct {
	Kind      Kind  `cbor:"kind"`
	Class     Class `cbor:"class"`
	Damaged   bool  `cbor:"damaged,omitempty"`
	Inline    bool  `cbor:"inline,omitempty"`
	Size      int64 `cbor:"size"`
	BlockSize int64 `cbor:"block"`
	Nodes     int   `cbor:"nodes,omitempty"`
	NodeBytes int64 `cbor:"nodebytes,omitempty"`
	Created   int64 `cbor:"created"` // unix seconds
}

// charge is what the object costs of the quota.
func (r record) charge() int64 { return r.Size + r.NodeBytes }

func (r record) blocks() int {
	if r.Kind != File {
		return 1
	}
	return int((r.Size + r.BlockSize - 1) / r.BlockSize)
}

func (r record) info(c cid.Cid) Info {
	return Info{
		CID: c, Kind: r.Kind, Class: r.Class, Size: r.Size, Blocks: r.blocks(),
		Created: time.Unix(r.Created, 0).UTC(), Damaged: r.Damaged,
	}
}

// place says where in an object a block is.
type place struct {
	kind   byte // placeLeaf, placeNode or placeWhole
	offset uint64
	length uint64
}

const (
	placeLeaf  = 1 // offset bytes into the content
	placeNode  = 2 // interior node number offset
	placeWhole = 3 // the object is this block
)

func (p place) encode() []byte {
	b := []byte{p.kind}
	b = binary.AppendUvarint(b, p.offset)
	return binary.AppendUvarint(b, p.length)
}

func decodePlace(b []byte) (place, error) {
	if len(b) > 0 {
		offset, n := binary.Uvarint(b[1:])
		if n > 0 {
			length, m := binary.Uvarint(b[1+n:])
			if m > 0 {
				return place{b[0], offset, length}, nil
			}
		}
	}
	return place{}, fmt.Errorf("storage: block index entry of %d bytes: %w", len(b), ErrCorrupt)
}

func cidKey(space byte, c cid.Cid) []byte { return append([]byte{space}, c.KeyString()...) }

func numberedKey(space byte, c cid.Cid, n int) []byte {
	return binary.BigEndian.AppendUint32(cidKey(space, c), uint32(n))
}

func blockKey(d unixfs.Digest, c cid.Cid) []byte {
	key := append([]byte{keyBlock}, d[:]...)
	return append(key, c.KeyString()...)
}

// after returns the smallest key greater than every key with the prefix.
func after(prefix []byte) []byte {
	end := append([]byte(nil), prefix...)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i]++; end[i] != 0 {
			return end[:i+1]
		}
	}
	return nil
}

// checkCID refuses CIDs that no object of this store can have.
func checkCID(c cid.Cid) error {
	if _, err := unixfs.DigestOf(c); err != nil {
		return err
	}
	switch c.Type() {
	case cid.Raw, cid.DagProtobuf, cid.DagCBOR:
		return nil
	}
	return fmt.Errorf("storage: %s has codec 0x%x: %w", c, c.Type(), unixfs.ErrUnsupported)
}

// get copies one value out of the index.
func (s *Store) get(key []byte) ([]byte, error) {
	v, closer, err := s.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("storage: index: %w", err)
	}
	out := append([]byte(nil), v...)
	return out, closer.Close()
}

func (s *Store) record(c cid.Cid) (record, error) {
	var rec record
	if err := checkCID(c); err != nil {
		return rec, err
	}
	b, err := s.get(cidKey(keyObject, c))
	if err != nil {
		return rec, fmt.Errorf("storage: %s: %w", c, err)
	}
	if err := wire.Unmarshal(b, &rec); err != nil {
		return rec, fmt.Errorf("storage: %s: %w: %w", c, ErrCorrupt, err)
	}
	return rec, nil
}

// each calls f for every key of one key space, without the leading byte, until f fails.
func (s *Store) each(ctx context.Context, prefix []byte, f func(key, value []byte) error) error {
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: prefix, UpperBound: after(prefix)})
	if err != nil {
		return fmt.Errorf("storage: index: %w", err)
	}
	for it.First(); it.Valid() && err == nil; it.Next() {
		if err = ctx.Err(); err == nil {
			err = f(it.Key()[len(prefix):], it.Value())
		}
	}
	return errors.Join(err, it.Error(), it.Close())
}

func (s *Store) eachRecord(ctx context.Context, f func(cid.Cid, record) error) error {
	return s.each(ctx, []byte{keyObject}, func(key, value []byte) error {
		c, err := cid.Cast(key)
		if err != nil {
			return fmt.Errorf("storage: index key: %w", err)
		}
		var rec record
		if err := wire.Unmarshal(value, &rec); err != nil {
			return fmt.Errorf("storage: %s: %w", c, err)
		}
		return f(c, rec)
	})
}

// newObject is an object on its way into the index. Its bytes are either inline or in a synced temporary file.
type newObject struct {
	cid    cid.Cid
	rec    record
	inline []byte
	temp   string
	layout *unixfs.Layout // files only
	opts   PutOptions
	// charged says that used already counts the object, as it does for a partial; else its charge is reserved.
	charged bool
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
	charge := o.rec.charge()
	added, err := s.prepare(batch, o)
	if err == nil {
		err = batch.Commit(pebble.Sync)
	}
	if err != nil {
		if !o.charged {
			s.discard(o.temp)
			s.settle(0, -charge)
		}
		return Info{}, fmt.Errorf("storage: commit %s: %w", o.cid, s.diskError(err))
	}
	switch {
	case o.charged && !added:
		s.settle(-charge, 0)
	case !o.charged && added:
		s.settle(charge, -charge)
	case !o.charged:
		s.settle(0, -charge)
	}
	if o.opts.Pin != "" || o.rec.Class == Owned || o.rec.Kind == Directory {
		s.rootGen.Add(1)
	}
	if o.opts.keep != nil {
		o.opts.keep(o.cid)
	}
	return o.rec.info(o.cid), nil
}

// prepare moves the object's file into place and fills the batch. It reports whether the store grows by the object.
func (s *Store) prepare(batch *pebble.Batch, o *newObject) (added bool, err error) {
	old, err := s.record(o.cid)
	present := err == nil
	if err != nil && !errors.Is(err, ErrNotFound) {
		return false, err
	}
	if present {
		o.rec.Class = min(old.Class, o.rec.Class)
	}
	if o.opts.Pin != "" {
		if err := batch.Set(pinKey(o.opts.Pin), o.cid.Bytes(), nil); err != nil {
			return false, err
		}
	}
	if !present || old.Damaged {
		if err := s.moveIn(o); err != nil {
			return false, err
		}
		return !present, s.indexObject(batch, o)
	}
	// The same bytes are here already; only what is wanted of them may change.
	s.discard(o.temp)
	old.Class = o.rec.Class
	o.rec = old
	return false, errors.Join(s.putRecord(batch, o.cid, o.rec), batch.Delete(cidKey(keyPartial, o.cid), nil))
}

// settle changes the accounts by bytes in use and bytes reserved.
func (s *Store) settle(used, reserved int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used += used
	s.reserved += reserved
}

// moveIn renames the object's temporary file to its final name, durably.
func (s *Store) moveIn(o *newObject) error {
	if o.rec.Inline {
		return nil
	}
	dir, name := s.objectPath(o.cid)
	if err := s.makeDir(dir); err != nil {
		return err
	}
	if err := s.fs.Rename(o.temp, name); err != nil {
		return err
	}
	return s.syncDir(dir)
}

func (s *Store) putRecord(batch *pebble.Batch, c cid.Cid, rec record) error {
	b, err := wire.Marshal(rec)
	if err != nil {
		return err
	}
	return batch.Set(cidKey(keyObject, c), b, nil)
}

// indexObject writes every entry of the object into the batch.
func (s *Store) indexObject(batch *pebble.Batch, o *newObject) error {
	c := o.cid
	use := binary.BigEndian.AppendUint64(nil, s.useSeq.Add(1))
	errs := []error{
		s.putRecord(batch, c, o.rec),
		batch.Set(cidKey(keyUse, c), use, nil),
		batch.Delete(cidKey(keyPartial, c), nil),
	}
	if o.rec.Inline {
		errs = append(errs, batch.Set(cidKey(keyValue, c), o.inline, nil))
	}
	if o.layout == nil {
		d, err := unixfs.DigestOf(c)
		whole := place{placeWhole, 0, uint64(o.rec.Size)}
		return errors.Join(append(errs, err, batch.Set(blockKey(d, c), whole.encode(), nil))...)
	}
	for i, n := range o.layout.Nodes {
		d, err := unixfs.DigestOf(n.CID)
		where := place{placeNode, uint64(i), uint64(len(n.Data))}
		errs = append(errs, err,
			batch.Set(numberedKey(keyNode, c, i), n.Data, nil),
			batch.Set(blockKey(d, c), where.encode(), nil))
	}
	leaves := o.layout.Leaves
	for i := 0; i < len(leaves); i += leafChunk {
		var chunk []byte
		for j, d := range leaves[i:min(i+leafChunk, len(leaves))] {
			chunk = append(chunk, d[:]...)
			where := place{placeLeaf, uint64(int64(i+j) * o.rec.BlockSize), uint64(o.layout.LeafSize(i + j))}
			errs = append(errs, batch.Set(blockKey(d, c), where.encode(), nil))
		}
		errs = append(errs, batch.Set(numberedKey(keyLeaves, c, i/leafChunk), chunk, nil))
	}
	return errors.Join(errs...)
}

// leafChunkOf returns the digests of one chunk of a file's leaves.
func (s *Store) leafChunkOf(c cid.Cid, chunk int) ([]unixfs.Digest, error) {
	b, err := s.get(numberedKey(keyLeaves, c, chunk))
	if err != nil || len(b)%len(unixfs.Digest{}) != 0 {
		return nil, fmt.Errorf("storage: %s: leaf table %d: %w", c, chunk, errors.Join(ErrCorrupt, err))
	}
	out := make([]unixfs.Digest, len(b)/len(unixfs.Digest{}))
	for i := range out {
		copy(out[i][:], b[i*len(out[i]):])
	}
	return out, nil
}

// unindex writes the removal of every entry of the object into the batch. Pins are left alone.
func (s *Store) unindex(batch *pebble.Batch, c cid.Cid, rec record) error {
	errs := []error{
		batch.Delete(cidKey(keyObject, c), nil),
		batch.Delete(cidKey(keyUse, c), nil),
		batch.Delete(cidKey(keyValue, c), nil),
	}
	if rec.Kind != File {
		d, err := unixfs.DigestOf(c)
		return errors.Join(append(errs, err, batch.Delete(blockKey(d, c), nil))...)
	}
	for chunk := 0; chunk*leafChunk < rec.blocks(); chunk++ {
		leaves, err := s.leafChunkOf(c, chunk)
		errs = append(errs, err)
		for _, d := range leaves {
			errs = append(errs, batch.Delete(blockKey(d, c), nil))
		}
		errs = append(errs, batch.Delete(numberedKey(keyLeaves, c, chunk), nil))
	}
	for i := range rec.Nodes {
		if b, err := s.get(numberedKey(keyNode, c, i)); err == nil {
			errs = append(errs, batch.Delete(blockKey(unixfs.Sum(b), c), nil))
		}
		errs = append(errs, batch.Delete(numberedKey(keyNode, c, i), nil))
	}
	return errors.Join(errs...)
}

// touch moves the object to the recent end of the LRU order. Losing it in a crash is harmless, so it is not synced.
func (s *Store) touch(c cid.Cid) error {
	use := binary.BigEndian.AppendUint64(nil, s.useSeq.Add(1))
	return s.db.Set(cidKey(keyUse, c), use, pebble.NoSync)
}

func (s *Store) checkVersion() error {
	key := append([]byte{keyMeta}, "version"...)
	b, err := s.get(key)
	if errors.Is(err, ErrNotFound) {
		if err := s.checkFresh(); err != nil {
			return err
		}
		return s.db.Set(key, []byte{formatVersion}, pebble.Sync)
	}
	if err != nil {
		return err
	}
	if len(b) != 1 || b[0] != formatVersion {
		return fmt.Errorf("store format %x, this program reads %d: update the program", b, formatVersion)
	}
	return nil
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
