package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/cockroachdb/pebble/v2"
	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/storage/unixfs"
)

// Stopped is what an unfinished fetch that nobody goes on with has brought. It holds nothing open and keeps nothing from a
// collection. Methods are safe for concurrent use.
type Stopped struct {
	s      *Store
	layout *unixfs.Layout
	bits   bitmap // durable in the file
	shared bitmap // in other objects
	path   string
}

// OpenStopped returns the unfinished fetch of a file. [ErrNotFound] means that there is none, [ErrBusy] that it is under way.
func (s *Store) OpenStopped(ctx context.Context, root cid.Cid) (*Stopped, error) {
	if err := errors.Join(ctx.Err(), checkCID(root)); err != nil {
		return nil, err
	}
	if s.isActive(root) {
		return nil, fmt.Errorf("storage: %s: %w", root, ErrBusy)
	}
	rec, err := s.partial(root)
	if err != nil {
		return nil, fmt.Errorf("storage: fetch of %s: %w", root, err)
	}
	nodes := map[cid.Cid][]byte{}
	err = s.each(ctx, cidKey(keyFetched, root), func(_, value []byte) error {
		nodes[unixfs.NodeCID(value)] = append([]byte(nil), value...)
		return nil
	})
	if err != nil {
		return nil, err
	}
	layout, err := unixfs.Resolve(root, func(c cid.Cid) ([]byte, error) {
		if node := nodes[c]; node != nil {
			return node, nil
		}
		return nil, ErrNotFound // of a version that did not keep them, until it is resumed
	})
	if err != nil {
		return nil, fmt.Errorf("storage: fetch of %s: %w", root, err)
	}
	if n := len(layout.Leaves); !bitmap(rec.Bits).fits(n) || rec.Shared != nil && !bitmap(rec.Shared).fits(n) {
		return nil, fmt.Errorf("storage: fetch of %s: %w", root, brokenProgress())
	}
	_, path := s.partialPath(root)
	return &Stopped{s: s, layout: layout, bits: rec.Bits, shared: rec.Shared, path: path}, nil
}

// Layout describes the file. It must not be changed.
func (p *Stopped) Layout() *unixfs.Layout { return p.layout }

// Has reports whether block i was here when the fetch stopped.
func (p *Stopped) Has(i int) bool {
	return i >= 0 && i < len(p.layout.Leaves) && (p.bits.has(i) || p.shared.has(i))
}

// Block reads a block that is here into the front of dst, which must be large enough, verifies it and returns it. One that is
// not is [ErrNotFound], and so is one that went with a collection; once the fetch goes on or has ended, every block is [fs.ErrClosed].
func (p *Stopped) Block(i int, dst []byte) ([]byte, error) {
	root := p.layout.Root
	if !p.Has(i) {
		return nil, fmt.Errorf("storage: %s block %d has not arrived: %w", root, i, ErrNotFound)
	}
	size := p.layout.LeafSize(i)
	if int64(len(dst)) < size {
		return nil, fmt.Errorf("storage: %s block %d: %d bytes do not fit %d: %w", root, i, size, len(dst), io.ErrShortBuffer)
	}
	if _, err := p.s.get(cidKey(keyPartial, root)); err != nil || p.s.isActive(root) {
		return nil, fmt.Errorf("storage: %s block %d: %w", root, i, errors.Join(fs.ErrClosed, ignoreMissing(err)))
	}
	dst = dst[:size]
	err := p.read(i, dst)
	if err != nil {
		clear(dst)
		return nil, fmt.Errorf("storage: %s block %d: %w", root, i, err)
	}
	return dst, nil
}

func (p *Stopped) read(i int, dst []byte) error {
	d := p.layout.Leaves[i]
	if p.shared.has(i) {
		_, err := p.s.find(d, dst)
		return err
	}
	f, err := p.s.fs.Open(p.path)
	if errors.Is(err, fs.ErrNotExist) {
		return ErrNotFound
	}
	if err != nil {
		return err
	}
	n, err := f.ReadAt(dst, p.layout.LeafOffset(i))
	if err = errors.Join(notEOF(err), f.Close()); err == nil && unixfs.Sum(dst[:n]) != d {
		err = ErrCorrupt
	}
	return err
}

// keepNodes writes the interior nodes of a fetch into the index, where [Store.OpenStopped] finds them. What is written to the index
// after it makes it durable.
func (p *Partial) keepNodes() error {
	s, root := p.s, p.layout.Root
	if _, err := s.get(numberedKey(keyFetched, root, len(p.layout.Nodes)-1)); !errors.Is(err, ErrNotFound) {
		return err // they are there
	}
	for i, n := range p.layout.Nodes {
		if err := s.set(numberedKey(keyFetched, root, i), n.Data, pebble.NoSync); err != nil {
			return err
		}
	}
	return nil
}

// unlistFetch writes the end of a fetch into the batch.
func (s *Store) unlistFetch(batch *pebble.Batch, c cid.Cid) error {
	err := s.each(context.Background(), cidKey(keyFetched, c), func(key, _ []byte) error {
		return batch.Delete(append(cidKey(keyFetched, c), key...), nil)
	})
	return errors.Join(err, batch.Delete(cidKey(keyPartial, c), nil))
}
