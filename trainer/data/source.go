package data

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"

	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/p2p/wire"
	"github.com/capacloud/capanode/storage/dataset"
	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/round"
)

// ErrNoValidation reports a dataset without a held-out window.
var ErrNoValidation = errors.New("the dataset holds out no text")

// defaultCache is the memory for decoded shards, in bytes.
const defaultCache = 256 << 20

// SourceOptions says how a dataset is read.
type SourceOptions struct {
	Context int   // tokens in a window
	Vocab   int   // of the model; a dataset with larger tokens is refused
	Cache   int64 // bytes of decoded shards kept in memory; the newest always stays; 0 means 256 MiB

	Masking *Masking // makes windows gaps to fill; nil leaves them texts to continue
}

// Source draws windows from the shards of a dataset. Window w of a shard has the inputs tokens[w·context, (w+1)·context)
// and as targets the same moved by one, so windows share no input and every target is a token of the shard; with [Masking] the
// targets are tokens of the window that its inputs hide. Its methods are safe for concurrent use; readings take turns.
type Source struct {
	manifest   dataset.Manifest
	read       dataset.ReadFunc
	options    SourceOptions
	train, val []int // indices into manifest.Shards

	mu     sync.Mutex // guards what follows
	cached []decoded  // least recently used first
	size   int64
}

// decoded is a shard in memory.
type decoded struct {
	shard  int
	tokens dataset.Tokens
}

// Open reads a manifest by its CID and returns the dataset's source. read fetches and verifies objects; it is called for
// shards when their windows are first asked for.
func Open(ctx context.Context, c cid.Cid, read dataset.ReadFunc, o SourceOptions) (*Source, error) {
	record, err := read(ctx, c, wire.MaxRecord)
	if err != nil {
		return nil, fmt.Errorf("data: manifest %s: %w", c, err)
	}
	if got := wire.RecordCID(record); !got.Equals(c) {
		return nil, fmt.Errorf("data: manifest %s: the record is %s: %w", c, got, dataset.ErrInvalid)
	}
	m, err := dataset.Decode(record)
	if err != nil {
		return nil, fmt.Errorf("data: manifest %s: %w", c, err)
	}
	return NewSource(m, read, o)
}

// NewSource returns the source of a dataset whose manifest is known.
func NewSource(m dataset.Manifest, read dataset.ReadFunc, o SourceOptions) (*Source, error) {
	if err := m.Check(); err != nil {
		return nil, fmt.Errorf("data: %w", err)
	}
	if o.Context < 1 || o.Vocab < 1 || o.Vocab > math.MaxInt32 {
		return nil, fmt.Errorf("data: %w: context %d, vocabulary %d", ErrOptions, o.Context, o.Vocab)
	}
	if m.Tokenizer.Vocab > uint64(o.Vocab) {
		return nil, fmt.Errorf("data: dataset %s has %d tokens, the model %d: %w: give the model the tokenizer's vocabulary",
			m.Name, m.Tokenizer.Vocab, o.Vocab, ErrOptions)
	}
	if o.Cache == 0 {
		o.Cache = defaultCache
	}
	s := &Source{manifest: m, read: read, options: o}
	for i, shard := range m.Shards {
		if shard.Split == dataset.Train {
			s.train = append(s.train, i)
		} else {
			s.val = append(s.val, i)
		}
	}
	return s, nil
}

// Manifest returns the dataset's manifest.
func (s *Source) Manifest() dataset.Manifest { return s.manifest }

// Shards returns the number of training shards.
func (s *Source) Shards() int { return len(s.train) }

// Windows returns the number of windows of a training shard, 0 for a shard that does not exist.
func (s *Source) Windows(shard int) uint64 {
	if shard < 0 || shard >= len(s.train) {
		return 0
	}
	return s.windows(s.train[shard])
}

func (s *Source) windows(index int) uint64 {
	return (s.manifest.Shards[index].Tokens - 1) / uint64(s.options.Context)
}

// Batch reads windows of training shards, one row each, in the given order.
func (s *Source) Batch(ctx context.Context, windows []round.Window) (engine.Batch, error) {
	rows := make([]round.Window, len(windows))
	for i, w := range windows {
		if w.Index >= s.Windows(w.Shard) {
			return engine.Batch{}, fmt.Errorf("data: window %d of shard %d: the shard has %d, the dataset %d shards: %w",
				w.Index, w.Shard, s.Windows(w.Shard), len(s.train), ErrWindow)
		}
		rows[i] = round.Window{Shard: s.train[w.Shard], Index: w.Index, Epoch: w.Epoch}
	}
	return s.batch(ctx, rows)
}

// Validation returns batches of the given rows from the held-out shards, at most most windows in all, always the same
// ones, spread evenly over all that is held out. Every batch has the same shape, so that the mean of their losses is the mean over their tokens: a remainder is left
// out, and a dataset with fewer windows than rows gives one smaller batch. Without any window it is [ErrNoValidation].
func (s *Source) Validation(ctx context.Context, rows, most int) ([]engine.Batch, error) {
	if rows < 1 || most < 1 {
		return nil, fmt.Errorf("data: %w: %d rows, %d windows", ErrOptions, rows, most)
	}
	var total uint64
	for _, index := range s.val {
		total += s.windows(index)
	}
	n := min(uint64(most), total)
	var windows []round.Window
	before, k := uint64(0), uint64(0) // windows of earlier shards, windows chosen
	for _, index := range s.val {
		have := s.windows(index)
		for ; k < n; k++ {
			at := k * total / n
			if at >= before+have {
				break
			}
			windows = append(windows, round.Window{Shard: index, Index: at - before})
		}
		before += have
	}
	if len(windows) == 0 {
		return nil, fmt.Errorf("data: dataset %s: %w: build it with a larger held-out share", s.manifest.Name, ErrNoValidation)
	}
	rows = min(rows, len(windows))
	var batches []engine.Batch
	for part := range slices.Chunk(windows[:len(windows)/rows*rows], rows) {
		b, err := s.batch(ctx, part)
		if err != nil {
			return nil, err
		}
		batches = append(batches, b)
	}
	return batches, nil
}

// batch reads windows whose Shard is an index into the manifest. It goes shard by shard, so that a small cache does not
// read one shard twice for one batch.
func (s *Source) batch(ctx context.Context, windows []round.Window) (engine.Batch, error) {
	n := s.options.Context
	b := engine.Batch{
		Rows: len(windows), Context: n, Inputs: make([]int32, len(windows)*n), Targets: make([]int32, len(windows)*n),
	}
	done := make(map[int]bool)
	for _, first := range windows {
		if done[first.Shard] {
			continue
		}
		done[first.Shard] = true
		tokens, err := s.shard(ctx, first.Shard)
		if err != nil {
			return engine.Batch{}, err
		}
		for row, w := range windows {
			if w.Shard != first.Shard {
				continue
			}
			from := int(w.Index) * n
			tokens.Copy(b.Inputs[row*n:(row+1)*n], from)
			tokens.Copy(b.Targets[row*n:(row+1)*n], from+1)
		}
	}
	if s.options.Masking != nil {
		s.options.Masking.apply(&b, windows)
	}
	return b, nil
}

// shard returns a decoded shard from memory or from the network.
func (s *Source) shard(ctx context.Context, index int) (dataset.Tokens, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if at := slices.IndexFunc(s.cached, func(d decoded) bool { return d.shard == index }); at >= 0 {
		hit := s.cached[at]
		s.cached = append(slices.Delete(s.cached, at, at+1), hit)
		return hit.tokens, nil
	}
	tokens, err := s.manifest.ReadShard(ctx, s.read, index)
	if err != nil {
		return dataset.Tokens{}, fmt.Errorf("data: %w", err)
	}
	s.cached = append(s.cached, decoded{index, tokens})
	s.size += int64(len(tokens.Raw))
	for s.size > s.options.Cache && len(s.cached) > 1 {
		s.size -= int64(len(s.cached[0].tokens.Raw))
		s.cached = slices.Delete(s.cached, 0, 1)
	}
	return tokens, nil
}
