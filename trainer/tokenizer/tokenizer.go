// Package tokenizer owns the mapping between text and token IDs, and the Hugging Face files that let other programs
// apply the same mapping. It refuses to read corpora (package data) and to write model folders (package hf).
//
// There are two kinds. [Byte]: a token is a byte; it is exact for any input, valid UTF-8 or not, needs no training, and its
// Hugging Face form is a byte-level BPE without merges. [BPE]: a byte-level BPE that [Train] made of a corpus or that was
// read from tokenizer.json ([Load]).
package tokenizer

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/ipfs/go-cid"
)

// ErrUnknown reports a tokenizer name that this program does not have.
var ErrUnknown = errors.New("unknown tokenizer")

// ErrInvalid reports a tokenizer file that is malformed or contradicts itself.
var ErrInvalid = errors.New("invalid tokenizer")

// ErrUnsupported reports a tokenizer file that is well-formed and asks for what this program does not do.
var ErrUnsupported = errors.New("unsupported tokenizer")

// Tokenizer maps text to token IDs and back. Implementations are safe for concurrent use.
type Tokenizer interface {
	// Name identifies the exact mapping: "bytes", or "bpe:END:CID" of the end-of-text ID and the file. It stands in dataset manifests and job records: equal names
	// must mean equal IDs on every machine.
	Name() string
	// Vocab is the number of IDs; every ID is in [0, Vocab).
	Vocab() int
	// EndOfText is the ID that closes each document. No text encodes to it.
	EndOfText() int32
	// Encode appends the IDs of text to dst.
	Encode(dst []int32, text []byte) []int32
	// Decode appends the text of ids to dst. IDs that stand for no text, and IDs outside the vocabulary, add nothing.
	Decode(dst []byte, ids []int32) []byte
}

// kindBPE is the first part of the name of a [BPE].
const kindBPE = "bpe"

// NameOf returns the name of the [BPE] with an end-of-text ID and a file.
func NameOf(end int32, c cid.Cid) string { return fmt.Sprintf("%s:%d:%s", kindBPE, end, c) }

// Name is what the name of a tokenizer says.
type Name struct {
	File  cid.Cid // of tokenizer.json, undefined for the byte tokenizer, which needs none
	End   int32   // end-of-text ID
	Vocab int     // number of IDs; 0 where only the file says it
}

// ParseName reads the name of a tokenizer as manifests and job records have it.
func ParseName(name string) (Name, error) {
	if name == (Byte{}).Name() {
		return Name{End: byteEndOfText, Vocab: byteVocab}, nil
	}
	kind, rest, _ := strings.Cut(name, ":")
	end, root, _ := strings.Cut(rest, ":")
	n, err := strconv.ParseUint(end, 10, 31)
	c, err2 := cid.Decode(root)
	if kind != kindBPE || err != nil || err2 != nil || n >= maxVocab || NameOf(int32(n), c) != name {
		return Name{}, fmt.Errorf("tokenizer: %.100q: %w: this version knows %q and bpe:END:CID", name, ErrUnknown, (Byte{}).Name())
	}
	return Name{File: c, End: int32(n)}, nil
}

// Open returns the tokenizer that a manifest or job record names. read returns the content of an object of at most limit
// bytes, verified against its CID. A file that is not as this program writes it is [ErrInvalid].
func Open(ctx context.Context, name string, read func(ctx context.Context, c cid.Cid, limit int64) ([]byte, error)) (Tokenizer, error) {
	n, err := ParseName(name)
	if err != nil {
		return nil, err
	}
	if !n.File.Defined() {
		return Byte{}, nil
	}
	file, err := read(ctx, n.File, MaxFile)
	if err != nil {
		return nil, fmt.Errorf("tokenizer %s: %w", name, err)
	}
	t, err := loadCanonical(file, n.End)
	if err != nil {
		return nil, fmt.Errorf("tokenizer %s: %w", name, err)
	}
	if t.Name() != name {
		return nil, fmt.Errorf("tokenizer %s: written anew its file is %s: %w", name, t.cid, ErrInvalid)
	}
	return t, nil
}

const (
	byteEndOfText = 256
	byteVocab     = 257
)

// Byte maps each byte to the ID of its value, 0 to 255, and closes documents with ID 256. Its vocabulary is 257: it is
// not padded to a rounder number, because every padded row would be a parameter that training never touches.
//
// A text may be cut at any byte and encoded in pieces. Special tokens spelled out in a text stay plain bytes, so a
// document cannot end itself.
type Byte struct{}

// Name returns "bytes".
func (Byte) Name() string { return "bytes" }

// Vocab returns 257.
func (Byte) Vocab() int { return byteVocab }

// EndOfText returns 256.
func (Byte) EndOfText() int32 { return byteEndOfText }

// Encode appends one ID per byte of text to dst.
func (Byte) Encode(dst []int32, text []byte) []int32 {
	for _, b := range text {
		dst = append(dst, int32(b))
	}
	return dst
}

// Decode appends the bytes of ids to dst; the end-of-text ID and IDs outside the vocabulary add nothing. The result may
// be invalid UTF-8 when the IDs are.
func (Byte) Decode(dst []byte, ids []int32) []byte {
	for _, id := range ids {
		if id >= 0 && id < byteEndOfText {
			dst = append(dst, byte(id))
		}
	}
	return dst
}
