package storage

import (
	"io"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/ipfs/go-cid"
)

// maxVerified bounds the objects of which it is remembered which blocks were hashed: at most 32 KiB each.
const maxVerified = 1024

// verified remembers which blocks have been hashed since the store was opened, and in which state of their file. A file that has
// changed since, by its size, time of change or inode, is hashed anew.
type verified struct {
	mu   sync.Mutex
	seen map[cid.Cid]*hashed
}

// hashed is one object's memory.
type hashed struct {
	file fingerprint
	bits []uint64 // by block
}

// fingerprint tells two states of a file apart.
type fingerprint struct {
	size  int64
	mtime time.Time
	inode uint64
}

func fingerprintOf(f vfs.File) (fingerprint, error) {
	st, err := f.Stat()
	if err != nil {
		return fingerprint{}, err
	}
	return fingerprint{st.Size(), st.ModTime(), inodeOf(st)}, nil
}

func (v *verified) has(c cid.Cid, file fingerprint, block int) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	h := v.seen[c]
	return h != nil && h.file == file && h.bits[block/64]&(1<<(block%64)) != 0
}

func (v *verified) add(c cid.Cid, file fingerprint, block, blocks int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	h := v.seen[c]
	if h == nil || h.file != file {
		h = v.renew(c, file, blocks)
	}
	h.bits[block/64] |= 1 << (block % 64)
}

// renew is called with mu held.
func (v *verified) renew(c cid.Cid, file fingerprint, blocks int) *hashed {
	if v.seen == nil {
		v.seen = map[cid.Cid]*hashed{}
	}
	for old := range v.seen {
		if len(v.seen) < maxVerified {
			break
		}
		delete(v.seen, old)
	}
	h := &hashed{file: file, bits: make([]uint64, (blocks+63)/64)}
	v.seen[c] = h
	return h
}

// written notes that a new object's file holds what this process has hashed on its way into it.
func (v *verified) written(c cid.Cid, file fingerprint, blocks int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	h := v.renew(c, file, blocks)
	for i := range blocks {
		h.bits[i/64] |= 1 << (i % 64)
	}
}

// Hashed returns the bytes of leaf i as they are in the file, for those who send them to somebody who hashes them again; nil
// unless the leaf was hashed since the store was opened and the file has not changed since. [Reader.Block] with nothing but
// that in mind is [Reader.Check].
func (r *Reader) Hashed(i int) *io.SectionReader {
	if r.file == nil || i < 0 || i >= r.Blocks() || r.shared.has(i) {
		return nil
	}
	file, err := fingerprintOf(r.file)
	if err != nil || !r.s.verified.has(r.cid, file, i) {
		return nil
	}
	return io.NewSectionReader(r.file, r.cuts.LeafOffset(i), r.BlockSize(i))
}

// Check is Block, and lets Hashed know.
func (r *Reader) Check(i int, dst []byte) ([]byte, error) {
	if r.file == nil {
		return r.Block(i, dst)
	}
	before, failed := fingerprintOf(r.file)
	block, err := r.Block(i, dst)
	if err == nil && failed == nil && !r.shared.has(i) && time.Since(before.mtime) > settled {
		r.s.verified.add(r.cid, before, i, r.Blocks())
	}
	return block, err
}

// noteWritten remembers the blocks of an object whose temporary file was written, hashed and synced by this process.
func (s *Store) noteWritten(c cid.Cid, rec record) {
	_, name := s.objectPath(c)
	f, err := s.fs.Open(name)
	if err != nil {
		return // deleted since, or for the next reader to find
	}
	defer f.Close()
	if file, err := fingerprintOf(f); err == nil && file.size == rec.Size {
		s.verified.written(c, file, rec.blocks())
	}
}
