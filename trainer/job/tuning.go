package job

import (
	"fmt"

	"github.com/capacloud/capanode/trainer/adapt"
	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/model"
)

// MaxPatterns bounds the patterns of frozen parameters, and maxPattern the letters of one.
const (
	MaxPatterns = 64
	maxPattern  = 200
)

// Adapter is what a record says of the low-rank adapters that a run trains.
type Adapter struct {
	Rank    uint64   `cbor:"rank"`
	Alpha   float64  `cbor:"alpha"`
	Targets []string `cbor:"targets"`
}

func (a Adapter) lora() adapt.LoRA {
	return adapt.LoRA{Rank: int(min(a.Rank, adapt.MaxRank+1)), Alpha: a.Alpha, Targets: a.Targets}
}

// adapter is what the file asks for, nil when it wants none.
func (f *File) adapter() *Adapter {
	l := f.LoRA
	if l.Rank == 0 {
		return nil
	}
	a := &Adapter{Rank: uint64(max(l.Rank, 0)), Alpha: l.Alpha, Targets: l.Targets}
	if a.Alpha == 0 {
		a.Alpha = 2 * float64(l.Rank)
	}
	if len(a.Targets) == 0 {
		a.Targets = []string{adapt.AllLinear}
	}
	return a
}

// StartFrom makes the job begin at a model's weights. What the file says of the model must be what it is; a context that the
// file does not name is at most the model's.
func (f *File) StartFrom(b Base) error {
	if m := f.Model; m != (ModelPart{}) {
		want := model.Spec{Family: m.Family, Width: m.Width, Layers: m.Layers, Heads: m.Heads, KVHeads: m.KVHeads, FeedForward: m.FeedForward,
			RopeTheta: m.RopeTheta, NormEps: m.NormEps, TieEmbeddings: m.Tie != nil && *m.Tie}
		if m.Preset != "" {
			var err error
			if want, err = f.spec(b.Spec.Vocab); err != nil {
				return err
			}
		}
		for _, field := range f.named(want, b.Spec) {
			if field.want != field.have {
				return f.wrong("model."+field.key, "%v, the model of init has %v: leave the model section out, it is taken from there", field.want, field.have)
			}
		}
	}
	if _, named := f.lines["train.context"]; !named {
		f.Train.Context = min(f.Train.Context, b.Spec.Context)
	}
	if f.Train.Context > b.Spec.Context {
		return f.wrong("train.context", "%d tokens, the model of init takes at most %d", f.Train.Context, b.Spec.Context)
	}
	f.base = &b
	return nil
}

// pair is a field of a model as a file wants it, and as a model has it.
type pair struct {
	key        string
	want, have any
}

// named lists the fields that the file says something about: all with a preset, else the sizes that are given.
func (f *File) named(want, have model.Spec) (fields []pair) {
	all := f.Model.Preset != ""
	for _, x := range []struct {
		given bool
		pair
	}{
		{f.Model.Family != "", pair{"family", want.Family, have.Family}},
		{f.Model.Width != 0, pair{"width", want.Width, have.Width}},
		{f.Model.Layers != 0, pair{"layers", want.Layers, have.Layers}},
		{f.Model.Heads != 0, pair{"heads", want.Heads, have.Heads}},
		{f.Model.KVHeads != 0, pair{"kv_heads", want.KVHeads, have.KVHeads}},
		{f.Model.FeedForward != 0, pair{"feed_forward", want.FeedForward, have.FeedForward}},
		{f.Model.RopeTheta != 0, pair{"rope_theta", want.RopeTheta, have.RopeTheta}},
		{f.Model.NormEps != 0, pair{"norm_eps", want.NormEps, have.NormEps}},
		{f.Model.Tie != nil, pair{"tie_embeddings", want.TieEmbeddings, have.TieEmbeddings}},
	} {
		if x.given || all {
			fields = append(fields, x.pair)
		}
	}
	return fields
}

// VocabFits tells whether a tokenizer of that size belongs to the model. A model that was made elsewhere may have been padded.
func (r Record) VocabFits(tokens int) bool {
	return tokens == r.Model.Vocab || r.Init != nil && tokens < r.Model.Vocab
}

// contextFits: a model that exists may be trained on shorter windows than it takes.
func (r Record) contextFits() bool {
	return r.Context == uint64(r.Model.Context) || r.Init != nil && r.Context >= 1 && r.Context < uint64(r.Model.Context)
}

// checkTuning bounds what version 2 adds.
func (r Record) checkTuning() error {
	if r.Init != nil && !r.Init.Defined() || r.Adapter != nil && (r.Init == nil || len(r.Freeze) > 0) || len(r.Freeze) > MaxPatterns {
		return fmt.Errorf("%w: adapters need a model to start from and no frozen patterns, of which %d are allowed", ErrRecord, MaxPatterns)
	}
	for _, p := range r.Freeze {
		if len(p) > maxPattern {
			return fmt.Errorf("%w: pattern of %d letters, allowed: %d", ErrRecord, len(p), maxPattern)
		}
	}
	if r.Adapter != nil {
		if err := r.Adapter.lora().Check(); err != nil {
			return fmt.Errorf("%w: %w", ErrRecord, err)
		}
	}
	return nil
}

// LoRA returns the adapters of a run and their places in its model; false for a run that trains the model itself. The record is
// one that passed [Record.Check].
func (r Record) LoRA() (l adapt.LoRA, pairs []adapt.Pair, ok bool, err error) {
	if r.Adapter == nil {
		return l, nil, false, nil
	}
	program, err := r.Model.Program()
	if err == nil {
		l = r.Adapter.lora()
		pairs, err = l.Modules(program)
	}
	if err != nil {
		return l, nil, true, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	return l, pairs, true, nil
}

// Program returns what the run trains: the model with its adapters, and with what stays as it is marked as frozen.
func (r Record) Program() (engine.Program, error) {
	program, err := r.Model.Program()
	switch {
	case err != nil:
	case r.Adapter != nil:
		program, err = r.Adapter.lora().Apply(program)
	case len(r.Freeze) > 0:
		program, err = adapt.Freeze(program, r.Freeze)
	}
	if err != nil {
		return engine.Program{}, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	return program, nil
}

// Trained returns the number of elements that the run trains, and of all that its model holds.
func (r Record) Trained() (trained, all int64, err error) {
	program, err := r.Program()
	if err != nil {
		return 0, 0, err
	}
	for _, p := range program.Params {
		all += int64(p.Size())
		if !p.Frozen {
			trained += int64(p.Size())
		}
	}
	return trained, all, nil
}
