package dataset

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/ipfs/go-cid"
	"github.com/klauspost/compress/zstd"
)

const (
	// HeaderSize is the size of a shard's header in bytes: magic, version, token width, two zero bytes, token count.
	HeaderSize = 16

	shardMagic   = "CNTK"
	shardVersion = 1
)

// Tokens is a run of tokens of one type.
type Tokens struct {
	Dtype Dtype
	Raw   []byte // little-endian, Dtype.Width() bytes each
}

// FromBytes makes u8 tokens of text: one token per byte. The bytes are not copied.
func FromBytes(b []byte) Tokens { return Tokens{U8, b} }

// FromInts makes tokens of the given type; one that does not fit is [ErrInvalid].
func FromInts(d Dtype, tokens []int) (Tokens, error) {
	width := d.Width()
	if width == 0 {
		return Tokens{}, fmt.Errorf("dataset: dtype %.16q: %w", d, ErrInvalid)
	}
	t := Tokens{d, make([]byte, 0, len(tokens)*width)}
	for i, v := range tokens {
		if v < 0 || uint64(v) >= 1<<(8*width) {
			return Tokens{}, fmt.Errorf("dataset: token %d is %d, which does not fit %s: %w", i, v, d, ErrInvalid)
		}
		t.Raw = append(t.Raw, byte(v), byte(v>>8), byte(v>>16), byte(v>>24))[:(i+1)*width]
	}
	return t, nil
}

// Len returns the number of tokens.
func (t Tokens) Len() int { return len(t.Raw) / max(1, t.Dtype.Width()) }

// At returns token i.
func (t Tokens) At(i int) uint32 {
	switch t.Dtype {
	case U8:
		return uint32(t.Raw[i])
	case U16:
		return uint32(binary.LittleEndian.Uint16(t.Raw[2*i:]))
	}
	return binary.LittleEndian.Uint32(t.Raw[4*i:])
}

// Copy copies tokens from index from on into dst and returns how many there were. Check the vocabulary before: a token
// above 2³¹−1 has no place in an int32.
func (t Tokens) Copy(dst []int32, from int) int {
	n := max(0, min(len(dst), t.Len()-from))
	for i := range n {
		dst[i] = int32(t.At(from + i))
	}
	return n
}

// CheckVocab reports the first token that is not below the vocabulary size.
func (t Tokens) CheckVocab(vocab uint64) error {
	if vocab > math.MaxUint8 && t.Dtype == U8 {
		return nil
	}
	for i := range t.Len() {
		if v := t.At(i); uint64(v) >= vocab {
			return fmt.Errorf("dataset: token %d is %d, the vocabulary ends at %d: %w", i, v, vocab, ErrInvalid)
		}
	}
	return nil
}

// EncodeShard returns the file of a shard. The same tokens give the same bytes with the same version of the compressor.
func EncodeShard(t Tokens) ([]byte, error) {
	width := t.Dtype.Width()
	if width == 0 || len(t.Raw) == 0 || len(t.Raw)%width != 0 || len(t.Raw) > MaxShardBytes {
		return nil, fmt.Errorf("dataset: shard of %d bytes of %.16q, limit %d: %w", len(t.Raw), t.Dtype, MaxShardBytes, ErrInvalid)
	}
	options := []zstd.EOption{zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedDefault)}
	if len(t.Raw) < 256 { // the encoder states a size below 256 in single-segment frames only
		options = append(options, zstd.WithSingleSegment(true))
	}
	enc, err := zstd.NewWriter(nil, options...)
	if err != nil {
		return nil, fmt.Errorf("dataset: shard: %w", err)
	}
	defer enc.Close()
	head := make([]byte, HeaderSize, HeaderSize+len(t.Raw)/2)
	copy(head, shardMagic)
	head[4], head[5] = shardVersion, byte(width)
	binary.LittleEndian.PutUint64(head[8:], uint64(t.Len()))
	return enc.EncodeAll(t.Raw, head), nil
}

// ParseHeader reads the header of a hostile shard file: the token type and the number of tokens that it claims.
func ParseHeader(file []byte) (Dtype, uint64, error) {
	if len(file) < HeaderSize || string(file[:4]) != shardMagic || file[4] != shardVersion || file[6] != 0 || file[7] != 0 {
		return "", 0, fmt.Errorf("dataset: not a shard of version %d: %w", shardVersion, ErrInvalid)
	}
	n := binary.LittleEndian.Uint64(file[8:])
	for _, d := range []Dtype{U8, U16, U32} {
		if d.Width() == int(file[5]) {
			if n == 0 || n > MaxShardBytes/uint64(d.Width()) {
				return "", 0, fmt.Errorf("dataset: shard of %d tokens of %s: %w", n, d, ErrInvalid)
			}
			return d, n, nil
		}
	}
	return "", 0, fmt.Errorf("dataset: shard with tokens of %d bytes: %w", file[5], ErrInvalid)
}

// DecodeShard reads a hostile shard file that must hold exactly the given tokens. Nothing is allocated before header and
// frame agree on the size, and nothing beyond it.
func DecodeShard(file []byte, d Dtype, tokens uint64) (Tokens, error) {
	gotD, gotN, err := ParseHeader(file)
	if err != nil {
		return Tokens{}, err
	}
	if gotD != d || gotN != tokens {
		return Tokens{}, fmt.Errorf("dataset: shard of %d tokens of %s, the manifest says %d of %s: %w", gotN, gotD, tokens, d, ErrInvalid)
	}
	raw := tokens * uint64(d.Width())
	var frame zstd.Header
	if err := frame.Decode(file[HeaderSize:]); err != nil {
		return Tokens{}, fmt.Errorf("dataset: shard frame: %w: %w", ErrInvalid, err)
	}
	if frame.Skippable || !frame.HasFCS || frame.FrameContentSize != raw {
		return Tokens{}, fmt.Errorf("dataset: shard frame of %d bytes, want %d: %w", frame.FrameContentSize, raw, ErrInvalid)
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(MaxShardBytes),
		zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		return Tokens{}, fmt.Errorf("dataset: shard: %w", err)
	}
	defer dec.Close()
	out, err := dec.DecodeAll(file[HeaderSize:], make([]byte, 0, raw))
	if err != nil || uint64(len(out)) != raw {
		return Tokens{}, fmt.Errorf("dataset: shard of %d bytes, want %d: %w", len(out), raw, errors.Join(ErrInvalid, err))
	}
	return Tokens{d, out}, nil
}

// ReadFunc returns the content of an object of at most limit bytes, such as the ReadAll method of a store.
type ReadFunc func(ctx context.Context, c cid.Cid, limit int64) ([]byte, error)

// ReadShard reads, decodes and checks shard i.
func (m *Manifest) ReadShard(ctx context.Context, read ReadFunc, i int) (Tokens, error) {
	if i < 0 || i >= len(m.Shards) {
		return Tokens{}, fmt.Errorf("dataset: %s has %d shards, not shard %d: %w", m.Name, len(m.Shards), i, ErrInvalid)
	}
	s := m.Shards[i]
	file, err := read(ctx, s.CID.Cid, int64(s.Bytes))
	if err != nil {
		return Tokens{}, fmt.Errorf("dataset: shard %d of %s: %w", i, m.Name, err)
	}
	t, err := DecodeShard(file, m.Dtype, s.Tokens)
	if err == nil {
		err = t.CheckVocab(m.Tokenizer.Vocab)
	}
	if err != nil {
		return Tokens{}, fmt.Errorf("shard %d of %s (%s): %w", i, m.Name, s.CID, err)
	}
	return t, nil
}
