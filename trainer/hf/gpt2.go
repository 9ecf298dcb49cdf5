package hf

import (
	"strings"

	"github.com/capacloud/capanode/trainer/model"
)

// What config.json calls a GPT-2.
const (
	gpt2Type         = "gpt2"
	gpt2Architecture = "GPT2LMHeadModel"
)

var gpt2Format = format{
	family: model.FamilyGPT2, modelType: gpt2Type, architecture: gpt2Architecture, label: "GPT-2", auto: "AutoModelForCausalLM", pipeline: "text-generation",
	fixed: map[string][]string{
		"activation_function": {`"gelu_new"`, `"gelu_pytorch_tanh"`}, // two names of one formula
		"scale_attn_weights":  {"true"}, "scale_attn_by_inverse_layer_idx": {"false"}, "reorder_and_upcast_attn": {"false"},
	},
	read: strings.Fields(`attn_pdrop embd_pdrop resid_pdrop layer_norm_epsilon n_ctx n_embd n_head n_inner n_layer n_positions
		summary_activation summary_first_dropout summary_proj_to_labels summary_type summary_use_proj`),
	parse: parseGPT2, write: newGPT2Config,
	rename: func(tensor string) string {
		if tensor == "lm_head.weight" || strings.HasPrefix(tensor, "transformer.") {
			return tensor
		}
		return "transformer." + tensor // as the authors published it
	},
	unused: func(s model.Spec, tensor string) bool {
		mask := strings.HasSuffix(tensor, ".attn.bias") || strings.HasSuffix(tensor, ".attn.masked_bias") // the causal mask of older versions
		return mask || s.TieEmbeddings && tensor == "lm_head.weight"
	},
}

// gpt2JSON is config.json of a GPT-2.
type gpt2JSON struct {
	Activation    string   `json:"activation_function"`
	Architectures []string `json:"architectures"`
	AttnDropout   real     `json:"attn_pdrop"`
	Bos           *int32   `json:"bos_token_id"`
	EmbedDropout  real     `json:"embd_pdrop"`
	Eos           any      `json:"eos_token_id"`
	InitRange     real     `json:"initializer_range"`
	NormEps       real     `json:"layer_norm_epsilon"`
	ModelType     string   `json:"model_type"`
	Width         int      `json:"n_embd"`
	Heads         int      `json:"n_head"`
	Inner         *int     `json:"n_inner"` // null is four times the width
	Layers        int      `json:"n_layer"`
	Context       int      `json:"n_positions"`
	Dropout       real     `json:"resid_pdrop"`
	Tie           *bool    `json:"tie_word_embeddings"`
	Type          string   `json:"torch_dtype"`
	UseCache      bool     `json:"use_cache"`
	Vocab         int      `json:"vocab_size"`
}

func newGPT2Config(s model.Spec, as Type, end *int32) any {
	return gpt2JSON{
		Activation: "gelu_new", Architectures: []string{gpt2Architecture}, Bos: end, Eos: orNil(end), InitRange: 0.02, NormEps: real(s.NormEps),
		ModelType: gpt2Type, Width: s.Width, Heads: s.Heads, Inner: &s.FeedForward, Layers: s.Layers, Context: s.Context,
		Tie: &s.TieEmbeddings, Type: as.String(), UseCache: true, Vocab: s.Vocab,
	}
}

func parseGPT2(raw []byte) (model.Spec, error) {
	c := gpt2JSON{NormEps: 1e-5, Width: 768, Heads: 12, Layers: 12, Context: 1024, Vocab: 50257} // what transformers takes for absent keys
	if err := decode(raw, &c); err != nil {
		return model.Spec{}, err
	}
	s := model.Spec{
		Family: model.FamilyGPT2, Vocab: c.Vocab, Width: c.Width, Layers: c.Layers, Heads: c.Heads, KVHeads: c.Heads, Context: c.Context,
		NormEps: float64(c.NormEps), TieEmbeddings: orTrue(c.Tie),
	}
	switch {
	case c.Inner != nil:
		s.FeedForward = *c.Inner
	case c.Width <= model.MaxWidth:
		s.FeedForward = 4 * c.Width
	}
	return s, nil
}
