// Package encode owns how a block is written in fewer bytes, on its way to another node: as Zstandard, or as byte planes of the
// floats in it with a Huffman code for each plane. It refuses to store or send anything, and it changes no block: a decoder gives back
// the very bytes, which are then hashed as ever.
//
// The formats are in docs/protocol/blob.md. Why planes carry a Huffman code and not Zstandard: on the exponents of trained
// weights its search for repetitions finds nothing that pays, makes them larger and costs ten times the time.
package encode

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/klauspost/compress/huff0"
	"github.com/klauspost/compress/zstd"
)

// MaxBlock is the largest block in bytes, before it is encoded.
const MaxBlock = 1 << 20

// ErrInvalid reports bytes that are no encoding of a block of the size that was asked for.
var ErrInvalid = errors.New("invalid encoding of a block")

// Encoding says how a block is written. The numbers are on the wire.
type Encoding uint8

const (
	// Raw is the block itself.
	Raw Encoding = 0
	// Zstd is one Zstandard frame.
	Zstd Encoding = 1
	// Planes2 is for 16-bit floats, bfloat16 or half: two planes of bytes, each with a Huffman code where that is shorter.
	Planes2 Encoding = 2
	// Planes4 is for 32-bit floats: four planes.
	Planes4 Encoding = 3

	last = Planes4
)

// String returns the name of the encoding.
func (e Encoding) String() string {
	if e > last {
		return fmt.Sprintf("encoding %d", uint8(e))
	}
	return [...]string{"raw", "zstd", "planes2", "planes4"}[e]
}

// Set is a set of encodings: bit e stands for encoding e. Raw is always in it.
type Set uint8

// All is every encoding that this package knows.
const All Set = 1<<Zstd | 1<<Planes2 | 1<<Planes4

// Has reports whether the encoding is in the set.
func (s Set) Has(e Encoding) bool { return e == Raw || e <= last && s&(1<<e) != 0 }

const (
	// part is how many bytes of a plane share one Huffman code.
	part = 128 << 10
	// partHead is the size of the header of a part: length << 2 | method, little-endian.
	partHead = 4

	stored  = 0 // the bytes
	run     = 1 // one byte, repeated
	huffman = 2 // tree description, jump table and four streams, as in RFC 8878, section 3.1.1.3.1
)

// Encoder encodes blocks. It has scratch space of about 4 MiB and is not safe for concurrent use.
type Encoder struct {
	planes []byte
	out    []byte
	sample []byte
	huff   huff0.Scratch
	zstd   *zstd.Encoder
}

// NewEncoder makes an encoder.
func NewEncoder() *Encoder {
	// The options are constants, with which it cannot fail.
	z, _ := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
		zstd.WithEncoderCRC(false), zstd.WithWindowSize(MaxBlock), zstd.WithLowerEncoderMem(true))
	// Each part must be readable by itself, so no part leans on the table of the one before.
	return &Encoder{zstd: z, huff: huff0.Scratch{Reuse: huff0.ReusePolicyNone}}
}

// Encode returns the block in the given encoding, or the block itself as [Raw] where that would not be shorter. What it
// returns is valid until the next call and, when it is Raw, is the block itself.
func (e *Encoder) Encode(how Encoding, block []byte) (Encoding, []byte) {
	if len(block) > MaxBlock {
		return Raw, block
	}
	switch how {
	case Zstd:
		e.out = e.zstd.EncodeAll(block, e.out[:0])
	case Planes2:
		e.encodePlanes(block, 2)
	case Planes4:
		e.encodePlanes(block, 4)
	default:
		return Raw, block
	}
	if len(e.out) >= len(block) {
		return Raw, block
	}
	return how, e.out
}

// encodePlanes writes the planes of floats of a width of 2 or 4 bytes, then the bytes at the end that make no float, to e.out.
func (e *Encoder) encodePlanes(block []byte, width int) {
	n := len(block) / width
	e.planes = grow(e.planes, n*width)
	if width == 2 {
		split2(e.planes, block)
	} else {
		split4(e.planes, block)
	}
	e.out = e.out[:0]
	for p := range width {
		plane := e.planes[p*n : (p+1)*n]
		for len(plane) > 0 {
			m := min(part, len(plane))
			e.encodePart(plane[:m])
			plane = plane[m:]
		}
	}
	e.out = append(e.out, block[n*width:]...)
}

func (e *Encoder) encodePart(b []byte) {
	packed, _, err := huff0.Compress4X(b, &e.huff)
	method := uint32(huffman)
	switch {
	case errors.Is(err, huff0.ErrUseRLE):
		packed, method = b[:1], run
	case err != nil || len(packed) >= len(b):
		packed, method = b, stored
	}
	e.out = binary.LittleEndian.AppendUint32(e.out, uint32(len(packed))<<2|method)
	e.out = append(e.out, packed...)
}

// Decoder decodes blocks. It is not safe for concurrent use.
type Decoder struct {
	planes []byte
	huff   *huff0.Scratch
	zstd   *zstd.Decoder
}

// NewDecoder makes a decoder.
func NewDecoder() *Decoder {
	z, _ := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(MaxBlock),
		zstd.WithDecoderMaxWindow(MaxBlock), zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderLowmem(true))
	return &Decoder{huff: &huff0.Scratch{MaxDecodedSize: part}, zstd: z}
}

// Decode fills dst, which has the size of the block, from its encoding. Whatever the encoding claims, nothing beyond dst and
// scratch space of [MaxBlock] is written. Bytes that are no encoding of a block of that size are [ErrInvalid].
func (d *Decoder) Decode(how Encoding, encoded, dst []byte) error {
	if len(dst) > MaxBlock {
		return fmt.Errorf("encode: a block of %d bytes, limit %d: %w", len(dst), MaxBlock, ErrInvalid)
	}
	switch how {
	case Raw:
		if len(encoded) != len(dst) {
			return fmt.Errorf("encode: %d bytes for a block of %d: %w", len(encoded), len(dst), ErrInvalid)
		}
		copy(dst, encoded)
		return nil
	case Zstd:
		// The three-index form keeps what lies behind dst out of reach.
		got, err := d.zstd.DecodeAll(encoded, dst[:0:len(dst)])
		if err != nil || len(got) != len(dst) {
			return fmt.Errorf("encode: zstd frame of %d bytes for a block of %d gives %d: %w", len(encoded), len(dst), len(got), errors.Join(ErrInvalid, err))
		}
		if len(dst) > 0 && &got[0] != &dst[0] {
			copy(dst, got)
		}
		return nil
	case Planes2:
		return d.decodePlanes(encoded, dst, 2)
	case Planes4:
		return d.decodePlanes(encoded, dst, 4)
	}
	return fmt.Errorf("encode: %s: %w", how, ErrInvalid)
}

func (d *Decoder) decodePlanes(encoded, dst []byte, width int) error {
	n := len(dst) / width
	d.planes = grow(d.planes, n*width)
	for p := range width {
		plane := d.planes[p*n : (p+1)*n]
		for len(plane) > 0 {
			m := min(part, len(plane))
			used, err := d.decodePart(encoded, plane[:m:m])
			if err != nil {
				return fmt.Errorf("encode: plane %d of %d, %d bytes left: %w", p, width, len(plane), err)
			}
			encoded, plane = encoded[used:], plane[m:]
		}
	}
	if len(encoded) != len(dst)-n*width {
		return fmt.Errorf("encode: %d bytes behind the planes, want %d: %w", len(encoded), len(dst)-n*width, ErrInvalid)
	}
	if width == 2 {
		join2(dst, d.planes)
	} else {
		join4(dst, d.planes)
	}
	copy(dst[n*width:], encoded)
	return nil
}

// decodePart fills dst and returns how many bytes of b that took.
func (d *Decoder) decodePart(b, dst []byte) (int, error) {
	if len(b) < partHead {
		return 0, fmt.Errorf("no header in %d bytes: %w", len(b), ErrInvalid)
	}
	head := binary.LittleEndian.Uint32(b)
	size, method := int(head>>2), head&3
	if b = b[partHead:]; size > len(b) || size > len(dst) {
		return 0, fmt.Errorf("%d bytes claimed, %d are there for %d: %w", size, len(b), len(dst), ErrInvalid)
	}
	b = b[:size]
	switch {
	case method == stored && size == len(dst):
		copy(dst, b)
	case method == run && size == 1:
		for i := range dst {
			dst[i] = b[0]
		}
	case method == huffman:
		scratch, rest, err := huff0.ReadTable(b, d.huff)
		if err != nil {
			return 0, fmt.Errorf("huffman table: %w: %w", ErrInvalid, err)
		}
		d.huff = scratch
		got, err := scratch.Decoder().Decompress4X(dst[:0:len(dst)], rest)
		if err != nil || len(got) != len(dst) {
			return 0, fmt.Errorf("huffman streams give %d bytes of %d: %w", len(got), len(dst), errors.Join(ErrInvalid, err))
		}
	default:
		return 0, fmt.Errorf("method %d with %d bytes for %d: %w", method, size, len(dst), ErrInvalid)
	}
	return partHead + size, nil
}

// grow returns a slice of n bytes, b itself if it has room.
func grow(b []byte, n int) []byte {
	if cap(b) < n {
		return make([]byte, n, max(n, MaxBlock))
	}
	return b[:n]
}
