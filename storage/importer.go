package storage

import (
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/capacloud/capanode/storage/unixfs"
)

// importer copies a stream into a file. One goroutine reads; as many as there are cores write blocks to their places and hash
// them, or, where the source can be read in any order, do all three; the disk is kept busy meanwhile, so that the last sync finds little left to do.
type importer struct {
	s        *Store
	r        io.Reader
	at       io.ReaderAt // instead of r: total bytes that can be read in any order
	total    int64
	f        vfs.File
	size     int64
	reserved int64
	leaves   []unixfs.Digest
	err      error // of the first block that could not be written

	idle     int64 // bytes since the last writeback
	flushing chan struct{}
}

// slot is one block in flight. Its result is collected before the buffer is used again.
type slot struct {
	buf  *[unixfs.BlockSize]byte
	n    int
	off  int64
	sum  unixfs.Digest
	err  error
	done chan struct{}
}

// reserve makes sure that at least total bytes are reserved for this import.
func (im *importer) reserve(ctx context.Context, total int64) error {
	if total <= im.reserved {
		return nil
	}
	if err := im.s.reserve(ctx, total-im.reserved); err != nil {
		return err
	}
	im.reserved = total
	return nil
}

func (im *importer) run(ctx context.Context) error {
	im.flushing = make(chan struct{}, 1)
	if im.at != nil {
		return im.runAt(ctx)
	}
	cores := runtime.GOMAXPROCS(0)
	slots := make([]slot, 2*cores)
	jobs := make(chan *slot, len(slots))
	var workers sync.WaitGroup
	for range cores {
		workers.Go(func() {
			for sl := range jobs {
				block := sl.buf[:sl.n]
				_, sl.err = im.f.WriteAt(block, sl.off)
				sl.sum = unixfs.Sum(block)
				sl.done <- struct{}{}
			}
		})
	}
	for i := range slots {
		slots[i] = slot{buf: im.s.buffer(), done: make(chan struct{}, 1)}
	}
	sent, err := im.pump(ctx, slots, jobs)
	for i := max(0, sent-len(slots)+1); i < sent; i++ {
		im.collect(&slots[i%len(slots)])
	}
	close(jobs)
	workers.Wait()
	im.flushing <- struct{}{} // waits for the last writeback
	for i := range slots {
		im.s.recycle(slots[i].buf)
	}
	if err == nil {
		err = im.err
	}
	return err
}

// pump reads and hands out blocks until the stream ends. It returns how many it handed out; the slot of the next one is free
// then.
func (im *importer) pump(ctx context.Context, slots []slot, jobs chan<- *slot) (int, error) {
	for i := 0; ; i++ {
		sl := &slots[i%len(slots)]
		if i >= len(slots) {
			im.collect(sl)
		}
		n, err := fill(im.r, sl.buf[:])
		if err != nil || n == 0 || im.err != nil {
			return i, err
		}
		if i == unixfs.MaxLeaves {
			return i, fmt.Errorf("more than %d blocks: %w", unixfs.MaxLeaves, ErrTooLarge)
		}
		if err = ctx.Err(); err == nil {
			err = im.reserve(ctx, im.size+int64(n))
		}
		if err != nil {
			return i, err
		}
		sl.n, sl.off = n, im.size
		im.size += int64(n)
		jobs <- sl
	}
}

// collect takes over the result of the oldest block in flight.
func (im *importer) collect(sl *slot) {
	<-sl.done
	im.leaves = append(im.leaves, sl.sum)
	if im.err == nil {
		im.err = sl.err
	}
	im.written(int64(sl.n), sl.off+int64(sl.n))
}

// written counts bytes that were written, and keeps the disk busy. One goroutine at a time calls it.
func (im *importer) written(n, upTo int64) {
	if im.idle += n; im.idle < writebackBytes {
		return
	}
	select {
	case im.flushing <- struct{}{}:
		im.idle = 0
		go func() {
			_, _ = im.f.SyncTo(upTo) // a hint: errors come back from the sync that counts
			<-im.flushing
		}()
	default: // the disk is still busy with what it has
	}
}

// importPiece is how many bytes are read, hashed and written at a time, so that they are still in the core's own cache.
const importPiece = 256 << 10

// runAt lets each core read, hash and write blocks on its own until all are done.
func (im *importer) runAt(ctx context.Context) error {
	blocks := (im.total + unixfs.BlockSize - 1) / unixfs.BlockSize
	if blocks > unixfs.MaxLeaves {
		return fmt.Errorf("more than %d blocks: %w", unixfs.MaxLeaves, ErrTooLarge)
	}
	im.leaves, im.size = make([]unixfs.Digest, blocks), im.total
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var next atomic.Int64
	var mu sync.Mutex // for written
	var workers sync.WaitGroup
	for range min(int64(runtime.GOMAXPROCS(0)), blocks) {
		workers.Go(func() {
			buf, h := im.s.buffer(), sha256.New()
			defer im.s.recycle(buf)
			for i := next.Add(1) - 1; i < blocks && ctx.Err() == nil; i = next.Add(1) - 1 {
				off := i * unixfs.BlockSize
				end := min(off+unixfs.BlockSize, im.total)
				if err := im.block(h, buf[:importPiece], off, end); err != nil {
					stop(err)
					return
				}
				h.Sum(im.leaves[i][:0])
				mu.Lock()
				im.written(end-off, im.total)
				mu.Unlock()
			}
		})
	}
	workers.Wait()
	im.flushing <- struct{}{} // waits for the last writeback
	return context.Cause(ctx)
}

// block copies the bytes of one block, and leaves their hash in h.
func (im *importer) block(h hash.Hash, buf []byte, off, end int64) error {
	h.Reset()
	for off < end {
		piece := buf[:min(int64(len(buf)), end-off)]
		if n, err := im.at.ReadAt(piece, off); n < len(piece) {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return fmt.Errorf("read at %d: %w", off, err)
		}
		if _, err := im.f.WriteAt(piece, off); err != nil {
			return err
		}
		h.Write(piece)
		off += int64(len(piece))
	}
	return nil
}
