// Package corpus owns the way from files on disk to documents: which files a path means, how they are unpacked, which
// format they have, and how the dirt of real files is survived and counted. It streams: memory holds a few pieces of
// text for each processor, never a file. It refuses to judge texts (package quality), to tokenise and to shuffle (package
// data).
//
// Every byte that it reads is hostile. What is wrong with one file or record is counted under a name in [Counts] and the
// rest is read; only what the caller asked for wrongly ends the reading.
package corpus

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
)

const (
	// PieceBytes is the most text that a document hands over at once. Longer documents come in pieces cut where [Options].Cut
	// allows it, or at line ends.
	PieceBytes = 64 << 10
	// MaxRecord is the longest record of a structured file in bytes: a line of JSON, a row of CSV, a member of a tar, a
	// value of Parquet. Longer ones are left out and counted.
	MaxRecord = 32 << 20
	// batchBytes is the text that one batch gathers.
	batchBytes = 256 << 10
	// ahead is how many batches a file may be read ahead of its turn.
	ahead = 4
)

// ErrOptions reports options that contradict themselves or name what does not exist.
var ErrOptions = errors.New("invalid corpus options")

// ErrField reports a structured file in which no record has the text field that was asked for.
var ErrField = errors.New("no such text field")

// ErrFormat reports a file in a format that this version does not read.
var ErrFormat = errors.New("format not supported")

// Options says what is read.
type Options struct {
	Paths   []string // files, folders (walked), patterns with *, ?, [] and {a,b} or {000..012}
	Include []string // suffixes (".go") or patterns ("*_test.go") of file names below folders and patterns; empty takes all
	Exclude []string // of the same kind; they win
	Format  Format   // of every file; empty or Auto detects each
	Field   string   // text field of JSON (dots descend) or column of CSV and Parquet; empty means "text"
	Width   int      // bytes of one token in a headless .bin: 2 or 4; 0 means 2

	// Cut returns the last place where a text may be cut, 0 where there is none; pieces of long documents end there rather than at
	// a line end. It sees text before it is repaired, and several goroutines call it. Nil has no wish.
	Cut func(text []byte) int

	MaxBytes     int64   // stop after so many bytes of text; 0 is no cap
	MaxDocuments int64   // stop after so many documents; 0 is no cap
	Sample       float64 // keep this share of the documents, chosen by their first piece and Seed; 0 keeps all
	Seed         uint64
}

// Piece is a document, or the next part of one.
type Piece struct {
	Source      int    // index of the path that it was found under
	First, Last bool   // ends of a document; a short document is one piece with both
	Text        []byte // valid UTF-8 but for bytes that Counts.InvalidUTF8 counts
	Tokens      []int32
}

// Batch is a run of pieces in reading order. It belongs to who gets it.
type Batch struct {
	Pieces []Piece
	buf    []byte
}

// Read reads every file and calls emit with all pieces in an order that depends on the paths and file names alone. Files are
// read ahead on all processors. The counts are valid with an error too.
//
// Errors: [ErrOptions], [ErrField], [ErrFormat], fs.ErrNotExist for a path that is nothing, the context's, and what emit returns.
func Read(ctx context.Context, o Options, emit func(*Batch) error) (Counts, error) {
	var total Counts
	o, err := o.withDefaults()
	if err != nil {
		return total, err
	}
	files, err := expand(o, &total)
	if err != nil {
		return total, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := sequencer{o: o, emit: emit, counts: &total}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel() // before the wait: readers ahead stop
	queue := make(chan *reading, runtime.GOMAXPROCS(0))
	wg.Go(func() {
		defer close(queue)
		for i, f := range files {
			r := &reading{ctx: ctx, o: o, file: f, first: i == 0, out: make(chan *Batch, ahead)}
			select {
			case queue <- r:
				wg.Go(r.run)
			case <-ctx.Done():
				return
			}
		}
	})
	for r := range queue {
		err := s.drain(r)
		if errors.Is(err, errCapped) {
			total.Capped = true
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
	return total, ctx.Err()
}

func (o Options) withDefaults() (Options, error) {
	if o.Format == "" {
		o.Format = Auto
	}
	if o.Field == "" {
		o.Field = "text"
	}
	if o.Width == 0 {
		o.Width = 2
	}
	switch {
	case !o.Format.readable() && o.Format != Auto:
		return o, o.Format.refuse()
	case o.MaxBytes < 0 || o.MaxDocuments < 0:
		return o, fmt.Errorf("corpus: %w: caps of %d bytes and %d documents: write positive numbers, or 0 for none", ErrOptions, o.MaxBytes, o.MaxDocuments)
	case !(o.Sample >= 0 && o.Sample <= 1):
		return o, fmt.Errorf("corpus: %w: sample of %v: write a share from 0 to 1", ErrOptions, o.Sample)
	case o.Width != 2 && o.Width != 4:
		return o, fmt.Errorf("corpus: %w: tokens of %d bytes: write 2 or 4", ErrOptions, o.Width)
	}
	return o, nil
}

// reading is one file on its way.
type reading struct {
	ctx    context.Context
	o      Options
	file   corpusFile
	first  bool
	out    chan *Batch // closed at the end; then counts and err are valid
	counts Counts
	err    error

	batch *Batch
	room  int // of the next batch
}

func (r *reading) run() {
	defer close(r.out)
	r.err = r.read()
	if r.err == nil {
		r.err = r.flush()
	}
}

// emit adds a piece; text is copied, tokens are kept.
func (r *reading) emit(p Piece) error {
	b := r.open(len(p.Text))
	from := len(b.buf)
	b.buf = append(b.buf, p.Text...) // pieces before keep the array that they point into, should this one be a new one
	p.Text = b.buf[from:len(b.buf):len(b.buf)]
	return r.push(p)
}

// emitClean adds a document of one piece, cleaned on the way.
func (r *reading) emitClean(text []byte) error {
	b := r.open(len(text))
	from := len(b.buf)
	b.buf = r.clean(b.buf, text)
	return r.push(Piece{First: true, Last: true, Text: b.buf[from:len(b.buf):len(b.buf)]})
}

// open returns the batch that takes the next piece. The batches of a file grow with it: most files are small.
func (r *reading) open(n int) *Batch {
	if r.batch == nil {
		r.batch = &Batch{buf: make([]byte, 0, max(r.room, 2*n, 4096))}
	}
	return r.batch
}

func (r *reading) push(p Piece) error {
	b := r.batch
	p.Source = r.file.source
	b.Pieces = append(b.Pieces, p)
	if len(b.buf)+4*len(p.Tokens) >= batchBytes-PieceBytes || len(b.Pieces) >= 4096 {
		r.room = batchBytes
		return r.flush()
	}
	return nil
}

func (r *reading) flush() error {
	if r.batch == nil {
		return r.ctx.Err()
	}
	select {
	case r.out <- r.batch:
		r.batch = nil
		return nil
	case <-r.ctx.Done():
		return r.ctx.Err()
	}
}

var errCapped = errors.New("capped")

// sequencer hands batches on in file order and applies the caps.
type sequencer struct {
	o         Options
	emit      func(*Batch) error
	counts    *Counts
	bytes     int64
	documents int64
	dropping  bool // the document under way is not in the sample
}

func (s *sequencer) drain(r *reading) error {
	for b := range r.out {
		capped := s.choose(b)
		if len(b.Pieces) > 0 {
			if err := s.emit(b); err != nil {
				return err
			}
		}
		if capped {
			s.counts.add(Counts{Files: 1}) // its own counts run ahead of what was taken
			return errCapped
		}
	}
	s.counts.add(r.counts)
	return r.err
}

// choose drops what is not in the sample and cuts the batch where a cap is reached.
func (s *sequencer) choose(b *Batch) (capped bool) {
	kept := b.Pieces[:0]
	for _, p := range b.Pieces {
		if p.First {
			s.dropping = !s.sampled(p)
			if s.dropping {
				s.counts.NotSampled++
			}
		}
		if s.dropping {
			continue
		}
		n := int64(len(p.Text) + 4*len(p.Tokens))
		if s.o.MaxBytes > 0 && s.bytes+n >= s.o.MaxBytes {
			p.cut(s.o.MaxBytes - s.bytes)
			p.Last, capped = true, true
			n = int64(len(p.Text) + 4*len(p.Tokens))
		}
		if p.First {
			s.documents++
			s.counts.Documents++
		}
		s.bytes += n
		s.counts.Bytes += n
		kept = append(kept, p)
		if p.Last && s.documents == s.o.MaxDocuments {
			capped = true
		}
		if capped {
			break
		}
	}
	b.Pieces = kept
	return capped
}

// cut shortens a piece to at most n bytes.
func (p *Piece) cut(n int64) {
	if n < int64(len(p.Text)) {
		p.Text = p.Text[:wholeRunes(p.Text[:n])]
	}
	if n/4 < int64(len(p.Tokens)) {
		p.Tokens = p.Tokens[:n/4]
	}
}

// sampled decides by content, so that a document is in the sample or not wherever it lies.
func (s *sequencer) sampled(p Piece) bool {
	if s.o.Sample == 0 || s.o.Sample == 1 {
		return true
	}
	h := s.o.Seed ^ 0xcbf29ce484222325
	for _, b := range p.Text {
		h = (h ^ uint64(b)) * 0x100000001b3
	}
	for _, t := range p.Tokens {
		h = (h ^ uint64(uint32(t))) * 0x100000001b3
	}
	h ^= h >> 32 // FNV-1a leaves its high bits to the last bytes
	h *= 0xd6e8feb86659fd93
	h ^= h >> 32
	return float64(h)*0x1p-64 < s.o.Sample
}
