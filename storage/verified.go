package storage

import (
	"io"
	"io/fs"
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
	return stateOf(st), nil
}

func stateOf(st fs.FileInfo) fingerprint { return fingerprint{st.Size(), st.ModTime(), inodeOf(st)} }

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
	if err != nil || !r.s.seen.has(r.cid, file, i) {
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
		r.s.seen.add(r.cid, before, i, r.Blocks())
	}
	return block, err
}

// commitHashed commits an object whose temporary file was hashed on its way to the disk, and remembers its blocks, if it is that
// file that the object has then.
func (s *Store) commitHashed(o *newObject) (Info, error) {
	st, err := s.fs.Stat(o.temp)
	info, failed := s.commit(o)
	if err != nil || failed != nil {
		return info, failed
	}
	_, name := s.objectPath(o.cid)
	if now, err := s.fs.Stat(name); err == nil && stateOf(now) == stateOf(st) {
		s.seen.written(o.cid, stateOf(st), info.Blocks)
	}
	return info, nil
}
