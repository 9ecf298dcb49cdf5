// Package tokenizer owns the mapping between text and token IDs, and the Hugging Face files that let other programs
// apply the same mapping. It refuses to read corpora (package data) and to write model folders (package hf).
//
// There is one tokenizer so far, [Byte]: a token is a byte. It is exact for any input, valid UTF-8 or not, needs no
// training, and its Hugging Face form is a byte-level BPE without merges.
package tokenizer

import (
	"errors"
	"fmt"
)

// ErrUnknown reports a tokenizer name that this program does not have.
var ErrUnknown = errors.New("unknown tokenizer")

// Tokenizer maps text to token IDs and back. Implementations hold no state and are safe for concurrent use.
type Tokenizer interface {
	// Name identifies the exact mapping, such as "bytes". It stands in dataset manifests and job records: equal names
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

// ByName returns the tokenizer that a manifest or job record names.
func ByName(name string) (Tokenizer, error) {
	if name == (Byte{}).Name() {
		return Byte{}, nil
	}
	return nil, fmt.Errorf("tokenizer: %q: %w: this version knows %q", name, ErrUnknown, (Byte{}).Name())
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
