package node

import (
	"context"
	"errors"
	"fmt"

	"github.com/capacloud/capanode/gpu/detect"
	"github.com/capacloud/capanode/trainer/codec"
	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/engine/gomlx"
	"github.com/capacloud/capanode/trainer/engine/native"
	"github.com/capacloud/capanode/trainer/hf"
	"github.com/capacloud/capanode/trainer/job"
	"github.com/capacloud/capanode/trainer/outer"
	"github.com/capacloud/capanode/trainer/tempo"
	"github.com/capacloud/capanode/trainer/worker"
)

// workerPlan is what all members of a run agree on, from its record.
func workerPlan(r job.Record) (worker.Plan, error) {
	params, _, err := r.Trained()
	if err != nil {
		return worker.Plan{}, fmt.Errorf("%w: %w", ErrJob, err)
	}
	p := worker.Plan{
		Rounds: r.Rounds, LocalSteps: int(r.LocalSteps), BatchRows: int(r.Batch), MicroRows: int(r.MicroBatch),
		Context: int(r.Context), Seed: r.Seed, Codec: r.Codec, Group: int(r.Group), Fragments: int(r.Fragments), Params: int(params),
		Outer:           outer.Settings{LearningRate: float32(r.OuterRate), Momentum: float32(r.OuterMomentum)},
		Inner:           engine.Step{Beta1: 0.9, Beta2: 0.95, Epsilon: 1e-8, WeightDecay: r.WeightDecay, ClipNorm: r.Clip},
		Schedule:        worker.Schedule{Peak: r.LearningRate, Floor: r.MinRate, Warmup: r.Warmup, Total: r.Rounds * r.LocalSteps},
		CheckpointEvery: r.CheckpointEvery,
	}
	switch r.Overlap {
	case job.OverlapNever:
		p.Overlap = worker.OverlapNever
	case job.OverlapAlways:
		p.Overlap = worker.OverlapAlways
	}
	fixed := r.Codec
	if fixed == job.CodecAuto {
		fixed = ""
	}
	if r.Pace == job.PaceAuto {
		p.Tempo = &tempo.Plan{
			Steps: r.Steps(), Mates: int(r.Peers), Bits: r.Bits, Least: leastSteps, Codec: fixed, Gradients: r.Gradients == job.GradientsAuto,
		}
	} else if fixed == "" {
		p.Codec = codec.Int8{}.ID()
	}
	return p, nil
}

// leastSteps is the shortest round of local steps. Shorter ones cost more in signatures, hashes and synced snapshots than their
// averages bring: at equal bytes the loss hardly depends on how they are cut into rounds.
const leastSteps = 10

// memoryNeeded returns the bytes that one member needs: what the executor holds while it trains a micro-batch, the outer
// state, and the buffers of the averaging.
func memoryNeeded(r job.Record) (int64, error) {
	program, err := r.Program()
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrJob, err)
	}
	shape := engine.Shape{Rows: int(r.MicroBatch), Context: int(r.Context)}
	p, err := engine.NewPlan(program, shape)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrJob, err)
	}
	if p.ActivationBytes > maxActivations {
		return 0, fmt.Errorf("%w: a micro-batch needs %d GiB: %w", ErrJob, p.ActivationBytes>>30, engine.ErrMemory)
	}
	train, err := native.Memory(program, shape, native.Options{})
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrJob, err)
	}
	const copies = 5 // first and slow weights, momentum, update and decoded mates
	return train + p.Trained*4*copies, nil
}

// maxActivations bounds what is planned in detail; no machine holds as much.
const maxActivations = 1 << 50

// finishedBytes is what one parameter of a finished model takes while it is measured: its weight as it was read, and the
// engine's weight, gradient, two moments and the laid out copy.
const finishedBytes = 4 + 20

// machineMemory is this machine's memory in bytes, or what its control group allows.
func machineMemory(ctx context.Context) (int64, error) {
	devices, _, err := detect.Open(ctx, "cpu")
	if err != nil {
		return 0, err
	}
	bytes := int64(devices[0].Info().MemoryBytes)
	for _, d := range devices {
		err = errors.Join(err, d.Close())
	}
	return bytes, err
}

// fits refuses a job that needs more memory than a slot has; 0 is no limit. It allocates nothing.
func fits(r job.Record, memory int64) error {
	need, err := memoryNeeded(r)
	if err == nil && memory > 0 && need > memory {
		err = fmt.Errorf("%w: model and batch need %d MiB, this device has %d MiB: lower train.micro_batch, train.context or the model: %w",
			ErrJob, need>>20, memory>>20, engine.ErrMemory)
	}
	return err
}

// buildEngine makes the executor of a job's model on a device, with the job's seed.
func buildEngine(r job.Record, device gomlx.Device, memory int64, threads int) (engine.Engine, error) {
	if err := fits(r, memory); err != nil {
		return nil, err
	}
	program, err := r.Program()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrJob, err)
	}
	return newEngine(program, device, native.Options{Seed: r.Seed, MemoryLimit: memory, Parallelism: threads})
}

// modelEngine makes an executor that holds a finished model.
func modelEngine(m hf.Model, threads int) (engine.Engine, error) {
	program, err := m.Spec.Program()
	if err != nil {
		return nil, err
	}
	eng, err := native.New(program, native.Options{Parallelism: threads})
	if err != nil {
		return nil, err
	}
	copy(eng.State().Weights, m.Weights)
	return eng, nil
}
