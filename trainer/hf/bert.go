package hf

import (
	"strings"

	"github.com/capacloud/capanode/trainer/model"
)

// What config.json calls a BERT.
const (
	bertType         = "bert"
	bertArchitecture = "BertForMaskedLM"
)

var bertFormat = format{
	family: model.FamilyBERT, modelType: bertType, architecture: bertArchitecture, label: "BERT", auto: "AutoModelForMaskedLM", pipeline: "fill-mask",
	fixed: map[string][]string{"hidden_act": {`"gelu"`}, "position_embedding_type": {`"absolute"`}},
	read: strings.Fields(`attention_probs_dropout_prob hidden_dropout_prob hidden_size intermediate_size layer_norm_eps max_position_embeddings
		num_attention_heads num_hidden_layers type_vocab_size
		pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type`),
	parse: parseBERT, write: newBERTConfig,
	rename: func(tensor string) string { // the spelling of the published checkpoints
		for old, now := range map[string]string{"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"} {
			if before, ok := strings.CutSuffix(tensor, old); ok {
				return before + now
			}
		}
		return tensor
	},
	unused: func(s model.Spec, tensor string) bool {
		if strings.HasPrefix(tensor, "bert.pooler.") || strings.HasPrefix(tensor, "cls.seq_relationship.") || tensor == "bert.embeddings.position_ids" {
			return true // of the other heads that BERT was published with
		}
		if s.TieEmbeddings {
			return tensor == bertDecoder+"weight" || tensor == bertDecoder+"bias"
		}
		return tensor == bertBias
	},
}

// The output layer adds decoder.bias. With tied embeddings transformers takes the other one for it, and files have that one alone;
// without, both are in the files and the other is not read.
const (
	bertBias    = "cls.predictions.bias"
	bertDecoder = "cls.predictions.decoder."
)

// bertJSON is config.json of a BERT.
type bertJSON struct {
	Architectures []string `json:"architectures"`
	AttnDropout   real     `json:"attention_probs_dropout_prob"`
	Bos           *int32   `json:"bos_token_id"`
	Eos           any      `json:"eos_token_id"`
	HiddenAct     string   `json:"hidden_act"`
	Dropout       real     `json:"hidden_dropout_prob"`
	Width         int      `json:"hidden_size"`
	InitRange     real     `json:"initializer_range"`
	FeedForward   int      `json:"intermediate_size"`
	NormEps       real     `json:"layer_norm_eps"`
	Context       int      `json:"max_position_embeddings"`
	ModelType     string   `json:"model_type"`
	Heads         int      `json:"num_attention_heads"`
	Layers        int      `json:"num_hidden_layers"`
	Pad           *int32   `json:"pad_token_id"`
	Tie           *bool    `json:"tie_word_embeddings"`
	Type          string   `json:"torch_dtype"`
	TokenTypes    int      `json:"type_vocab_size"`
	Vocab         int      `json:"vocab_size"`
}

func newBERTConfig(s model.Spec, as Type, end *int32) any {
	return bertJSON{
		Architectures: []string{bertArchitecture}, Bos: end, Eos: orNil(end), HiddenAct: "gelu", Width: s.Width, InitRange: 0.02,
		FeedForward: s.FeedForward, NormEps: real(s.NormEps), Context: s.Context, ModelType: bertType, Heads: s.Heads, Layers: s.Layers,
		Tie: &s.TieEmbeddings, Type: as.String(), TokenTypes: s.TokenTypes, Vocab: s.Vocab,
	}
}

func parseBERT(raw []byte) (model.Spec, error) {
	c := bertJSON{NormEps: 1e-12, Width: 768, Heads: 12, Layers: 12, FeedForward: 3072, Context: 512, Vocab: 30522, TokenTypes: 2} // transformers' own
	if err := decode(raw, &c); err != nil {
		return model.Spec{}, err
	}
	return model.Spec{
		Family: model.FamilyBERT, Vocab: c.Vocab, Width: c.Width, Layers: c.Layers, Heads: c.Heads, KVHeads: c.Heads, FeedForward: c.FeedForward,
		Context: c.Context, NormEps: float64(c.NormEps), TieEmbeddings: orTrue(c.Tie), TokenTypes: c.TokenTypes,
	}, nil
}
