package data

import (
	"context"
	"fmt"

	"github.com/capacloud/capanode/storage/dataset"
	"github.com/capacloud/capanode/trainer/data/corpus"
)

// Tokens reads a corpus as it lies there, with nothing dropped, shuffled or held out, and calls f for the tokens of each section of a
// document in reading order; last marks the end of a document. The tokens are valid during the call. The text is read and
// tokenised on all processors while f works; nothing is kept. The counts are valid with an error too.
//
// Errors: [ErrEmpty], [ErrVocabulary], those of [corpus.Read], and what f returns.
func Tokens(ctx context.Context, o Options, f func(ids []int32, last bool) error) (corpus.Counts, error) {
	o = o.withDefaults()
	if err := o.check(); err != nil {
		return corpus.Counts{}, err
	}
	o.Corpus.Cut = cutOf(o.Tokenizer)
	var ids []int32
	found := false
	counts, err := stream(ctx, o, wants{tokens: true}, func(w *worked) error {
		tokens := dataset.Tokens{Dtype: o.dtype(), Raw: w.tokens}
		if n := tokens.Len(); cap(ids) < n {
			ids = make([]int32, n)
		}
		ids = ids[:tokens.Len()]
		tokens.Copy(ids, 0)
		found = found || len(ids) > 0
		return f(ids, w.piece.Last)
	})
	if err == nil && !found {
		report := Report{Read: counts}
		err = report.empty()
	}
	if err != nil {
		return counts, fmt.Errorf("data: %w", err)
	}
	return counts, nil
}
