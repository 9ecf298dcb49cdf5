// Package data owns the way from a corpus on disk to batches of tokens: dropping what is filtered or was seen before,
// tokenising, shuffling, cutting into content-addressed shards, and drawing windows from shards again. It refuses to know
// what files look like (package corpus), what makes a text good (package quality), how shards travel (room storage) and which
// peer trains on which (package round).
//
// [Build] is the way in, [Source] the way out, [Inspect] looks at a corpus without building anything;
// docs/protocol/dataset.md has the format between them.
package data

import (
	"errors"
	"fmt"

	"github.com/capacloud/capanode/trainer/data/corpus"
	"github.com/capacloud/capanode/trainer/tokenizer"
)

// ErrEmpty reports a corpus without a single byte of text.
var ErrEmpty = errors.New("the corpus has no text")

// ErrOptions reports options that make no dataset or no batch.
var ErrOptions = errors.New("invalid options")

// ErrVocabulary reports ready tokens that the tokenizer does not have.
var ErrVocabulary = errors.New("token outside the vocabulary")

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
	Corpus      corpus.Options      // which files, how they are read, where reading ends
	Tokenizer   tokenizer.Tokenizer // long texts are encoded in sections, cut where [tokenizer.Cut] allows if they can be
	Filters     []string            // see [quality.ParseFilters]; exact duplicates are always dropped
	ValFraction float64             // share of the documents that is held out, in [0, 1)
	ShardTokens uint64              // tokens in a shard, at least; 0 chooses by corpus size
	Context     int                 // tokens in a training window; 0 means 512
	Peers       int                 // each peer needs a shard of its own; 0 means 1
	Seed        uint64              // of the shuffle and of the held-out choice

	TempDir string // where documents wait for their turn when they do not fit Memory; empty means the system's
	Memory  int64  // bytes of tokens that are sorted at once; 0 means 64 MiB
}

// Report counts what happened to the corpus.
type Report struct {
	Read       corpus.Counts `json:"read"`
	Kept       int64         `json:"documents"`  // in the dataset
	Bytes      int64         `json:"bytes"`      // of text in the dataset; 4 for each token that came ready
	Duplicates int64         `json:"duplicates"` // documents equal to an earlier one byte for byte
	Dropped    []Drop        `json:"dropped"`    // by filters, in the order of their names

	TrainTokens uint64 `json:"train_tokens"`
	ValTokens   uint64 `json:"val_tokens"`
	TrainShards int    `json:"train_shards"`
	ValShards   int    `json:"val_shards"`
	StoredBytes int64  `json:"stored_bytes"`  // of all shards, compressed
	Spilled     int64  `json:"spilled_bytes"` // that waited on disk
}

// Drop is why documents were left out.
type Drop struct {
	Reason    string `json:"reason"`
	Documents int64  `json:"documents"`
	Bytes     int64  `json:"bytes"`
}
