// Package codec owns the bytes of an update: how a vector of float32 becomes a blob and comes back. It refuses to know what
// the numbers mean, who sent them and what is done with the rest that a lossy codec leaves behind.
//
// A blob is 16 bytes of header (see [Header]) followed by the codec's own layout. All codecs cut the vector into blocks of
// [Block] elements; blocks are encoded and decoded independently of each other or in groups of fixed size, so the bytes
// never depend on the number of cores. docs/protocol/round.md describes the layouts.
package codec

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"runtime"
	"sync"
	"sync/atomic"
)

// Block is the number of elements that share a scale and that [Source.Block] decodes at a time.
const Block = 4096

// ErrBlob reports a blob that is damaged, of another codec or of another length.
var ErrBlob = errors.New("invalid update blob")

// ErrNotFinite reports a vector with a NaN or an infinity.
var ErrNotFinite = errors.New("vector is not finite")

// ErrUnknown reports a codec id that this program does not know.
var ErrUnknown = errors.New("unknown codec")

// Codec turns vectors into blobs. Codecs are stateless and safe for concurrent use.
type Codec interface {
	// ID names the codec and its parameters in headers, such as "int8/1".
	ID() string
	// Bound returns the most bytes that a blob of n elements can have, at least 1. It depends on n only.
	Bound(n int) int
	// Encode fills the beginning of dst, which has at least Bound(len(src)) bytes, and returns the blob's bytes. It is
	// [ErrNotFinite] when src holds a NaN, an infinity or numbers so large that the codec could not keep them finite.
	Encode(dst []byte, src []float32) (int, error)
	// Open checks a stranger's blob against the expected number of elements: size, header, and that everything in it
	// decodes to finite numbers. It keeps the blob; nothing is copied or allocated for its elements.
	Open(blob []byte, n int) (Source, error)
}

// Source is a vector that can be read block by block, from several goroutines at once.
type Source interface {
	// Len returns the number of elements.
	Len() int
	// Block decodes block i into the beginning of dst and returns the number of elements: [Block], less in the last.
	Block(dst []float32, i int) int
	// Add adds f·x to acc, which has block i's number of elements, for every element x of block i that the blob holds; the
	// product is rounded to float32 before it is added. Elements that the blob does not hold are zero, and stay untouched.
	Add(acc []float32, i int, f float32)
}

// Parse returns the codec with the id, or the newest version of the codec with the name: "int8" and "int8/1" are the same.
func Parse(id string) (Codec, error) {
	switch id {
	case "fp32", FP32{}.ID():
		return FP32{}, nil
	case "int8", Int8{}.ID():
		return Int8{}, nil
	}
	return nil, fmt.Errorf("codec: %.64q, want fp32 or int8: %w", id, ErrUnknown)
}

// Header of a blob: magic "CNUP", version 1, codec number, two zero bytes, number of elements (8 bytes, little-endian).
const (
	headerSize = 16
	version    = 1
	numberFP32 = 0
	numberInt8 = 1
)

func putHeader(dst []byte, number byte, n int) {
	copy(dst, "CNUP")
	dst[4], dst[5], dst[6], dst[7] = version, number, 0, 0
	binary.LittleEndian.PutUint64(dst[8:], uint64(n))
}

func checkHeader(c Codec, number byte, blob []byte, n int) error {
	if n < 0 || len(blob) < headerSize || len(blob) > c.Bound(n) {
		return fmt.Errorf("codec: %s: %d bytes for %d elements: %w", c.ID(), len(blob), n, ErrBlob)
	}
	var want [headerSize]byte
	putHeader(want[:], number, n)
	if string(blob[:headerSize]) != string(want[:]) {
		return fmt.Errorf("codec: %s: header %x, want %x: %w", c.ID(), blob[:headerSize], want, ErrBlob)
	}
	return nil
}

// checkSize checks the size of a blob whose codec has only one for n elements.
func checkSize(c Codec, blob []byte, n int) error {
	if len(blob) != c.Bound(n) {
		return fmt.Errorf("codec: %s: %d bytes, want %d for %d elements: %w", c.ID(), len(blob), c.Bound(n), n, ErrBlob)
	}
	return nil
}

// checkBuffer checks that an encoder's buffer is large enough.
func checkBuffer(c Codec, dst []byte, src []float32) error {
	if len(dst) < c.Bound(len(src)) {
		return fmt.Errorf("codec: %s: buffer of %d bytes, want %d", c.ID(), len(dst), c.Bound(len(src)))
	}
	return nil
}

// Blocks returns the number of blocks of a vector of n elements.
func Blocks(n int) int { return (n + Block - 1) / Block }

// Decode fills dst from the source, on all cores.
func Decode(dst []float32, src Source) {
	ForEach(Blocks(src.Len()), func(i int) { src.Block(dst[i*Block:], i) })
}

// ForEach calls f for 0 to n-1 from as many goroutines as there are cores and returns when all calls did. Each index is
// one fixed piece of work, so a result that does not depend on the order of the pieces does not depend on the cores.
func ForEach(n int, f func(i int)) {
	workers := min(runtime.GOMAXPROCS(0), n)
	if workers <= 1 {
		for i := range n {
			f(i)
		}
		return
	}
	var next atomic.Int64
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				f(i)
			}
		})
	}
	wg.Wait()
}

// FP32 stores the vector as it is: little-endian float32.
type FP32 struct{}

// ID returns "fp32/1".
func (FP32) ID() string { return "fp32/1" }

// Bound returns 16 + 4n, which is the size of every blob.
func (FP32) Bound(n int) int { return headerSize + 4*n }

// Encode implements [Codec].
func (c FP32) Encode(dst []byte, src []float32) (int, error) {
	if err := checkBuffer(c, dst, src); err != nil {
		return 0, err
	}
	putHeader(dst, numberFP32, len(src))
	var broken atomic.Bool
	ForEach(Blocks(len(src)), func(i int) {
		part := src[i*Block : min((i+1)*Block, len(src))]
		out := dst[headerSize+4*i*Block:]
		for j, v := range part {
			bits := math.Float32bits(v)
			if bits&0x7f800000 == 0x7f800000 {
				broken.Store(true)
			}
			binary.LittleEndian.PutUint32(out[4*j:], bits)
		}
	})
	if broken.Load() {
		return 0, fmt.Errorf("codec: fp32: %w", ErrNotFinite)
	}
	return c.Bound(len(src)), nil
}

// Open implements [Codec].
func (c FP32) Open(blob []byte, n int) (Source, error) {
	if err := checkHeader(c, numberFP32, blob, n); err != nil {
		return nil, err
	}
	if err := checkSize(c, blob, n); err != nil {
		return nil, err
	}
	for i := headerSize + 2; i < len(blob); i += 4 {
		if blob[i]&0x80 != 0 && blob[i+1]&0x7f == 0x7f {
			return nil, fmt.Errorf("codec: fp32: element %d is not finite: %w", (i-headerSize)/4, ErrBlob)
		}
	}
	return fp32Source{blob[headerSize:]}, nil
}

type fp32Source struct{ raw []byte }

func (s fp32Source) Len() int { return len(s.raw) / 4 }

// block returns the bytes of block i.
func (s fp32Source) block(i int) []byte { return s.raw[4*i*Block : min(4*(i+1)*Block, len(s.raw))] }

func (s fp32Source) Block(dst []float32, i int) int {
	raw := s.block(i)
	dst = dst[:len(raw)/4]
	for j := range dst {
		dst[j] = math.Float32frombits(binary.LittleEndian.Uint32(raw[4*j:]))
	}
	return len(dst)
}

func (s fp32Source) Add(acc []float32, i int, f float32) {
	raw := s.block(i)
	for j := range acc {
		acc[j] += float32(f * math.Float32frombits(binary.LittleEndian.Uint32(raw[4*j:])))
	}
}
