package storage

import (
	"encoding/binary"
	"errors"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/ipfs/go-cid"
)

const (
	// recentObjects is of how many objects the last use is kept in memory at most before the index is told.
	recentObjects = 4096
	// recentAge is for how long: what a crash costs the order of eviction.
	recentAge = time.Minute
)

// recent is the newest part of the LRU clock. A reader only writes it down here: the index makes its writers wait while it is busy
// with a collection.
type recent struct {
	mu    sync.Mutex
	uses  map[cid.Cid]uint64
	since time.Time // when the oldest of them was written down
}

// touch moves the object to the recent end of the LRU order. Losing it in a crash is harmless.
func (s *Store) touch(c cid.Cid) error {
	r := &s.recent
	r.mu.Lock()
	defer r.mu.Unlock()
	now := s.now()
	if len(r.uses) == 0 {
		r.uses, r.since = map[cid.Cid]uint64{}, now
	}
	r.uses[c] = s.useSeq.Add(1)
	if len(r.uses) < recentObjects && now.Sub(r.since) < recentAge {
		return nil
	}
	return s.tellUses()
}

// untouch forgets the use of an object of which the index is about to be told something else.
func (s *Store) untouch(c cid.Cid) {
	s.recent.mu.Lock()
	defer s.recent.mu.Unlock()
	delete(s.recent.uses, c)
}

// settleUses tells the index what it does not know of the LRU order.
func (s *Store) settleUses() error {
	s.recent.mu.Lock()
	defer s.recent.mu.Unlock()
	return s.tellUses()
}

// tellUses is called with recent.mu held, so that whoever removes an object removes its use after this.
func (s *Store) tellUses() error {
	if len(s.recent.uses) == 0 {
		return nil
	}
	batch := s.db.NewBatch()
	defer batch.Close()
	var errs []error
	for c, use := range s.recent.uses {
		errs = append(errs, batch.Set(cidKey(keyUse, c), binary.BigEndian.AppendUint64(nil, use), nil))
	}
	clear(s.recent.uses)
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return s.apply(batch, pebble.NoSync)
}
