package data

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/p2p/wire"
	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/dataset"
	"github.com/capacloud/capanode/trainer/data/quality"
)

// Store is what Build needs of a [storage.Store].
type Store interface {
	PutBytes(ctx context.Context, b []byte, opts storage.PutOptions) (cid.Cid, error)
	PutRecord(ctx context.Context, record []byte, opts storage.PutOptions) (cid.Cid, error)
}

// Build makes a dataset of a corpus in one pass over its files: what is kept is tokenised on all processors and sorted into a
// shuffle by content, in memory or, beyond [Options.Memory], in temporary files; then it is counted, planned and written as shards of
// nearly equal size. Each document is closed by an end-of-text token. Equal texts and options give the same dataset, wherever the
// files lie and whatever their order, as long as no cap, filter or sample depends on it.
//
// Errors: [ErrEmpty], [*TooSmallError], [ErrVocabulary], those of [corpus.Read] and [quality.ParseFilters], and what writing the store
// gives. The report is valid with an error too.
func Build(ctx context.Context, o Options, store Store) (m dataset.Manifest, link wire.Link, report Report, err error) {
	report.Dropped = []Drop{}
	o = o.withDefaults()
	if err := o.check(); err != nil {
		return m, link, report, err
	}
	o.Corpus.Cut = cutOf(o.Tokenizer)
	s, rule, err := o.sort(ctx, wants{tokens: true}, &report)
	if err != nil {
		return m, link, report, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	totals, err := o.count(s, rule, &report)
	if err != nil {
		return m, link, report, err
	}
	if totals.documents == 0 {
		return m, link, report, report.empty()
	}
	if report.TrainShards, report.ValShards, err = shardCounts(o, totals.train, totals.val); err != nil {
		return m, link, report, err
	}
	shards, err := o.write(ctx, s, rule, store, &report)
	if err != nil {
		return m, link, report, err
	}
	made, err := storeTokenizer(ctx, o.Tokenizer, store)
	if err != nil {
		return m, link, report, err
	}
	m = dataset.Manifest{
		Version:     dataset.Version,
		Name:        o.Name,
		Tokenizer:   made,
		Dtype:       o.dtype(),
		Shards:      shards,
		TrainTokens: totals.train,
		ValTokens:   totals.val,
		Sources:     totals.sources,
	}
	for _, s := range m.Shards {
		report.StoredBytes += int64(s.Bytes)
	}
	record, err := dataset.Encode(m)
	if err != nil {
		return m, link, report, fmt.Errorf("data: %w", err)
	}
	c, err := store.PutRecord(ctx, record, storage.PutOptions{})
	if err != nil {
		return m, link, report, fmt.Errorf("data: store manifest: %w", err)
	}
	return m, wire.Link{Cid: c}, report, nil
}

// sort reads the corpus, drops what the filters drop, and leaves the rest sorted, with the rule that says which parts are held out.
// The caller closes the sorter.
func (o Options) sort(ctx context.Context, w wants, report *Report) (s *sorter, rule sides, err error) {
	filters, err := quality.ParseFilters(o.Filters)
	if err != nil {
		return nil, sides{}, fmt.Errorf("data: %w", err)
	}
	w.measure, w.sign, w.lines = filters.Any(), filters.Near(), filters.Lines()
	if s, err = newSorter(o.TempDir, o.Memory); err != nil {
		return nil, sides{}, err
	}
	g := newGatherer(o, filters, s)
	report.Read, err = stream(ctx, o, w, g.add)
	report.Dropped = g.drops()
	if err == nil {
		err = s.finish()
	}
	if err = errors.Join(err, g.close()); err != nil {
		return nil, sides{}, errors.Join(err, s.close())
	}
	report.Spilled = s.bytes
	return s, g.classes.sides(g.smallest, g.largest, g.short, o.ValFraction), nil
}

// Warnings says in words what a reader of the numbers should not miss, one line each.
func (r *Report) Warnings() (out []string) {
	if n := r.Read.Broken(); n > 0 {
		out = append(out, fmt.Sprintf("%d of %d files are not wholly in the dataset: %s", n, r.Read.Files, r.Read.FirstProblem()))
	}
	if bad := r.Read.BadRecords + r.Read.TooLong + r.Read.LostRows; bad > 0 {
		out = append(out, fmt.Sprintf("%d of %d records could not be read", bad, r.Read.Records))
	}
	return out
}

// empty explains why nothing is left.
func (r *Report) empty() error {
	why := fmt.Sprintf("%d files looked at, %d empty, %d binary, %d damaged, %d passed over by name or kind", r.Read.Files, r.Read.Empty, r.Read.Binary,
		r.Read.Broken(), r.Read.Passed())
	for _, d := range r.Dropped {
		why += fmt.Sprintf(", %d documents dropped by %s", d.Documents, d.Reason)
	}
	if p := r.Read.FirstProblem(); p != "" {
		why += ", " + p
	}
	return fmt.Errorf("data: %w: %s: check data.paths and data.include of the job, or the paths and --include of the command", ErrEmpty, why)
}

// count goes over the sorted parts for the sums that the plan and the manifest need.
func (o Options) count(s *sorter, rule sides, report *Report) (t sideTotals, err error) {
	t.sources = make([]dataset.Source, len(o.Corpus.Paths))
	for i, path := range o.Corpus.Paths {
		name := filepath.Base(path) // only the last element of a path is named: manifests go to strangers
		t.sources[i].Name = strings.ToValidUTF8(name[:min(len(name), dataset.MaxName)], "")
	}
	width := o.dtype().Width()
	report.Duplicates, err = eachSide(s, rule, false, func(p *part, held, last bool) error {
		n := uint64(p.size / width)
		if last {
			n++
		}
		if held {
			t.val += n
		} else {
			t.train += n
		}
		from := &t.sources[p.source]
		from.Tokens += n
		from.Bytes += uint64(p.bytes)
		t.bytes += int64(p.bytes)
		if p.index == 0 {
			from.Documents++
			t.documents++
		}
		return nil
	})
	report.Kept, report.Bytes, report.TrainTokens, report.ValTokens = t.documents, t.bytes, t.train, t.val
	return t, err
}

// write goes over the sorted parts again and fills the shards.
func (o Options) write(ctx context.Context, s *sorter, rule sides, store Store, report *Report) ([]dataset.Shard, error) {
	put := newPutter(ctx, store)
	train := writer{put: put, dtype: o.dtype(), split: dataset.Train, total: report.TrainTokens, count: report.TrainShards}
	val := writer{put: put, dtype: o.dtype(), split: dataset.Val, total: report.ValTokens, count: report.ValShards, first: report.TrainShards}
	end := appendTokens(nil, o.dtype(), []int32{o.Tokenizer.EndOfText()})
	put.shards = make([]dataset.Shard, report.TrainShards+report.ValShards)
	_, err := eachSide(s, rule, true, func(p *part, held, last bool) error {
		to := &train
		if held {
			to = &val
		}
		if err := put.err(); err != nil {
			return err
		}
		to.add(p.tokens)
		if last {
			to.add(end)
		}
		return nil
	})
	return put.shards, errors.Join(err, put.wait())
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
	if o.Memory == 0 {
		o.Memory = defaultMemory
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
	case o.Context < 1 || o.Peers < 1 || o.Memory < 0:
		return fmt.Errorf("data: %w: context %d, peers %d, memory of %d bytes", ErrOptions, o.Context, o.Peers, o.Memory)
	case len(o.Corpus.Paths) > dataset.MaxSources:
		return fmt.Errorf("data: %w: %d paths, limit %d: name a folder", ErrOptions, len(o.Corpus.Paths), dataset.MaxSources)
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
