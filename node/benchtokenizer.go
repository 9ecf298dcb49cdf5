package node

import (
	"context"

	tokenizerbench "github.com/capacloud/capanode/trainer/tokenizer/bench"
)

// methodTokenizers says what [benchTokenizers] measures.
const methodTokenizers = "16 MiB of generated text, the same on every machine, train a byte-level BPE of 8,192 tokens and are encoded with it, each the best " +
	"of three; MB count text, seconds are of processor time, so that the rates are those of one core. over_plain are quotients of rates on 256 KiB, vocabulary 512, beside an " +
	"implementation as in a textbook; over_python are those on 4 MiB, vocabulary 8,192, beside the package tokenizers on one thread, where the python3 on the " +
	"path, or the one that CAPANODE_PYTHON names, has it."

func wantedTokenizers() []string {
	return []string{"tokenize_mb_per_second", "bpe_train_mb_per_second", "tokenize_over_plain", "bpe_train_over_plain", "tokenize_over_python", "bpe_train_over_python"}
}

func benchTokenizers(ctx context.Context, r *BenchReport) error {
	f, err := tokenizerbench.Run(ctx, tokenizerbench.Options{})
	if err != nil {
		return err
	}
	return r.take(f)
}
