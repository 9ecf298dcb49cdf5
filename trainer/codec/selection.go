package codec

import (
	"math"
	"math/bits"
)

// selection finds the largest elements of one block after the other, without sorting. Magnitudes are compared as the bits of
// float32, which have the same order.
//
// Neighbouring blocks are alike: what is above a little less than the last block's k-th magnitude is usually a bit more than
// k elements, and only among these an exact search is needed. Where it is less than k, a histogram gives a lower bound. So
// the guess decides how long it takes, never what comes out.
type selection struct {
	limit      uint32 // the guess, for magnitudes greater than it
	candidates [Block + 8]uint16
	bits       [Block]uint32
	held       [Block]uint16
	histogram  [2048]uint16
}

// largest returns the indices, ascending, of the k largest magnitudes of x; of equal ones the first; none that is zero.
func (s *selection) largest(x []float32, k int) []uint16 {
	count := 0
	if s.limit > 0 {
		count = above(s.candidates[:], x, s.limit)
	}
	if count < k {
		s.limit = s.lowerBound(x, k)
		count = above(s.candidates[:], x, s.limit)
	}
	candidates := s.candidates[:count]
	if count <= k {
		return candidates
	}
	magnitudes := s.bits[:count]
	for j, i := range candidates {
		magnitudes[j] = math.Float32bits(x[i]) &^ (1 << 31)
	}
	threshold, ties := kth(magnitudes, k, &s.histogram)
	s.limit = math.Float32bits(math.Float32frombits(threshold) * 0.93)
	n := 0
	for _, i := range candidates { // compiled without a jump: which elements are large, no processor can predict
		s.held[n] = i
		if math.Float32bits(x[i])&^(1<<31) >= threshold {
			n++
		}
	}
	held := s.held[:n]
	if n == k {
		return held
	}
	n = 0
	for _, i := range held {
		if math.Float32bits(x[i])&^(1<<31) == threshold {
			if ties--; ties < 0 {
				continue
			}
		}
		held[n] = i
		n++
	}
	return held[:n]
}

// lowerBound returns bits below those of the k-th magnitude of x: 0 when fewer than k elements are not zero.
func (s *selection) lowerBound(x []float32, k int) uint32 {
	const shift = 31 - 11 // the exponent and three bits of the fraction
	s.histogram = [2048]uint16{}
	for _, v := range x {
		s.histogram[math.Float32bits(v)<<1>>(shift+1)]++
	}
	above := 0
	for b := len(s.histogram) - 1; b > 0; b-- {
		if above += int(s.histogram[b]); above >= k {
			return uint32(b)<<shift - 1
		}
	}
	return 0
}

// kth returns the k-th largest of the values, and how many of those that equal it are among the k largest. It narrows a
// range of values by a histogram of 256 bins until one value is left; the values are overwritten.
func kth(values []uint32, k int, histogram *[2048]uint16) (threshold uint32, ties int) {
	for {
		low, high := uint32(math.MaxUint32), uint32(0)
		for _, v := range values {
			low, high = min(low, v), max(high, v)
		}
		if low == high {
			return low, k
		}
		shift := max(bits.Len32(high-low)-8, 0)
		h := histogram[:256]
		clear(h)
		for _, v := range values {
			h[byte((v-low)>>shift)]++
		}
		bin := 255
		for ; k > int(h[bin]); bin-- {
			k -= int(h[bin])
		}
		n := 0
		for _, v := range values {
			values[n] = v
			if int((v-low)>>shift) == bin {
				n++
			}
		}
		values = values[:n]
	}
}
