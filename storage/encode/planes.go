package encode

import "encoding/binary"

// Planes turn a run of floats into one run of bytes per byte of a float. Before that each float is rotated left by one bit: the
// exponent, whose values are few, becomes the upper byte, and the sign goes to the noise at the lower end.
//
// The loops take eight bytes at a time and gather every second or fourth byte of a word with three shifts; what is left at the
// end goes through the byte loops, which are also the definition.

const (
	even   = 0x00ff00ff00ff00ff // every second byte
	pairs  = 0x0000ffff0000ffff // every second pair of bytes
	low16  = 0x0001000100010001 // lowest bit of each 16
	low32  = 0x0000000100000001 // lowest bit of each 32
	high16 = low16 << 15
	high32 = low32 << 31
)

// split2 deals 16-bit floats out to two planes of len(src)/2 bytes each, one after the other in dst.
func split2(dst, src []byte) {
	n := len(src) / 2
	lo, hi := dst[:n], dst[n:2*n]
	i := 0
	for ; i+8 <= n; i += 8 {
		s := src[2*i : 2*i+16]
		a, b := rotate16(binary.LittleEndian.Uint64(s)), rotate16(binary.LittleEndian.Uint64(s[8:]))
		binary.LittleEndian.PutUint64(lo[i:i+8], gather2(a)|gather2(b)<<32)
		binary.LittleEndian.PutUint64(hi[i:i+8], gather2(a>>8)|gather2(b>>8)<<32)
	}
	for ; i < n; i++ {
		v := binary.LittleEndian.Uint16(src[2*i:])
		v = v<<1 | v>>15
		lo[i], hi[i] = byte(v), byte(v>>8)
	}
}

// join2 undoes split2.
func join2(dst, src []byte) {
	n := len(dst) / 2
	lo, hi := src[:n], src[n:2*n]
	i := 0
	for ; i+8 <= n; i += 8 {
		l, h := binary.LittleEndian.Uint64(lo[i:i+8]), binary.LittleEndian.Uint64(hi[i:i+8])
		d := dst[2*i : 2*i+16]
		binary.LittleEndian.PutUint64(d, unrotate16(scatter2(l)|scatter2(h)<<8))
		binary.LittleEndian.PutUint64(d[8:], unrotate16(scatter2(l>>32)|scatter2(h>>32)<<8))
	}
	for ; i < n; i++ {
		v := uint16(lo[i]) | uint16(hi[i])<<8
		binary.LittleEndian.PutUint16(dst[2*i:], v>>1|v<<15)
	}
}

// split4 deals 32-bit floats out to four planes of len(src)/4 bytes each, one after the other in dst.
func split4(dst, src []byte) {
	n := len(src) / 4
	p0, p1, p2, p3 := dst[:n], dst[n:2*n], dst[2*n:3*n], dst[3*n:4*n]
	i := 0
	for ; i+4 <= n; i += 4 {
		s := src[4*i : 4*i+16]
		a, b := rotate32(binary.LittleEndian.Uint64(s)), rotate32(binary.LittleEndian.Uint64(s[8:]))
		// Bytes 0 2 of each float in one word, 1 3 in another: each holds four floats.
		e, o := gather2(a)|gather2(b)<<32, gather2(a>>8)|gather2(b>>8)<<32
		binary.LittleEndian.PutUint32(p0[i:i+4], uint32(gather2(e)))
		binary.LittleEndian.PutUint32(p2[i:i+4], uint32(gather2(e>>8)))
		binary.LittleEndian.PutUint32(p1[i:i+4], uint32(gather2(o)))
		binary.LittleEndian.PutUint32(p3[i:i+4], uint32(gather2(o>>8)))
	}
	for ; i < n; i++ {
		v := binary.LittleEndian.Uint32(src[4*i:])
		v = v<<1 | v>>31
		p0[i], p1[i], p2[i], p3[i] = byte(v), byte(v>>8), byte(v>>16), byte(v>>24)
	}
}

// join4 undoes split4.
func join4(dst, src []byte) {
	n := len(dst) / 4
	p0, p1, p2, p3 := src[:n], src[n:2*n], src[2*n:3*n], src[3*n:4*n]
	i := 0
	for ; i+4 <= n; i += 4 {
		e := scatter2(uint64(binary.LittleEndian.Uint32(p0[i:i+4]))) | scatter2(uint64(binary.LittleEndian.Uint32(p2[i:i+4])))<<8
		o := scatter2(uint64(binary.LittleEndian.Uint32(p1[i:i+4]))) | scatter2(uint64(binary.LittleEndian.Uint32(p3[i:i+4])))<<8
		d := dst[4*i : 4*i+16]
		binary.LittleEndian.PutUint64(d, unrotate32(scatter2(e)|scatter2(o)<<8))
		binary.LittleEndian.PutUint64(d[8:], unrotate32(scatter2(e>>32)|scatter2(o>>32)<<8))
	}
	for ; i < n; i++ {
		v := uint32(p0[i]) | uint32(p1[i])<<8 | uint32(p2[i])<<16 | uint32(p3[i])<<24
		binary.LittleEndian.PutUint32(dst[4*i:], v>>1|v<<31)
	}
}

func rotate16(v uint64) uint64   { return v<<1&^low16 | v>>15&low16 }
func unrotate16(v uint64) uint64 { return v>>1&^high16 | v<<15&high16 }
func rotate32(v uint64) uint64   { return v<<1&^low32 | v>>31&low32 }
func unrotate32(v uint64) uint64 { return v>>1&^high32 | v<<31&high32 }

// gather2 moves bytes 0, 2, 4 and 6 to the lower half.
func gather2(v uint64) uint64 {
	v &= even
	v = (v | v>>8) & pairs
	return (v | v>>16) & 0xffffffff
}

// scatter2 moves the lower four bytes to places 0, 2, 4 and 6.
func scatter2(v uint64) uint64 {
	v &= 0xffffffff
	v = (v | v<<16) & pairs
	return (v | v<<8) & even
}
