package tokenizer

import "math/bits"

// pairTable is a hash table from pairs of symbols to a number, with open addressing. The zero value is empty. Values are
// found in two cache lines at most, most often one, which is what merging spends its time on.
type pairTable struct {
	slots []pairSlot
	used  int
	shift uint8 // of the hash, to an index of slots
}

type pairSlot struct {
	key   uint64 // pair + 1; 0 is an empty slot
	value uint64
}

// pairOf packs two symbols; symbols are below 2³¹, so that one can be added.
func pairOf(a, b int32) uint64 { return uint64(uint32(a))<<32 | uint64(uint32(b)) }

// home is where the search for a key begins: the upper bits of a product with 2⁶⁴ over the golden ratio.
func (t *pairTable) home(key uint64) int { return int(key * 0x9e3779b97f4a7c15 >> t.shift) }

// reserve makes room for n pairs at a load of at most a half.
func (t *pairTable) reserve(n int) {
	size := 16
	for size < 2*n {
		size *= 2
	}
	if size <= len(t.slots) {
		return
	}
	old := t.slots
	t.slots, t.shift = make([]pairSlot, size), uint8(64-bits.TrailingZeros(uint(size)))
	for _, s := range old {
		if s.key != 0 {
			*t.slot(s.key) = s
		}
	}
}

// slot returns the slot that has a key or, where none has, the empty one for it.
func (t *pairTable) slot(key uint64) *pairSlot {
	mask := len(t.slots) - 1
	for i := t.home(key); ; i = (i + 1) & mask {
		if s := &t.slots[i]; s.key == key || s.key == 0 {
			return s
		}
	}
}

// get returns the value of a pair.
func (t *pairTable) get(pair uint64) (uint64, bool) {
	if len(t.slots) == 0 {
		return 0, false
	}
	s := t.slot(pair + 1)
	return s.value, s.key != 0
}

// at returns where the value of a pair is kept until the next call; a new pair starts with value, and isNew says so.
func (t *pairTable) at(pair, value uint64) (where *uint64, isNew bool) {
	t.reserve(t.used + 1)
	s := t.slot(pair + 1)
	if isNew = s.key == 0; isNew {
		*s = pairSlot{pair + 1, value}
		t.used++
	}
	return &s.value, isNew
}
