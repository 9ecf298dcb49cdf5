package storage

import (
	"fmt"
	"io"
	"io/fs"

	"github.com/capacloud/capanode/storage/unixfs"
)

// Has reports whether block i has arrived.
func (p *Partial) Has(i int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.has(i)
}

// has is called with mu held.
func (p *Partial) has(i int) bool {
	return i >= 0 && i < len(p.layout.Leaves) && p.bits[i/8]&(1<<(i%8)) != 0
}

// Block reads a block that has arrived into the front of dst, which must be large enough, verifies it and returns it. One that
// has not arrived is [ErrNotFound]; after Commit or Close every block is [fs.ErrClosed]. One that does not match any more is
// [ErrCorrupt] and counts as missing again, so that a later fetch brings it.
func (p *Partial) Block(i int, dst []byte) ([]byte, error) {
	p.mu.Lock()
	switch {
	case p.closed:
		p.mu.Unlock()
		return nil, fmt.Errorf("storage: %s block %d: %w", p.layout.Root, i, fs.ErrClosed)
	case !p.has(i):
		p.mu.Unlock()
		return nil, fmt.Errorf("storage: %s block %d has not arrived: %w", p.layout.Root, i, ErrNotFound)
	}
	p.work.Add(1)
	defer p.work.Done()
	p.mu.Unlock()
	size := p.layout.LeafSize(i)
	if int64(len(dst)) < size {
		return nil, fmt.Errorf("storage: %s block %d: %d bytes do not fit %d: %w", p.layout.Root, i, size, len(dst), io.ErrShortBuffer)
	}
	dst = dst[:size]
	n, err := p.file.ReadAt(dst, int64(i)*p.layout.BlockSize)
	if err != nil && err != io.EOF {
		return nil, fmt.Errorf("storage: %s block %d: %w", p.layout.Root, i, err)
	}
	if unixfs.Sum(dst[:n]) == p.layout.Leaves[i] {
		return dst, nil
	}
	clear(dst)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.has(i) && !p.closed {
		p.bits[i/8] &^= 1 << (i % 8)
		p.missing++
	}
	return nil, fmt.Errorf("storage: %s block %d: %w", p.layout.Root, i, ErrCorrupt)
}
