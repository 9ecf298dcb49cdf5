package hf

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/capacloud/capanode/trainer/model"
)

// format is how one family is written in a folder, and what of its configuration this program computes.
type format struct {
	family       string
	modelType    string // in config.json
	architecture string
	label        string // for people
	auto         string // class of transformers that loads it
	pipeline     string // what the Hugging Face hub calls its use

	// Keys of config.json that change what is computed, with the values, as compact JSON, for which this program computes the same.
	// Where a key is absent transformers takes the first of them.
	fixed map[string][]string
	read  []string // keys that say the model's sizes
	parse func(raw []byte) (model.Spec, error)
	write func(s model.Spec, as Type, end *int32) any

	rename func(tensor string) string             // to the spelling of newer versions
	unused func(s model.Spec, tensor string) bool // tensors of other versions that the model does not read
}

var formats = []format{llamaFormat, gpt2Format, bertFormat}

// formatOf returns the format of a valid spec's family.
func formatOf(s model.Spec) (format, error) {
	for _, f := range formats {
		if f.family == s.Family {
			return f, nil
		}
	}
	return format{}, fmt.Errorf("hf: family %.40q has no folder format: %w", s.Family, ErrUnsupported)
}

// common are keys of every family, as in format.fixed.
var common = map[string][]string{
	"quantization_config": {"null"}, "is_encoder_decoder": {"false"}, "add_cross_attention": {"false"}, "cross_attention_hidden_size": {"null"},
	"tie_encoder_decoder": {"false"}, "pruned_heads": {"{}", "null"}, "use_bfloat16": {"false"}, "sliding_window": {"null"}, "is_decoder": {"false"},
}

// harmless are keys that change nothing in what a model computes once it is trained.
var harmless = strings.Fields(`_name_or_path _commit_hash architectures attn_implementation bos_token_id chunk_size_feed_forward classifier_dropout
	cls_token_id directionality dtype eos_token_id finetuning_task gradient_checkpointing id2label initializer_range label2id mask_token_id model_type
	num_labels output_attentions output_hidden_states output_past pad_token_id problem_type return_dict sep_token_id task_specific_params
	tokenizer_class torch_dtype torchscript transformers_version unk_token_id use_cache vocab_size tie_word_embeddings`)

// header is what all families spell alike.
type header struct {
	Architectures []string `json:"architectures"`
	ModelType     string   `json:"model_type"`
	Type          string   `json:"torch_dtype"`
	NewType       string   `json:"dtype"` // in newer versions
}

// orTrue reads a switch that is on where nothing is said.
func orTrue(b *bool) bool { return b == nil || *b }

// decode reads JSON of which the keys have been checked.
func decode(raw []byte, v any) error {
	if err := json.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("hf: %s: %w: %w", configFile, ErrFormat, err)
	}
	return nil
}

func refuse(key string, value any) error {
	return fmt.Errorf("hf: %s: %.80q is %.80q, which this program does not compute: %w", configFile, key, fmt.Sprint(value), ErrUnsupported)
}

// none renames nothing.
func none(tensor string) string { return tensor }
