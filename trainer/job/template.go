package job

import "fmt"

// Template returns a commented job file. paths is the corpus to start from.
func Template(name, paths string) string {
	return fmt.Sprintf(`# A Capanode job. Three lines are enough: version, task and data; the rest shows the defaults or a choice.
# capanode config schema lists every key.
version: 1
name: %s
task: causal-lm            # predict the next token

data:
  paths: [%q]     # files, folders and globs: text, JSONL, CSV, Parquet, tar; .gz and .zst are read too
  # include: [.go, .md]    # keep only these file names in folders
  # text: content          # field or column of structured files, if it is not called text
  # filters: [gopher, near_duplicates] # what documents must be like; capanode data inspect shows what they drop
  # max_bytes: 8000000     # stop reading here
  tokenizer: bytes         # 256 bytes and an end-of-text mark; or bpe:4096, or a tokenizer.json
  validation: 0.02         # share of the documents held out to measure the loss

model:
  preset: llama-1m         # llama-tiny 0.1 M, llama-1m 1 M, llama-10m 10.7 M, llama-110m 110 M parameters

# init: some-model          # start from a model: its CID, a run, or a Hugging Face folder; then leave the model section out
# lora: {rank: 8}           # leave that model as it is and train adapters beside it, far fewer parameters
# freeze: ["*embed*"]       # or leave some of its parameters as they are

train:
  rounds: 30               # or tokens: 2_000_000 (all peers together)
  batch: 8                 # sequences in one step of one peer
  context: 128             # tokens in one sequence
  learning_rate: 0.001     # peak of the inner AdamW, after warmup, before the cosine
  warmup: 20               # steps
  seed: 1

rounds:
  pace: auto               # steps, codec and outer step of each round follow from bits, the links and the progress; or fixed
  bits: 1                  # per parameter and step that a peer downloads
  gradients: auto          # one step on everybody's gradients where bits and links allow it; never: only rounds of local steps
  local_steps: 20          # with the auto pace the unit of train.rounds; else the steps that peers train alone

market:
  peers: 3                 # slots to lease
  # query: vram>=24 price<0.4
  # max_price: 0.5         # credits per slot-hour
  # budget: 10             # credits for the whole run

checkpoint:
  every: 10                # rounds

# What to expect of these settings on source code, with three peers on two CPU cores: a loss of about 5.5 nats per byte
# at the start, below 3.5 after ten rounds and around 2.5 after thirty, in a few minutes.
`, name, paths)
}
