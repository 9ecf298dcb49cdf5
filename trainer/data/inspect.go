package data

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/capacloud/capanode/storage/dataset"
	"github.com/capacloud/capanode/trainer/data/corpus"
	"github.com/capacloud/capanode/trainer/data/quality"
	"github.com/capacloud/capanode/trainer/tokenizer"
)

// exactMemory bounds what the search for exact duplicates remembers.
const exactMemory = 128 << 20

// Inspect reads a corpus as [Build] would and reports on it without building anything. It uses the options' corpus, filters, seed
// and held-out share, and the tokenizer unless it is nil. Memory does not grow with the corpus beyond the number of its files.
// Equal files in the same order give the same report. Errors: [ErrEmpty], and those of Build.
func Inspect(ctx context.Context, o Options) (Inspection, error) {
	o = o.withDefaults()
	filters, err := quality.ParseFilters(o.Filters)
	if err != nil {
		return Inspection{}, fmt.Errorf("data: %w", err)
	}
	in, err := newInspector(o, filters)
	if err != nil {
		return Inspection{}, err
	}
	for _, p := range o.Corpus.Paths {
		in.names = append(in.names, filepath.Base(p))
	}
	w := in.wants()
	if o.Tokenizer != nil {
		w.tokens, o.Corpus.Cut = true, cutOf(o.Tokenizer)
	}
	counts, err := stream(ctx, o, w, in.add)
	if err != nil {
		return Inspection{}, err
	}
	report := in.report()
	report.Read = &counts
	if report.Documents == 0 {
		return report, (&Report{Read: counts}).empty()
	}
	report.warn()
	return report, nil
}

// InspectDataset reports on a dataset: its shards are fetched one after the other and turned into text again.
func InspectDataset(ctx context.Context, m dataset.Manifest, read dataset.ReadFunc, o Options) (Inspection, error) {
	tok, err := tokenizer.Open(ctx, m.Tokenizer.Kind, read)
	if err != nil {
		return Inspection{}, fmt.Errorf("data: dataset %s: %w", m.Name, err)
	}
	if uint64(tok.Vocab()) != m.Tokenizer.Vocab {
		return Inspection{}, fmt.Errorf("data: %w: dataset %s says %d tokens, its tokenizer %s has %d", ErrVocabulary, m.Name, m.Tokenizer.Vocab, tok.Name(), tok.Vocab())
	}
	filters, err := quality.ParseFilters(o.Filters)
	if err != nil {
		return Inspection{}, fmt.Errorf("data: %w", err)
	}
	o.Tokenizer = tok
	in, err := newInspector(o, filters)
	if err != nil {
		return Inspection{}, err
	}
	in.names, in.split = []string{string(dataset.Train), string(dataset.Val)}, true
	texts := &shardTexts{m: m, read: read, tok: tok, counts: in.tokens}
	if _, err := streamFrom(ctx, o, in.wants(), texts.each, in.add); err != nil {
		return Inspection{}, err
	}
	report := in.report()
	report.warn()
	return report, nil
}

// inspector gathers a report in reading order.
type inspector struct {
	o       Options
	filters quality.Filters
	names   []string // of sources
	split   bool     // sources are the sides of a dataset

	total               quality.Measure
	sizes               sizes
	languages, sources  tally
	bySource            []tally // languages of each source
	exact               *quality.Exact
	near                *quality.Near
	lines               *quality.Lines
	overlap             *quality.Overlap
	below               atomic.Uint64 // overlap's bound, for the workers
	tokens              []int64       // how often each occurs
	documents           int64
	exactDups, nearDups Duplicates
	boilerplate         int64
	personal            []Hints
	presets             []preset
	dropped             map[string]*Drop

	text  quality.Text // the document under way
	sign  quality.Signature
	grams []uint64
	parts []part
}

// preset is one rule of a published corpus and how many documents break it.
type preset struct {
	rule    string
	filters quality.Filters
	broken  int64
}

func newInspector(o Options, f quality.Filters) (*inspector, error) {
	in := &inspector{
		o: o, filters: f, languages: tally{}, sources: tally{}, exact: quality.NewExact(exactMemory), near: quality.NewNear(nearMemory), lines: quality.NewLines(),
		overlap: quality.NewOverlap(), sign: quality.NewSignature(), dropped: map[string]*Drop{},
	}
	in.below.Store(in.overlap.Below())
	if o.Tokenizer != nil {
		in.tokens = make([]int64, o.Tokenizer.Vocab())
	}
	for kind := range quality.PersonalKinds() {
		in.personal = append(in.personal, Hints{Kind: quality.Personal(kind).String(), Samples: []string{}})
	}
	rules, err := quality.PresetFilters()
	if err != nil {
		return nil, fmt.Errorf("data: %w", err)
	}
	for i, rule := range quality.PresetRules() {
		in.presets = append(in.presets, preset{rule, rules[i], 0})
	}
	return in, nil
}

func (in *inspector) wants() wants {
	return wants{measure: true, sign: true, lines: true, samples: true, grams: in.below.Load}
}

// add takes the next piece.
func (in *inspector) add(w *worked) error {
	in.parts = append(in.parts, part{sum: w.sum, source: uint32(w.piece.Source), bytes: uint32(len(w.piece.Text))})
	if w.measure != nil {
		in.text.Measure.Add(w.measure)
		in.sign.Merge(w.sign)
		in.grams = append(in.grams, w.grams...)
	}
	in.countTokens(w.tokens)
	for _, h := range w.hints {
		if s := &in.personal[h.kind].Samples; len(*s) < maxSamples && !slices.Contains(*s, h.masked) {
			*s = append(*s, h.masked)
		}
	}
	if len(in.parts) > 1 && len(in.grams) > 1<<16 { // of a document of many megabytes each part is judged on its own
		in.flushGrams(in.held(contentKey(in.o.Seed, w.sum[:]), w))
	}
	if !w.piece.First || !w.piece.Last { // a long document's lines are counted as they pass, a short one's when it is known to be new
		in.text.Boilerplate += in.lines.Document(w.lines, w.piece.Text)
	}
	if !w.piece.Last {
		return nil
	}
	in.document(w)
	in.text, in.sign, in.grams, in.parts = quality.Text{}, quality.NewSignature(), in.grams[:0], in.parts[:0]
	return nil
}

func (in *inspector) countTokens(raw []byte) {
	if len(raw) == 0 {
		return
	}
	switch in.o.dtype() {
	case dataset.U8:
		for _, b := range raw {
			in.tokens[b]++
		}
	case dataset.U16:
		for i := 0; i+1 < len(raw); i += 2 {
			in.tokens[binary.LittleEndian.Uint16(raw[i:])]++
		}
	default:
		for i := 0; i+3 < len(raw); i += 4 {
			in.tokens[binary.LittleEndian.Uint32(raw[i:])]++
		}
	}
}

// held says whether a document would be held out: by the rule of Build, or because a dataset's shard says so.
func (in *inspector) held(key uint64, w *worked) bool {
	if in.split {
		return w.piece.Source == 1
	}
	return float64(key)*0x1p-64 < in.o.ValFraction
}

func (in *inspector) flushGrams(held bool) {
	in.overlap.Add(in.grams, held)
	in.below.Store(in.overlap.Below())
	in.grams = in.grams[:0]
}

// document judges a whole document. What repeats an earlier one byte for byte is counted and otherwise passed over, as a build does.
func (in *inspector) document(w *worked) {
	t := &in.text
	if t.Bytes == 0 {
		return
	}
	sum := documentSum(in.parts)
	if in.exact.Seen(binary.LittleEndian.Uint64(sum[:])) {
		in.exactDups.Documents++
		in.exactDups.Bytes += t.Bytes
		return
	}
	in.documents++
	in.sizes.add(t.Bytes)
	in.total.Add(&t.Measure)
	language := t.Language()
	in.languages.add(language, 1, t.Bytes)
	in.source(w.piece.Source, language, t.Bytes)
	if t.Near = in.near.Seen(&in.sign); t.Near {
		in.nearDups.Documents++
		in.nearDups.Bytes += t.Bytes
	}
	if len(in.parts) == 1 {
		t.Boilerplate = in.lines.Document(w.lines, w.piece.Text)
	}
	in.boilerplate += t.Boilerplate
	for kind, n := range t.Personal {
		in.personal[kind].Count += n
		if n > 0 {
			in.personal[kind].Documents++
		}
	}
	for i := range in.presets {
		if in.presets[i].filters.Drop(t) != "" {
			in.presets[i].broken++
		}
	}
	if reason := in.filters.Drop(t); reason != "" {
		d := in.dropped[reason]
		if d == nil {
			d = &Drop{Reason: reason}
			in.dropped[reason] = d
		}
		d.Documents++
		d.Bytes += t.Bytes
	}
	in.flushGrams(in.held(contentKey(in.o.Seed, sum[:]), w))
}

func (in *inspector) source(i int, language string, bytes int64) {
	name := in.names[i]
	in.sources.add(name, 1, bytes)
	for len(in.bySource) <= i {
		in.bySource = append(in.bySource, tally{})
	}
	in.bySource[i].add(language, 1, bytes)
}

// report is what was found so far.
func (in *inspector) report() Inspection {
	m := &in.total
	r := Inspection{
		Documents: in.documents, Bytes: m.Bytes, Characters: m.Chars, Words: m.Words, Lines: m.Lines, Lengths: in.sizes.lengths(),
		Languages: in.languages.list(), Sources: in.sources.list(), Personal: in.personal, Rules: []Broken{}, Warnings: []string{},
		ExactDuplicates: in.exactDups, NearDuplicates: in.nearDups,
		Boilerplate: Boilerplate{Bytes: in.boilerplate, Share: ratio(in.boilerplate, m.Bytes), Lines: in.lines.Common(10)},
	}
	r.ExactDuplicates.Share = ratio(in.exactDups.Bytes, m.Bytes+in.exactDups.Bytes)
	r.NearDuplicates.Share = ratio(in.nearDups.Bytes, m.Bytes)
	if in.near.Forgot() {
		r.NearDuplicates.Window = in.near.Window()
	}
	classes, scripts := tally{}, tally{}
	for name, n := range map[string]int64{"letters": m.Letters, "digits": m.Digits, "spaces": m.Spaces, "punctuation": m.Punctuation, "symbols": m.Symbols, "control": m.Control} {
		classes.add(name, 0, n)
	}
	for s, n := range m.Scripts {
		scripts.add(quality.Script(s).String(), 0, n)
	}
	r.Classes, r.Scripts = classes.list(), scripts.list()
	for i := range r.Sources {
		if at := slices.Index(in.names, r.Sources[i].Name); at < len(in.bySource) {
			r.Sources[i].Language = in.bySource[at].list()[0].Name
		}
	}
	for _, p := range in.presets {
		if p.broken > 0 {
			r.Rules = append(r.Rules, Broken{p.rule, p.broken, ratio(p.broken, in.documents)})
		}
	}
	slices.SortStableFunc(r.Rules, func(a, b Broken) int { return cmp.Compare(b.Documents, a.Documents) })
	for _, d := range in.dropped {
		r.Dropped = append(r.Dropped, *d)
	}
	slices.SortFunc(r.Dropped, func(a, b Drop) int { return cmp.Compare(a.Reason, b.Reason) })
	if in.tokens != nil {
		bits, total, used := entropy(in.tokens)
		r.Tokens = &Vocabulary{in.o.Tokenizer.Name(), total, len(in.tokens), used, ratio(m.Bytes+in.exactDups.Bytes, total), bits}
	}
	r.Leakage.Length = quality.GramWords
	r.Leakage.Share, r.Leakage.Grams = in.overlap.Share()
	return r
}

// warn says in words what a reader of the numbers should not miss.
func (r *Inspection) warn() {
	say := func(format string, args ...any) { r.Warnings = append(r.Warnings, fmt.Sprintf(format, args...)) }
	if c := r.Read; c != nil && c.Broken() > 0 {
		say("%d of %d files are not wholly in the corpus: damaged, unreadable, changed, or of a format that is not read", c.Broken(), c.Files)
	}
	if d := r.ExactDuplicates.Share + r.NearDuplicates.Share; d > 0.1 {
		say("%.0f %% of the text repeats earlier documents, exactly or nearly: the filter near_duplicates drops what is near", 100*d)
	}
	if r.Leakage.Grams > 0 && r.Leakage.Share > 0.01 {
		say("%.1f %% of the held-out text's runs of %d words are in the training text too: its loss will look better than it is", 100*r.Leakage.Share, r.Leakage.Length)
	}
	if r.Boilerplate.Share > 0.1 {
		say("%.0f %% of the text is lines that %d or more documents have", 100*r.Boilerplate.Share, quality.CommonLine)
	}
	for _, h := range r.Personal {
		if h.Kind == quality.PrivateKey.String() && h.Count > 0 || h.Kind == quality.APIKey.String() && h.Count > 0 {
			say("%d places look like a secret (%s): a model may repeat it", h.Count, strings.ReplaceAll(h.Kind, "_", " "))
		}
	}
	if len(r.Sources) > 1 && r.Sources[0].Share > 0.9 {
		say("%s is %.0f %% of the text: the other sources will hardly be learnt", r.Sources[0].Name, 100*r.Sources[0].Share)
	}
}

// shardTexts turns a dataset's shards into documents again.
type shardTexts struct {
	m      dataset.Manifest
	read   dataset.ReadFunc
	tok    tokenizer.Tokenizer
	counts []int64
}

// each emits the documents of all shards: the training text is source 0, the held-out text source 1.
func (s *shardTexts) each(ctx context.Context, emit func(*corpus.Batch) error) (corpus.Counts, error) {
	for side, split := range []dataset.Split{dataset.Train, dataset.Val} {
		d := documentCutter{tok: s.tok, source: side, emit: emit}
		for i, shard := range s.m.Shards {
			if shard.Split != split {
				continue
			}
			tokens, err := s.m.ReadShard(ctx, s.read, i)
			if err != nil {
				return corpus.Counts{}, fmt.Errorf("data: %w", err)
			}
			ids := make([]int32, 1<<14)
			for from := 0; from < tokens.Len(); {
				n := tokens.Copy(ids, from)
				for _, id := range ids[:n] {
					s.counts[id]++
				}
				if from += n; d.add(ids[:n]) != nil {
					return corpus.Counts{}, errors.Join(ctx.Err(), d.err)
				}
			}
		}
		if err := d.end(); err != nil {
			return corpus.Counts{}, err
		}
	}
	return corpus.Counts{}, nil
}

// documentCutter cuts a run of tokens at its ends of text.
type documentCutter struct {
	tok    tokenizer.Tokenizer
	source int
	emit   func(*corpus.Batch) error
	ids    []int32 // of the piece under way
	within bool    // an earlier piece of the document was handed on
	batch  *corpus.Batch
	size   int
	err    error
}

func (d *documentCutter) add(ids []int32) error {
	for len(ids) > 0 && d.err == nil {
		end := slices.Index(ids, d.tok.EndOfText())
		if end < 0 {
			if d.ids = append(d.ids, ids...); len(d.ids) >= corpus.PieceBytes {
				d.piece(false)
			}
			break
		}
		d.ids = append(d.ids, ids[:end]...)
		d.piece(true)
		ids = ids[end+1:]
	}
	return d.err
}

func (d *documentCutter) piece(last bool) {
	text := d.tok.Decode(nil, d.ids)
	if d.batch == nil {
		d.batch = &corpus.Batch{}
	}
	d.batch.Pieces = append(d.batch.Pieces, corpus.Piece{Source: d.source, First: !d.within, Last: last, Text: text})
	d.within, d.ids = !last, d.ids[:0]
	if d.size += len(text); d.size > 4*corpus.PieceBytes {
		d.err, d.batch, d.size = d.emit(d.batch), nil, 0
	}
}

func (d *documentCutter) end() error {
	if len(d.ids) > 0 || d.within {
		d.piece(true)
	}
	if d.err == nil && d.batch != nil {
		d.err, d.batch = d.emit(d.batch), nil
	}
	return d.err
}
