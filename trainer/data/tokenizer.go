package data

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/capacloud/capanode/p2p/wire"
	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/dataset"
	"github.com/capacloud/capanode/trainer/tokenizer"
)

// storeTokenizer puts the tokenizer's file beside the shards and returns what the manifest says of it, so that whoever has
// the dataset has its tokenizer.
func storeTokenizer(ctx context.Context, t tokenizer.Tokenizer, store Store) (dataset.Tokenizer, error) {
	made := dataset.Tokenizer{Kind: t.Name(), Vocab: uint64(t.Vocab())}
	b, ok := t.(*tokenizer.BPE)
	if !ok {
		return made, nil
	}
	file, want := b.File()
	c, err := store.PutBytes(ctx, file, storage.PutOptions{})
	if err == nil && c != want {
		err = fmt.Errorf("the store names it %s, its name says %s: %w", c, want, dataset.ErrInvalid)
	}
	if err != nil {
		return made, fmt.Errorf("data: store tokenizer: %w", err)
	}
	made.Link = wire.Link{Cid: c}
	return made, nil
}

// cutOf returns where a tokenizer allows a document to be cut, for [corpus.Options]: nil where every place is as good.
func cutOf(t tokenizer.Tokenizer) func([]byte) int {
	if _, ok := t.(tokenizer.Byte); ok {
		return nil
	}
	return func(text []byte) int { return tokenizer.Cut(t, text) }
}

// Texts reads the text of a corpus that [Build] would train on with the same options: without what it drops, without duplicates
// and without what it holds out, in the order of the dataset. A tokenizer is trained on it. The texts come in sections, each valid until
// the next; tokens that came ready have no text. Like Build it reads the corpus once, and what does not fit [Options.Memory] waits in
// temporary files.
//
// Documents are cut, and therefore hashed and held out, as Build cuts them with Options.Tokenizer; without one as it does with
// whatever [tokenizer.Train] makes of the texts. Errors: those of Build but [*TooSmallError], [ErrVocabulary] and the store's.
func Texts(ctx context.Context, o Options) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		more := true
		err := o.texts(ctx, func(text []byte) bool {
			more = yield(text, nil)
			return more
		})
		if err != nil && more {
			yield(nil, err)
		}
	}
}

// errStop ends a reading that nobody listens to any more.
var errStop = errors.New("stopped")

func (o Options) texts(ctx context.Context, yield func([]byte) bool) (err error) {
	o = o.withDefaults()
	if o.Tokenizer != nil {
		o.Corpus.Cut = cutOf(o.Tokenizer)
	} else {
		o.Tokenizer, o.Corpus.Cut = tokenizer.Byte{}, tokenizer.TrainedCut
	}
	if err := o.check(); err != nil {
		return err
	}
	report := Report{}
	s, rule, err := o.sort(ctx, wants{texts: true}, &report)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	parts, texts := 0, 0
	_, err = s.each(true, func(p *part) error {
		parts++
		if err := ctx.Err(); err != nil || rule.held(p.key) || len(p.tokens) == 0 {
			return err
		}
		if texts++; !yield(p.tokens) {
			return errStop
		}
		return nil
	})
	switch {
	case err != nil:
		return err
	case parts == 0:
		return report.empty()
	case texts == 0:
		return fmt.Errorf("data: %w: it came as tokens: name the tokenizer that made them", ErrEmpty)
	}
	return nil
}
