package storage

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/p2p/wire"
	"github.com/capacloud/capanode/storage/internal/pause"
	"github.com/capacloud/capanode/storage/unixfs"
)

const (
	// scrubSave is after how many bytes the place of a scrub is saved.
	scrubSave = 64 << 20
	// scrubYield is how long a scrub stands back when somebody reads.
	scrubYield = 20 * time.Millisecond
	// maxYields bounds in a row how often it does, so that it ends under load, too.
	maxYields = 50
	// DefaultScrubRate is how many bytes per second a scrub reads at most when nobody says otherwise.
	DefaultScrubRate = 32 << 20
	// DefaultScrubEvery is the default time from the end of one scrub to the start of the next.
	DefaultScrubEvery = 7 * 24 * time.Hour
)

// ScrubOptions says how to go through the store. Zero fields take the defaults.
type ScrubOptions struct {
	// Rate is the most bytes per second that are read; negative means no limit.
	Rate int64
	// Every is the time from the end of one pass to the start of the next.
	Every time.Duration
	// Repair makes a damaged object whole again, such as by fetching it from peers. Files in place are not repaired: they are the
	// user's. nil repairs nothing.
	Repair func(ctx context.Context, c cid.Cid) error
}

// ScrubReport is how far a pass has come.
type ScrubReport struct {
	Report
	Repaired int       // damaged objects that Repair made whole
	Started  time.Time // when the pass began, which may have been before a restart
}

// scrubState is what of a pass survives a restart.
type scrubState struct {
	Next     []byte `cbor:"next"`  // key of the object that is next
	Block    int    `cbor:"block"` // leaf of it that is next
	Started  int64  `cbor:"started"`
	Ended    int64  `cbor:"ended"` // of the last whole pass; unix seconds
	Objects  int    `cbor:"objects"`
	Blocks   int    `cbor:"blocks"`
	Bytes    int64  `cbor:"bytes"`
	Faults   int    `cbor:"faults"`
	Repaired int    `cbor:"repaired"`
}

var scrubKey = append([]byte{keyMeta}, "scrub"...)

// Scrub goes through the store again and again until the context ends, and repairs what it finds. Its place survives restarts.
func (s *Store) Scrub(ctx context.Context, o ScrubOptions) error {
	if o.Every <= 0 {
		o.Every = DefaultScrubEvery
	}
	for {
		state, err := s.scrubState()
		if err != nil {
			return err
		}
		if wait := time.Unix(state.Ended, 0).Add(o.Every).Sub(s.now()); state.Started == 0 && state.Ended != 0 && wait > 0 {
			if err := pause.For(ctx, wait); err != nil {
				return err
			}
			continue
		}
		rep, err := s.ScrubPass(ctx, o)
		if err != nil {
			return err
		}
		s.log.Info("the store is checked", "objects", rep.Objects, "bytes", rep.Bytes, "faults", len(rep.Faults), "repaired", rep.Repaired)
	}
}

// ScrubPass goes through the store once, from where an earlier pass was stopped: it rehashes every block, marks damaged objects
// and repairs them. It runs at idle priority where the system has one, and stands back while others read. The faults in the
// report are those that this call found; the counts are those of the whole pass.
func (s *Store) ScrubPass(ctx context.Context, o ScrubOptions) (ScrubReport, error) {
	type result struct {
		rep ScrubReport
		err error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread, whose priority is low for good, ends with this goroutine
		idlePriority()
		rep, err := s.scrub(ctx, o)
		done <- result{rep, err}
	}()
	r := <-done
	if r.err != nil {
		return r.rep, fmt.Errorf("storage: scrub: %w", r.err)
	}
	return r.rep, nil
}

func (s *Store) scrubState() (scrubState, error) {
	var st scrubState
	b, err := s.get(scrubKey)
	if err != nil {
		return st, ignoreMissing(err)
	}
	if err := wire.Unmarshal(b, &st); err != nil {
		return scrubState{}, nil // progress that nobody can read is no progress
	}
	return st, nil
}

// scrubber is one pass.
type scrubber struct {
	s     *Store
	o     ScrubOptions
	st    scrubState
	pace  pacer
	seen  uint64 // reads of others that have been yielded to
	dirty int64
	rep   ScrubReport
}

func (s *Store) scrub(ctx context.Context, o ScrubOptions) (ScrubReport, error) {
	st, err := s.scrubState()
	if err != nil {
		return ScrubReport{}, err
	}
	if st.Started == 0 {
		st = scrubState{Started: s.now().Unix(), Ended: st.Ended}
	}
	if o.Rate == 0 {
		o.Rate = DefaultScrubRate
	}
	x := &scrubber{s: s, o: o, st: st, pace: pacer{rate: o.Rate, last: s.now()}, seen: s.reads.Load()}
	for err == nil {
		var c cid.Cid
		var rec record
		var found bool
		if c, rec, found, err = s.recordFrom(x.st.Next); err != nil || !found {
			break
		}
		err = x.object(ctx, c, rec)
	}
	if err == nil {
		x.st = scrubState{Ended: s.now().Unix(), Objects: x.st.Objects, Blocks: x.st.Blocks, Bytes: x.st.Bytes,
			Faults: x.st.Faults, Repaired: x.st.Repaired}
	}
	x.rep.Started = time.Unix(st.Started, 0).UTC()
	x.rep.Objects, x.rep.Blocks, x.rep.Bytes, x.rep.Repaired = x.st.Objects, x.st.Blocks, x.st.Bytes, x.st.Repaired
	return x.rep, errors.Join(err, x.save(pebble.Sync))
}

// recordFrom returns the first object whose key is not below from.
func (s *Store) recordFrom(from []byte) (c cid.Cid, rec record, found bool, err error) {
	stop := errors.New("stop")
	err = s.eachRecordFrom(context.Background(), from, func(at cid.Cid, r record) error {
		c, rec, found = at, r, true
		return stop
	})
	if errors.Is(err, stop) {
		err = nil
	}
	return c, rec, found, err
}

// object checks one object from the leaf that is next, repairs it, and moves on to the next one.
func (x *scrubber) object(ctx context.Context, c cid.Cid, rec record) error {
	skip := 0
	if key := c.KeyString(); string(x.st.Next) == key {
		skip = x.st.Block
	} else {
		x.st.Next, x.st.Block = []byte(key), 0
	}
	at := 0
	rep := Report{}
	fault, err := x.s.inspectFrom(ctx, c, rec, &rep, inspection{from: skip, pause: func(n int64) error {
		x.st.Block = skip + at
		at++
		return x.pause(ctx, n)
	}})
	x.st.Blocks += rep.Blocks
	x.st.Bytes += rep.Bytes
	if err != nil {
		return err
	}
	if fault != nil {
		x.s.log.Warn("a stored object is damaged", "cid", c, "block", fault.Block, "err", fault.Err)
		x.rep.Faults = append(x.rep.Faults, *fault)
		if err := x.repair(ctx, c, rec, fault); err != nil {
			return err // it is looked at again when the pass goes on
		}
		x.st.Faults++
	}
	x.st.Objects++
	x.st.Next, x.st.Block = append([]byte(c.KeyString()), 0), 0
	return nil
}

// repair asks for the object anew. Failing at that is no reason to stop.
func (x *scrubber) repair(ctx context.Context, c cid.Cid, rec record, fault *Fault) error {
	if x.o.Repair == nil || rec.External != nil || !errors.Is(fault.Err, ErrCorrupt) {
		return nil
	}
	err := x.o.Repair(ctx, c)
	if err == nil {
		var again Report
		var left *Fault
		if rec, err = x.s.record(c); err == nil {
			left, err = x.s.inspect(ctx, c, rec, &again)
		}
		if err == nil && left == nil {
			x.st.Repaired++
			x.s.log.Info("a damaged object was repaired", "cid", c)
			return nil
		}
	}
	x.s.log.Warn("a damaged object could not be repaired", "cid", c, "err", err)
	return ctx.Err()
}

// pause waits until n more bytes may be read, saves the place now and then, and lets those go first who want their bytes now.
func (x *scrubber) pause(ctx context.Context, n int64) error {
	if x.dirty += n; x.dirty >= scrubSave {
		if err := x.save(pebble.NoSync); err != nil {
			return err
		}
	}
	for range maxYields {
		reads := x.s.reads.Load()
		if reads == x.seen {
			break
		}
		x.seen = reads
		if err := pause.For(ctx, scrubYield); err != nil {
			return err
		}
	}
	return pause.For(ctx, x.pace.take(n, x.s.now()))
}

func (x *scrubber) save(how *pebble.WriteOptions) error {
	b, err := wire.Marshal(x.st)
	if err != nil {
		return err
	}
	x.dirty = 0
	return x.s.set(scrubKey, b, how)
}

// pacer keeps a rate without bursts beyond one block.
type pacer struct {
	rate int64 // bytes per second; negative means no limit
	last time.Time
}

// take returns how long to wait before n bytes may be read.
func (p *pacer) take(n int64, now time.Time) time.Duration {
	if p.rate < 0 {
		return 0
	}
	if early := now.Add(-time.Duration(unixfs.BlockSize * int64(time.Second) / p.rate)); p.last.Before(early) {
		p.last = early // what was not used is lost
	}
	p.last = p.last.Add(time.Duration(float64(n) / float64(p.rate) * float64(time.Second)))
	return max(0, p.last.Sub(now))
}
