// Package model owns the model families: what a job may ask for, checked before anything is built, and each family as a
// program over the operations of package engine. It refuses to know how a program is executed, trained or stored.
package model

import (
	"errors"
	"fmt"
	"math"
)

// The families.
const (
	// FamilyLlama is the Llama shape: RMS norm before each block, rotate-half rotary embedding, grouped-query attention,
	// SwiGLU feed-forward, no biases. Every common inference program loads it.
	FamilyLlama = "llama"
	// FamilyGPT2 is the shape of GPT-2 (Radford et al., 2019): learned positions, layer norm before each block, the tanh
	// form of GELU, biases everywhere but in the output layer.
	FamilyGPT2 = "gpt2"
	// FamilyBERT is the shape of BERT (Devlin et al., 2018) with its head for masked tokens: attention in both directions,
	// learned positions and token types, layer norm after each block, GELU, biases.
	FamilyBERT = "bert"
)

// The tasks, what a model is trained to do.
const (
	TaskCausal = "causal-lm" // predict the next token
	TaskMasked = "masked-lm" // predict tokens that are masked
)

// Spec describes one model. It is data from a stranger's job: call Validate before use.
type Spec struct {
	Family        string  `cbor:"family" yaml:"family"`
	Vocab         int     `cbor:"vocab" yaml:"vocab"`               // tokens
	Width         int     `cbor:"width" yaml:"width"`               // of the residual stream
	Layers        int     `cbor:"layers" yaml:"layers"`             //
	Heads         int     `cbor:"heads" yaml:"heads"`               // query heads; Width/Heads is the head width
	KVHeads       int     `cbor:"kv_heads" yaml:"kv_heads"`         // key and value heads, a divisor of Heads; only a Llama has fewer
	FeedForward   int     `cbor:"feed_forward" yaml:"feed_forward"` // width inside the feed-forward block
	Context       int     `cbor:"context" yaml:"context"`           // longest sequence in tokens
	RopeTheta     float64 `cbor:"rope_theta" yaml:"rope_theta"`     // base of the rotary angles; 0 where positions are learned
	NormEps       float64 `cbor:"norm_eps" yaml:"norm_eps"`         // of the norms
	TieEmbeddings bool    `cbor:"tie_embeddings" yaml:"tie_embeddings"`
	TokenTypes    int     `cbor:"token_types,omitempty" yaml:"token_types"` // of a BERT, which has at least 1; 0 elsewhere
}

// Limits of a Spec. They only keep arithmetic and naming sane; what a machine can hold is for the engine to refuse.
const (
	MaxVocab       = 1 << 20
	MaxWidth       = 1 << 16
	MaxLayers      = 512
	MaxHeads       = 1024
	MaxFeedForward = 1 << 18
	MaxContext     = 1 << 20
	MaxTokenTypes  = 1 << 10
	MaxParameters  = 1 << 38
)

// ErrSpec is what every error of Validate wraps.
var ErrSpec = errors.New("invalid model")

// FieldError says which field of a Spec is wrong and what is allowed. It wraps [ErrSpec].
type FieldError struct {
	Field   string // as in YAML
	Value   string
	Allowed string
}

func (e *FieldError) Error() string {
	return fmt.Sprintf("model field %s is %s, allowed: %s", e.Field, e.Value, e.Allowed)
}

// Unwrap returns [ErrSpec].
func (e *FieldError) Unwrap() error { return ErrSpec }

// Validate returns a [*FieldError] for the first field outside its range.
func (s Spec) Validate() error {
	if s.Family != FamilyLlama && s.Family != FamilyGPT2 && s.Family != FamilyBERT {
		return &FieldError{"family", fmt.Sprintf("%.40q", s.Family), FamilyLlama + ", " + FamilyGPT2 + " or " + FamilyBERT}
	}
	ints := []struct {
		field            string
		value, low, high int
	}{
		{"vocab", s.Vocab, 2, MaxVocab},
		{"width", s.Width, 2, MaxWidth},
		{"layers", s.Layers, 1, MaxLayers},
		{"heads", s.Heads, 1, MaxHeads},
		{"kv_heads", s.KVHeads, 1, MaxHeads},
		{"feed_forward", s.FeedForward, 1, MaxFeedForward},
		{"context", s.Context, 1, MaxContext},
	}
	for _, f := range ints {
		if f.value < f.low || f.value > f.high {
			return &FieldError{f.field, fmt.Sprint(f.value), fmt.Sprintf("%d to %d", f.low, f.high)}
		}
	}
	if err := s.validateFamily(); err != nil {
		return err
	}
	if !(s.NormEps >= 1e-12 && s.NormEps <= 0.1) {
		return &FieldError{"norm_eps", fmt.Sprint(s.NormEps), "1e-12 to 0.1"}
	}
	if n := s.parameters(); n > MaxParameters {
		return &FieldError{"layers", fmt.Sprint(s.Layers), fmt.Sprintf("a model of at most %d parameters, this has %d",
			int64(MaxParameters), n)}
	}
	return nil
}

// validateFamily checks what differs between the families.
func (s Spec) validateFamily() error {
	if s.Family == FamilyLlama {
		switch {
		case s.Width%s.Heads != 0 || s.Width/s.Heads%2 != 0:
			return &FieldError{"heads", fmt.Sprint(s.Heads), fmt.Sprintf("a divisor of width %d with an even quotient", s.Width)}
		case s.Heads%s.KVHeads != 0:
			return &FieldError{"kv_heads", fmt.Sprint(s.KVHeads), fmt.Sprintf("a divisor of heads %d", s.Heads)}
		case !(s.RopeTheta >= 1 && s.RopeTheta <= 1e12):
			return &FieldError{"rope_theta", fmt.Sprint(s.RopeTheta), "1 to 1e12"}
		case s.TokenTypes != 0:
			return &FieldError{"token_types", fmt.Sprint(s.TokenTypes), "0, only a bert has them"}
		}
		return nil
	}
	switch {
	case s.Width%s.Heads != 0:
		return &FieldError{"heads", fmt.Sprint(s.Heads), fmt.Sprintf("a divisor of width %d", s.Width)}
	case s.KVHeads != s.Heads:
		return &FieldError{"kv_heads", fmt.Sprint(s.KVHeads), fmt.Sprintf("%d, as many as heads: only a llama has fewer", s.Heads)}
	case s.RopeTheta != 0:
		return &FieldError{"rope_theta", fmt.Sprint(s.RopeTheta), "0, the positions are learned"}
	case s.Family == FamilyGPT2 && s.TokenTypes != 0:
		return &FieldError{"token_types", fmt.Sprint(s.TokenTypes), "0, only a bert has them"}
	case s.Family == FamilyBERT && (s.TokenTypes < 1 || s.TokenTypes > MaxTokenTypes):
		return &FieldError{"token_types", fmt.Sprint(s.TokenTypes), fmt.Sprintf("1 to %d", MaxTokenTypes)}
	}
	return nil
}

// Parameters returns the number of trainable elements of a valid Spec.
func (s Spec) Parameters() (int64, error) {
	if err := s.Validate(); err != nil {
		return 0, err
	}
	return s.parameters(), nil
}

// parameters cannot overflow within the limits: 512·(3·2^16·2^18 + 4·2^32) + 2^38 < 2^46.
func (s Spec) parameters() int64 {
	w, kv, ff, vocab := int64(s.Width), int64(s.keyWidth()), int64(s.FeedForward), int64(s.Vocab)
	var layer, rest int64
	switch s.Family {
	case FamilyLlama:
		layer = 2*w*w + 2*w*kv + 3*w*ff + 2*w
		rest = vocab*w + w
	case FamilyGPT2:
		layer = 4*w*(w+1) + 2*w*ff + ff + w + 4*w
		rest = (vocab+int64(s.Context))*w + 2*w
	case FamilyBERT:
		layer = 4*w*(w+1) + 2*w*ff + ff + w + 4*w
		rest = (vocab+int64(s.Context)+int64(s.TokenTypes))*w + 2*w
		rest += w*(w+1) + 2*w + vocab // the head's transform, its norm, and a bias for each token
	}
	if !s.TieEmbeddings {
		rest += vocab * w
	}
	return int64(s.Layers)*layer + rest
}

// Task is what models of the family are trained to do.
func (s Spec) Task() string {
	if s.Family == FamilyBERT {
		return TaskMasked
	}
	return TaskCausal
}

func (s Spec) headWidth() int { return s.Width / s.Heads }
func (s Spec) keyWidth() int  { return s.headWidth() * s.KVHeads }

// initStd is the deviation of fresh weights; residual projections are divided by √(2·layers), so that the residual
// stream's variance does not grow with depth (GPT-2).
const initStd = 0.02

func (s Spec) residualStd() float64 { return initStd / math.Sqrt(float64(2*s.Layers)) }
