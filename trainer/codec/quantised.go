package codec

import (
	"encoding/binary"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
)

// The layout that int8 and int4 share. A group is 64 blocks (2^18 elements, less in the last group) that share one table of
// bucket means:
//
//	scales  float32 × blocks of the group
//	means   float32 × buckets
//	codes   of the elements, as many bits as a bucket's number takes
//
// An element is its block's scale times the mean of its code. The mean of a code is the sum of the group's elements with it
// over the sum of their scales, so that a bucket's sum over a group is the same before and after, but for rounding:
// quantisation adds no bias.
type layout struct {
	codec   Codec
	number  byte
	buckets int
	bits    int // of a code: 4 or 8
	empty   byte
	scale   float64 // of a block, in units of its root mean square
	unit    float32 // fixed-point units in a scale
}

const (
	groupBlocks = 64
	groupSize   = groupBlocks * Block
)

// tiny is the scale below which a block is sent as zeros: its reciprocal would leave the range of float32.
const tiny = 0x1p-100

// huge is the magnitude above which a block is refused: its sums would leave the range of float32.
const huge = 1e30

// scratch is what the encoder of one group works in.
type scratch struct {
	fixed  [Block]int32
	codes  [Block]byte
	floats [Block]float32
	tally  tally
	top    selection
	held   heldElements
}

var scratches = sync.Pool{New: func() any { return new(scratch) }}

// bytes returns the bytes of the codes of n elements.
func (l layout) bytes(n int) int { return (n*l.bits + 7) / 8 }

func (l layout) size(n int) int {
	return headerSize + 4*Blocks(n) + groups(n, groupBlocks)*4*l.buckets + l.bytes(n)
}

// offset returns where group g begins in a blob: all groups before it are full.
func (l layout) offset(g int) int {
	return headerSize + g*(4*groupBlocks+4*l.buckets+l.bytes(groupSize))
}

// parts cuts a group of n elements at the beginning of raw into its parts.
func (l layout) parts(raw []byte, n int) (scales, means, codes []byte) {
	a := 4 * Blocks(n)
	b := a + 4*l.buckets
	return raw[:a], raw[a:b], raw[b:][:l.bytes(n)]
}

func (l layout) encode(dst []byte, src []float32) (int, error) {
	if err := begin(l.codec, header(l.number, 0, len(src)), dst, len(src)); err != nil {
		return 0, err
	}
	var broken atomic.Bool
	ForEach(groups(len(src), groupBlocks), func(g int) {
		buf := scratches.Get().(*scratch)
		defer scratches.Put(buf)
		if !l.encodeGroup(dst[l.offset(g):], groupOf(src, g, groupBlocks), buf) {
			broken.Store(true)
		}
	})
	if broken.Load() {
		return 0, fmt.Errorf("codec: %s: %w", l.codec.ID(), ErrNotFinite)
	}
	return l.size(len(src)), nil
}

func (l layout) encodeGroup(dst []byte, src []float32, buf *scratch) bool {
	scales, means, codes := l.parts(dst, len(src))
	buf.tally.reset()
	for b := range Blocks(len(src)) {
		x := src[b*Block : min((b+1)*Block, len(src))]
		sigma := math.Sqrt(SumSquares(x) / float64(len(x)))
		if !(sigma <= huge) { // NaN too
			return false
		}
		scale := float32(sigma * l.scale)
		if scale < tiny {
			scale = 0
		}
		binary.LittleEndian.PutUint32(scales[4*b:], math.Float32bits(scale))
		l.encodeBlock(codes[l.bytes(b*Block):][:l.bytes(len(x))], x, scale, buf)
	}
	for k := range l.buckets {
		binary.LittleEndian.PutUint32(means[4*k:], math.Float32bits(buf.tally.mean(k)))
	}
	return true
}

func (l layout) encodeBlock(dst []byte, x []float32, scale float32, buf *scratch) {
	if scale == 0 {
		for i := range dst {
			dst[i] = l.empty
		}
		return
	}
	// The largest magnitude of a block is 64 times its root mean square, so fixed point stays far inside int32.
	codes, fixed := dst, buf.fixed[:len(x)]
	if l.bits == 8 {
		quantise8(codes, fixed, x, l.unit/scale)
	} else {
		codes = buf.codes[:len(x)]
		quantise4(dst, codes, fixed, x, l.unit/scale)
	}
	buf.tally.count(codes, fixed)
	buf.tally.settle(l.buckets, float64(scale), float64(scale)/float64(l.unit))
}

// tally collects, for each bucket, the sum of its elements and of their scales; their quotient is the bucket's mean.
//
// A block is counted in fixed point, 2^-19 of int8's scale and 2^-24 of int4's: one addition of 2^48 + element counts the element and adds it. Neighbours go to different
// tables, because adding to one place twice in a row takes longer.
type tally struct {
	block      [4][256]int64
	sum, scale [256]float64
}

func (t *tally) reset() { t.sum, t.scale = [256]float64{}, [256]float64{} }

func (t *tally) count(codes []byte, fixed []int32) {
	a, b, c, d := &t.block[0], &t.block[1], &t.block[2], &t.block[3]
	for len(codes) >= 4 && len(fixed) >= 4 {
		k, q := codes[:4:4], fixed[:4:4]
		a[k[0]] += 1<<48 + int64(q[0])
		b[k[1]] += 1<<48 + int64(q[1])
		c[k[2]] += 1<<48 + int64(q[2])
		d[k[3]] += 1<<48 + int64(q[3])
		codes, fixed = codes[4:], fixed[4:]
	}
	for i, k := range codes {
		a[k] += 1<<48 + int64(fixed[i])
	}
}

// settle adds a block with the scale and the unit of fixed point to the sums.
func (t *tally) settle(buckets int, scale, unit float64) {
	for k := range buckets {
		v := t.block[0][k] + t.block[1][k] + t.block[2][k] + t.block[3][k]
		if v == 0 {
			continue
		}
		t.block[0][k], t.block[1][k], t.block[2][k], t.block[3][k] = 0, 0, 0, 0
		n := (v + 1<<47) >> 48
		t.sum[k] += float64(float64(v-n<<48) * unit)
		t.scale[k] += float64(float64(n) * scale)
	}
}

func (t *tally) mean(k int) float32 {
	if t.scale[k] == 0 {
		return 0
	}
	return float32(t.sum[k] / t.scale[k])
}

func (l layout) open(blob []byte, n int) (Source, error) {
	if err := checkHeader(l.codec, header(l.number, 0, n), blob, n); err != nil {
		return nil, err
	}
	if err := checkSize(l.codec, blob, n); err != nil {
		return nil, err
	}
	for g := range groups(n, groupBlocks) {
		scales, means, _ := l.parts(blob[l.offset(g):], min(groupSize, n-g*groupSize))
		scale, ok1 := largest(scales)
		mean, ok2 := largest(means)
		if product := scale * mean; !ok1 || !ok2 || math.IsInf(float64(product), 0) {
			return nil, fmt.Errorf("codec: %s: group %d is not finite: %w", l.codec.ID(), g, ErrBlob)
		}
	}
	return quantisedSource{l, blob, n}, nil
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

type quantisedSource struct {
	layout
	blob []byte
	n    int
}

func (s quantisedSource) Len() int { return s.n }

// block returns the number of elements of block i, their codes, and sets value to what each code stands for.
func (s quantisedSource) block(i int, value *[256]float32, f float32) (int, []byte) {
	g, b := i/groupBlocks, i%groupBlocks
	scales, means, codes := s.parts(s.blob[s.offset(g):], min(groupSize, s.n-g*groupSize))
	scale := math.Float32frombits(binary.LittleEndian.Uint32(scales[4*b:]))
	for k := range s.buckets {
		value[k] = f * float32(scale*math.Float32frombits(binary.LittleEndian.Uint32(means[4*k:])))
	}
	n := min(Block, s.n-i*Block)
	return n, codes[s.bytes(b*Block):][:s.bytes(n)]
}

func (s quantisedSource) Block(dst []float32, i int) int {
	var value [256]float32
	n, codes := s.block(i, &value, 1)
	if s.bits == 8 {
		load8(dst[:n], codes, &value)
	} else {
		load4(dst[:n], codes, &value)
	}
	return n
}

func (s quantisedSource) Add(acc []float32, i int, f float32) {
	var value [256]float32
	n, codes := s.block(i, &value, f)
	if s.bits == 8 {
		add8(acc[:n], codes, &value)
	} else {
		add4(acc[:n], codes, &value)
	}
}

// Int8 quantises every block to 256 buckets of its own scale and sends the mean of what fell into each bucket. Its scale is
// 6σ/256 with σ the root mean square of the block, and code 128 is the bucket around zero, so the buckets cover ±3σ and the
// outer two everything beyond. One byte for each element, and 0.5 %.
type Int8 struct{}

func (c Int8) layout() layout {
	return layout{codec: c, number: numberInt8, buckets: 256, bits: 8, empty: 128, scale: 6.0 / 256, unit: 1 << 19}
}

// ID returns "int8/1".
func (Int8) ID() string { return "int8/1" }

// Bound implements [Codec]; it is the size of every blob.
func (c Int8) Bound(n int) int { return c.layout().size(n) }

// Encode implements [Codec].
func (c Int8) Encode(dst []byte, src []float32) (int, error) { return c.layout().encode(dst, src) }

// Open implements [Codec].
func (c Int8) Open(blob []byte, n int) (Source, error) { return c.layout().open(blob, n) }

// Int4 quantises every block to a sign and eight levels of magnitude and sends the mean of what fell into each of these 16
// buckets. Its scale is σ, the root mean square of the block; the levels part at 17, 36, 57, 80, 108, 145 and 208 64ths of σ,
// which Lloyd's method gives for a mixture of 60 % normal and 40 % Laplace distribution. Half a byte for each element.
//
// Levels at powers of two (E3M0) with a scale for each 256 elements err twice as much: see TestInt4Error.
type Int4 struct{}

func (c Int4) layout() layout {
	return layout{codec: c, number: numberInt4, buckets: 16, bits: 4, scale: 1, unit: 1 << 24}
}

// ID returns "int4/1".
func (Int4) ID() string { return "int4/1" }

// Bound implements [Codec]; it is the size of every blob.
func (c Int4) Bound(n int) int { return c.layout().size(n) }

// Encode implements [Codec].
func (c Int4) Encode(dst []byte, src []float32) (int, error) { return c.layout().encode(dst, src) }

// Open implements [Codec].
func (c Int4) Open(blob []byte, n int) (Source, error) { return c.layout().open(blob, n) }
