package data

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"runtime"
	"sync"

	"github.com/capacloud/capanode/storage/dataset"
	"github.com/capacloud/capanode/trainer/data/corpus"
	"github.com/capacloud/capanode/trainer/data/quality"
)

// worked is what the processors made of a piece of text; whatever depends on the documents before it is done afterwards, in
// reading order.
type worked struct {
	piece   corpus.Piece
	sum     [sha256.Size]byte
	tokens  []byte // in the dataset's type, or the text itself
	measure *quality.Measure
	sign    *quality.Signature
	lines   []quality.LineHash
	grams   []uint64
	hints   []hint
}

// hint is a masked sample of personal data.
type hint struct {
	kind   quality.Personal
	masked string
}

// wants says which work is done on each piece.
type wants struct {
	tokens, texts, measure, sign, lines, samples bool          // texts: the text itself in place of its tokens
	grams                                        func() uint64 // bound of the n-grams to hand over; nil wants none
}

// reader emits batches of pieces.
type reader func(ctx context.Context, emit func(*corpus.Batch) error) (corpus.Counts, error)

// stream reads the corpus, works on its pieces on all processors, and calls f for each in reading order.
func stream(ctx context.Context, o Options, w wants, f func(*worked) error) (corpus.Counts, error) {
	return streamFrom(ctx, o, w, func(ctx context.Context, emit func(*corpus.Batch) error) (corpus.Counts, error) {
		return corpus.Read(ctx, o.Corpus, emit)
	}, f)
}

func streamFrom(ctx context.Context, o Options, w wants, read reader, f func(*worked) error) (corpus.Counts, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	type job struct {
		batch *corpus.Batch
		done  chan []worked
	}
	workers := runtime.GOMAXPROCS(0)
	jobs, order := make(chan job, workers), make(chan job, 2*workers)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			worker := newPieceWorker(o, w)
			for j := range jobs {
				out := make([]worked, len(j.batch.Pieces))
				for i, p := range j.batch.Pieces {
					if err := worker.do(&out[i], p); err != nil {
						cancel(err)
						break
					}
				}
				j.done <- out // has room
			}
		})
	}
	collected := make(chan struct{})
	go func() {
		defer close(collected)
		for j := range order {
			for _, x := range <-j.done {
				if ctx.Err() != nil {
					break
				}
				if err := f(&x); err != nil {
					cancel(err)
				}
			}
		}
	}()
	counts, err := read(ctx, func(b *corpus.Batch) error {
		j := job{b, make(chan []worked, 1)}
		select {
		case order <- j:
			jobs <- j
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	close(jobs)
	close(order)
	wg.Wait()
	<-collected
	if cause := context.Cause(ctx); cause != nil {
		return counts, cause
	}
	return counts, err
}

// pieceWorker works on one piece after the other.
type pieceWorker struct {
	Options
	wants    wants
	dtype    dataset.Dtype
	ids      []int32
	analyzer quality.Analyzer
}

func newPieceWorker(o Options, w wants) *pieceWorker {
	p := &pieceWorker{Options: o, wants: w}
	if w.tokens {
		p.dtype = o.dtype()
	}
	return p
}

func (w *pieceWorker) do(out *worked, p corpus.Piece) error {
	out.piece = p
	ids := p.Tokens
	if ids == nil {
		out.sum = sha256.Sum256(p.Text)
		w.look(out, p.Text)
		if w.wants.texts {
			out.tokens = p.Text
		}
		if !w.wants.tokens {
			return nil
		}
		w.ids = w.Tokenizer.Encode(w.ids[:0], p.Text)
		ids = w.ids
	} else {
		if w.wants.tokens {
			if err := w.checkVocabulary(ids); err != nil {
				return err
			}
		}
		h := sha256.New()
		_ = binary.Write(h, binary.LittleEndian, ids) // a hash does not fail
		h.Sum(out.sum[:0])
		if !w.wants.tokens {
			return nil
		}
	}
	out.tokens = appendTokens(make([]byte, 0, len(ids)*w.dtype.Width()), w.dtype, ids)
	return nil
}

// look measures a text as far as that is wanted.
func (w *pieceWorker) look(out *worked, text []byte) {
	if !w.wants.measure {
		return
	}
	out.measure = new(quality.Measure)
	w.analyzer.Measure(out.measure, text)
	if w.wants.sign {
		sign := quality.NewSignature()
		w.analyzer.Signature(&sign)
		out.sign = &sign
	}
	if w.wants.lines {
		out.lines = w.analyzer.LineHashes(nil, text)
	}
	if w.wants.grams != nil {
		out.grams = w.analyzer.Grams(nil, w.wants.grams())
	}
	if w.wants.samples && out.measure.Hints() > 0 {
		quality.FindPersonal(text, func(kind quality.Personal, found []byte) {
			if len(out.hints) < maxSamples {
				out.hints = append(out.hints, hint{kind, quality.Mask(found)})
			}
		})
	}
}

// checkVocabulary compares tokens that came ready with the tokenizer that is said to have made them.
func (w *pieceWorker) checkVocabulary(ids []int32) error {
	if w.Tokenizer == nil {
		return nil
	}
	vocab := int32(w.Tokenizer.Vocab())
	for _, id := range ids {
		if id < 0 || id >= vocab {
			return fmt.Errorf("data: %w: %d, tokenizer %s has %d: name the tokenizer that made the file", ErrVocabulary, id, w.Tokenizer.Name(), vocab)
		}
	}
	return nil
}

func appendTokens(raw []byte, dtype dataset.Dtype, ids []int32) []byte {
	for _, id := range ids {
		switch dtype {
		case dataset.U8:
			raw = append(raw, byte(id))
		case dataset.U16:
			raw = binary.LittleEndian.AppendUint16(raw, uint16(id))
		default:
			raw = binary.LittleEndian.AppendUint32(raw, uint32(id))
		}
	}
	return raw
}
