package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"

	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/unixfs"
)

// readAhead is how many blocks from where a reader is are fetched before all others.
const readAhead = 16

// Reader reads a file or record while it is being fetched: a read waits until its bytes are here, and moves them to the front of
// the work. Each block is hashed before a byte of it is returned. It is safe for concurrent use; calls take turns.
type Reader struct {
	f    *Fetcher
	cid  cid.Cid
	ctx  context.Context
	stop context.CancelFunc
	drop func()        // releases the hold
	done chan struct{} // closed when the fetch that Open began has ended
	err  error         // how, once done is closed

	mu      sync.Mutex // guards what follows
	whole   *storage.Reader
	size    int64
	cuts    unixfs.Cuts // where its blocks begin and end
	pos     int64
	buf     *[unixfs.MaxBlock]byte
	current int // verified block in buf, -1 for none
	n       int // its bytes
}

var (
	_ io.ReadSeekCloser = (*Reader)(nil)
	_ io.ReaderAt       = (*Reader)(nil)
)

// Open fetches an object as [Fetcher.FetchAs] does and returns once its size is known. Folders are [storage.ErrWrongKind]. The
// context bounds the fetch and every read. Close ends the fetch if it is still going on; what has arrived stays.
func (f *Fetcher) Open(ctx context.Context, c cid.Cid, what Ask) (*Reader, error) {
	r := &Reader{f: f, cid: c, done: make(chan struct{}), current: -1, drop: f.store.Hold(c), buf: f.buffer()}
	r.ctx, r.stop = context.WithCancel(ctx)
	go func() {
		defer close(r.done)
		if has, err := f.store.Has(r.ctx, c); !has || err != nil {
			r.err = f.fetch(r.ctx, c, what, false)
		}
	}()
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.measure(); err != nil {
		r.release()
		return nil, err
	}
	return r, nil
}

// measure waits until the size is known.
func (r *Reader) measure() error {
	for {
		d, news := r.f.running(r.cid)
		var ready <-chan struct{}
		if d != nil {
			ready = d.ready
		}
		select {
		case <-ready:
			r.size, r.cuts = d.part.Layout().Size, d.part.Layout().Cuts
			return nil
		case <-r.done:
			return r.finish()
		case <-news:
		case <-r.ctx.Done():
			return r.ctx.Err()
		}
	}
}

// finish turns to the store once the fetch has ended.
func (r *Reader) finish() error {
	if r.err != nil || r.whole != nil {
		return r.err
	}
	whole, err := r.f.store.Open(r.ctx, r.cid)
	if err != nil {
		return err
	}
	r.whole, r.size, r.cuts = whole, whole.Size(), whole.Cuts()
	return nil
}

// Size returns the content bytes.
func (r *Reader) Size() int64 { return r.size }

// Read implements [io.Reader].
func (r *Reader) Read(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n, err := r.readAt(p[:min(len(p), int(min(r.left(), 1<<30)))], r.pos)
	r.pos += int64(n)
	if n == 0 && err == nil && len(p) > 0 {
		err = io.EOF
	}
	return n, err
}

// left returns how many bytes of the current block, or of the next, follow the cursor: Read does not wait for more than one.
func (r *Reader) left() int64 {
	if r.pos >= r.size {
		return 0
	}
	i := r.cuts.LeafAt(r.pos)
	return r.cuts.LeafOffset(i) + r.cuts.LeafSize(i) - r.pos
}

// ReadAt implements [io.ReaderAt].
func (r *Reader) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("transfer: %s: read at %d: %w", r.cid, off, fs.ErrInvalid)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	n, err := r.readAt(p, off)
	if err == nil && n < len(p) {
		err = io.EOF
	}
	return n, err
}

// Seek implements [io.Seeker].
func (r *Reader) Seek(offset int64, whence int) (int64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch whence {
	case io.SeekCurrent:
		offset += r.pos
	case io.SeekEnd:
		offset += r.size
	}
	if offset < 0 || whence < io.SeekStart || whence > io.SeekEnd {
		return 0, fmt.Errorf("transfer: %s: seek to %d: %w", r.cid, offset, fs.ErrInvalid)
	}
	r.pos = offset
	return offset, nil
}

// Close ends the fetch, if it is going on, and the reader. A read that waits returns an error.
func (r *Reader) Close() error {
	r.stop()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.buf == nil {
		return nil
	}
	return r.release()
}

// release is called with mu held.
func (r *Reader) release() error {
	r.stop()
	if d, _ := r.f.running(r.cid); d != nil {
		select {
		case <-d.ready:
			if d.plan != nil {
				d.plan.reading(r, window{})
			}
		default:
		}
	}
	<-r.done
	r.drop()
	r.f.recycle(r.buf)
	r.buf = nil
	if r.whole == nil {
		return nil
	}
	return r.whole.Close()
}

// readAt is called with mu held.
func (r *Reader) readAt(p []byte, off int64) (int, error) {
	if r.buf == nil {
		return 0, fmt.Errorf("transfer: %s: %w", r.cid, fs.ErrClosed)
	}
	done := 0
	for done < len(p) && off < r.size {
		i := r.cuts.LeafAt(off)
		if i != r.current {
			if err := r.load(i); err != nil {
				return done, err
			}
		}
		n := copy(p[done:], r.buf[off-r.cuts.LeafOffset(i):r.n])
		done += n
		off += int64(n)
	}
	return done, nil
}

// load brings a block into buf, waiting for it if need be.
func (r *Reader) load(i int) error {
	r.current = -1
	for {
		if err := r.ctx.Err(); err != nil {
			return err
		}
		block, wait, err := r.try(i)
		if err != nil {
			return err
		}
		if wait == nil {
			if len(block) > 0 && &block[0] != &r.buf[0] {
				copy(r.buf[:], block)
			}
			r.current, r.n = i, len(block)
			return nil
		}
		wait()
	}
}

// try reads a block if it is here, else it returns a function that waits for news of it.
func (r *Reader) try(i int) (block []byte, wait func(), err error) {
	if r.whole != nil {
		block, err = r.whole.Block(i, r.buf[:])
		return block, nil, err
	}
	d, news := r.f.running(r.cid)
	if d != nil {
		select {
		case <-d.ready:
		default:
			return nil, func() { r.await(d.ready, d.done) }, nil
		}
		var changed <-chan struct{}
		if d.plan != nil {
			d.plan.reading(r, window{i, i + readAhead})
			changed = d.plan.watch()
		}
		block, err = d.part.Block(i, r.buf[:])
		switch {
		case err == nil:
			return block, nil, nil
		case errors.Is(err, storage.ErrNotFound):
			return nil, func() { r.await(changed, d.done) }, nil
		case !errors.Is(err, fs.ErrClosed):
			return nil, nil, err
		}
		return nil, func() { r.await(d.done, r.done) }, nil
	}
	select {
	case <-r.done:
		if err := r.finish(); err != nil {
			return nil, nil, err
		}
		return nil, func() {}, nil
	default:
		return nil, func() { r.await(news, r.done) }, nil
	}
}

func (r *Reader) await(a, b <-chan struct{}) {
	select {
	case <-a:
	case <-b:
	case <-r.ctx.Done():
	}
}
