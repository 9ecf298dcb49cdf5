package codec

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
	"sync/atomic"
)

// The top layout, for sparse updates. After the header, which holds k where other codecs hold zero:
//
//	sizes   uint32 × groups: the bytes of each
//	groups
//	zero    8 bytes, so that a reader may always take 8 bytes at once
//
// A group is 128 blocks (less in the last) that share bucket means: 4 float32, for small and large positive elements, then
// for small and large negative ones, in units of their blocks' scales. Then come its blocks as a stream of bits, the least
// significant bit of a byte first, filled up with zeros to a byte:
//
//	γ(k' − count + 1)         count is the number of elements held, k' = ⌈k · elements / 4096⌉ the most
//	γ(zigzag(s − before) + 1) scale = 2^(s/8); before is the last block's s, 0 in the first; only when count > 0
//	count × (rest, level)     r and 2 bits
//	count × unary quotient    so many zeros, and a one
//
// γ is Elias' code: for a number of l+1 bits l zeros, a one, and the number's lower l bits. Positions ascend; the gap before
// an element, counted in elements that are not held, is quotient · 2^r + rest: Rice's code, its halves apart, so that rests
// and levels have a fixed place and the quotients' ones can be counted off a word at a time.

const (
	topBlocks = 128
	topSize   = topBlocks * Block
)

// MaxTop is the most elements that a block of [Top] holds.
const MaxTop = Block / 2

// maxScale bounds s in both directions: scales lie from 2^-100 to 2^100.
const maxScale = 800

// levels is the number of values that an element of a block takes.
const levels = 4

// Top holds the K largest magnitudes of every 4,096 elements, 1 to [MaxTop], as one of four values: small or large, positive
// or negative, each the mean of the elements that it stands for over a group. All other elements are zero. Of equal
// magnitudes the first are held; zeros are not. At K = 64 it takes 0.150 bits for each element of the vector.
type Top struct{ K int }

// ID returns "top64/1" for K = 64.
func (c Top) ID() string { return fmt.Sprintf("top%d/1", c.K) }

// rice returns the number of bits of a gap's rest: the power of two next to the mean gap · ln 2, which is best for gaps that
// are geometrically distributed.
func (c Top) rice() int {
	// mean gap · ln 2 · √2, whose logarithm's integer part rounds that of mean gap · ln 2; ln 2 · √2 = 0.980.
	return max(bits.Len(uint((Block-c.K)*980/(1000*(c.K+1))))-1, 0)
}

// most returns the number of elements that a block of n elements holds at most.
func (c Top) most(n int) int { return (c.K*n + Block - 1) / Block }

// groupBound returns the most bytes of a group of n elements, with 8 to spare for a writer that stores 8 bytes at once.
func (c Top) groupBound(n int) int {
	r, total := c.rice(), 0
	block := func(n int) int { k := c.most(n); return 2*23 + k*(r+3) + n>>r }
	total = n / Block * block(Block)
	if n%Block > 0 {
		total += block(n % Block)
	}
	return 4*levels + total/8 + 1 + 8
}

// Bound implements [Codec]. Blobs are smaller: how much depends on the positions of the large elements.
func (c Top) Bound(n int) int {
	total := headerSize + 4*groups(n, topBlocks) + n/topSize*c.groupBound(topSize) + 8
	if n%topSize > 0 {
		total += c.groupBound(n % topSize)
	}
	return total
}

// Encode implements [Codec].
func (c Top) Encode(dst []byte, src []float32) (int, error) {
	if err := begin(c, header(numberTop, c.K, len(src)), dst, len(src)); err != nil {
		return 0, err
	}
	sizes, body := dst[headerSize:][:4*groups(len(src), topBlocks)], dst[headerSize+4*groups(len(src), topBlocks):]
	var broken atomic.Bool
	bound := c.groupBound(topSize)
	ForEach(groups(len(src), topBlocks), func(g int) {
		buf := scratches.Get().(*scratch)
		defer scratches.Put(buf)
		part := groupOf(src, g, topBlocks)
		size, ok := c.encodeGroup(body[g*bound:][:c.groupBound(len(part))], part, buf)
		if !ok {
			broken.Store(true)
		}
		binary.LittleEndian.PutUint32(sizes[4*g:], uint32(size))
	})
	if broken.Load() {
		return 0, fmt.Errorf("codec: %s: %w", c.ID(), ErrNotFinite)
	}
	end := 0
	for g := range groups(len(src), topBlocks) {
		end += copy(body[end:], body[g*bound:][:binary.LittleEndian.Uint32(sizes[4*g:])])
	}
	clear(body[end:][:8])
	return headerSize + len(sizes) + end + 8, nil
}

// bitWriter appends bits to a buffer that has 8 bytes to spare.
type bitWriter struct {
	buf  []byte
	at   int    // of the byte that is being filled
	word uint64 // its bits so far
	n    int    // their number, below 8
}

// put appends the lower size bits of v, at most 56; its other bits are zero.
func (w *bitWriter) put(v uint64, size int) {
	w.word |= v << w.n
	binary.LittleEndian.PutUint64(w.buf[w.at:], w.word)
	w.n += size
	w.at += w.n >> 3
	w.word >>= w.n &^ 7
	w.n &= 7
}

// unary appends q zeros and a one.
func (w *bitWriter) unary(q int) {
	for ; q >= 56; q -= 56 {
		w.put(0, 56)
	}
	w.put(1<<q, q+1)
}

// gamma appends Elias' code of v, from 1 to 2^24.
func (w *bitWriter) gamma(v int) {
	l := bits.Len(uint(v)) - 1
	w.put(1<<l|uint64(v-1<<l)<<(l+1), 2*l+1)
}

func (c Top) encodeGroup(dst []byte, src []float32, buf *scratch) (int, bool) {
	w := bitWriter{buf: dst, at: 4 * levels}
	var sum, weight [levels]float64
	before := 0
	buf.top.limit = 0
	for b := range Blocks(len(src)) {
		x := src[b*Block : min((b+1)*Block, len(src))]
		most := c.most(len(x))
		held := buf.top.largest(x, most)
		s, split, ok := measure(x, held)
		if !ok {
			return 0, false
		}
		if s < -maxScale {
			held = nil
		}
		w.gamma(most - len(held) + 1)
		if len(held) == 0 {
			continue
		}
		w.gamma(zigzag(s-before) + 1)
		before = s
		scale := float64(scaleOf(s))
		var count [levels]int
		r, next, parting := c.rice(), 0, math.Float32bits(split)-1
		for _, i := range held {
			b := math.Float32bits(x[i])
			level := int(b>>31<<1 | (parting-b&^(1<<31))>>31) // without a branch that is a guess every time
			sum[level] += float64(x[i])
			count[level]++
			w.put(uint64((int(i)-next)&(1<<r-1)|level<<r), r+2)
			next = int(i) + 1
		}
		next = 0
		for _, i := range held {
			w.unary((int(i) - next) >> r)
			next = int(i) + 1
		}
		for l := range weight {
			weight[l] += float64(float64(count[l]) * scale)
		}
	}
	for l := range levels {
		mean := 0.0
		if weight[l] > 0 {
			mean = sum[l] / weight[l]
		}
		binary.LittleEndian.PutUint32(dst[4*l:], math.Float32bits(float32(mean)))
	}
	return w.at + (w.n+7)/8, true
}

// measure returns the scale of a block's held elements, less than -maxScale when they are too small to be sent, and the
// magnitude that parts small from large ones. It is not ok when one of them is not finite or huge.
func measure(x []float32, held []uint16) (s int, split float32, ok bool) {
	if len(held) == 0 {
		return -maxScale - 1, 0, true
	}
	var sum float64
	low, high := uint32(math.MaxUint32), uint32(0)
	for _, i := range held {
		b := math.Float32bits(x[i]) &^ (1 << 31)
		low, high = min(low, b), max(high, b)
		sum += float64(math.Float32frombits(b))
	}
	if high > math.Float32bits(huge) {
		return 0, 0, false
	}
	mean, least := float32(sum/float64(len(held))), math.Float32frombits(low)
	// For an exponential tail above the least element, Lloyd's method parts at 1.59 times the mean excess.
	return logScale(mean), least + float32(1.5*(mean-least)), true
}

// roots are 2^(i/8).
var roots = [8]float32{1, 1.0905077, 1.1892071, 1.2968396, 1.4142135, 1.5422108, 1.6817929, 1.8340081}

// scaleOf returns 2^(s/8).
func scaleOf(s int) float32 {
	return roots[s&7] * math.Float32frombits(uint32(s>>3+127)<<23)
}

// logScale returns the largest s with 2^(s/8) ≤ v, or less than -maxScale for a v that is that small.
func logScale(v float32) int {
	b := math.Float32bits(v)
	s := 8 * (int(b>>23) - 127)
	m := math.Float32frombits(b&(1<<23-1) | 127<<23)
	for _, r := range roots[1:] {
		if m >= r {
			s++
		}
	}
	return s
}

func zigzag(v int) int { return int(uint(v)<<1) ^ v>>(bits.UintSize-1) }

func unzigzag(v int) int { return v>>1 ^ -(v & 1) }

// topSource knows where each block begins: 16 bytes for 4,096 elements.
type topSource struct {
	codec  Top
	blob   []byte
	n      int
	ends   []int // of the groups, in bytes
	blocks []blockPlace
}

type blockPlace struct {
	at     int // in bits
	before int // s of the block before
}

// Open implements [Codec]. It reads the blob once, to check it, on all cores.
func (c Top) Open(blob []byte, n int) (Source, error) {
	if err := checkHeader(c, header(numberTop, c.K, n), blob, n); err != nil {
		return nil, err
	}
	s := topSource{codec: c, blob: blob, n: n, ends: make([]int, groups(n, topBlocks)), blocks: make([]blockPlace, Blocks(n))}
	end := headerSize + 4*groups(n, topBlocks)
	damaged := len(blob) < end+8
	for g := range s.ends {
		if damaged {
			break
		}
		size := binary.LittleEndian.Uint32(blob[headerSize+4*g:])
		damaged = size < 4*levels || int64(size) > int64(len(blob)-8-end)
		end += int(size)
		s.ends[g] = end
	}
	if damaged || end+8 != len(blob) || binary.LittleEndian.Uint64(blob[end:]) != 0 {
		return nil, fmt.Errorf("codec: %s: sizes of the groups: %w", c.ID(), ErrBlob)
	}
	var broken atomic.Bool
	ForEach(groups(n, topBlocks), func(g int) {
		buf := scratches.Get().(*scratch)
		defer scratches.Put(buf)
		if !s.check(g, &buf.held) {
			broken.Store(true)
		}
	})
	if broken.Load() {
		return nil, fmt.Errorf("codec: %s: a group is damaged: %w", c.ID(), ErrBlob)
	}
	return &s, nil
}

// start returns where group g begins, in bytes.
func (s *topSource) start(g int) int {
	if g == 0 {
		return headerSize + 4*len(s.ends)
	}
	return s.ends[g-1]
}

// check reads group g and notes where its blocks begin.
func (s *topSource) check(g int, held *heldElements) bool {
	at, before := 8*(s.start(g)+4*levels), 0
	if _, ok := largest(s.blob[s.start(g):][:4*levels]); !ok {
		return false
	}
	for i := g * topBlocks; i < min((g+1)*topBlocks, len(s.blocks)); i++ {
		s.blocks[i] = blockPlace{at, before}
		ok := false
		if at, ok = s.read(i, held); !ok {
			return false
		}
		for _, v := range held.values(s.blob[s.start(g):]) {
			if math.IsInf(float64(v), 0) {
				return false
			}
		}
		if held.count > 0 {
			before = held.scale
		}
	}
	rest := 8*s.ends[g] - at
	return rest >= 0 && rest < 8 && s.blob[s.ends[g]-1]>>(8-rest) == 0
}

// heldElements are the elements that a block holds.
type heldElements struct {
	count, scale int
	fields       [MaxTop]uint16 // rests, then positions
	levels       [MaxTop]uint8
}

// values returns what the levels stand for, given the group.
func (h *heldElements) values(group []byte) (v [levels]float32) {
	if h.count == 0 {
		return v
	}
	for l := range v {
		v[l] = scaleOf(h.scale) * math.Float32frombits(binary.LittleEndian.Uint32(group[4*l:]))
	}
	return v
}

// window returns at least 57 bits from the one at position at; at lies within the blob's last 8 bytes at most.
func (s *topSource) window(at int) uint64 {
	return binary.LittleEndian.Uint64(s.blob[at>>3:]) >> (at & 7)
}

// gamma reads one of Elias' codes. The number is 0 when it is none that a blob holds.
func (s *topSource) gamma(at int) (v, next int) {
	w := s.window(at)
	l := bits.TrailingZeros64(w)
	if l > 12 {
		return 0, at
	}
	return 1<<l | int(w>>(l+1)&(1<<l-1)), at + 2*l + 1
}

// read takes block i apart. It returns where the next one begins, and whether everything was as it must be.
func (s *topSource) read(i int, held *heldElements) (int, bool) {
	at, n, end := s.blocks[i].at, min(Block, s.n-i*Block), 8*s.ends[i/topBlocks]
	if at >= end {
		return at, false
	}
	missing, at := s.gamma(at)
	held.count = s.codec.most(n) - missing + 1
	if missing == 0 || held.count < 0 || at > end {
		return at, false
	}
	if held.count == 0 {
		return at, true
	}
	delta, at := s.gamma(at)
	held.scale = s.blocks[i].before + unzigzag(delta-1)
	if delta == 0 || held.scale < -maxScale || held.scale > maxScale {
		return at, false
	}
	r := s.codec.rice()
	if at+held.count*(r+2) >= end {
		return at, false
	}
	fields, level := held.fields[:held.count], held.levels[:held.count]
	for width, j := r+2, 0; j < len(fields); {
		w := s.window(at)
		for range min(57/width, len(fields)-j) {
			fields[j], level[j] = uint16(w&(1<<r-1)), uint8(w>>r&(levels-1))
			w >>= width
			at += width
			j++
		}
	}
	at, last := s.quotients(fields, at, end)
	return at, last < n
}

// quotients turns rests into positions: that of element j is the ones before its own, j, the zeros before it times 2^r, and
// the rests up to its own. It returns where the ones end, and the last position, which is the largest: too large when the
// stream ends first.
func (s *topSource) quotients(fields []uint16, at, end int) (int, int) {
	r, rests, j, position := s.codec.rice(), 0, 0, 0
	word := binary.LittleEndian.Uint64(s.blob[at>>3:]) >> (at & 7) << (at & 7)
	for base, from := at&^7, at; ; base += 64 {
		for word != 0 {
			one := base + bits.TrailingZeros64(word)
			word &= word - 1
			rests += int(fields[j])
			position = (one-from-j)<<r + rests + j
			fields[j] = uint16(position)
			if j++; j == len(fields) {
				if one >= end {
					return one, Block
				}
				return one + 1, position
			}
		}
		if base+64 >= end {
			return end, Block
		}
		word = binary.LittleEndian.Uint64(s.blob[(base+64)>>3:])
	}
}

func (s *topSource) Len() int { return s.n }

func (s *topSource) Block(dst []float32, i int) int {
	n := min(Block, s.n-i*Block)
	buf := scratches.Get().(*scratch)
	defer scratches.Put(buf)
	clear(dst[:n])
	s.read(i, &buf.held)
	value := buf.held.values(s.blob[s.start(i/topBlocks):])
	for j, p := range buf.held.fields[:buf.held.count] {
		dst[p] = value[buf.held.levels[j]&3]
	}
	return n
}

func (s *topSource) Add(acc []float32, i int, f float32) {
	buf := scratches.Get().(*scratch)
	defer scratches.Put(buf)
	s.read(i, &buf.held)
	value := buf.held.values(s.blob[s.start(i/topBlocks):])
	for l := range value {
		value[l] *= f
	}
	for j, p := range buf.held.fields[:buf.held.count] {
		acc[p] += value[buf.held.levels[j]&3]
	}
}

// Squares returns the sum of the squares of block i's elements, with the same bits as [SumSquares] of the decoded block.
func (s *topSource) Squares(i int) float64 {
	buf := scratches.Get().(*scratch)
	defer scratches.Put(buf)
	s.read(i, &buf.held)
	value := buf.held.values(s.blob[s.start(i/topBlocks):])
	var c [8]float64
	for j, p := range buf.held.fields[:buf.held.count] {
		v := float64(value[buf.held.levels[j]&3])
		c[p&7] += float64(v * v)
	}
	return addChains(&c)
}
