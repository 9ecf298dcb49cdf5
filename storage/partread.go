package storage

import (
	"fmt"
	"io"
	"io/fs"
	"slices"

	"github.com/capacloud/capanode/storage/unixfs"
)

// Has reports whether block i is here: it has arrived, or another object has it.
func (p *Partial) Has(i int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.has(i)
}

// has is called with mu held.
func (p *Partial) has(i int) bool {
	if i < 0 || i >= len(p.layout.Leaves) {
		return false
	}
	i = p.first(i)
	return p.bits.has(i) || p.shared.has(i)
}

// first returns the block of the file that block i repeats, or i.
func (p *Partial) first(i int) int {
	if !p.twins.has(i) {
		return i
	}
	return slices.Index(p.layout.Leaves, p.layout.Leaves[i])
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
	i = p.first(i)
	size := p.layout.LeafSize(i)
	if int64(len(dst)) < size {
		return nil, fmt.Errorf("storage: %s block %d: %d bytes do not fit %d: %w", p.layout.Root, i, size, len(dst), io.ErrShortBuffer)
	}
	dst = dst[:size]
	if p.shared.has(i) {
		return p.lent(i, dst)
	}
	n, err := p.file.ReadAt(dst, p.layout.LeafOffset(i))
	if err != nil && err != io.EOF {
		return nil, fmt.Errorf("storage: %s block %d: %w", p.layout.Root, i, err)
	}
	if unixfs.Sum(dst[:n]) == p.layout.Leaves[i] {
		return dst, nil
	}
	clear(dst)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bits.has(i) && !p.closed {
		p.bits.clear(i)
		p.missing++
	}
	return nil, fmt.Errorf("storage: %s block %d: %w", p.layout.Root, i, ErrCorrupt)
}

// lent reads a block that another object has.
func (p *Partial) lent(i int, dst []byte) ([]byte, error) {
	if _, err := p.s.find(p.layout.Leaves[i], dst); err != nil {
		clear(dst)
		return nil, fmt.Errorf("storage: %s block %d, shared with another object: %w", p.layout.Root, i, err)
	}
	return dst, nil
}
