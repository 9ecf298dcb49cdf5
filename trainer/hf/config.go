package hf

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/capacloud/capanode/trainer/model"
)

const (
	llamaArchitecture = "LlamaForCausalLM"
	llamaType         = "llama"
	silu              = "silu"
)

// configJSON is config.json. The fields below the comment are read to refuse what they could ask for, never written.
type configJSON struct {
	Architectures []string `json:"architectures"`
	AttentionBias bool     `json:"attention_bias"`
	Dropout       real     `json:"attention_dropout"`
	Bos           *int32   `json:"bos_token_id"`
	Eos           any      `json:"eos_token_id"` // a number, or elsewhere a list
	HeadDim       int      `json:"head_dim"`
	HiddenAct     string   `json:"hidden_act"`
	Width         int      `json:"hidden_size"`
	InitRange     real     `json:"initializer_range"`
	FeedForward   int      `json:"intermediate_size"`
	Context       int      `json:"max_position_embeddings"`
	MLPBias       bool     `json:"mlp_bias"`
	ModelType     string   `json:"model_type"`
	Heads         int      `json:"num_attention_heads"`
	Layers        int      `json:"num_hidden_layers"`
	KVHeads       int      `json:"num_key_value_heads"`
	NormEps       real     `json:"rms_norm_eps"`
	RopeTheta     real     `json:"rope_theta"`
	Tie           bool     `json:"tie_word_embeddings"`
	Type          string   `json:"torch_dtype"`
	UseCache      bool     `json:"use_cache"`
	Vocab         int      `json:"vocab_size"`

	// Spellings of newer versions, and rotary variants.
	NewType        string          `json:"dtype,omitempty"`
	RopeScaling    any             `json:"rope_scaling,omitempty"`
	RopeParameters *ropeParameters `json:"rope_parameters,omitempty"`
}

// real is a number that is always written with a point or an exponent: Python's readers tell 10000 from 10000.0.
type real float64

// MarshalJSON implements [json.Marshaler].
func (r real) MarshalJSON() ([]byte, error) {
	text := strconv.FormatFloat(float64(r), 'g', -1, 64)
	if !strings.ContainsAny(text, ".e") {
		text += ".0"
	}
	return []byte(text), nil
}

type ropeParameters struct {
	Theta real   `json:"rope_theta"`
	Type  string `json:"rope_type"`
}

type generationJSON struct {
	FromModel bool   `json:"_from_model_config"`
	Bos       *int32 `json:"bos_token_id"`
	Eos       any    `json:"eos_token_id"`
}

// dtype returns the type of the weights in either spelling, empty when the file does not say.
func (c configJSON) dtype() string { return cmp.Or(c.NewType, c.Type) }

// newConfig describes a valid spec with weights of a type; end is the end-of-text token or nil where the model has no tokenizer.
func newConfig(s model.Spec, as Type, end *int32) configJSON {
	c := configJSON{
		Architectures: []string{llamaArchitecture},
		Bos:           end,
		HeadDim:       s.Width / s.Heads,
		HiddenAct:     silu,
		Width:         s.Width,
		InitRange:     0.02,
		FeedForward:   s.FeedForward,
		Context:       s.Context,
		ModelType:     llamaType,
		Heads:         s.Heads,
		Layers:        s.Layers,
		KVHeads:       s.KVHeads,
		NormEps:       real(s.NormEps),
		RopeTheta:     real(s.RopeTheta),
		Tie:           s.TieEmbeddings,
		Type:          as.String(),
		UseCache:      true,
		Vocab:         s.Vocab,
	}
	if end != nil {
		c.Eos = *end
	}
	return c
}

// spec turns a configuration into a model, refusing everything that would compute something else than ours.
func (c configJSON) spec() (model.Spec, error) {
	refuse := func(key string, value any) (model.Spec, error) {
		return model.Spec{}, fmt.Errorf("hf: config.json: %s is %.80q: %w", key, fmt.Sprint(value), ErrUnsupported)
	}
	theta := c.RopeTheta
	if p := c.RopeParameters; p != nil {
		if p.Type != "" && p.Type != "default" {
			return refuse("rope_parameters.rope_type", p.Type)
		}
		theta = p.Theta
	}
	if theta == 0 {
		theta = 10000 // what transformers takes when the key is absent
	}
	kv := c.KVHeads
	if kv == 0 {
		kv = c.Heads
	}
	switch {
	case c.ModelType != llamaType:
		return refuse("model_type", c.ModelType)
	case len(c.Architectures) > 0 && !slices.Contains(c.Architectures, llamaArchitecture):
		return refuse("architectures", c.Architectures)
	case c.HiddenAct != silu:
		return refuse("hidden_act", c.HiddenAct)
	case c.AttentionBias || c.MLPBias:
		return refuse("attention_bias or mlp_bias", true)
	case c.RopeScaling != nil:
		return refuse("rope_scaling", c.RopeScaling)
	case c.Type != "" && c.NewType != "" && c.Type != c.NewType:
		return refuse("torch_dtype", c.Type)
	}
	if name := c.dtype(); name != "" {
		if _, err := ParseType(name); err != nil {
			return refuse("torch_dtype", name)
		}
	}
	s := model.Spec{
		Family: model.FamilyLlama, Vocab: c.Vocab, Width: c.Width, Layers: c.Layers, Heads: c.Heads, KVHeads: kv,
		FeedForward: c.FeedForward, Context: c.Context, RopeTheta: float64(theta), NormEps: float64(c.NormEps), TieEmbeddings: c.Tie,
	}
	if err := s.Validate(); err != nil {
		return model.Spec{}, fmt.Errorf("hf: config.json: %w: %w", ErrFormat, err)
	}
	if c.HeadDim != 0 && c.HeadDim != s.Width/s.Heads {
		return refuse("head_dim", c.HeadDim)
	}
	return s, nil
}
