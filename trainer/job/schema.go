package job

import (
	"fmt"

	"github.com/capacloud/capanode/trainer/data/corpus"
)

// Field documents one key of the job file.
type Field struct {
	Key     string `json:"key"`
	Type    string `json:"type"` // string, integer, number, boolean or list
	Default any    `json:"default,omitempty"`
	Unit    string `json:"unit,omitempty"`
	Doc     string `json:"description"`
}

// Schema lists every key of the job file with its type, default and meaning. It is the one source of the checks, of
// `config schema` and of the documentation.
func Schema() []Field {
	d := Defaults()
	return []Field{
		{"version", "integer", d.Version, "", "version of the job file format"},
		{"name", "string", d.Name, "", "a name for people; letters, digits, dash, dot and underscore"},
		{"task", "string", d.Task, "", "what is learnt: causal-lm"},
		{"model.preset", "string", "llama-1m", "", "a named model size; `capanode init job` lists them"},
		{"model.family", "string", nil, "", "llama; give the sizes below instead of a preset"},
		{"model.width", "integer", nil, "", "hidden size"},
		{"model.layers", "integer", nil, "", "transformer blocks"},
		{"model.heads", "integer", nil, "", "attention heads"},
		{"model.kv_heads", "integer", nil, "", "key and value heads (grouped-query attention)"},
		{"model.feed_forward", "integer", nil, "", "width of the SwiGLU layer"},
		{"model.rope_theta", "number", nil, "", "base of the rotary embedding"},
		{"model.norm_eps", "number", nil, "", "epsilon of RMSNorm"},
		{"model.tie_embeddings", "boolean", nil, "", "output head shares the embedding"},
		{"init", "string", nil, "", "the model to start from: the CID or the run of a model, or a Hugging Face folder, relative to the job file; empty starts from random weights"},
		{"lora.rank", "integer", 0, "", "train adapters of this rank beside the model of init, which stays as it is; 0 trains the model itself"},
		{"lora.alpha", "number", 0, "", "the adapters count alpha/rank; 0 is twice the rank"},
		{"lora.targets", "list", nil, "", "modules that get an adapter, such as q_proj; empty is all-linear: every matrix but the embeddings and the output layer"},
		{"freeze", "list", nil, "", "names of parameters that stay as they are, * stands for any letters: model.embed_tokens.*"},
		{"data.paths", "list", nil, "", "files, folders and globs of text"},
		{"data.cid", "string", nil, "", "a dataset made before, instead of paths"},
		{"data.include", "list", nil, "", "file name suffixes to keep in folders, such as .go"},
		{"data.exclude", "list", nil, "", "file name suffixes to leave out"},
		{"data.format", "string", d.Data.Format, "", "form of every file: " + corpus.FormatNames()},
		{"data.text", "string", d.Data.Text, "", "field of JSON (dots descend) or column of CSV and Parquet that holds the text"},
		{"data.max_bytes", "integer", 0, "bytes", "read at most so much text; 0 is no cap"},
		{"data.max_documents", "integer", 0, "documents", "read at most so many documents; 0 is no cap"},
		{"data.sample", "number", 0, "", "share of the documents to keep; 0 keeps all"},
		{"data.filters", "list", nil, "", "what documents must be like, see docs/data.md: gopher, c4, near_duplicates, language=en+de, min_words=20 and others"},
		{"data.shard_tokens", "integer", 0, "tokens", "size of one shard; 0 chooses by corpus size"},
		{"data.tokenizer", "string", d.Data.Tokenizer, "", "bytes; bpe:SIZE, trained on the corpus; the path of a tokenizer.json, relative to the job file, or its CID"},
		{"data.validation", "number", d.Data.Validation, "", "share of documents held out"},
		{"train.rounds", "integer", 30, "rounds", "length of the run"},
		{"train.tokens", "integer", 0, "tokens", "length of the run, all peers together; instead of rounds"},
		{"train.batch", "integer", d.Train.Batch, "sequences", "sequences in one step of one peer"},
		{"train.micro_batch", "integer", 0, "sequences", "sequences computed at once; 0 is the whole batch"},
		{"train.context", "integer", d.Train.Context, "tokens", "tokens in one sequence"},
		{"train.learning_rate", "number", d.Train.LearningRate, "", "peak rate of the inner AdamW"},
		{"train.min_learning_rate", "number", d.Train.MinRate, "", "rate at the end of the cosine"},
		{"train.warmup", "integer", d.Train.Warmup, "steps", "linear warm-up"},
		{"train.weight_decay", "number", d.Train.WeightDecay, "", "decoupled weight decay of matrices"},
		{"train.clip", "number", d.Train.Clip, "", "global gradient norm limit; 0 is none"},
		{"train.seed", "integer", d.Train.Seed, "", "seed of the weights and of the order of the data"},
		{"rounds.pace", "string", d.Rounds.Pace, "", "auto: local steps, codec and outer step of each round follow from rounds.bits, the links and the progress; fixed: they are the numbers below"},
		{"rounds.bits", "number", d.Rounds.Bits, "bits", "budget of the auto pace: what a peer downloads for each parameter and optimiser step; 0 is no limit"},
		{"rounds.local_steps", "integer", d.Rounds.LocalSteps, "steps", "optimiser steps between two averagings; with the auto pace it only says how long a run of so many rounds is"},
		{"rounds.codec", "string", d.Rounds.Codec, "", "how updates travel: auto, fp32, int8, int4, or top1 to top2048, which sends so many of every 4,096 numbers"},
		{"rounds.group", "integer", d.Rounds.Group, "peers", "most peers that average with each other in one round; 0 is all of up to 16, and groups of 8 where there are more"},
		{"rounds.fragments", "integer", d.Rounds.Fragments, "", "parts in which the weights travel, one each round"},
		{"rounds.overlap", "string", d.Rounds.Overlap, "", "whether the next round's steps run beside the exchange: auto, never or always"},
		{"rounds.gradients", "string", d.Rounds.Gradients, "", "auto: with the auto pace, where rounds.bits pays for an exchange in every step and the links carry it in the time of a step, a round is one step by the sign of everybody's gradients; never: all rounds are of local steps"},
		{"rounds.outer_learning_rate", "number", d.Rounds.OuterRate, "", "η of the outer Nesterov step, with a fixed pace"},
		{"rounds.outer_momentum", "number", d.Rounds.Momentum, "", "μ of the outer Nesterov step, with a fixed pace"},
		{"market.peers", "integer", d.Market.Peers, "", "slots to lease"},
		{"market.query", "string", "", "", "filter over the offers, see docs/query.md"},
		{"market.max_price", "number", 0, "credits/slot-hour", "dearest offer to take; 0 is no ceiling"},
		{"market.budget", "number", 0, "credits", "cap on what the run may spend; 0 is no cap"},
		{"checkpoint.every", "integer", d.Checkpoint.Every, "rounds", "publish a checkpoint so often, in rounds of rounds.local_steps steps"},
		{"checkpoint.keep", "integer", d.Checkpoint.Keep, "", "checkpoints kept, the newest first"},
		{"eval.every", "integer", d.Eval.Every, "rounds", "measure the held-out loss so often; 0 is at the end only"},
		{"eval.windows", "integer", d.Eval.Windows, "sequences", "held-out sequences per measurement"},
	}
}

// JSONSchema returns the schema of the job file as a JSON Schema document (draft 2020-12).
func JSONSchema() map[string]any {
	root := map[string]any{}
	for _, f := range Schema() {
		typ := map[string]any{"type": f.Type, "description": f.Doc}
		if f.Type == "list" {
			typ["type"], typ["items"] = "array", map[string]any{"type": "string"}
		}
		if f.Default != nil {
			typ["default"] = f.Default
		}
		if f.Unit != "" {
			typ["description"] = fmt.Sprintf("%s (%s)", f.Doc, f.Unit)
		}
		place(root, f.Key, typ)
	}
	return map[string]any{
		"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Capanode job file, version 1",
		"type": "object", "additionalProperties": false, "required": []string{"data"}, "properties": root,
	}
}

// place puts the type of a dotted key into nested object schemas.
func place(root map[string]any, key string, typ map[string]any) {
	for i := range key {
		if key[i] != '.' {
			continue
		}
		section, _ := root[key[:i]].(map[string]any)
		if section == nil {
			section = map[string]any{"type": "object", "additionalProperties": false, "properties": map[string]any{}}
			root[key[:i]] = section
		}
		section["properties"].(map[string]any)[key[i+1:]] = typ
		return
	}
	root[key] = typ
}
