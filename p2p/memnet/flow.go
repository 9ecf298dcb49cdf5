package memnet

import (
	"io"
	"os"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/p2p"
)

// window is how many arrived bytes one direction buffers before its writer waits, like a transport's flow control.
const window = 256 << 10

// flow is one direction of a stream: a bounded buffer between one writing and one reading end, with the link between them.
type flow struct {
	traffic *traffic
	route   route

	mu      sync.Mutex
	changed sync.Cond
	pieces  []piece // in the order of writing, which is the order of arrival
	last    time.Time
	fin     bool  // the writer is done: the reader drains the buffer, then sees io.EOF once last has come
	err     error // both ends fail with it at once
	readBy  deadline
	writeBy deadline
}

// piece is what one write, or a part of it, put on the link.
type piece struct {
	data []byte
	at   time.Time // of its arrival
}

// deadline is a moment after which an end fails. Its fields are guarded by the flow's mutex.
type deadline struct {
	timer *time.Timer
	past  bool
}

func newFlow(t *traffic, from, to peer.ID) *flow {
	f := &flow{traffic: t, route: route{from, to}}
	f.changed.L = &f.mu
	return f
}

func (f *flow) read(b []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for len(b) > 0 && f.err == nil && !f.readBy.past {
		if len(f.pieces) == 0 && !f.fin {
			f.changed.Wait()
			continue
		}
		due := f.last
		if len(f.pieces) > 0 {
			due = f.pieces[0].at
		}
		if !due.After(time.Now()) {
			break
		}
		f.waitUntil(due)
	}
	switch {
	case f.err != nil:
		return 0, f.err
	case f.readBy.past:
		return 0, os.ErrDeadlineExceeded
	case len(b) > 0 && len(f.pieces) == 0:
		return 0, io.EOF
	}
	n, now := 0, time.Now()
	for n < len(b) && len(f.pieces) > 0 && !f.pieces[0].at.After(now) {
		p := &f.pieces[0]
		m := copy(b[n:], p.data)
		n += m
		if p.data = p.data[m:]; len(p.data) == 0 {
			f.pieces = f.pieces[1:]
		}
	}
	f.changed.Broadcast()
	return n, nil
}

// write returns when the last byte has left this node: a slow uplink slows its writers down.
func (f *flow) write(b []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	done := 0
	var left time.Time
	for {
		switch {
		case f.err != nil:
			return done, f.err
		case f.fin:
			return done, p2p.ErrClosed
		case f.writeBy.past:
			return done, os.ErrDeadlineExceeded
		case left.After(time.Now()):
			f.waitUntil(left)
			continue
		case done == len(b):
			return done, nil
		}
		if n := min(len(b)-done, f.room(), f.traffic.piece(f.route)); n > 0 {
			left = f.put(b[done : done+n])
			done += n
			continue
		}
		f.changed.Wait()
	}
}

// put sends a piece and returns when it will have left.
func (f *flow) put(b []byte) time.Time {
	trip := f.book(len(b))
	f.pieces = append(f.pieces, piece{append([]byte(nil), b...), f.last})
	f.changed.Broadcast()
	return trip.left
}

// book sends bytes, or the end, behind all that was sent before.
func (f *flow) book(size int) trip {
	trip := f.traffic.send(f.route, size)
	if trip.arrives.After(f.last) {
		f.last = trip.arrives
	}
	return trip
}

// room is how many bytes more the reading end takes. What is still on the link takes none of it.
func (f *flow) room() int {
	room, now := window, time.Now()
	for _, p := range f.pieces {
		if p.at.After(now) {
			break
		}
		room -= len(p.data)
	}
	return room
}

// waitUntil waits for a change, or for the moment.
func (f *flow) waitUntil(t time.Time) {
	timer := time.AfterFunc(time.Until(t), func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.changed.Broadcast()
	})
	f.changed.Wait()
	timer.Stop()
}

// finish is the writer's normal end.
func (f *flow) finish() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.fin && f.err == nil {
		f.fin = true
		f.book(0)
	}
	f.changed.Broadcast()
}

// abort fails both ends with err and drops what is buffered. The first error stays.
func (f *flow) abort(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.err = err
	}
	f.pieces = nil
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
