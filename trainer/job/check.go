// Package job owns what a run is: the YAML file that a person writes, its schema, and the canonical record whose CID is
// the run's identity. A job is data, never code. The package refuses to own prices and peers beyond carrying the
// requester's wishes.
package job

import (
	"fmt"
	"math"
	"regexp"
	"strings"

	"github.com/capacloud/capanode/trainer/codec"
	"github.com/capacloud/capanode/trainer/data/corpus"
	"github.com/capacloud/capanode/trainer/data/quality"
)

var nameRule = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// wrong reports a key whose value breaks a rule, with the line where it stands.
func (f *File) wrong(key, format string, args ...any) error {
	at := ""
	m, ok := f.lines[key]
	if section, _, dotted := strings.Cut(key, "."); !ok && dotted {
		m, ok = f.lines[section]
	}
	if ok {
		at = fmt.Sprintf(":%d:%d", m.line, m.column)
	}
	return fmt.Errorf("%w %s%s: %s: %s", ErrSyntax, f.path, at, key, fmt.Sprintf(format, args...))
}

// check applies the rules that types cannot express.
func (f *File) check() error {
	if f.Version != 1 {
		return f.wrong("version", "%d is not a version that this program knows; write 1", f.Version)
	}
	if !nameRule.MatchString(f.Name) {
		return f.wrong("name", "%q is no name; use up to 64 letters, digits, dashes, dots and underscores", f.Name)
	}
	if f.Task != "causal-lm" {
		return f.wrong("task", "%q is not a task of this version; write causal-lm", f.Task)
	}
	if (len(f.Data.Paths) == 0) == (f.Data.CID == "") {
		return f.wrong("data", "needs paths (text to read) or cid (a dataset made before), one of them")
	}
	if err := corpus.CheckFormat(f.Data.Format); err != nil {
		return f.wrong("data.format", "%v", err)
	}
	if _, err := quality.ParseFilters(f.Data.Filters); err != nil {
		return f.wrong("data.filters", "%v", err)
	}
	if _, err := f.Data.Choice(); err != nil {
		return f.wrong("data.tokenizer", "%v", err)
	}
	if f.Model.Preset != "" && f.Model != (ModelPart{Preset: f.Model.Preset}) {
		return f.wrong("model.preset", "give a preset or sizes, not both")
	}
	if f.LoRA.Rank == 0 && (f.LoRA.Alpha != 0 || len(f.LoRA.Targets) > 0) {
		return f.wrong("lora.rank", "needs a rank of 1 or more: 8 is a common choice")
	}
	if f.LoRA.Rank != 0 {
		if err := f.adapter().lora().Check(); err != nil {
			return f.wrong("lora", "%v", err)
		}
		if f.Init == "" {
			return f.wrong("lora", "adapters change a model that exists: name it in init")
		}
		if len(f.Freeze) > 0 {
			return f.wrong("freeze", "adapters leave the whole model as it is; give lora or freeze, not both")
		}
	}
	if len(f.Freeze) > MaxPatterns {
		return f.wrong("freeze", "%d patterns, allowed: %d", len(f.Freeze), MaxPatterns)
	}
	if f.Train.Rounds != 0 && f.Train.Tokens != 0 {
		return f.wrong("train.tokens", "give rounds or tokens, not both")
	}
	if _, err := codec.Parse(f.Rounds.Codec); err != nil && f.Rounds.Codec != CodecAuto {
		return f.wrong("rounds.codec", "%q is no codec; write auto or %s", f.Rounds.Codec, codec.Names)
	}
	if p := f.Rounds.Pace; p != PaceAuto && p != PaceFixed {
		return f.wrong("rounds.pace", "%q is no pace; write auto or fixed", p)
	}
	if o := f.Rounds.Overlap; o != OverlapAuto && o != OverlapNever && o != OverlapAlways {
		return f.wrong("rounds.overlap", "%q is no choice; write auto, never or always", o)
	}
	if g := f.Rounds.Gradients; g != GradientsAuto && g != GradientsNever {
		return f.wrong("rounds.gradients", "%q is no choice; write auto or never", g)
	}
	return f.checkRanges()
}

// checkRanges bounds every number, so that later integer arithmetic cannot overflow.
func (f *File) checkRanges() error {
	for _, r := range []struct {
		key         string
		value       float64
		least, most float64
	}{
		{"data.max_bytes", float64(f.Data.MaxBytes), 0, 1 << 50},
		{"data.max_documents", float64(f.Data.MaxDocs), 0, 1 << 50},
		{"data.sample", f.Data.Sample, 0, 1},
		{"data.shard_tokens", float64(f.Data.ShardTokens), 0, 1 << 28},
		{"data.validation", f.Data.Validation, 0.0001, 0.5},
		{"train.rounds", float64(f.Train.Rounds), 0, 1e6},
		{"train.tokens", float64(f.Train.Tokens), 0, 1e15},
		{"train.batch", float64(f.Train.Batch), 1, 1 << 16},
		{"train.micro_batch", float64(f.Train.MicroBatch), 0, float64(f.Train.Batch)},
		{"train.context", float64(f.Train.Context), 1, 1 << 17},
		{"train.learning_rate", f.Train.LearningRate, 1e-9, 10},
		{"train.min_learning_rate", f.Train.MinRate, 0, f.Train.LearningRate},
		{"train.warmup", float64(f.Train.Warmup), 0, 1e7},
		{"train.weight_decay", f.Train.WeightDecay, 0, 10},
		{"train.clip", f.Train.Clip, 0, 1e6},
		{"train.seed", float64(f.Train.Seed), 0, 1 << 62},
		{"rounds.bits", f.Rounds.Bits, 0, 1e6},
		{"rounds.group", float64(f.Rounds.Group), 0, MaxPeers},
		{"rounds.fragments", float64(f.Rounds.Fragments), 1, MaxFragments},
		{"rounds.local_steps", float64(f.Rounds.LocalSteps), 1, 1e5},
		{"rounds.outer_learning_rate", f.Rounds.OuterRate, 1e-6, 10},
		{"rounds.outer_momentum", f.Rounds.Momentum, 0, 0.999},
		{"market.peers", float64(f.Market.Peers), 1, MaxPeers},
		{"market.max_price", f.Market.MaxPrice, 0, 1e9},
		{"market.budget", f.Market.Budget, 0, 1e9},
		{"checkpoint.every", float64(f.Checkpoint.Every), 1, 1e6},
		{"checkpoint.keep", float64(f.Checkpoint.Keep), 1, 1e4},
		{"eval.every", float64(f.Eval.Every), 0, 1e6},
		{"eval.windows", float64(f.Eval.Windows), 1, 1 << 20},
	} {
		if math.IsNaN(r.value) || r.value < r.least || r.value > r.most {
			return f.wrong(r.key, "%v is out of range; write %v to %v", r.value, r.least, r.most)
		}
	}
	if f.Rounds.Group == 1 {
		return f.wrong("rounds.group", "1 is no group; write 2 or more, or 0 to choose by the number of peers")
	}
	if m := f.Train.MicroBatch; m > 0 && f.Train.Batch%m != 0 {
		return f.wrong("train.micro_batch", "%d does not divide train.batch %d", m, f.Train.Batch)
	}
	return nil
}
