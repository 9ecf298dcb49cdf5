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
	"runtime"
	"strconv"
	"strings"
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

// Names says which codecs there are, for messages.
const Names = "fp32, int8, int4, or top and a number from 1 to 2048, such as top64"

// Parse returns the codec with the id, or the newest version of the codec with the name: "int8" and "int8/1" are the same.
func Parse(id string) (Codec, error) {
	name := strings.TrimSuffix(id, "/1")
	switch name {
	case "fp32":
		return FP32{}, nil
	case "int8":
		return Int8{}, nil
	case "int4":
		return Int4{}, nil
	}
	if digits, ok := strings.CutPrefix(name, "top"); ok {
		k, err := strconv.Atoi(digits)
		if err == nil && k >= 1 && k <= MaxTop && strconv.Itoa(k) == digits { // one name for each codec
			return Top{K: k}, nil
		}
	}
	return nil, fmt.Errorf("codec: %.64q, want %s: %w", id, Names, ErrUnknown)
}

// Header of a blob: magic "CNUP", version 1, codec number, its parameter (2 bytes, little-endian: k of [Top], else zero), number of elements (8 bytes, little-endian).
const (
	headerSize = 16
	version    = 1
	numberFP32 = 0
	numberInt8 = 1
	numberInt4 = 2
	numberTop  = 3
)

func header(number byte, parameter, n int) (h [headerSize]byte) {
	copy(h[:], "CNUP")
	h[4], h[5] = version, number
	binary.LittleEndian.PutUint16(h[6:], uint16(parameter))
	binary.LittleEndian.PutUint64(h[8:], uint64(n))
	return h
}

// checkHeader checks what all codecs' blobs have in common.
func checkHeader(c Codec, want [headerSize]byte, blob []byte, n int) error {
	if n < 0 || len(blob) < headerSize || len(blob) > c.Bound(n) {
		return fmt.Errorf("codec: %s: %d bytes for %d elements: %w", c.ID(), len(blob), n, ErrBlob)
	}
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

// begin checks that an encoder's buffer is large enough for any blob of n elements, and writes the header.
func begin(c Codec, h [headerSize]byte, dst []byte, n int) error {
	if len(dst) < c.Bound(n) {
		return fmt.Errorf("codec: %s: buffer of %d bytes, want %d", c.ID(), len(dst), c.Bound(n))
	}
	copy(dst, h[:])
	return nil
}

// Blocks returns the number of blocks of a vector of n elements.
func Blocks(n int) int { return (n + Block - 1) / Block }

// groups returns the number of groups of so many blocks that n elements fill; a group is what one core works on at a time.
func groups(n, blocks int) int { return (Blocks(n) + blocks - 1) / blocks }

// groupOf returns the elements of group g.
func groupOf(x []float32, g, blocks int) []float32 {
	return x[g*blocks*Block : min((g+1)*blocks*Block, len(x))]
}

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
