// Package dataset owns what a training corpus looks like once it is tokens: the manifest record that names the shards, and
// the file format of one shard. It refuses to read text, to tokenise, or to decide who trains on what. The formats are
// docs/protocol/dataset.md.
package dataset

import (
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/p2p/wire"
	"github.com/capacloud/capanode/storage/unixfs"
)

const (
	// Version is the version of the manifest record that this package writes and reads.
	Version = 1
	// MaxShards bounds the shards of one manifest. The record limit of 1 MiB binds first, near 10,000 shards.
	MaxShards = 1 << 16
	// MaxSources bounds the named sources of one manifest.
	MaxSources = 1 << 12
	// MaxShardBytes bounds the tokens of one shard in bytes, uncompressed: what a reader holds in memory.
	MaxShardBytes = 256 << 20
	// MaxName is the longest name in bytes.
	MaxName = 256
)

// ErrInvalid reports a manifest or shard that breaks its format or contradicts itself.
var ErrInvalid = errors.New("invalid dataset")

// Dtype is how one token is stored: an unsigned little-endian integer.
type Dtype string

// The token types.
const (
	U8  Dtype = "u8"
	U16 Dtype = "u16"
	U32 Dtype = "u32"
)

// Width returns the bytes of one token, 0 for an unknown type.
func (d Dtype) Width() int {
	switch d {
	case U8:
		return 1
	case U16:
		return 2
	case U32:
		return 4
	}
	return 0
}

// Split says what a shard is for.
type Split string

// The splits.
const (
	Train Split = "train"
	Val   Split = "val"
)

// Tokenizer says which mapping made the tokens.
type Tokenizer struct {
	Kind  string    `cbor:"kind"`  // name of the exact mapping, such as "bytes"
	Vocab uint64    `cbor:"vocab"` // every token is below it
	Link  wire.Link `cbor:"link"`  // the tokenizer's files, undefined when the kind says everything
}

// Shard is one file of tokens.
type Shard struct {
	CID    wire.Link `cbor:"cid"`
	Tokens uint64    `cbor:"tokens"`
	Bytes  uint64    `cbor:"bytes"` // size of the file, compressed
	Split  Split     `cbor:"split"`
}

// Source counts what one input contributed.
type Source struct {
	Name      string `cbor:"name"`
	Documents uint64 `cbor:"documents"`
	Bytes     uint64 `cbor:"bytes"`  // of text, after cleaning
	Tokens    uint64 `cbor:"tokens"` // train and val
}

// Manifest is the record that names a dataset. Its CID is the dataset's.
type Manifest struct {
	Version     uint64    `cbor:"version"`
	Name        string    `cbor:"name"`
	Tokenizer   Tokenizer `cbor:"tokenizer"`
	Dtype       Dtype     `cbor:"dtype"`
	Shards      []Shard   `cbor:"shards"`
	TrainTokens uint64    `cbor:"train_tokens"` // sum over the train shards
	ValTokens   uint64    `cbor:"val_tokens"`   // sum over the val shards
	Sources     []Source  `cbor:"sources"`
}

// Encode checks the manifest and returns its record.
func Encode(m Manifest) ([]byte, error) {
	if err := m.Check(); err != nil {
		return nil, err
	}
	return wire.Marshal(m)
}

// Decode reads a hostile record. What it returns passes [Manifest.Check].
func Decode(record []byte) (Manifest, error) {
	var m Manifest
	if err := wire.Unmarshal(record, &m); err != nil {
		return Manifest{}, fmt.Errorf("dataset: %w: %w", ErrInvalid, err)
	}
	if err := m.Check(); err != nil {
		return Manifest{}, err
	}
	return m, nil
}

// Check holds the rules of a manifest: known version and types, counts in bounds, sums that add up.
func (m *Manifest) Check() error {
	width := m.Dtype.Width()
	switch {
	case m.Version != Version:
		return fmt.Errorf("dataset: version %d, this program reads %d: %w", m.Version, Version, ErrInvalid)
	case width == 0:
		return fmt.Errorf("dataset: dtype %.16q: %w", m.Dtype, ErrInvalid)
	case len(m.Shards) == 0 || len(m.Shards) > MaxShards || len(m.Sources) > MaxSources:
		return fmt.Errorf("dataset: %d shards, limit %d, and %d sources, limit %d: %w",
			len(m.Shards), MaxShards, len(m.Sources), MaxSources, ErrInvalid)
	case m.Tokenizer.Vocab == 0 || m.Tokenizer.Vocab > 1<<(8*width):
		return fmt.Errorf("dataset: vocabulary of %d does not fit %s: %w", m.Tokenizer.Vocab, m.Dtype, ErrInvalid)
	}
	for _, name := range append([]string{m.Name, m.Tokenizer.Kind}, m.sourceNames()...) {
		if name == "" || len(name) > MaxName || !utf8.ValidString(name) {
			return fmt.Errorf("dataset: name %.64q: want 1 to %d bytes of UTF-8: %w", name, MaxName, ErrInvalid)
		}
	}
	sums := map[Split]uint64{}
	for i, s := range m.Shards {
		if err := s.check(width); err != nil {
			return fmt.Errorf("dataset: shard %d: %w", i, err)
		}
		sums[s.Split] += s.Tokens // at most MaxShards × MaxShardBytes: no overflow
	}
	if sums[Train] != m.TrainTokens || sums[Val] != m.ValTokens || m.TrainTokens == 0 {
		return fmt.Errorf("dataset: %d train and %d val tokens, the shards have %d and %d: %w",
			m.TrainTokens, m.ValTokens, sums[Train], sums[Val], ErrInvalid)
	}
	return nil
}

func (m *Manifest) sourceNames() []string {
	out := make([]string, len(m.Sources))
	for i, s := range m.Sources {
		out[i] = s.Name
	}
	return out
}

func (s Shard) check(width int) error {
	if _, err := unixfs.DigestOf(s.CID.Cid); err != nil {
		return err
	}
	if codec := s.CID.Type(); codec != cid.Raw && codec != cid.DagProtobuf {
		return fmt.Errorf("codec 0x%x is no file: %w", codec, ErrInvalid)
	}
	if s.Split != Train && s.Split != Val {
		return fmt.Errorf("split %.16q: %w", s.Split, ErrInvalid)
	}
	if s.Tokens == 0 || s.Tokens > MaxShardBytes/uint64(width) {
		return fmt.Errorf("%d tokens, limit %d: %w", s.Tokens, MaxShardBytes/width, ErrInvalid)
	}
	if s.Bytes <= HeaderSize || s.Bytes > maxFile(s.Tokens*uint64(width)) {
		return fmt.Errorf("%d bytes for %d tokens: %w", s.Bytes, s.Tokens, ErrInvalid)
	}
	return nil
}

// maxFile bounds the file of a shard: zstd stores what it cannot compress, plus a few bytes per 128 KiB block.
func maxFile(raw uint64) uint64 { return HeaderSize + raw + raw/256 + 1024 }

// Files lists the shards of one split in the order of the manifest, in which rounds go through them again and again: what a store
// needs to know to evict the one whose next use is farthest away.
func (m *Manifest) Files(split Split) []cid.Cid {
	var out []cid.Cid
	for _, s := range m.Shards {
		if s.Split == split {
			out = append(out, s.CID.Cid)
		}
	}
	return out
}

// Total returns the tokens of both splits of a manifest that passes Check.
func (m *Manifest) Total() uint64 {
	return m.TrainTokens + m.ValTokens
}
