package storage

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/capacloud/capanode/storage/unixfs"
)

// importer copies a stream into a file. One goroutine reads; as many as there are cores write blocks to their places and hash
// them; the disk is kept busy meanwhile, so that the last sync finds little left to do.
type importer struct {
	s        *Store
	r        io.Reader
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
	cores := runtime.GOMAXPROCS(0)
	slots := make([]slot, 2*cores)
	jobs := make(chan *slot, len(slots))
	im.flushing = make(chan struct{}, 1)
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
	if im.idle += int64(sl.n); im.idle >= writebackBytes {
		select {
		case im.flushing <- struct{}{}:
			im.idle = 0
			go func(upTo int64) {
				// A hint: errors come back from the sync that counts.
				_, _ = im.f.SyncTo(upTo)
				<-im.flushing
			}(sl.off + int64(sl.n))
		default: // the disk is still busy with what it has
		}
	}
}
