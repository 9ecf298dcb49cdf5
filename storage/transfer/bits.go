package transfer

import mathbits "math/bits"

// bits is a set of block numbers below a size that its maker chose.
type bits []uint64

func newBits(n int) bits { return make(bits, (n+63)/64) }

func (b bits) has(i int) bool { return i/64 < len(b) && b[i/64]&(1<<(i%64)) != 0 }
func (b bits) set(i int)      { b[i/64] |= 1 << (i % 64) }
func (b bits) clear(i int)    { b[i/64] &^= 1 << (i % 64) }

// setRun adds count numbers from first on, and drops what lies outside the size.
func (b bits) setRun(first, count int) {
	for i, end := first, min(first+count, 64*len(b)); i < end; {
		if i%64 == 0 && end-i >= 64 {
			b[i/64] = ^uint64(0)
			i += 64
			continue
		}
		b.set(i)
		i++
	}
}

// next returns the first number at or after from that is in b and, unless it is nil, in also; -1 says that there is none.
func (b bits) next(also bits, from int) int {
	for w := from / 64; w < len(b); w++ {
		word := b[w]
		if also != nil {
			if w >= len(also) {
				return -1
			}
			word &= also[w]
		}
		if w == from/64 {
			word &= ^uint64(0) << (from % 64)
		}
		if word != 0 {
			return 64*w + mathbits.TrailingZeros64(word)
		}
	}
	return -1
}
