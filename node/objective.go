package node

import (
	"context"
	"fmt"

	"github.com/capacloud/capanode/trainer/data"
	"github.com/capacloud/capanode/trainer/engine/gomlx"
	"github.com/capacloud/capanode/trainer/hf"
	"github.com/capacloud/capanode/trainer/job"
	"github.com/capacloud/capanode/trainer/model"
	"github.com/capacloud/capanode/trainer/tokenizer"
)

// masking says how a run's windows become gaps to fill; nil when its task is to continue texts.
func masking(ctx context.Context, b blobs, rec job.Record) (*data.Masking, error) {
	if rec.Task != model.TaskMasked {
		return nil, nil
	}
	tok, err := openTokenizer(ctx, b, rec.Tokenizer)
	if err != nil {
		return nil, err
	}
	mask, vocab := tokenizer.Masked(tok)
	if vocab != rec.Model.Vocab && !(rec.Init != nil && vocab < rec.Model.Vocab) {
		return nil, fmt.Errorf("%w: the model has %d tokens, tokenizer %s has %d with the mask: they must be the same", ErrJob, rec.Model.Vocab, rec.Tokenizer, vocab)
	}
	return &data.Masking{Seed: rec.Seed, Mask: mask, End: tok.EndOfText(), Vocab: tok.Vocab()}, nil
}

// modelVocab is how many tokens the model of a job has whose tokenizer has that many; tok is nil while it is to be trained.
func modelVocab(task string, tok tokenizer.Tokenizer, vocab int) int {
	if task != model.TaskMasked {
		return vocab
	}
	if tok == nil {
		return vocab + 1
	}
	_, vocab = tokenizer.Masked(tok)
	return vocab
}

// continues refuses a model that does not predict what follows a text; what is how a person named it.
func continues(m hf.Model, what string) error {
	if task := m.Spec.Task(); task != model.TaskCausal {
		return fmt.Errorf("%w: model %s is a %s, which is trained with %s: it fills gaps and cannot continue a text; choose a llama or gpt2", ErrUsage,
			what, m.Spec.Family, task)
	}
	return nil
}

// precisely returns the device as a job wants it to compute.
func precisely(rec job.Record, d gomlx.Device) (gomlx.Device, error) {
	switch {
	case rec.Precision == "":
	case d.Plugin != "":
		d.Precision = gomlx.Precision(rec.Precision)
	case rec.Precision == job.PrecisionBF16:
		return d, fmt.Errorf("%w: train.precision is bf16, processors compute in fp32: train on cards, or write auto or fp32", ErrJob)
	}
	return d, nil
}
