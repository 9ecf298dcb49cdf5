package data

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/p2p/wire"
	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/dataset"
)

// Store is what Build needs of a [storage.Store].
type Store interface {
	PutBytes(ctx context.Context, b []byte, opts storage.PutOptions) (cid.Cid, error)
	PutRecord(ctx context.Context, record []byte, opts storage.PutOptions) (cid.Cid, error)
}

// Build makes a dataset of a corpus: it reads every file twice, first to judge, count and plan, then to tokenise and write
// shards of nearly equal size. Documents are shuffled by content; each is closed by an end-of-text token. Memory
// holds a few bytes per document and two shards, never the corpus. Equal files and options give the same dataset, wherever
// the files lie.
//
// Errors: [ErrEmpty], [*TooSmallError], [ErrChanged], what reading the files and writing the store gives. The report is
// valid with an error too.
func Build(ctx context.Context, o Options, store Store) (dataset.Manifest, wire.Link, Report, error) {
	var report Report
	o = o.withDefaults()
	fail := func(err error) (dataset.Manifest, wire.Link, Report, error) {
		return dataset.Manifest{}, wire.Link{}, report, err
	}
	if err := o.check(); err != nil {
		return fail(err)
	}
	documents, err := scan(ctx, o, &report)
	if err != nil {
		return fail(err)
	}
	if len(documents) == 0 {
		return fail(fmt.Errorf("data: %w: %d files looked at, %d empty, %d binary, %d passed over by name: check data.paths and data.include",
			ErrEmpty, report.Files, report.Empty, report.Binary, report.Filtered))
	}
	shuffle(documents)
	threshold := heldOut(documents, o.ValFraction)
	report.TrainTokens, report.ValTokens = countTokens(documents, threshold)
	if report.TrainShards, report.ValShards, err = shardCounts(o, report.TrainTokens, report.ValTokens); err != nil {
		return fail(err)
	}
	b := builder{
		Options: o, threshold: threshold,
		train: writer{store: store, dtype: o.dtype(), split: dataset.Train, total: report.TrainTokens, count: report.TrainShards},
		val:   writer{store: store, dtype: o.dtype(), split: dataset.Val, total: report.ValTokens, count: report.ValShards},
	}
	for _, d := range documents {
		if err := b.document(ctx, d); err != nil {
			return fail(err)
		}
	}
	made, err := storeTokenizer(ctx, o.Tokenizer, store)
	if err != nil {
		return fail(err)
	}
	m := dataset.Manifest{
		Version:     dataset.Version,
		Name:        o.Name,
		Tokenizer:   made,
		Dtype:       o.dtype(),
		Shards:      append(b.train.shards, b.val.shards...),
		TrainTokens: report.TrainTokens,
		ValTokens:   report.ValTokens,
		Sources:     o.sources(documents, threshold),
	}
	for _, s := range m.Shards {
		report.StoredBytes += int64(s.Bytes)
	}
	record, err := dataset.Encode(m)
	if err != nil {
		return fail(fmt.Errorf("data: %w", err))
	}
	c, err := store.PutRecord(ctx, record, storage.PutOptions{})
	if err != nil {
		return fail(fmt.Errorf("data: store manifest: %w", err))
	}
	return m, wire.Link{Cid: c}, report, nil
}

// shuffle puts documents into an order that depends on their content and the seed alone.
func shuffle(documents []document) {
	slices.SortFunc(documents, func(a, b document) int {
		return cmp.Or(cmp.Compare(a.order, b.order), bytes.Compare(a.sum[:], b.sum[:]))
	})
}

func (o Options) withDefaults() Options {
	if o.Name == "" {
		o.Name = "corpus"
	}
	if o.Context == 0 {
		o.Context = defaultContext
	}
	if o.Peers == 0 {
		o.Peers = 1
	}
	return o
}

func (o Options) check() error {
	switch {
	case o.Tokenizer == nil:
		return fmt.Errorf("data: %w: no tokenizer", ErrOptions)
	case len(o.Name) > dataset.MaxName || !utf8.ValidString(o.Name):
		return fmt.Errorf("data: %w: name %.64q, want UTF-8 of at most %d bytes", ErrOptions, o.Name, dataset.MaxName)
	case !(o.ValFraction >= 0 && o.ValFraction < 1):
		return fmt.Errorf("data: %w: held-out share %v, want 0 to below 1", ErrOptions, o.ValFraction)
	case o.Context < 1 || o.Peers < 1 || o.MaxBytes < 0:
		return fmt.Errorf("data: %w: context %d, peers %d, cap of %d bytes", ErrOptions, o.Context, o.Peers, o.MaxBytes)
	case len(o.Paths) > dataset.MaxSources:
		return fmt.Errorf("data: %w: %d paths, limit %d: name a folder", ErrOptions, len(o.Paths), dataset.MaxSources)
	}
	return nil
}

// dtype is the narrowest token type that holds the vocabulary.
func (o Options) dtype() dataset.Dtype {
	switch vocab := o.Tokenizer.Vocab(); {
	case vocab <= 1<<8:
		return dataset.U8
	case vocab <= 1<<16:
		return dataset.U16
	}
	return dataset.U32
}

// sources counts what each path contributed. Only the last element of a path is named: manifests go to strangers.
func (o Options) sources(documents []document, threshold uint64) []dataset.Source {
	sources := make([]dataset.Source, len(o.Paths))
	for i, path := range o.Paths {
		name := filepath.Base(path)
		sources[i].Name = strings.ToValidUTF8(name[:min(len(name), dataset.MaxName)], "")
	}
	for _, d := range documents {
		s := &sources[d.source]
		train, val := countTokens([]document{d}, threshold)
		s.Documents++
		s.Tokens += train + val
		for _, part := range d.sections {
			s.Bytes += uint64(part.bytes)
		}
	}
	return sources
}

// builder is the second pass.
type builder struct {
	Options
	threshold  uint64
	train, val writer
	text       [sectionBytes]byte
	ids        []int32
}

// document reads one file again and hands its sections to their sides.
func (b *builder) document(ctx context.Context, d document) error {
	text, err := open(d.path)
	if err != nil {
		return err
	}
	defer text.Close()
	whole := sha256.New()
	err = d.eachRun(b.threshold, func(s section, held, last bool) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := b.encode(text, s, whole); err != nil {
			return err
		}
		if last {
			b.ids = append(b.ids, b.Tokenizer.EndOfText())
		}
		if held {
			return b.val.add(ctx, b.ids)
		}
		return b.train.add(ctx, b.ids)
	})
	if err == nil && !bytes.Equal(whole.Sum(nil), d.sum[:]) {
		err = ErrChanged
	}
	if err != nil {
		return fmt.Errorf("data: read %s again: %w", d.path, err)
	}
	return nil
}

// encode reads the next section into b.ids.
func (b *builder) encode(text io.Reader, s section, whole hash.Hash) error {
	part := b.text[:s.bytes]
	if _, err := io.ReadFull(text, part); err == io.EOF || err == io.ErrUnexpectedEOF {
		return ErrChanged
	} else if err != nil {
		return err
	}
	whole.Write(part)
	b.ids = b.Tokenizer.Encode(b.ids[:0], part)
	if len(b.ids) != s.tokens {
		return ErrChanged
	}
	return nil
}

// writer cuts one side's tokens into its planned number of shards.
type writer struct {
	store  Store
	dtype  dataset.Dtype
	split  dataset.Split
	total  uint64
	count  int
	raw    []byte // of the shard being filled
	shards []dataset.Shard
}

func (w *writer) add(ctx context.Context, ids []int32) error {
	width := w.dtype.Width()
	for len(ids) > 0 {
		want := int(shardSize(w.total, w.count, len(w.shards)))
		n := min(want-len(w.raw)/width, len(ids))
		for _, id := range ids[:n] {
			switch w.dtype {
			case dataset.U8:
				w.raw = append(w.raw, byte(id))
			case dataset.U16:
				w.raw = binary.LittleEndian.AppendUint16(w.raw, uint16(id))
			default:
				w.raw = binary.LittleEndian.AppendUint32(w.raw, uint32(id))
			}
		}
		ids = ids[n:]
		if len(w.raw)/width == want {
			if err := w.flush(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *writer) flush(ctx context.Context) error {
	tokens := dataset.Tokens{Dtype: w.dtype, Raw: w.raw}
	file, err := dataset.EncodeShard(tokens)
	if err != nil {
		return err
	}
	c, err := w.store.PutBytes(ctx, file, storage.PutOptions{})
	if err != nil {
		return fmt.Errorf("store shard %d: %w", len(w.shards), err)
	}
	w.shards = append(w.shards, dataset.Shard{
		CID: wire.Link{Cid: c}, Tokens: uint64(tokens.Len()), Bytes: uint64(len(file)), Split: w.split,
	})
	w.raw = w.raw[:0]
	return nil
}
