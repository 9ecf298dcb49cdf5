// Package data owns the way from a corpus on disk to batches of tokens: reading text files, dropping what is no text or
// was seen before, tokenising, cutting into content-addressed shards, and drawing windows from shards again. It refuses
// to know how shards travel (room storage) and which peer trains on which (package round).
//
// [Build] is the way in, [Source] the way out; docs/protocol/dataset.md has the format between them.
package data

import (
	"errors"
	"fmt"

	"github.com/capacloud/capanode/trainer/tokenizer"
)

// ErrEmpty reports a corpus without a single byte of text.
var ErrEmpty = errors.New("the corpus has no text")

// ErrChanged reports a corpus file that changed while it was read.
var ErrChanged = errors.New("corpus file changed while it was read")

// ErrOptions reports options that make no dataset or no batch.
var ErrOptions = errors.New("invalid options")

// ErrWindow reports a window that no shard has.
var ErrWindow = errors.New("no such window")

// TooSmallError reports a corpus that cannot feed the run that it is meant for.
type TooSmallError struct {
	Tokens  uint64 // training tokens that the corpus has
	Need    uint64 // training tokens that the run needs at least
	Peers   int
	Context int
}

// Error says what is missing and what to do.
func (e *TooSmallError) Error() string {
	return fmt.Sprintf("data: the corpus has %d training tokens, %d peers at a context of %d need at least %d: add text, or lower the peers or the context",
		e.Tokens, e.Peers, e.Context, e.Need)
}

// Options says what a dataset is made of.
type Options struct {
	Name        string
	Paths       []string            // files, folders (walked) and patterns
	Include     []string            // suffixes (".go") or patterns ("*_test.go") of file names; empty takes every file
	MaxBytes    int64               // stop after so many bytes of text; 0 is no cap
	Tokenizer   tokenizer.Tokenizer // long texts are encoded in sections, cut where [tokenizer.Cut] allows if they can be
	ValFraction float64             // share of the documents that is held out, in [0, 1)
	ShardTokens uint64              // tokens in a shard, at least; 0 chooses by corpus size
	Context     int                 // tokens in a training window; 0 means 512
	Peers       int                 // each peer needs a shard of its own; 0 means 1
	Seed        uint64              // of the shuffle and of the held-out choice
}

// Report counts what happened to the corpus.
type Report struct {
	Files       int   // files looked at
	Kept        int   // of them, documents in the dataset
	Empty       int   // of them, without a byte
	Binary      int   // of them, no text: NUL bytes or mostly invalid UTF-8
	Duplicates  int   // of them, equal to an earlier one byte for byte
	Filtered    int   // directory entries passed over: hidden, no regular file, not included
	Bytes       int64 // of text kept
	InvalidUTF8 int64 // bytes of kept text that are no valid UTF-8; they stay as they are
	Capped      bool  // MaxBytes ended the reading

	TrainTokens, ValTokens uint64
	TrainShards, ValShards int
	StoredBytes            int64 // of all shards, compressed
}
