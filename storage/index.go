package storage

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
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
	keyCuts    = 'e' // cid → sizes of a file's leaves, where they differ
	keyShared  = 's' // cid → bitmap of the leaves whose bytes are in another place
	keyNode    = 'n' // cid, node number → interior dag-pb node of a file
	keyBlock   = 'b' // digest, cid → where in that object the block is
	keyPin     = 'p' // name → cid, and the end of a lease
	keyPartial = 't' // cid → partialRecord
	keyFetched = 'f' // cid, node number → interior node of an unfinished fetch
	keyUse     = 'u' // cid → LRU clock
	keyMeta    = 'm' // name → value
	keyPath    = 'x' // path of a file in place → cid of the object that it is

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
	BlockSize int64 `cbor:"block"`            // of every leaf but the last; 0 when they differ
	Leaves    int   `cbor:"leaves,omitempty"` // their number when they differ in size
	Shared    int64 `cbor:"shared,omitempty"` // content bytes that are not in the object's own file
	End       int64 `cbor:"end,omitempty"`    // where its own file must at least reach, when Shared is not 0
	Nodes     int   `cbor:"nodes,omitempty"`
	NodeBytes int64 `cbor:"nodebytes,omitempty"`
	Created   int64 `cbor:"created"` // unix seconds

	External *external `cbor:"external,omitempty"` // where a file in place lies; nil when the store has the bytes itself
}

// charge is what the object costs of the quota: files in place only what the store keeps beside them, and no leaf that another
// object pays for.
func (r record) charge() int64 {
	if r.External != nil {
		return r.NodeBytes
	}
	return r.Size + r.NodeBytes - r.Shared
}

// filed tells whether the object's bytes are in a file of the store.
func (r record) filed() bool { return !r.Inline && r.External == nil }

func (r record) blocks() int {
	switch {
	case r.Kind != File:
		return 1
	case r.Leaves > 0:
		return r.Leaves
	}
	return r.fixed().Count()
}

// fixed returns the cuts of an object whose leaves have one size.
func (r record) fixed() unixfs.Cuts { return unixfs.Cuts{Size: r.Size, BlockSize: r.BlockSize} }

// info describes an object. A file in place is looked at: it may have gone.
func (s *Store) info(c cid.Cid, r record) Info {
	out := Info{
		CID: c, Kind: r.Kind, Class: r.Class, Size: r.Size, Shared: r.Shared, Blocks: r.blocks(),
		Created: time.Unix(r.Created, 0).UTC(), Damaged: r.Damaged,
	}
	if r.External != nil {
		out.Class, out.Path = External, string(r.External.Path)
		out.Damaged = r.Damaged || s.compare(r) > touched
	}
	return out
}

// place says where in an object a block is.
type place struct {
	kind   byte
	offset uint64
	length uint64
}

const (
	placeLeaf    = 1 // offset bytes into the content
	placeNode    = 2 // interior node number offset
	placeWhole   = 3 // the object is this block
	placeShared  = 4 // as placeLeaf, but the bytes are not here: another object's placeLeaf has them
	placeOutside = 5 // as placeLeaf, in a file in place: nobody shares it, as it may go at any time
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
	return s.decodeRecord(c, b), nil
}

// decodeRecord reads an index entry. One that cannot be read is that of a damaged object of which nothing is known: it is kept and
// reported until it is put or fetched again, or deleted.
func (s *Store) decodeRecord(c cid.Cid, b []byte) record {
	var rec record
	if err := wire.Unmarshal(b, &rec); err == nil && rec.Size >= 0 && rec.NodeBytes >= 0 && (rec.Kind != File || rec.BlockSize > 0 || rec.Leaves > 0) {
		return rec
	}
	s.log.Error("an entry of the index cannot be read", "cid", c)
	rec = record{Kind: Block, Class: Owned, Damaged: true}
	switch c.Type() {
	case cid.DagCBOR:
		rec.Kind = Record
	case cid.DagProtobuf: // a file or a folder; a fetch finds out
		rec.Kind, rec.BlockSize = File, unixfs.BlockSize
	}
	return rec
}

// each calls f for every key of one key space, without the leading byte, until f fails.
func (s *Store) each(ctx context.Context, prefix []byte, f func(key, value []byte) error) error {
	return s.eachFrom(ctx, prefix, nil, f)
}

// eachFrom is each for the keys that are not below from.
func (s *Store) eachFrom(ctx context.Context, prefix, from []byte, f func(key, value []byte) error) error {
	lower := append(append([]byte(nil), prefix...), from...)
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: after(prefix)})
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
	return s.eachRecordFrom(ctx, nil, f)
}

func (s *Store) eachRecordFrom(ctx context.Context, from []byte, f func(cid.Cid, record) error) error {
	return s.eachFrom(ctx, []byte{keyObject}, from, func(key, value []byte) error {
		c, err := cid.Cast(key)
		if err != nil {
			return fmt.Errorf("storage: index key: %w", err)
		}
		return f(c, s.decodeRecord(c, value))
	})
}

// indexObject writes every entry of the object into the batch.
func (s *Store) indexObject(batch *pebble.Batch, o *newObject) error {
	c := o.cid
	s.untouch(c)
	use := binary.BigEndian.AppendUint64(nil, s.useSeq.Add(1))
	errs := []error{
		s.putRecord(batch, c, o.rec),
		batch.Set(cidKey(keyUse, c), use, nil),
		batch.Delete(cidKey(keyPartial, c), nil),
	}
	if o.rec.Inline {
		errs = append(errs, batch.Set(cidKey(keyValue, c), o.inline, nil))
	}
	if o.rec.External != nil {
		errs = append(errs, batch.Set(pathKey(o.rec.External.Path), c.Bytes(), nil))
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
	if o.layout.Ends != nil {
		errs = append(errs, batch.Set(cidKey(keyCuts, c), encodeCuts(o.layout.Cuts), nil))
	}
	return errors.Join(append(errs, s.indexLeaves(batch, o))...)
}

// indexLeaves writes the leaf table of a file and the place of each leaf into the batch.
func (s *Store) indexLeaves(batch *pebble.Batch, o *newObject) error {
	c, leaves := o.cid, o.layout.Leaves
	errs := []error{batch.Delete(cidKey(keyShared, c), nil)} // of a damaged object that this one replaces
	if o.shared != nil {
		errs = append(errs, batch.Set(cidKey(keyShared, c), o.shared, nil))
		s.sharing.Store(true)
	}
	own := o.ownDigests()
	for i := 0; i < len(leaves); i += leafChunk {
		var chunk []byte
		for j, d := range leaves[i:min(i+leafChunk, len(leaves))] {
			chunk = append(chunk, d[:]...)
			where := place{placeLeaf, uint64(o.layout.LeafOffset(i + j)), uint64(o.layout.LeafSize(i + j))}
			if o.rec.External != nil {
				where.kind = placeOutside
			}
			if o.shared.has(i + j) {
				if own[d] {
					continue // the same leaf is here at another place
				}
				where.kind = placeShared
			}
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

// unindex writes the removal of every entry of the object into the batch, and of none that cannot be there: each one costs the
// index as much as an entry. Pins are left alone.
func (s *Store) unindex(batch *pebble.Batch, c cid.Cid, rec record) error {
	s.untouch(c)
	errs := []error{batch.Delete(cidKey(keyObject, c), nil), batch.Delete(cidKey(keyUse, c), nil)}
	if rec.Inline {
		errs = append(errs, batch.Delete(cidKey(keyValue, c), nil))
	}
	if rec.External != nil {
		errs = append(errs, s.forgetPath(batch, c, rec.External.Path))
	}
	if rec.Kind != File {
		d, err := unixfs.DigestOf(c)
		return errors.Join(append(errs, err, batch.Delete(blockKey(d, c), nil))...)
	}
	errs = append(errs, batch.Delete(cidKey(keyCuts, c), nil), batch.Delete(cidKey(keyShared, c), nil))
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
