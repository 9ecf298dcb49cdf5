// Package evaluate owns what a language model is measured by: the loss of each token of a text given the tokens before it,
// and what follows from it. It streams: memory holds one batch of windows, never a text. It refuses to know where text and
// models come from.
//
// A text is one sequence of tokens, cut into windows of the context's length. Window k begins at token k·stride and every
// token but the first of the sequence is scored once, in the first window that reaches it. With a stride as long as the
// context, windows do not overlap and the first tokens of each are foreseen from little; a shorter stride gives each token
// at least context − stride tokens to be foreseen from, and takes context/stride times as long.
package evaluate

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/capacloud/capanode/trainer/engine"
)

// ErrOptions reports options that make no evaluation.
var ErrOptions = errors.New("invalid evaluation options")

// ErrNothing reports a text without a token to score.
var ErrNothing = errors.New("nothing to evaluate")

// Options say how a text is scored.
type Options struct {
	Context int // tokens of a window; at most the model's
	Stride  int // tokens from one window to the next, 1 to Context; 0 means Context
	Vocab   int // of the model

	// Sizes is the bytes of text that each token ID stands for, as [Sizes] makes it. IDs beyond it count as one byte.
	Sizes []int
	// Most is how many tokens are scored at most; 0 is no limit.
	Most uint64
}

// Figures are what a model got on a text.
type Figures struct {
	Tokens      uint64  `json:"tokens"` // scored
	Bytes       uint64  `json:"bytes"`  // of text that they stand for; the end of a document counts as one
	Loss        float64 `json:"loss"`   // mean, in nats per token
	Perplexity  float64 `json:"perplexity"`
	BitsPerByte float64 `json:"bits_per_byte"`
	Accuracy    float64 `json:"accuracy"` // share of the tokens that the model held for the likeliest
}

// Sums of what was scored so far.
type sums struct {
	loss          float64 // nats, summed in the order of the text
	tokens, bytes uint64
	hits          uint64
}

// Scorer takes sequences of tokens and scores them.
type Scorer struct {
	model engine.Scoring
	o     Options
	rows  int // windows of a full batch

	batch   engine.Batch // under way
	pending []int32      // tokens of the sequence from the start of the next window
	known   int          // of the next window's targets, how many were scored before
	queued  uint64       // targets in the batch under way
	sum     sums
}

// What a batch holds at most: enough tokens for all processors, and logits that fit memory. The figures do not depend on it.
const (
	batchTokens = 8192
	batchLogits = 1 << 26 // elements, 256 MiB
)

// New returns a scorer. The model must not be used otherwise until the last call of its methods.
func New(model engine.Scoring, o Options) (*Scorer, error) {
	if o.Stride == 0 {
		o.Stride = o.Context
	}
	if o.Context < 1 || o.Vocab < 1 || o.Stride < 1 || o.Stride > o.Context {
		return nil, fmt.Errorf("evaluate: context %d, stride %d, vocabulary %d: the stride is 1 to the context: %w", o.Context, o.Stride, o.Vocab, ErrOptions)
	}
	tokens := max(1, min(batchTokens, batchLogits/o.Vocab))
	s := &Scorer{model: model, o: o, rows: max(1, tokens/o.Context)}
	s.reset()
	return s, nil
}

// reset begins an empty batch in the memory of the last one.
func (s *Scorer) reset() {
	s.batch = engine.Batch{Context: s.o.Context, Inputs: s.batch.Inputs[:0], Targets: s.batch.Targets[:0]}
	s.queued = 0
}

// Full tells whether as many tokens are scored or waiting as the options allow.
func (s *Scorer) Full() bool { return s.o.Most > 0 && s.sum.tokens+s.queued >= s.o.Most }

// Tokens returns how many tokens have been scored.
func (s *Scorer) Tokens() uint64 { return s.sum.tokens }

// Write continues the sequence. Errors are the engine's: [engine.ErrBatch] for a token outside the vocabulary,
// [engine.ErrNumerics] for a model whose loss is not finite.
func (s *Scorer) Write(ctx context.Context, ids []int32) error {
	for len(ids) > 0 && !s.Full() {
		n := min(len(ids), s.o.Context+1-len(s.pending))
		s.pending, ids = append(s.pending, ids[:n]...), ids[n:]
		if len(s.pending) <= s.o.Context {
			return nil
		}
		if err := s.window(ctx); err != nil {
			return err
		}
		rest := copy(s.pending, s.pending[s.o.Stride:])
		s.pending, s.known = s.pending[:rest], s.o.Context-s.o.Stride
	}
	return nil
}

// End closes the sequence: what comes next does not see it.
func (s *Scorer) End(ctx context.Context) error {
	var err error
	if len(s.pending)-1 > s.known && !s.Full() {
		err = s.window(ctx)
	}
	s.pending, s.known = s.pending[:0], 0
	return err
}

// window adds the pending tokens to the batch. A short window is filled up behind its end, where a causal model's results
// for the lines before do not see it.
func (s *Scorer) window(ctx context.Context) error {
	n := len(s.pending) - 1
	for i := range s.o.Context {
		input, target := int32(0), engine.Ignore
		if i < n {
			input = s.pending[i]
		}
		if i < n && i >= s.known && !s.Full() {
			target = s.pending[i+1]
			s.queued++
		}
		s.batch.Inputs, s.batch.Targets = append(s.batch.Inputs, input), append(s.batch.Targets, target)
	}
	if s.batch.Rows++; s.batch.Rows < s.rows && !s.Full() {
		return nil
	}
	return s.flush(ctx)
}

// flush scores the batch under way.
func (s *Scorer) flush(ctx context.Context) error {
	if s.queued == 0 {
		s.reset()
		return nil
	}
	scores, err := s.model.Score(ctx, s.batch)
	if err != nil {
		return fmt.Errorf("evaluate: %w", err)
	}
	for i, id := range s.batch.Targets {
		if id == engine.Ignore {
			continue
		}
		s.sum.loss += scores.Losses[i]
		s.sum.tokens++
		if len(scores.Hits) > 0 && scores.Hits[i] {
			s.sum.hits++
		}
		size := 1
		if int(id) < len(s.o.Sizes) {
			size = s.o.Sizes[id]
		}
		s.sum.bytes += uint64(size)
	}
	s.reset()
	return nil
}

// Figures closes the sequence under way, scores what waits and returns the figures. Errors: [ErrNothing], and those of Write.
func (s *Scorer) Figures(ctx context.Context) (Figures, error) {
	if err := errors.Join(s.End(ctx), s.flush(ctx)); err != nil {
		return Figures{}, err
	}
	if s.sum.tokens == 0 {
		return Figures{}, fmt.Errorf("evaluate: a sequence needs two tokens, the second is foreseen from the first: %w", ErrNothing)
	}
	n := float64(s.sum.tokens)
	loss := s.sum.loss / n
	return Figures{
		Tokens: s.sum.tokens, Bytes: s.sum.bytes, Loss: loss, Perplexity: min(math.Exp(loss), math.MaxFloat64),
		BitsPerByte: s.sum.loss / math.Ln2 / float64(max(s.sum.bytes, 1)), Accuracy: float64(s.sum.hits) / n,
	}, nil
}

// Decoder turns token IDs into the text that they stand for.
type Decoder interface {
	Vocab() int
	Decode(dst []byte, ids []int32) []byte
}

// Sizes returns the bytes of text that each token of a vocabulary stands for. A token without text, such as the end of a
// document, counts as one, like the separator that it stands for.
func Sizes(t Decoder) []int {
	sizes := make([]int, t.Vocab())
	var text []byte
	var one [1]int32
	for i := range sizes {
		one[0] = int32(i)
		text = t.Decode(text[:0], one[:])
		sizes[i] = max(1, len(text))
	}
	return sizes
}
