package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	storagebench "github.com/capacloud/capanode/storage/bench"
	trainerbench "github.com/capacloud/capanode/trainer/bench"
	"github.com/capacloud/capanode/trainer/hf"
	"github.com/capacloud/capanode/trainer/lab"
)

const methodDelta = "checkpoint_delta_share is what a node that has a checkpoint downloads of the next one, over the size of that: two peers train llama-1m on bytes of " +
	"Go's own sources in 6 rounds of 10 steps with the outer step, and the weights after rounds 5 and 6 are exported as bfloat16, published as runs do it, and fetched, every " +
	"block encoded that becomes shorter. frozen is the same of a run in which whole tensors with at most 30 % of the weights do not train, fp32 that of the first run " +
	"in 32-bit floats. encode_mb_per_second_per_core is of the weights in bfloat16 in blocks of 1 MiB, samples included, the fastest of twenty; encode_small is the same in " +
	"blocks that end with the tensors, of 64 KiB and more."

// benchDelta measures what it takes to follow a run from checkpoint to checkpoint.
func benchDelta(ctx context.Context, r *BenchReport) (err error) {
	text, err := benchText(ctx, "")
	if err != nil {
		r.Missing = append(r.Missing, fmt.Sprintf("checkpoint_delta_share (%v)", err))
		return nil
	}
	dir, err := os.MkdirTemp("", "capanode-bench-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	o := trainerbench.CheckpointOptions{Model: "llama-1m", Text: lab.Split(text), Rounds: 6, Steps: 10}
	dense, err := trainerbench.TrainCheckpoints(ctx, o)
	if err != nil {
		return err
	}
	o.Frozen = 0.3
	frozen, err := trainerbench.TrainCheckpoints(ctx, o)
	if err != nil {
		return err
	}
	for _, x := range []struct {
		name string
		pair trainerbench.CheckpointPair
		as   hf.Type
	}{{"checkpoint_delta_share", dense, hf.BFloat16}, {"checkpoint_delta_share_frozen", frozen, hf.BFloat16}, {"checkpoint_delta_share_fp32", dense, hf.Float32}} {
		d, err := deltaOf(ctx, filepath.Join(dir, x.name), x.pair, x.as)
		if err != nil {
			return err
		}
		r.Figures[x.name] = d.Share
		if x.name == "checkpoint_delta_share" {
			r.Figures["encode_mb_per_second_per_core"], r.Figures["encode_small_mb_per_second_per_core"] = d.Encode, d.Small
		}
	}
	r.Figures["checkpoint_frozen_share"] = frozen.Frozen
	return nil
}

// deltaOf exports two checkpoints and measures them.
func deltaOf(ctx context.Context, dir string, p trainerbench.CheckpointPair, as hf.Type) (d storagebench.Delta, err error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return d, err
	}
	before, after := filepath.Join(dir, "before"), filepath.Join(dir, "after")
	for i, w := range [][]float32{p.Before, p.After} {
		m := hf.Model{Spec: p.Spec, Params: p.Params, Weights: w, Type: as, Provenance: hf.Provenance{Name: "bench", Round: uint64(i + 1)}}
		if err := hf.Write([]string{before, after}[i], m); err != nil {
			return d, err
		}
	}
	return storagebench.RunDelta(ctx, before, after)
}
