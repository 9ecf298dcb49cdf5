package node

import (
	"context"
	"fmt"
	"time"

	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/engine/gomlx"
	"github.com/capacloud/capanode/trainer/job"
	"github.com/capacloud/capanode/trainer/round"
	"github.com/capacloud/capanode/trainer/worker"
)

// AloneEvent compares a run with what one of its peers would have got alone: the same model, start, batch and number of
// optimiser steps, on the same data, with nobody to average with.
type AloneEvent struct {
	Type        string  `json:"type"` // alone
	Run         string  `json:"run"`
	Step        uint64  `json:"step"` // taken so far
	Steps       uint64  `json:"steps"`
	Ended       bool    `json:"ended"`
	Loss        float64 `json:"loss"`   // held-out, nats per token, once it has ended
	Tokens      uint64  `json:"tokens"` // trained on
	RunLoss     float64 `json:"run_loss"`
	RunTokens   uint64  `json:"run_tokens"`
	Improvement float64 `json:"improvement"` // share of the loss that the run is below it
	Seconds     float64 `json:"seconds"`
}

// compareAlone trains the run's model once more as one peer without mates, on this machine, and measures both on the same held-out
// text.
func (r *requester) compareAlone(ctx context.Context, done *DoneEvent) error {
	began := time.Now()
	eng, err := buildEngine(r.rec, gomlx.Device{}, 0, 0)
	if err != nil {
		return err
	}
	defer eng.Close()
	if r.base != nil {
		if err := startAt(eng.State(), r.base.Model); err != nil {
			return err
		}
	}
	e := AloneEvent{Type: "alone", Run: r.run.String(), Steps: r.rec.Steps(), RunLoss: done.ValLoss, RunTokens: done.Tokens}
	err = r.trainAlone(ctx, eng, r.worker, func(step uint64) {
		e.Step, e.Tokens, e.Seconds = step, step*r.rec.Batch*r.rec.Context, seconds(time.Since(began))
		r.emit(e)
	})
	if err != nil {
		return fmt.Errorf("train the same model alone: %w", err)
	}
	batches, err := r.data.Validation(ctx, int(r.rec.MicroBatch), r.file.Eval.Windows)
	if err != nil {
		return err
	}
	if e.Loss, _, err = meanLoss(ctx, eng, batches); err != nil {
		return err
	}
	e.Ended, e.Seconds = true, seconds(time.Since(began))
	e.Improvement = 1 - e.RunLoss/e.Loss
	done.AloneLoss = e.Loss
	r.emit(e)
	return nil
}

// trainAlone takes the steps of a run as its only member: all shards are its own, dealt in the same order.
func (r *requester) trainAlone(ctx context.Context, eng engine.Engine, plan worker.Plan, tell func(step uint64)) error {
	var windows []uint64
	var own []int
	for s := range r.data.Shards() {
		windows, own = append(windows, r.data.Windows(s)), append(own, s)
	}
	cursors := make([]uint64, len(windows))
	rows, micro := plan.BatchRows, plan.MicroRows
	if micro == 0 {
		micro = rows
	}
	for step := uint64(0); step < plan.TotalSteps(); {
		steps := min(uint64(plan.LocalSteps), plan.TotalSteps()-step)
		ranges := round.Take(own, windows, cursors, steps*uint64(rows))
		all := round.Windows(plan.Seed, ranges, windows, int(steps))
		for _, taken := range ranges {
			cursors[taken.Shard] = taken.To
		}
		for ; len(all) > 0; all = all[rows:] {
			var batches []engine.Batch
			for at := 0; at < rows; at += micro {
				b, err := r.data.Batch(ctx, all[at:min(at+micro, rows)])
				if err != nil {
					return err
				}
				batches = append(batches, b)
			}
			hyper := plan.Inner
			hyper.LearningRate = plan.Schedule.At(step)
			if _, err := eng.Train(ctx, batches, hyper); err != nil {
				return err
			}
			step++
		}
		tell(step)
	}
	return nil
}

// checkAlone refuses the comparison for jobs that it cannot be made for.
func checkAlone(f job.File, o TrainOptions) error {
	if o.CompareAlone && o.LocalDevice == "cuda" {
		return fmt.Errorf("%w: --compare-alone trains on processors, and --device is cuda: compare on one kind of device", ErrUsage)
	}
	if o.CompareAlone && f.Market.Peers < 2 {
		return fmt.Errorf("%w: --compare-alone compares several peers with one, the job has %d: raise market.peers or --local", ErrUsage, f.Market.Peers)
	}
	return nil
}
