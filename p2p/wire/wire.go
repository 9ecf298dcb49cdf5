// Package wire owns the bytes on the wire: deterministic CBOR in the dag-cbor profile, and length-prefixed frames
// whose size is checked before anything is allocated. It refuses to know what the records mean.
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/fxamacker/cbor/v2"
	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"
)

// MaxRecord is the largest CBOR record in bytes that any decoder accepts: one IPFS block.
const MaxRecord = 1 << 20

// ErrTooLarge reports a record or frame above its limit. It is returned before the bytes are read.
var ErrTooLarge = errors.New("larger than allowed")

// linkTag is the CBOR tag of an IPLD link; the content is a byte string of 0x00 followed by the binary CID.
const linkTag = 42

var (
	encMode = must(cbor.EncOptions{
		Sort:          cbor.SortLengthFirst,
		ShortestFloat: cbor.ShortestFloatNone,
		NaNConvert:    cbor.NaNConvertReject,
		InfConvert:    cbor.InfConvertReject,
		IndefLength:   cbor.IndefLengthForbidden,
		Time:          cbor.TimeUnix,
		OmitEmpty:     cbor.OmitEmptyGoValue,
	}.EncMode())
	decMode = must(cbor.DecOptions{
		DupMapKey:        cbor.DupMapKeyEnforcedAPF,
		IndefLength:      cbor.IndefLengthForbidden,
		MaxNestedLevels:  maxDepth + 1,
		MaxArrayElements: maxItems,
		MaxMapPairs:      maxFields,
		UTF8:             cbor.UTF8RejectInvalid,
		NaN:              cbor.NaNDecodeForbidden,
		Inf:              cbor.InfDecodeForbidden,
		// A key means one field and nothing else: by default "Price" would set the field "price", too.
		FieldNameMatching: cbor.FieldNameMatchingCaseSensitive,
	}.DecMode())
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err) // constant options: can only fail when this file is wrong
	}
	return v
}

// Marshal encodes v as deterministic CBOR: map keys sorted by length then bytes, shortest integers, 64-bit floats, no
// indefinite lengths. The same value gives the same bytes on every machine. What [Unmarshal] would refuse is an error:
// NaN, infinities, float32, text that is not UTF-8, map keys that are not text, too many elements.
func Marshal(v any) ([]byte, error) {
	b, err := encMode.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("wire: encode %T: %w", v, err)
	}
	if len(b) > MaxRecord {
		return nil, fmt.Errorf("wire: encode %T: %d bytes, limit %d: %w", v, len(b), MaxRecord, ErrTooLarge)
	}
	if err := strict(b); err != nil {
		return nil, fmt.Errorf("wire: encode %T: %w", v, err)
	}
	return b, nil
}

// Unmarshal decodes one CBOR record. Bytes that [Marshal] would not have made are [ErrMalformed], so that a value has one
// encoding, one CID and one signature; unknown map keys are ignored, so that records can grow.
func Unmarshal(b []byte, v any) error {
	if len(b) > MaxRecord {
		return fmt.Errorf("wire: decode %T: %d bytes, limit %d: %w", v, len(b), MaxRecord, ErrTooLarge)
	}
	if err := strict(b); err != nil {
		return fmt.Errorf("wire: decode %T: %w", v, err)
	}
	if err := decMode.Unmarshal(b, v); err != nil {
		return fmt.Errorf("wire: decode %T: %w", v, err)
	}
	return nil
}

// RecordCID returns the CIDv1 (dag-cbor, sha2-256) of an encoded record.
func RecordCID(record []byte) cid.Cid {
	sum := must(multihash.Sum(record, multihash.SHA2_256, -1))
	return cid.NewCidV1(cid.DagCBOR, sum)
}

// Link is a CID inside a record, encoded as CBOR tag 42. The zero Link encodes as null.
type Link struct{ cid.Cid }

// MarshalCBOR implements [cbor.Marshaler].
func (l Link) MarshalCBOR() ([]byte, error) {
	if !l.Defined() {
		return []byte{0xf6}, nil
	}
	return encMode.Marshal(cbor.Tag{Number: linkTag, Content: append([]byte{0}, l.Bytes()...)})
}

// UnmarshalCBOR implements [cbor.Unmarshaler].
func (l *Link) UnmarshalCBOR(b []byte) error {
	if len(b) == 1 && b[0] == 0xf6 {
		*l = Link{}
		return nil
	}
	var tag cbor.RawTag
	if err := decMode.Unmarshal(b, &tag); err != nil {
		return fmt.Errorf("wire: link: %w", err)
	}
	var raw []byte
	if err := decMode.Unmarshal(tag.Content, &raw); err != nil {
		return fmt.Errorf("wire: link: %w", err)
	}
	if tag.Number != linkTag || len(raw) < 2 || raw[0] != 0 {
		return fmt.Errorf("wire: link: tag %d with %d bytes is no IPLD link", tag.Number, len(raw))
	}
	c, err := cid.Cast(raw[1:])
	if err != nil {
		return fmt.Errorf("wire: link: %w", err)
	}
	*l = Link{c}
	return nil
}

// WriteFrame writes one frame: a 4-byte big-endian length and the bytes, in one write.
func WriteFrame(w io.Writer, b []byte) error {
	if int64(len(b)) > math.MaxUint32 {
		return fmt.Errorf("wire: write frame of %d bytes: %w", len(b), ErrTooLarge)
	}
	frame := make([]byte, 4+len(b))
	binary.BigEndian.PutUint32(frame, uint32(len(b)))
	copy(frame[4:], b)
	if _, err := w.Write(frame); err != nil {
		return fmt.Errorf("wire: write frame of %d bytes: %w", len(b), err)
	}
	return nil
}

// ReadFrame reads one frame of at most limit bytes. A longer frame is [ErrTooLarge] and nothing is allocated for it.
// A stream that ends before the first byte is [io.EOF]; one that ends inside a frame is [io.ErrUnexpectedEOF].
func ReadFrame(r io.Reader, limit int) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if int64(n) > int64(limit) {
		return nil, fmt.Errorf("wire: frame of %d bytes, limit %d: %w", n, limit, ErrTooLarge)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return b, nil
}

// WriteRecord encodes v and writes it as one frame.
func WriteRecord(w io.Writer, v any) error {
	b, err := Marshal(v)
	if err != nil {
		return err
	}
	return WriteFrame(w, b)
}

// ReadRecord reads one frame of at most limit bytes and decodes it into v.
func ReadRecord(r io.Reader, limit int, v any) error {
	b, err := ReadFrame(r, limit)
	if err != nil {
		return err
	}
	return Unmarshal(b, v)
}
