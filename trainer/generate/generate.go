// Package generate owns sampling: turning a model's logits into tokens, one by one. It refuses to know how logits are
// computed and what tokens mean.
package generate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/capacloud/capanode/trainer/engine"
)

// ErrOptions reports options or a prompt outside their range.
var ErrOptions = errors.New("invalid generation options")

// Model is what generation needs of an engine: the logits [Rows, Context, Vocab] of a batch.
type Model interface {
	Logits(ctx context.Context, batch engine.Batch) ([]float32, error)
}

// Options say how to sample.
type Options struct {
	Vocab       int     // of the model
	Context     int     // of the model; older tokens than this are not seen
	Max         int     // tokens to generate at most
	Stop        []int32 // ends the text; not emitted
	Temperature float64 // divides the logits; 0 always takes the likeliest token
	TopK        int     // keep only that many likeliest tokens; 0 keeps all
	TopP        float64 // keep the fewest likeliest tokens that have this probability together; 0 or 1 keeps all
	Seed        uint64  // of the random draws: equal seeds and logits give equal texts
}

func (o Options) check(prompt []int32) error {
	switch {
	case o.Vocab < 1 || o.Vocab > math.MaxInt32:
		return fmt.Errorf("vocabulary of %d: %w", o.Vocab, ErrOptions)
	case o.Context < 1:
		return fmt.Errorf("context of %d: %w", o.Context, ErrOptions)
	case o.Max < 0:
		return fmt.Errorf("at most %d tokens: %w", o.Max, ErrOptions)
	case !(o.Temperature >= 0 && o.Temperature <= 100):
		return fmt.Errorf("temperature %g, allowed are 0 to 100: %w", o.Temperature, ErrOptions)
	case o.TopK < 0:
		return fmt.Errorf("top-k %d, allowed are 0 (all) and more: %w", o.TopK, ErrOptions)
	case !(o.TopP >= 0 && o.TopP <= 1):
		return fmt.Errorf("top-p %g, allowed are 0 to 1: %w", o.TopP, ErrOptions)
	case len(prompt) == 0:
		return fmt.Errorf("empty prompt: %w", ErrOptions)
	}
	return nil
}

// Generate continues the prompt and calls emit with each token as soon as it is drawn. It returns when Max tokens are
// out, at a stop token, or with the first error of the model or of emit.
//
// A model that is an [engine.Decoding] computes each token once; when its context is full, it forgets the older half.
// Others compute the whole window for every token.
func Generate(ctx context.Context, m Model, prompt []int32, opts Options, emit func(token int32) error) error {
	if err := opts.check(prompt); err != nil {
		return fmt.Errorf("generate: %w", err)
	}
	next, err := reader(m, opts)
	if err != nil {
		return fmt.Errorf("generate: %w", err)
	}
	rng := rand.New(rand.NewPCG(opts.Seed, 0))
	fresh := prompt
	for range opts.Max {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("generate: %w", err)
		}
		logits, err := next(ctx, fresh)
		if err != nil {
			return fmt.Errorf("generate: %w", err)
		}
		token, err := Sample(logits, opts, rng)
		if err != nil {
			return fmt.Errorf("generate: %w", err)
		}
		if slices.Contains(opts.Stop, token) {
			return nil
		}
		if err := emit(token); err != nil {
			return fmt.Errorf("generate: %w", err)
		}
		fresh = []int32{token}
	}
	return nil
}

// reader returns a function that appends tokens to the text and gives the logits of what follows.
func reader(m Model, opts Options) (func(ctx context.Context, fresh []int32) ([]float32, error), error) {
	d, ok := m.(engine.Decoding)
	if !ok {
		w := &window{model: m, opts: opts, padded: make([]int32, opts.Context)}
		return w.next, nil
	}
	decoder, err := d.Decoder()
	if err != nil {
		return nil, err
	}
	c := &cached{decoder: decoder, context: opts.Context}
	return func(ctx context.Context, fresh []int32) ([]float32, error) {
		logits, err := c.next(ctx, fresh)
		if err == nil && len(logits) != opts.Vocab {
			err = fmt.Errorf("the model gave %d logits, wanted %d: %w", len(logits), opts.Vocab, ErrOptions)
		}
		return logits, err
	}, nil
}

// cached reads a text through a decoder.
type cached struct {
	decoder engine.Decoder
	context int
	text    []int32 // what the decoder has seen
}

func (c *cached) next(ctx context.Context, fresh []int32) ([]float32, error) {
	if len(c.text)+len(fresh) > c.context {
		all := slices.Concat(c.text, fresh)
		fresh = all[len(all)-max(1, c.context/2):]
		c.text = c.text[:0]
		c.decoder.Reset()
	}
	c.text = append(c.text, fresh...)
	return c.decoder.Next(ctx, fresh)
}

// window reads a text through the logits of its last part. The model always sees one row of full context, padded at the
// right where causal attention cannot look, so that an executor compiles one shape.
type window struct {
	model  Model
	opts   Options
	text   []int32
	padded []int32
}

func (w *window) next(ctx context.Context, fresh []int32) ([]float32, error) {
	w.text = append(w.text, fresh...)
	if over := len(w.text) - w.opts.Context; over > 0 {
		w.text = append(w.text[:0], w.text[over:]...)
	}
	clear(w.padded[copy(w.padded, w.text):])
	logits, err := w.model.Logits(ctx, engine.Batch{Rows: 1, Context: w.opts.Context, Inputs: w.padded})
	if err != nil {
		return nil, err
	}
	if len(logits) != w.opts.Context*w.opts.Vocab {
		return nil, fmt.Errorf("the model gave %d logits, wanted %d × %d: %w", len(logits), w.opts.Context, w.opts.Vocab, ErrOptions)
	}
	last := len(w.text) - 1
	return logits[last*w.opts.Vocab : (last+1)*w.opts.Vocab], nil
}

// candidate is a token with its unnormalised probability.
type candidate struct {
	token  int32
	logit  float64
	weight float64
}

// Sample draws one token from logits, likeliest first: temperature, then top-k, then top-p (nucleus sampling, Holtzman
// et al., 2020). Ties go to the lower token. Logits that are not finite are [engine.ErrNumerics].
func Sample(logits []float32, opts Options, rng *rand.Rand) (int32, error) {
	all := make([]candidate, len(logits))
	for i, l := range logits {
		if math.IsNaN(float64(l)) || math.IsInf(float64(l), 0) {
			return 0, fmt.Errorf("logit of token %d is %g: %w", i, l, engine.ErrNumerics)
		}
		all[i] = candidate{token: int32(i), logit: float64(l)}
	}
	slices.SortFunc(all, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(b.logit, a.logit), cmp.Compare(a.token, b.token))
	})
	if opts.Temperature == 0 {
		return all[0].token, nil
	}
	if opts.TopK > 0 && opts.TopK < len(all) {
		all = all[:opts.TopK]
	}
	total := 0.0
	for i := range all {
		all[i].weight = math.Exp((all[i].logit - all[0].logit) / opts.Temperature)
		total += all[i].weight
	}
	if opts.TopP > 0 && opts.TopP < 1 {
		kept := 0.0
		for i, c := range all {
			if kept += c.weight; kept >= opts.TopP*total {
				all, total = all[:i+1], kept
				break
			}
		}
	}
	at := rng.Float64() * total
	for _, c := range all {
		if at -= c.weight; at < 0 {
			return c.token, nil
		}
	}
	return all[len(all)-1].token, nil // only rounding leads here
}
