package storage

import (
	"context"
	"errors"
	"fmt"

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
		if err != nil || where.codec(owner) != c.Type() {
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
	p.s.gate.Lock()
	defer p.s.gate.Unlock()
	_, gone := p.s.remove([]candidate{{cid: p.layout.Root, partial: true}})
	return errors.Join(err, gone)
}
