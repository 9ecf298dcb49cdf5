package storage

import (
	"encoding/binary"
	"fmt"

	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/storage/unixfs"
)

// encodeCuts packs the sizes of leaves that differ, two or three bytes for each.
func encodeCuts(c unixfs.Cuts) []byte {
	b := make([]byte, 0, 3*len(c.Ends))
	for i := range c.Ends {
		b = binary.AppendUvarint(b, uint64(c.LeafSize(i)))
	}
	return b
}

// decodeCuts unpacks the sizes of count leaves.
func decodeCuts(b []byte, count int) (unixfs.Cuts, error) {
	if count < 1 || count > unixfs.MaxLeaves || count > len(b) {
		return unixfs.Cuts{}, fmt.Errorf("storage: %d leaf sizes in %d bytes: %w", count, len(b), ErrCorrupt)
	}
	ends := make([]int64, count)
	at := int64(0)
	for i := range ends {
		size, n := binary.Uvarint(b)
		if n <= 0 || size > unixfs.MaxBlock {
			return unixfs.Cuts{}, fmt.Errorf("storage: size of leaf %d: %w", i, ErrCorrupt)
		}
		b = b[n:]
		at += int64(size)
		ends[i] = at
	}
	cuts, err := unixfs.CutAt(ends)
	if err != nil || len(b) > 0 {
		return cuts, fmt.Errorf("storage: leaf sizes and %d bytes more: %w", len(b), ErrCorrupt)
	}
	return cuts, nil
}

// cuts returns where the leaves of an object begin and end.
func (s *Store) cuts(c cid.Cid, rec record) (unixfs.Cuts, error) {
	if rec.Leaves == 0 {
		return rec.fixed(), nil
	}
	b, err := s.get(cidKey(keyCuts, c))
	if err != nil {
		return unixfs.Cuts{}, fmt.Errorf("storage: %s: leaf sizes: %w: %w", c, ErrCorrupt, err)
	}
	cuts, err := decodeCuts(b, rec.Leaves)
	if err == nil && cuts.Size != rec.Size {
		err = fmt.Errorf("storage: leaves of %d bytes, the object has %d: %w", cuts.Size, rec.Size, ErrCorrupt)
	}
	if err != nil {
		return cuts, fmt.Errorf("%s: %w", c, err)
	}
	return cuts, nil
}
