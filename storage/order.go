package storage

import (
	"math"
	"slices"

	"github.com/ipfs/go-cid"
)

// Order tells the store in which order somebody will use objects, such as a training run the shards of its dataset. While it is
// open, eviction takes cached objects that no order will use again first, then those that no order names, the least recently
// used first, then the one whose next use is farthest away: the choice that costs the fewest fetches when the order is kept
// (L. A. Belady, A study of replacement algorithms for a virtual-storage computer, 1966). It is lost on restart. Its methods are
// safe for concurrent use.
type Order struct {
	s      *Store
	uses   map[cid.Cid][]int // positions, ascending
	length int
	loop   bool
	at     int // position that is next, guarded by the store's mu
}

// Follow opens an order. With loop it starts over at its end, as epochs do. An object may occur more than once.
func (s *Store) Follow(order []cid.Cid, loop bool) *Order {
	o := &Order{s: s, uses: make(map[cid.Cid][]int, len(order)), length: len(order), loop: loop && len(order) > 0}
	for i, c := range order {
		o.uses[c] = append(o.uses[c], i)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.orders[o] = true
	return o
}

// Advance says that the next n uses of the order are over.
func (o *Order) Advance(n int) {
	o.s.mu.Lock()
	defer o.s.mu.Unlock()
	o.at += max(0, n)
	if o.loop {
		o.at %= o.length
	}
}

// Used says that an object was used: what comes next in the order is what follows its next use. One that the order does not name,
// or not any more, changes nothing.
func (o *Order) Used(c cid.Cid) {
	o.s.mu.Lock()
	defer o.s.mu.Unlock()
	if d, known := distance(o.uses[c], o.at, o.length, o.loop); known && d != never {
		if o.at += d + 1; o.loop {
			o.at %= o.length
		}
	}
}

// Close ends the order.
func (o *Order) Close() {
	o.s.mu.Lock()
	defer o.s.mu.Unlock()
	delete(o.s.orders, o)
}

// never is the distance of what an order names and does not use again.
const never = math.MaxInt

// distance returns how many uses away the next use of an object is, and whether the order names it at all.
func distance(uses []int, at, length int, loop bool) (int, bool) {
	if len(uses) == 0 {
		return 0, false
	}
	if i, _ := slices.BinarySearch(uses, at); i < len(uses) {
		return uses[i] - at, true
	}
	if loop {
		return uses[0] + length - at, true
	}
	return never, true
}

// nextUse returns the nearest next use that any order knows of. It is called with the store's mu held.
func (s *Store) nextUse(c cid.Cid) (nearest int, known bool) {
	nearest = never
	for o := range s.orders {
		if d, ok := distance(o.uses[c], o.at, o.length, o.loop); ok {
			nearest, known = min(nearest, d), true
		}
	}
	return nearest, known
}
