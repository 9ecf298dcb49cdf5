package codec

import (
	"encoding/binary"
	"math"
)

//go:generate go run ./gen

// The functions of this file are the codecs' inner loops. Each runs in assembly as far as the CPU and the length allow, and
// goes on in plain Go, element by element, with the same bits: products are rounded before they are added, and sums run in
// the same chains.

// SumSquares returns the sum of the squares of x. It adds in eight chains, in float64, element i to chain i mod 8: the sum is
// not finite exactly when x is not.
func SumSquares(x []float32) float64 {
	var c [8]float64
	if n := len(x) &^ 7; fast && n > 0 {
		squaresAVX2(&c[0], &x[0], n)
		x = x[n:]
	}
	for len(x) >= 8 {
		for i, v := range x[:8] {
			c[i] += float64(float64(v) * float64(v))
		}
		x = x[8:]
	}
	for i, v := range x {
		c[i] += float64(float64(v) * float64(v))
	}
	return addChains(&c)
}

func addChains(c *[8]float64) float64 {
	return ((c[0] + c[4]) + (c[1] + c[5])) + ((c[2] + c[6]) + (c[3] + c[7]))
}

// quantise8 rounds x·factor to integers, in units of 2^-19 buckets, and sets the codes to the buckets that they fall into.
func quantise8(codes []byte, fixed []int32, x []float32, factor float32) {
	from := 0
	if fast {
		if from = len(x) &^ 31; from > 0 {
			quantise8AVX2(&codes[0], &fixed[0], &x[0], from, factor)
		}
	}
	for i := from; i < len(x); i++ {
		q := int32(math.RoundToEven(float64(float32(x[i] * factor))))
		fixed[i] = q
		codes[i] = byte(min(max((q+128<<19+1<<18)>>19, 0), 255))
	}
}

// thresholds4 part the magnitudes of int4, in units of σ/64.
var thresholds4 = [7]int32{17, 36, 57, 80, 108, 145, 208}

// quantise4 rounds x·factor to integers, in units of σ/2^24, and sets the codes to their signs and levels; packed holds two
// codes in a byte, the first in the lower half. The length of x is even, or the last byte of packed is half used.
func quantise4(packed, codes []byte, fixed []int32, x []float32, factor float32) {
	from := 0
	if fast {
		if from = len(x) &^ 31; from > 0 {
			quantise4AVX2(&packed[0], &codes[0], &fixed[0], &x[0], from, factor)
		}
	}
	for i := from; i < len(x); i++ {
		q := int32(math.RoundToEven(float64(float32(x[i] * factor))))
		fixed[i] = q
		code := byte(uint32(q) >> 31 << 3)
		for _, t := range thresholds4 {
			if max(q, -q) >= t<<18 {
				code++
			}
		}
		codes[i] = code
		if i&1 == 0 {
			packed[i/2] = code
		} else {
			packed[i/2] |= code << 4
		}
	}
}

// load4 sets dst to what the nibbles stand for.
func load4(dst []float32, packed []byte, value *[256]float32) {
	from := 0
	if fast {
		if from = len(dst) &^ 7; from > 0 {
			load4AVX2(&dst[0], &packed[0], from, &value[0])
		}
	}
	for i := from; i < len(dst); i++ {
		dst[i] = value[packed[i/2]>>(4*(i&1))&15]
	}
}

// add4 adds to acc what the nibbles stand for.
func add4(acc []float32, packed []byte, value *[256]float32) {
	from := 0
	if fast {
		if from = len(acc) &^ 7; from > 0 {
			add4AVX2(&acc[0], &packed[0], from, &value[0])
		}
	}
	for i := from; i < len(acc); i++ {
		acc[i] += value[packed[i/2]>>(4*(i&1))&15]
	}
}

// load8 sets dst to what the codes stand for. Eight codes are read at once: reading is what takes the time.
func load8(dst []float32, codes []byte, value *[256]float32) {
	for len(dst) >= 8 && len(codes) >= 8 {
		d, c := dst[:8:8], binary.LittleEndian.Uint64(codes)
		d[0], d[1] = value[byte(c)], value[byte(c>>8)]
		d[2], d[3] = value[byte(c>>16)], value[byte(c>>24)]
		d[4], d[5] = value[byte(c>>32)], value[byte(c>>40)]
		d[6], d[7] = value[byte(c>>48)], value[byte(c>>56)]
		dst, codes = dst[8:], codes[8:]
	}
	for i := range dst {
		dst[i] = value[codes[i]]
	}
}

// add8 adds to acc what the codes stand for.
func add8(acc []float32, codes []byte, value *[256]float32) {
	for len(acc) >= 8 && len(codes) >= 8 {
		a, c := acc[:8:8], binary.LittleEndian.Uint64(codes)
		a[0] += value[byte(c)]
		a[1] += value[byte(c>>8)]
		a[2] += value[byte(c>>16)]
		a[3] += value[byte(c>>24)]
		a[4] += value[byte(c>>32)]
		a[5] += value[byte(c>>40)]
		a[6] += value[byte(c>>48)]
		a[7] += value[byte(c>>56)]
		acc, codes = acc[8:], codes[8:]
	}
	for i := range acc {
		acc[i] += value[codes[i]]
	}
}

// putFloats stores x as bytes and reports whether all of it is finite.
func putFloats(dst []byte, x []float32) bool {
	from, broken := 0, uint32(0)
	if fast {
		if from = len(x) &^ 7; from > 0 {
			broken = storeFiniteAVX2(&dst[0], &x[0], from)
		}
	}
	for i := from; i < len(x); i++ {
		bits := math.Float32bits(x[i])
		if bits&0x7f800000 == 0x7f800000 {
			broken = 1
		}
		binary.LittleEndian.PutUint32(dst[4*i:], bits)
	}
	return broken == 0
}

// getFloats reads dst from bytes and reports whether all of it is finite.
func getFloats(dst []float32, raw []byte) bool {
	from, broken := 0, uint32(0)
	if fast {
		if from = len(dst) &^ 7; from > 0 {
			broken = loadFiniteAVX2(&dst[0], &raw[0], from)
		}
	}
	for i := from; i < len(dst); i++ {
		bits := binary.LittleEndian.Uint32(raw[4*i:])
		if bits&0x7f800000 == 0x7f800000 {
			broken = 1
		}
		dst[i] = math.Float32frombits(bits)
	}
	return broken == 0
}

// addFloats adds f times the floats in raw to acc.
func addFloats(acc []float32, raw []byte, f float32) {
	from := 0
	if fast {
		if from = len(acc) &^ 7; from > 0 {
			addRawAVX2(&acc[0], &raw[0], from, f)
		}
	}
	for i := from; i < len(acc); i++ {
		acc[i] += float32(f * math.Float32frombits(binary.LittleEndian.Uint32(raw[4*i:])))
	}
}

// above writes the indices of the elements whose magnitudes have bits greater than limit, ascending, and returns how many;
// out has room for eight more than the elements.
func above(out []uint16, x []float32, limit uint32) int {
	from, count := 0, 0
	if fast {
		if from = len(x) &^ 7; from > 0 {
			count = aboveAVX2(&out[0], &x[0], from, limit)
		}
	}
	for i := from; i < len(x); i++ {
		out[count] = uint16(i)
		if math.Float32bits(x[i])&^(1<<31) > limit {
			count++
		}
	}
	return count
}
