package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/storage/unixfs"
)

// Reader reads one object. Each block is hashed before a byte of it is returned. It is safe for concurrent use; calls take
// turns. The object stays readable until Close even if it is deleted; one that shares leaves with another object only until both
// are.
type Reader struct {
	s      *Store
	cid    cid.Cid
	rec    record
	cuts   unixfs.Cuts
	shared bitmap   // leaves that are not in file
	free   func()   // of the hold that keeps the shared leaves here
	file   vfs.File // nil when the object is inline
	inline []byte

	mu      sync.Mutex // guards the cursor
	pos     int64
	buf     *[unixfs.BlockSize]byte
	current int // verified block in buf, -1 for none

	table  sync.Mutex // guards the part of the leaf table that is loaded
	leaves []unixfs.Digest
	chunk  int // chunk in leaves, -1 for none
}

var (
	_ io.ReadSeekCloser = (*Reader)(nil)
	_ io.ReaderAt       = (*Reader)(nil)
)

// Open opens an object's content: the bytes of a file or the encoding of a record. Folders are [ErrWrongKind].
func (s *Store) Open(ctx context.Context, c cid.Cid) (*Reader, error) {
	rec, err := s.record(c)
	if err != nil {
		return nil, err
	}
	if rec.Kind == Directory {
		return nil, fmt.Errorf("storage: open %s: it is a folder: %w", c, ErrWrongKind)
	}
	r, err := s.openRecord(ctx, c, rec)
	if err != nil {
		return nil, err
	}
	return r, s.touch(c)
}

func (s *Store) openRecord(ctx context.Context, c cid.Cid, rec record) (*Reader, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if rec.Damaged {
		why := ErrCorrupt
		if rec.External != nil {
			why = errChanged()
		}
		return nil, fmt.Errorf("storage: open %s: %w", c, why)
	}
	r := &Reader{s: s, cid: c, rec: rec, current: -1, chunk: -1}
	var err error
	if r.cuts, err = s.cuts(c, rec); err != nil {
		return nil, err
	}
	if r.shared, err = s.sharedBits(c, rec); err != nil {
		return nil, err
	}
	switch {
	case rec.Inline:
		if r.inline, err = s.get(cidKey(keyValue, c)); err == nil {
			err = r.verify(0, r.inline)
		}
	case rec.External != nil:
		r.file, err = s.openExternal(c, rec)
	default:
		_, name := s.objectPath(c)
		if r.file, err = s.fs.Open(name); errors.Is(err, fs.ErrNotExist) {
			if _, gone := s.record(c); gone != nil {
				return nil, gone // deleted since
			}
			err = fmt.Errorf("%w: %w", s.damaged(c, rec), err)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("storage: open %s: %w", c, err)
	}
	if r.shared != nil {
		r.free = s.Hold(c)
	}
	return r, nil
}

// ReadAll returns the whole content of an object of at most limit bytes; a larger one is [ErrTooLarge].
func (s *Store) ReadAll(ctx context.Context, c cid.Cid, limit int64) ([]byte, error) {
	r, err := s.Open(ctx, c)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if r.Size() > limit {
		return nil, fmt.Errorf("storage: read %s: %d bytes, limit %d: %w", c, r.Size(), limit, ErrTooLarge)
	}
	out := make([]byte, r.Size())
	for i := range r.Blocks() {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if _, err := r.Block(i, out[r.cuts.LeafOffset(i):]); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Size returns the content bytes.
func (r *Reader) Size() int64 { return r.rec.Size }

// Blocks returns the number of leaves: one for everything but a file of several leaves.
func (r *Reader) Blocks() int { return r.rec.blocks() }

// Cuts says where the leaves begin and end.
func (r *Reader) Cuts() unixfs.Cuts { return r.cuts }

// BlockSize returns the content bytes of leaf i.
func (r *Reader) BlockSize(i int) int64 {
	return r.cuts.LeafSize(i)
}

// Block reads leaf i into the front of dst, which must be large enough, verifies it and returns it. On an error dst holds
// nothing of use.
func (r *Reader) Block(i int, dst []byte) ([]byte, error) {
	r.s.reads.Add(1)
	return r.block(i, dst)
}

func (r *Reader) block(i int, dst []byte) ([]byte, error) {
	if i < 0 || i >= r.Blocks() {
		return nil, fmt.Errorf("storage: %s has %d blocks, not block %d: %w", r.cid, r.Blocks(), i, ErrNotFound)
	}
	size := r.BlockSize(i)
	if int64(len(dst)) < size {
		return nil, fmt.Errorf("storage: %s block %d: %d bytes do not fit %d: %w", r.cid, i, size, len(dst), io.ErrShortBuffer)
	}
	dst = dst[:size]
	if r.file == nil {
		copy(dst, r.inline)
		return dst, nil
	}
	if r.shared.has(i) {
		return r.lent(i, dst)
	}
	n, err := r.file.ReadAt(dst, r.cuts.LeafOffset(i))
	if err != nil && err != io.EOF {
		return nil, fmt.Errorf("storage: %s block %d: %w", r.cid, i, err)
	}
	if err := r.verify(i, dst[:n]); err != nil {
		clear(dst)
		return nil, err
	}
	return dst, nil
}

// verify compares a leaf with its digest and marks the object damaged if they differ.
func (r *Reader) verify(i int, block []byte) error {
	want, err := r.digest(i)
	if err != nil {
		return err
	}
	if unixfs.Sum(block) == want {
		return nil
	}
	return fmt.Errorf("storage: %s block %d: %w", r.cid, i, r.s.damaged(r.cid, r.rec))
}

func (r *Reader) digest(i int) (unixfs.Digest, error) {
	if r.rec.Kind != File {
		return unixfs.DigestOf(r.cid)
	}
	r.table.Lock()
	defer r.table.Unlock()
	if chunk := i / leafChunk; chunk != r.chunk {
		leaves, err := r.s.leafChunkOf(r.cid, chunk)
		if err != nil {
			return unixfs.Digest{}, err
		}
		r.leaves, r.chunk = leaves, chunk
	}
	if i%leafChunk >= len(r.leaves) {
		return unixfs.Digest{}, fmt.Errorf("storage: %s: leaf table ends before block %d: %w", r.cid, i, ErrCorrupt)
	}
	return r.leaves[i%leafChunk], nil
}

// Read implements [io.Reader].
func (r *Reader) Read(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n, err := r.readAt(p, r.pos)
	r.pos += int64(n)
	if n > 0 && err == io.EOF {
		err = nil
	}
	return n, err
}

// ReadAt implements [io.ReaderAt].
func (r *Reader) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("storage: %s: read at %d: %w", r.cid, off, fs.ErrInvalid)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.readAt(p, off)
}

// Seek implements [io.Seeker].
func (r *Reader) Seek(offset int64, whence int) (int64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch whence {
	case io.SeekCurrent:
		offset += r.pos
	case io.SeekEnd:
		offset += r.rec.Size
	}
	if offset < 0 || whence < io.SeekStart || whence > io.SeekEnd {
		return 0, fmt.Errorf("storage: %s: seek to %d: %w", r.cid, offset, fs.ErrInvalid)
	}
	r.pos = offset
	return offset, nil
}

// Close releases the file. No other call may be running or follow.
func (r *Reader) Close() error {
	if r.buf != nil {
		r.s.recycle(r.buf)
		r.buf = nil
	}
	if r.free != nil {
		r.free()
	}
	if r.file == nil {
		return nil
	}
	return r.file.Close()
}

// readAt is called with mu held.
func (r *Reader) readAt(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) && off < r.rec.Size {
		i := r.cuts.LeafAt(off)
		block, err := r.load(i)
		if err != nil {
			return done, err
		}
		n := copy(p[done:], block[off-r.cuts.LeafOffset(i):])
		done += n
		off += int64(n)
	}
	if done < len(p) {
		return done, io.EOF
	}
	return done, nil
}

// load returns the verified bytes of leaf i, from the last block read if it is that one.
func (r *Reader) load(i int) ([]byte, error) {
	if r.file == nil {
		return r.inline, nil
	}
	if r.buf == nil {
		r.buf = r.s.buffer()
	}
	if i == r.current {
		return r.buf[:r.BlockSize(i)], nil
	}
	r.current = -1
	block, err := r.Block(i, r.buf[:])
	if err == nil {
		r.current = i
	}
	return block, err
}

// GetBlock returns one verified block, whichever object holds it: a record, a folder node, an interior node or a leaf of
// a file. It reads into buf if that is large enough.
func (s *Store) GetBlock(ctx context.Context, c cid.Cid, buf []byte) ([]byte, error) {
	digest, err := unixfs.DigestOf(c)
	if err != nil {
		return nil, err
	}
	if buf == nil {
		buf = []byte{} // an empty block is found, too
	}
	var found []byte
	miss := fmt.Errorf("storage: block %s: %w", c, ErrNotFound)
	err = s.each(ctx, append([]byte{keyBlock}, digest[:]...), func(key, value []byte) error {
		if found != nil {
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
		if found, err = s.blockIn(ctx, owner, where, buf); err != nil {
			miss = err // another object may hold a good copy
		}
		return nil
	})
	if err == nil && found == nil {
		err = miss
	}
	if err != nil {
		return nil, err
	}
	if unixfs.Sum(found) != digest {
		return nil, fmt.Errorf("storage: block %s: %w", c, ErrCorrupt)
	}
	return found, nil
}

// codec returns the codec of the block at the place inside the object.
func (p place) codec(owner cid.Cid) uint64 {
	switch p.kind {
	case placeLeaf, placeShared, placeOutside:
		return cid.Raw
	case placeNode:
		return cid.DagProtobuf
	}
	return owner.Type()
}

// blockIn reads the block at a place of an object.
func (s *Store) blockIn(ctx context.Context, owner cid.Cid, where place, buf []byte) ([]byte, error) {
	if where.kind == placeNode {
		return s.get(numberedKey(keyNode, owner, int(where.offset)))
	}
	rec, err := s.record(owner)
	if err != nil {
		return nil, err
	}
	r, err := s.openRecord(ctx, owner, rec)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if err := s.touch(owner); err != nil {
		return nil, err
	}
	i := 0
	if where.kind == placeLeaf || where.kind == placeOutside {
		if where.offset >= uint64(rec.Size) {
			return nil, fmt.Errorf("storage: %s: block at %d of %d bytes: %w", owner, where.offset, rec.Size, ErrCorrupt)
		}
		i = r.cuts.LeafAt(int64(where.offset))
	}
	if buf == nil || int64(len(buf)) < r.BlockSize(i) { // nil would say that an empty block is not there
		buf = make([]byte, r.BlockSize(i))
	}
	return r.Block(i, buf)
}
