package codec

import (
	"fmt"
	"sync/atomic"
)

// span is how many blocks one core copies at a time.
const span = 64

// FP32 stores the vector as it is: little-endian float32.
type FP32 struct{}

// ID returns "fp32/1".
func (FP32) ID() string { return "fp32/1" }

// Bound returns 16 + 4n, which is the size of every blob.
func (FP32) Bound(n int) int { return headerSize + 4*n }

// Encode implements [Codec].
func (c FP32) Encode(dst []byte, src []float32) (int, error) {
	if err := begin(c, header(numberFP32, 0, len(src)), dst, len(src)); err != nil {
		return 0, err
	}
	var broken atomic.Bool
	ForEach(groups(len(src), span), func(g int) {
		part := groupOf(src, g, span)
		if !putFloats(dst[headerSize+4*g*span*Block:], part) {
			broken.Store(true)
		}
	})
	if broken.Load() {
		return 0, fmt.Errorf("codec: fp32: %w", ErrNotFinite)
	}
	return c.Bound(len(src)), nil
}

// Open implements [Codec].
func (c FP32) Open(blob []byte, n int) (Source, error) {
	if err := checkHeader(c, header(numberFP32, 0, n), blob, n); err != nil {
		return nil, err
	}
	if err := checkSize(c, blob, n); err != nil {
		return nil, err
	}
	s := fp32Source{blob[headerSize:]}
	var broken atomic.Bool
	ForEach(groups(n, span), func(g int) {
		buf := scratches.Get().(*scratch)
		defer scratches.Put(buf)
		for i := g * span; i < min((g+1)*span, Blocks(n)); i++ {
			raw := s.block(i)
			if !getFloats(buf.floats[:len(raw)/4], raw) {
				broken.Store(true)
			}
		}
	})
	if broken.Load() {
		return nil, fmt.Errorf("codec: fp32: an element is not finite: %w", ErrBlob)
	}
	return s, nil
}

type fp32Source struct{ raw []byte }

func (s fp32Source) Len() int { return len(s.raw) / 4 }

// block returns the bytes of block i.
func (s fp32Source) block(i int) []byte { return s.raw[4*i*Block : min(4*(i+1)*Block, len(s.raw))] }

func (s fp32Source) Block(dst []float32, i int) int {
	raw := s.block(i)
	getFloats(dst[:len(raw)/4], raw)
	return len(raw) / 4
}

func (s fp32Source) Add(acc []float32, i int, f float32) { addFloats(acc, s.block(i), f) }
