package data

import (
	"cmp"
	"maps"
	"slices"
)

// sides decides by content which parts are held out, so that equal parts are always on one side.
type sides struct {
	threshold uint64          // parts with smaller keys are held out,
	trained   map[uint64]bool // but for these, whose text is too much of the corpus
	only      *uint64         // instead of all that: the parts with this key
}

// held tells whether the parts with that key are held out.
func (s sides) held(key uint64) bool {
	if s.only != nil {
		return key == *s.only
	}
	return key < s.threshold && !s.trained[key]
}

// class is the sections of long documents that have one key, which are equal.
type class struct {
	parts, bytes int64
}

// maxClasses bounds how many classes are remembered: those with the smallest keys, 16 MiB of them.
const maxClasses = 1 << 18

// classes counts the sections of long documents. Short documents need no count: of equal ones all but one are dropped.
type classes struct {
	byKey map[uint64]class
	below uint64 // larger keys are not remembered
	bytes int64  // of all parts, remembered or not
}

func (c *classes) add(key uint64, bytes uint32) {
	if key > c.below {
		return
	}
	x := c.byKey[key]
	c.byKey[key] = class{x.parts + 1, x.bytes + int64(bytes)}
	for len(c.byKey) > maxClasses {
		c.below /= 2
		maps.DeleteFunc(c.byKey, func(k uint64, _ class) bool { return k > c.below })
	}
}

// sides returns which parts are held out, given the smallest and largest key of all parts and the smallest of a short document.
//
// What repeats itself has one key, so that a file of many equal documents would be held out almost as a whole when that key is
// small. Such classes are held out, the smallest key first, until twice the share is reached, and trained on from there. Where nothing
// is held out then, the class with the least text is.
func (c *classes) sides(smallest, largest, short uint64, fraction float64) sides {
	s := sides{threshold: heldOut(smallest, largest, fraction), trained: map[uint64]bool{}}
	left := int64(2 * fraction * float64(c.bytes))
	any := short < s.threshold
	keys := slices.Sorted(maps.Keys(c.byKey))
	for _, key := range keys {
		if key >= s.threshold {
			break
		}
		if x := c.byKey[key]; x.parts > 1 {
			if left < x.bytes {
				s.trained[key] = true
				continue
			}
			left -= x.bytes
		}
		any = true
	}
	if any || len(s.trained) == 0 {
		return s
	}
	least := slices.MinFunc(keys, func(a, b uint64) int { return cmp.Compare(c.byKey[a].bytes, c.byKey[b].bytes) })
	s.only = &least
	return s
}
