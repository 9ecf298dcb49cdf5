package codec

import (
	"encoding/binary"
	"fmt"
	"math"
	"sync/atomic"
)

// The int8 layout. A group is 64 blocks (2^18 elements, less in the last group) that share one table of bucket means:
//
//	scales  float32 × blocks of the group
//	means   float32 × 256
//	codes   uint8 × elements of the group
//
// scale = 6σ/256 with σ the root mean square of the block; code = ⌊x/scale + 128.5⌋ clamped to 0…255, so that code 128 is
// the bucket around zero and the range is ±3σ; element = scale · means[code].
const (
	groupBlocks = 64
	groupSize   = groupBlocks * Block
	tableSize   = 4 * 256
)

// tiny is the scale below which a block is sent as zeros: its reciprocal would leave the range of float32.
const tiny = 0x1p-100

// huge is the root mean square above which a block is refused: its sums would leave the range of float32.
const huge = 1e30

// Int8 quantises every block to 256 buckets of its own scale and sends the mean of what fell into each bucket, so that a
// bucket's sum over a group is the same before and after: quantisation adds no bias. One byte per element, and 0.5 %.
type Int8 struct{}

// ID returns "int8/1".
func (Int8) ID() string { return "int8/1" }

// Bound implements [Codec]; it is the size of every blob.
func (Int8) Bound(n int) int {
	groups := (n + groupSize - 1) / groupSize
	return headerSize + 4*Blocks(n) + tableSize*groups + n
}

// groupOffset returns where group g begins in a blob: all groups before it are full.
func groupOffset(g int) int { return headerSize + g*(4*groupBlocks+tableSize+groupSize) }

// Encode implements [Codec].
func (c Int8) Encode(dst []byte, src []float32) (int, error) {
	if err := checkBuffer(c, dst, src); err != nil {
		return 0, err
	}
	putHeader(dst, numberInt8, len(src))
	groups := (len(src) + groupSize - 1) / groupSize
	var broken atomic.Bool
	ForEach(groups, func(g int) {
		part := src[g*groupSize : min((g+1)*groupSize, len(src))]
		if !encodeGroup(dst[groupOffset(g):], part) {
			broken.Store(true)
		}
	})
	if broken.Load() {
		return 0, fmt.Errorf("codec: int8: %w", ErrNotFinite)
	}
	return c.Bound(len(src)), nil
}

// tally collects, for each bucket, the sum of its elements and of their scales; their quotient is the bucket's mean.
type tally struct {
	sum, scale [256]float64
}

func encodeGroup(dst []byte, src []float32) bool {
	blocks := Blocks(len(src))
	scales, means, codes := dst[:4*blocks], dst[4*blocks:][:tableSize], dst[4*blocks+tableSize:][:len(src)]
	var t tally
	for b := range blocks {
		x := src[b*Block : min((b+1)*Block, len(src))]
		sigma := math.Sqrt(sumSquares(x) / float64(len(x)))
		if !(sigma <= huge) { // NaN too
			return false
		}
		scale := float32(sigma * (6.0 / 256))
		if scale < tiny {
			scale = 0
		}
		binary.LittleEndian.PutUint32(scales[4*b:], math.Float32bits(scale))
		encodeBlock(codes[b*Block:][:len(x)], x, scale, &t)
	}
	for i := range 256 {
		mean := 0.0
		if t.scale[i] > 0 {
			mean = t.sum[i] / t.scale[i]
		}
		binary.LittleEndian.PutUint32(means[4*i:], math.Float32bits(float32(mean)))
	}
	return true
}

// sumSquares adds in four fixed chains, in float64: it is not finite exactly when x is not.
func sumSquares(x []float32) float64 {
	var a, b, c, d float64
	for len(x) >= 4 {
		p, q, r, s := float64(x[0]), float64(x[1]), float64(x[2]), float64(x[3])
		a, b, c, d = a+float64(p*p), b+float64(q*q), c+float64(r*r), d+float64(s*s)
		x = x[4:]
	}
	for _, v := range x {
		a += float64(float64(v) * float64(v))
	}
	return (a + b) + (c + d)
}

func encodeBlock(codes []byte, x []float32, scale float32, t *tally) {
	if scale == 0 {
		for i := range codes {
			codes[i] = 128
		}
		return
	}
	inverse := 1 / scale
	var sum [256]float32
	var count [256]int32
	for i, v := range x {
		// |v·inverse| is at most √4096·256/6, far inside int32.
		k := int32(float32(v*inverse) + 128.5)
		k = min(max(k, 0), 255)
		codes[i] = byte(k)
		sum[byte(k)] += v
		count[byte(k)]++
	}
	for i := range 256 {
		t.sum[i] += float64(sum[i])
		t.scale[i] += float64(float64(count[i]) * float64(scale))
	}
}

// Open implements [Codec].
func (c Int8) Open(blob []byte, n int) (Source, error) {
	if err := checkHeader(c, numberInt8, blob, n); err != nil {
		return nil, err
	}
	if err := checkSize(c, blob, n); err != nil {
		return nil, err
	}
	s := int8Source{blob, n}
	for g := range (n + groupSize - 1) / groupSize {
		scales, means, _ := s.group(g)
		scale, ok1 := largest(scales)
		mean, ok2 := largest(means)
		if product := scale * mean; !ok1 || !ok2 || math.IsInf(float64(product), 0) {
			return nil, fmt.Errorf("codec: int8: group %d is not finite: %w", g, ErrBlob)
		}
	}
	return s, nil
}

// largest returns the largest magnitude of raw floats and whether all are finite.
func largest(raw []byte) (float32, bool) {
	var most float32
	for ; len(raw) >= 4; raw = raw[4:] {
		bits := binary.LittleEndian.Uint32(raw) &^ (1 << 31)
		if bits >= 0x7f800000 {
			return 0, false
		}
		most = max(most, math.Float32frombits(bits))
	}
	return most, true
}

type int8Source struct {
	blob []byte
	n    int
}

func (s int8Source) Len() int { return s.n }

// group returns the parts of group g.
func (s int8Source) group(g int) (scales, means, codes []byte) {
	n := min(groupSize, s.n-g*groupSize)
	raw := s.blob[groupOffset(g):]
	blocks := Blocks(n)
	return raw[:4*blocks], raw[4*blocks:][:tableSize], raw[4*blocks+tableSize:][:n]
}

// block returns the codes of block i and what each of them stands for.
func (s int8Source) block(i int) (codes []byte, value [256]float32) {
	scales, means, codes := s.group(i / groupBlocks)
	b := i % groupBlocks
	scale := math.Float32frombits(binary.LittleEndian.Uint32(scales[4*b:]))
	for k := range value {
		value[k] = scale * math.Float32frombits(binary.LittleEndian.Uint32(means[4*k:]))
	}
	return codes[b*Block : min((b+1)*Block, len(codes))], value
}

func (s int8Source) Block(dst []float32, i int) int {
	codes, value := s.block(i)
	dst = dst[:len(codes)]
	for j, k := range codes {
		dst[j] = value[k]
	}
	return len(dst)
}

func (s int8Source) Add(acc []float32, i int, f float32) {
	codes, value := s.block(i)
	for k := range value {
		value[k] = f * value[k]
	}
	acc = acc[:len(codes)]
	for j, k := range codes {
		acc[j] += value[k]
	}
}
