package storage

import (
	"context"
	"fmt"

	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/storage/unixfs"
)

// Compare returns the content bytes of an object with everything below it, and how many of them are in blocks that the
// object before has as well. An undefined before has nothing; nor has what of it is not here. It reads no content.
func (s *Store) Compare(ctx context.Context, c, before cid.Cid) (size, shared int64, err error) {
	known := map[unixfs.Digest]bool{}
	if before.Defined() {
		err := s.eachBlock(ctx, before, 0, func(d unixfs.Digest, _ int64) { known[d] = true })
		if err != nil && ctx.Err() != nil {
			return 0, 0, ctx.Err()
		}
	}
	err = s.eachBlock(ctx, c, 0, func(d unixfs.Digest, n int64) {
		size += n
		if known[d] {
			shared += n
		}
	})
	if err != nil {
		return 0, 0, fmt.Errorf("storage: compare %s: %w", c, err)
	}
	return size, shared, nil
}

// eachBlock calls f with the digest and size of every block of content below an object.
func (s *Store) eachBlock(ctx context.Context, c cid.Cid, depth int, f func(unixfs.Digest, int64)) error {
	if err := ctx.Err(); err != nil || depth > maxFolderDepth {
		return err
	}
	rec, err := s.record(c)
	if err != nil {
		return err
	}
	switch rec.Kind {
	case Directory:
		node, err := s.directory(ctx, c)
		if err != nil {
			return err
		}
		for _, l := range node.Links {
			if err := s.eachBlock(ctx, l.CID, depth+1, f); err != nil {
				return err
			}
		}
		return nil
	case File:
		return s.eachLeaf(c, rec, f)
	}
	d, err := unixfs.DigestOf(c)
	if err == nil {
		f(d, rec.Size)
	}
	return err
}

// eachLeaf calls f for the leaves of one file.
func (s *Store) eachLeaf(c cid.Cid, rec record, f func(unixfs.Digest, int64)) error {
	cuts, err := s.cuts(c, rec)
	if err != nil {
		return err
	}
	for i := 0; i < rec.blocks(); i += leafChunk {
		leaves, err := s.leafChunkOf(c, i/leafChunk)
		if err != nil {
			return err
		}
		for j, d := range leaves[:min(len(leaves), rec.blocks()-i)] {
			f(d, cuts.LeafSize(i+j))
		}
	}
	return nil
}
