package job

import (
	"errors"
	"strings"
	"testing"

	"github.com/capacloud/capanode/p2p/wire"
	"github.com/capacloud/capanode/trainer/model"
)

func base(t testing.TB) Base {
	t.Helper()
	spec, err := model.Preset("llama-tiny")
	if err != nil {
		t.Fatal(err)
	}
	spec.Vocab, spec.Context = 257, 96
	return Base{CID: byteDataset("model").CID, Spec: spec}
}

func tuned(t testing.TB, more string) (Record, error) {
	t.Helper()
	f, err := Parse("j.yaml", []byte(smallest+"init: some/folder\n"+more))
	if err != nil {
		return Record{}, err
	}
	if err := f.StartFrom(base(t)); err != nil {
		return Record{}, err
	}
	return f.Bind(owner(t), byteDataset("d"), 0)
}

// A run that starts from a model is a record of version 2 which comes back as it went, and which a reader of version 1 refuses.
func TestTunedRecord(t *testing.T) {
	for more, want := range map[string]struct {
		trained int64
		context uint64
	}{
		"":                                    {102784, 96},
		"model: {preset: llama-tiny}\n":       {102784, 96},
		"train: {context: 32}\n":              {102784, 32},
		"freeze: ['*embed*', '*layers.0*']\n": {102784 - 257*64 - 43136, 96},
		"lora: {rank: 2}\n":                   {2 * 2 * (64 + 64 + 64 + 32 + 64 + 32 + 64 + 64 + 3*(64+160)), 96},
		"lora: {rank: 3, alpha: 9, targets: [q_proj]}\n": {2 * 3 * 128, 96},
	} {
		r, err := tuned(t, more)
		if err != nil {
			t.Errorf("%s%v", more, err)
			continue
		}
		trained, all, err := r.Trained()
		adapters := int64(0)
		if r.Adapter != nil {
			adapters = trained
		}
		if err != nil || trained != want.trained || all-adapters != 102784 || r.Context != want.context || r.Model.Context != 96 {
			t.Errorf("%s: %d of %d trained, context %d, want %+v: %v", more, trained, all, r.Context, want, err)
		}
		b, _, err := r.Encode()
		if err != nil {
			t.Fatal(err)
		}
		back, err := Decode(b)
		if err != nil || back.Version != RecordVersion || back.Init.Cid != r.Init.Cid {
			t.Errorf("%s: decoded %+v, %v", more, back, err)
		}
		back.Version = RecordVersion - 1
		if err := back.Check(); !errors.Is(err, ErrRecord) {
			t.Errorf("as version 1: %v", err)
		}
	}
}

func TestTuningMistakesHaveOneLine(t *testing.T) {
	for more, want := range map[string]string{
		"model: {preset: llama-1m}\n":          "model.width: 128, the model of init has 64",
		"model: {layers: 3}\n":                 "model.layers: 3, the model of init has 2",
		"model: {tie_embeddings: false}\n":     "model.tie_embeddings: false, the model of init has true",
		"train: {context: 97}\n":               "train.context: 97 tokens, the model of init takes at most 96",
		"lora: {rank: 2, targets: [c_attn]}\n": "lora.targets: ",
		"lora: {rank: -1}\n":                   "rank",
		"lora: {alpha: 3}\n":                   "lora.rank: needs a rank",
		"lora: {rank: 2}\nfreeze: ['*']\n":     "give lora or freeze",
		"freeze: ['*']\n":                      "freeze every parameter",
		"freeze: ['nothing*']\n":               "fits no parameter",
	} {
		_, err := tuned(t, more)
		if !errors.Is(err, ErrSyntax) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want %q", more, err, want)
		}
	}
	if _, err := Parse("j.yaml", []byte(smallest+"lora: {rank: 2}\n")); !errors.Is(err, ErrSyntax) || !strings.Contains(err.Error(), "init") {
		t.Errorf("adapters of nothing: %v", err)
	}
}

// A stranger's record cannot ask for more than the limits.
func TestHostileTuning(t *testing.T) {
	good, err := tuned(t, "lora: {rank: 2}\n")
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(r *Record){
		"rank":       func(r *Record) { r.Adapter.Rank = 1 << 63 },
		"alpha":      func(r *Record) { r.Adapter.Alpha = -1 },
		"no targets": func(r *Record) { r.Adapter.Targets = nil },
		"no init":    func(r *Record) { r.Init = nil },
		"empty init": func(r *Record) { r.Init = &wire.Link{} },
		"both":       func(r *Record) { r.Freeze = []string{"*"} },
		"context":    func(r *Record) { r.Context = 97 },
		"no context": func(r *Record) { r.Context = 0 },
	} {
		r := good
		a := *good.Adapter
		r.Adapter = &a
		change(&r)
		if err := r.Check(); !errors.Is(err, ErrRecord) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
