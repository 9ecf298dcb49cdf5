package data

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
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

// Texts reads the text of a corpus that [Build] would train on with the same options: without what it drops and without
// what it holds out. A tokenizer is trained on it. Options.Tokenizer is not used. The texts come in sections, each valid until
// the next.
func Texts(ctx context.Context, o Options) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		o := o.withDefaults()
		o.Tokenizer = tokenizer.Byte{}
		if err := o.check(); err != nil {
			yield(nil, err)
			return
		}
		documents, err := scan(ctx, o, &Report{})
		if err == nil && len(documents) == 0 {
			err = fmt.Errorf("data: %w: check data.paths and data.include", ErrEmpty)
		}
		if err != nil {
			yield(nil, err)
			return
		}
		shuffle(documents)
		threshold := heldOut(documents, o.ValFraction)
		b := builder{Options: o, threshold: threshold}
		for _, d := range documents {
			more, err := b.texts(ctx, d, yield)
			if err != nil {
				yield(nil, fmt.Errorf("data: read %s again: %w", d.path, err))
				return
			}
			if !more {
				return
			}
		}
	}
}

// texts yields the sections of one document that are not held out, and reports whether to go on.
func (b *builder) texts(ctx context.Context, d document, yield func([]byte, error) bool) (more bool, err error) {
	text, err := open(d.path)
	if err != nil {
		return false, err
	}
	defer text.Close()
	whole := sha256.New()
	for _, s := range d.sections {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		part := b.text[:s.bytes]
		if _, err := io.ReadFull(text, part); err == io.EOF || err == io.ErrUnexpectedEOF {
			return false, ErrChanged
		} else if err != nil {
			return false, err
		}
		whole.Write(part)
		if s.key >= b.threshold && !yield(part, nil) {
			return false, nil
		}
	}
	if [sha256.Size]byte(whole.Sum(nil)) != d.sum {
		return false, ErrChanged
	}
	return true, nil
}
