package hf

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/capacloud/capanode/trainer/model"
)

const silu = "silu"

// What config.json calls a Llama.
const (
	llamaType         = "llama"
	llamaArchitecture = "LlamaForCausalLM"
)

var llamaFormat = format{
	family: model.FamilyLlama, modelType: llamaType, architecture: llamaArchitecture, label: "Llama", auto: "AutoModelForCausalLM",
	pipeline: "text-generation",
	fixed: map[string][]string{
		"hidden_act": {`"` + silu + `"`}, "attention_bias": {"false"}, "mlp_bias": {"false"}, "rope_scaling": {"null"},
		"pretraining_tp": {"1"}, "rope_interleaved": {"false"}, "partial_rotary_factor": {"1.0", "1"},
	},
	read: strings.Fields(`attention_dropout head_dim hidden_size intermediate_size max_position_embeddings num_attention_heads num_hidden_layers
		num_key_value_heads rms_norm_eps rope_theta rope_parameters`),
	parse: parseLlama, write: newLlamaConfig, rename: none,
	unused: func(s model.Spec, tensor string) bool {
		return s.TieEmbeddings && tensor == "lm_head.weight" || strings.HasSuffix(tensor, ".rotary_emb.inv_freq")
	},
}

// llamaJSON is config.json of a Llama.
type llamaJSON struct {
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

	// The spelling of newer versions, never written.
	RopeParameters json.RawMessage `json:"rope_parameters,omitempty"`
}

type ropeParameters struct {
	Theta real   `json:"rope_theta"`
	Type  string `json:"rope_type"`
}

// newLlamaConfig describes a valid spec with weights of a type; end is the end-of-text token or nil where the model has no tokenizer.
func newLlamaConfig(s model.Spec, as Type, end *int32) any {
	return llamaJSON{
		Architectures: []string{llamaArchitecture}, Bos: end, Eos: orNil(end), HeadDim: s.Width / s.Heads, HiddenAct: silu, Width: s.Width,
		InitRange: 0.02, FeedForward: s.FeedForward, Context: s.Context, ModelType: llamaType, Heads: s.Heads, Layers: s.Layers,
		KVHeads: s.KVHeads, NormEps: real(s.NormEps), RopeTheta: real(s.RopeTheta), Tie: s.TieEmbeddings, Type: as.String(),
		UseCache: true, Vocab: s.Vocab,
	}
}

func parseLlama(raw []byte) (model.Spec, error) {
	c := llamaJSON{NormEps: 1e-6} // what transformers takes when the key is absent
	if err := decode(raw, &c); err != nil {
		return model.Spec{}, err
	}
	theta := c.RopeTheta
	if p := c.RopeParameters; len(p) > 0 && string(p) != "null" {
		rope := ropeParameters{Theta: theta}
		dec := json.NewDecoder(bytes.NewReader(p))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&rope); err != nil {
			return model.Spec{}, fmt.Errorf("%w: %w", refuse("rope_parameters", string(p)), err)
		}
		if rope.Type != "" && rope.Type != "default" {
			return model.Spec{}, refuse("rope_parameters.rope_type", rope.Type)
		}
		theta = rope.Theta
	}
	if theta == 0 {
		theta = 10000
	}
	kv := c.KVHeads
	if kv == 0 {
		kv = c.Heads
	}
	if c.HeadDim != 0 && c.Heads > 0 && c.HeadDim*c.Heads != c.Width {
		return model.Spec{}, refuse("head_dim", c.HeadDim)
	}
	return model.Spec{
		Family: model.FamilyLlama, Vocab: c.Vocab, Width: c.Width, Layers: c.Layers, Heads: c.Heads, KVHeads: kv,
		FeedForward: c.FeedForward, Context: c.Context, RopeTheta: float64(theta), NormEps: float64(c.NormEps), TieEmbeddings: c.Tie,
	}, nil
}
