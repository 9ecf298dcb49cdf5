package storage

import (
	"context"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/storage/unixfs"
)

// BlockSize returns the bytes of one block, whichever object holds it, without reading it. A block that nothing but damaged
// objects hold is [ErrNotFound].
func (s *Store) BlockSize(ctx context.Context, c cid.Cid) (int64, error) {
	digest, err := unixfs.DigestOf(c)
	if err != nil {
		return 0, err
	}
	size := int64(-1)
	err = s.each(ctx, append([]byte{keyBlock}, digest[:]...), func(key, value []byte) error {
		if size >= 0 {
			return nil
		}
		owner, err := cid.Cast(key)
		if err != nil {
			return fmt.Errorf("storage: index key: %w", err)
		}
		where, err := decodePlace(value)
		if err != nil || where.codec(owner) != c.Type() || where.kind == placeShared {
			return err
		}
		rec, err := s.record(owner)
		switch {
		case errors.Is(err, ErrNotFound): // removed meanwhile
			return nil
		case err == nil && (where.kind == placeNode || !rec.Damaged):
			size = int64(where.length)
		}
		return err
	})
	if err == nil && size < 0 {
		err = fmt.Errorf("storage: block %s: %w", c, ErrNotFound)
	}
	return size, err
}

// Discard closes the partial and forgets what has arrived.
func (p *Partial) Discard() error {
	err := p.Close()
	gone, derr := p.s.forget(p.layout.Root)
	p.s.unfile(gone)
	return errors.Join(err, derr)
}

// forget takes an unfinished fetch that nobody works on out of the index.
func (s *Store) forget(c cid.Cid) ([]removal, error) {
	s.gate.Lock()
	defer s.gate.Unlock()
	defer s.lockStripes()()
	batch := s.db.NewBatch()
	defer batch.Close()
	one, err := s.unlist(batch, candidate{cid: c, partial: true})
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	if err == nil {
		s.changed(c)
		err = s.apply(batch, pebble.Sync)
	}
	if err != nil {
		return nil, fmt.Errorf("storage: discard the fetch of %s: %w", c, s.diskError(err))
	}
	return []removal{one}, nil
}
