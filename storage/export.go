package storage

import (
	"context"
	"errors"
	"io"
	"os"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/ipfs/go-cid"
)

// copyPiece is how many bytes the system copies between two looks at the context.
const copyPiece = 32 << 20

// exportTo writes the content to a new file: blocks that were hashed since the store was opened as the system copies files,
// which some file systems do without moving a byte, and all others hashed once more, on all cores.
func (r *Reader) exportTo(ctx context.Context, f *os.File) error {
	if r.file == nil {
		if err := ctx.Err(); err != nil {
			return err
		}
		_, err := f.Write(r.inline)
		return err
	}
	done, err := r.copyTo(ctx, f)
	if done || err != nil {
		return err
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var next atomic.Int64
	var workers sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), r.Blocks()) {
		workers.Go(func() {
			buf := r.s.buffer()
			defer r.s.recycle(buf)
			for i := int(next.Add(1) - 1); i < r.Blocks() && ctx.Err() == nil; i = int(next.Add(1) - 1) {
				block, err := r.Block(i, buf[:])
				if err == nil {
					_, err = f.WriteAt(block, r.cuts.LeafOffset(i))
				}
				if err != nil {
					stop(err)
				}
			}
		})
	}
	workers.Wait()
	return context.Cause(ctx)
}

// copyTo lets the system copy the object's file if every block of it was hashed and nobody has changed the file since. False
// means that it did not, and that f is as long as it was.
func (r *Reader) copyTo(ctx context.Context, f *os.File) (bool, error) {
	before, err := fingerprintOf(r.file)
	if err != nil || !r.rec.filed() || r.file.Fd() == vfs.InvalidFd || r.shared != nil || before.size != r.Size() || !r.s.seen.all(r.cid, before, r.Blocks()) {
		return false, nil
	}
	for at := int64(0); at < r.Size(); {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		n, err := copyRange(f, r.file.Fd(), at, min(copyPiece, r.Size()-at))
		if errors.Is(err, errors.ErrUnsupported) && at == 0 {
			return false, nil
		}
		if err == nil && n == 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return false, err
		}
		at += n
	}
	after, err := fingerprintOf(r.file)
	if err == nil && after != before {
		return false, f.Truncate(0) // written meanwhile: what came out of it is hashed
	}
	return err == nil, err
}

// all tells whether every block of an object was hashed in this state of its file.
func (v *verified) all(c cid.Cid, file fingerprint, blocks int) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	h := v.seen[c]
	if h == nil || h.file != file {
		return false
	}
	for i := range blocks {
		if h.bits[i/64]&(1<<(i%64)) == 0 {
			return false
		}
	}
	return true
}
