package memnet

import (
	"io"
	"os"
	"sync"
	"time"

	"github.com/capacloud/capanode/p2p"
)

// window is how many bytes one direction buffers before its writer waits, like a transport's flow control.
const window = 256 << 10

// flow is one direction of a stream: a bounded buffer between one writing and one reading end.
type flow struct {
	mu      sync.Mutex
	changed sync.Cond
	buf     []byte
	fin     bool  // the writer is done: the reader drains the buffer, then sees io.EOF
	err     error // both ends fail with it at once
	readBy  deadline
	writeBy deadline
}

// deadline is a moment after which an end fails. Its fields are guarded by the flow's mutex.
type deadline struct {
	timer *time.Timer
	past  bool
}

func newFlow() *flow {
	f := &flow{}
	f.changed.L = &f.mu
	return f
}

func (f *flow) read(b []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for len(b) > 0 && len(f.buf) == 0 && f.err == nil && !f.fin && !f.readBy.past {
		f.changed.Wait()
	}
	switch {
	case f.err != nil:
		return 0, f.err
	case f.readBy.past:
		return 0, os.ErrDeadlineExceeded
	case len(f.buf) == 0 && f.fin:
		return 0, io.EOF
	}
	n := copy(b, f.buf)
	if f.buf = f.buf[n:]; len(f.buf) == 0 {
		f.buf = nil
	}
	f.changed.Broadcast()
	return n, nil
}

func (f *flow) write(b []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	done := 0
	for {
		switch {
		case f.err != nil:
			return done, f.err
		case f.fin:
			return done, p2p.ErrClosed
		case f.writeBy.past:
			return done, os.ErrDeadlineExceeded
		case done == len(b):
			return done, nil
		}
		if n := min(len(b)-done, window-len(f.buf)); n > 0 {
			f.buf = append(f.buf, b[done:done+n]...)
			done += n
			f.changed.Broadcast()
			continue
		}
		f.changed.Wait()
	}
}

// finish is the writer's normal end.
func (f *flow) finish() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fin = true
	f.changed.Broadcast()
}

// abort fails both ends with err and drops what is buffered. The first error stays.
func (f *flow) abort(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.err = err
	}
	f.buf = nil
	f.readBy.stop()
	f.writeBy.stop()
	f.changed.Broadcast()
}

func (f *flow) set(d *deadline, t time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	d.stop()
	d.past = false
	if t.IsZero() || f.err != nil {
		return
	}
	var timer *time.Timer
	timer = time.AfterFunc(time.Until(t), func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if d.timer == timer { // not replaced meanwhile
			d.past = true
			f.changed.Broadcast()
		}
	})
	d.timer = timer
}

func (d *deadline) stop() {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
}
