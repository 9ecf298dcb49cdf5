package quality

import (
	"math"
	"math/bits"
)

const (
	// Permutations is the length of a signature, bands × rows. Two texts whose sets of word 5-grams have the Jaccard index s
	// meet in a band with probability 1−(1−s⁸)¹⁶: 0.06 at s = 0.5, 0.61 at 0.7, 0.95 at 0.8, 0.9999 at 0.9.
	Permutations = bands * rows
	bands        = 16
	rows         = 8
	shingle      = 5 // words
)

// Signature is the MinHash of a text: equal places estimate the Jaccard index of two texts' sets of word 5-grams. It is one
// permutation hashing (Li, Owen and Zhang 2012), which looks at each 5-gram once instead of 128 times.
type Signature struct {
	bins [Permutations]uint32
	any  bool
}

const emptyBin = math.MaxUint32

// NewSignature is the signature of an empty text.
func NewSignature() Signature {
	var s Signature
	for i := range s.bins {
		s.bins[i] = emptyBin
	}
	return s
}

// Signature adds the 5-grams of the text that [Analyzer.Measure] saw last. A text of fewer words is one gram of all of them.
func (a *Analyzer) Signature(s *Signature) {
	grams := a.grams
	if len(grams) == 0 && len(a.words) > 0 {
		grams = append(grams, gram(a.words))
	}
	for _, h := range grams {
		bin := h >> (64 - 7) // the highest bits choose one of 128 places, the lowest are what is minimised
		if v := uint32(h); v < s.bins[bin] && v != emptyBin {
			s.bins[bin], s.any = v, true
		}
	}
}

// Merge adds the signature of another piece of the same text.
func (s *Signature) Merge(o *Signature) {
	for i, v := range o.bins {
		s.bins[i] = min(s.bins[i], v)
	}
	s.any = s.any || o.any
}

// dense fills places that no gram fell into from others, chosen by a hash of the place alone, so that equal sets fill them
// equally (optimal densification, Shrivastava 2017).
func (s *Signature) dense() (out [Permutations]uint32) {
	for i, v := range s.bins {
		for try := uint64(1); v == emptyBin; try++ {
			v = s.bins[mix(uint64(i)<<32|try)%Permutations]
		}
		out[i] = v
	}
	return out
}

// Similarity estimates the Jaccard index of two texts.
func (s *Signature) Similarity(o *Signature) float64 {
	if !s.any || !o.any {
		return 0
	}
	a, b := s.dense(), o.dense()
	same := 0
	for i := range a {
		if a[i] == b[i] {
			same++
		}
	}
	return float64(same) / Permutations
}

// Near finds texts that resemble an earlier one, by locality-sensitive hashing of signatures, in bounded memory: it keeps two
// generations of bands. When the younger one is full the older one is forgotten, so that a text is compared with at
// least the last Window texts. A text that resembles an earlier one is not kept itself.
type Near struct {
	young, old bandSet
	full       bool
}

// NewNear keeps bands in at most so many bytes.
func NewNear(memory int64) *Near {
	slots := setSlots(memory)
	return &Near{young: bandSet{limit: slots}, old: bandSet{limit: slots}}
}

// setSlots is the largest power of two of 8-byte slots of which two sets fit, at least 4,096.
func setSlots(memory int64) int { return max(1<<12, 1<<bits.Len64(uint64(memory)/32)) }

// Window is how many texts are compared with at least.
func (n *Near) Window() int64 { return int64(n.young.limit) * 3 / 4 / bands }

// Forgot says whether texts were forgotten.
func (n *Near) Forgot() bool { return n.full }

// Seen reports whether a text resembles an earlier one, and keeps it when it does not.
func (n *Near) Seen(s *Signature) bool {
	if !s.any {
		return false
	}
	d := s.dense()
	var keys [bands]uint64
	for b := range keys {
		h := uint64(b+1) * hashSeed
		for _, v := range d[b*rows : (b+1)*rows] {
			h = (bits.RotateLeft64(h, 27) ^ uint64(v)) * hashPrime
		}
		keys[b] = max(mix(h), 1) // 0 is a free slot
	}
	for _, k := range keys {
		if n.young.has(k) || n.old.has(k) {
			return true
		}
	}
	if (n.young.count+bands)*4 > n.young.limit*3 {
		n.full = n.full || n.old.count > 0
		n.young, n.old = bandSet{limit: n.young.limit, slots: n.old.slots}, n.young
		clear(n.young.slots)
	}
	for _, k := range keys {
		n.young.add(k)
	}
	return false
}

// bandSet is a set of hashes that grows to a limit.
type bandSet struct {
	slots []uint64
	count int
	limit int // most slots, a power of two
}

func (s *bandSet) has(k uint64) bool {
	if len(s.slots) == 0 {
		return false
	}
	mask := uint64(len(s.slots) - 1)
	for i := k & mask; s.slots[i] != 0; i = (i + 1) & mask {
		if s.slots[i] == k {
			return true
		}
	}
	return false
}

func (s *bandSet) add(k uint64) {
	if (s.count+1)*4 > len(s.slots)*3 {
		old := s.slots
		s.slots, s.count = make([]uint64, min(max(1<<10, 2*len(old)), s.limit)), 0
		for _, o := range old {
			if o != 0 {
				s.add(o)
			}
		}
	}
	mask := uint64(len(s.slots) - 1)
	i := k & mask
	for ; s.slots[i] != 0; i = (i + 1) & mask {
		if s.slots[i] == k {
			return
		}
	}
	s.slots[i] = k
	s.count++
}

// Exact finds texts that were seen before byte for byte, by a 64-bit hash and in the same bounded way.
type Exact struct {
	young, old bandSet
}

// NewExact keeps hashes in at most so many bytes.
func NewExact(memory int64) *Exact {
	slots := setSlots(memory)
	return &Exact{young: bandSet{limit: slots}, old: bandSet{limit: slots}}
}

// Seen reports whether the hash was there, and keeps it.
func (e *Exact) Seen(h uint64) bool {
	h = max(h, 1)
	if e.young.has(h) || e.old.has(h) {
		return true
	}
	if (e.young.count+1)*4 > e.young.limit*3 {
		e.young, e.old = bandSet{limit: e.young.limit}, e.young
	}
	e.young.add(h)
	return false
}
