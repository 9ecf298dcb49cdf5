package node

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/capacloud/capanode/gpu"
	"github.com/capacloud/capanode/market/lease"
	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/engine/gomlx"
	"github.com/capacloud/capanode/trainer/engine/native"
	"github.com/capacloud/capanode/trainer/model"
)

// sample is the model and batch that a device is timed on.
type sample struct {
	preset        string
	rows, context int
}

// sampleFor fills the device: a card needs more work at once than processors.
func sampleFor(d gomlx.Device) sample {
	if d.Plugin != "" {
		return sample{"llama-10m", 64, 256}
	}
	return sample{"llama-1m", 4, 128}
}

// trainingWork is training steps of a small model: what a slot will be used for.
type trainingWork struct {
	engine engine.Engine
	batch  engine.Batch
	flops  uint64
}

// Step implements [gpu.Workload].
func (w *trainingWork) Step(ctx context.Context) (uint64, error) {
	_, err := w.engine.Train(ctx, []engine.Batch{w.batch}, engine.Step{LearningRate: 1e-4, Beta1: 0.9, Beta2: 0.95, Epsilon: 1e-8, ClipNorm: 1})
	return w.flops, err
}

// newTrainingWork builds the sample model on a device and a batch for it.
func newTrainingWork(d gomlx.Device, memory int64, threads int) (*trainingWork, error) {
	s := sampleFor(d)
	spec, err := model.Preset(s.preset)
	if err != nil {
		return nil, err
	}
	program, err := spec.Program()
	if err != nil {
		return nil, err
	}
	perToken, err := program.FLOPsPerToken(s.context)
	if err != nil {
		return nil, err
	}
	eng, err := newEngine(program, d, native.Options{Seed: 1, MemoryLimit: memory, Parallelism: threads})
	if err != nil {
		return nil, err
	}
	n := s.rows * s.context
	w := &trainingWork{engine: eng, flops: uint64(perToken) * uint64(n)}
	w.batch = engine.Batch{Rows: s.rows, Context: s.context, Inputs: make([]int32, n), Targets: make([]int32, n)}
	for i := range n {
		w.batch.Inputs[i], w.batch.Targets[i] = int32(i*7%spec.Vocab), int32(i*11%spec.Vocab)
	}
	return w, nil
}

// measured is a device's speed as kept in the home, so that a restart need not measure again.
type measured struct {
	Device   string    `json:"device"`
	Numerics string    `json:"numerics"`
	Threads  int       `json:"threads"`
	MFLOPS   uint64    `json:"mflops"`
	At       time.Time `json:"at"`
}

// speedLife is how long a measurement counts.
const speedLife = 24 * time.Hour

// decodeSpeed reads speed.json.
func decodeSpeed(b []byte) (m measured, ok bool) {
	if json.Unmarshal(b, &m) != nil || m.MFLOPS == 0 {
		return measured{}, false
	}
	return m, true
}

// fresh reports whether a measurement still counts. One from the future, left by a clock that was wrong, does not.
func (m measured) fresh(now time.Time) bool { return !m.At.After(now) && now.Sub(m.At) < speedLife }

// speed measures what one slot computes, in MFLOP/s of the model's arithmetic.
func (p *provider) speed(ctx context.Context) (uint64, error) {
	path := p.home.Path("speed.json")
	now := time.Now()
	want := measured{Device: p.device.Info().ID, Numerics: numerics(p.engine), Threads: p.o.Threads}
	if b, err := os.ReadFile(path); err == nil {
		if m, ok := decodeSpeed(b); ok && m.Device == want.Device && m.Numerics == want.Numerics && m.Threads == want.Threads && m.fresh(now) {
			return m.MFLOPS, nil
		}
	}
	w, err := newTrainingWork(p.engine, p.memory(), p.o.Threads)
	if err != nil {
		return 0, err
	}
	defer w.engine.Close()
	r, err := gpu.Benchmark(ctx, p.device, w, gpu.Effort{Warmup: 1, Least: 3, Time: time.Second})
	if err != nil {
		return 0, err
	}
	want.MFLOPS, want.At = max(1, uint64(r.PerSecond/1e6)), now.UTC()
	b, err := json.Marshal(want)
	if err == nil {
		err = writeFile(path, b, 0o600)
	}
	if err != nil {
		return 0, fmt.Errorf("keep the measured speed: %w", err)
	}
	return want.MFLOPS, nil
}

// governor makes the owner's rules.
func (p *provider) governor() gpu.Governor {
	return gpu.NewGovernor(gpu.Rules{Pause: p.o.MaxTemp, Schedule: p.o.Schedule})
}

// reclaimNotice is how long a leased slot may go on after the owner's rules have taken the device back: time to end a
// round and settle.
const reclaimNotice = time.Minute

// govern takes the slots off the market while the owner's rules say so, and takes leased ones back.
func (p *provider) govern(ctx context.Context, g gpu.Governor) gpu.Governor {
	t, err := p.device.Telemetry(ctx)
	if err != nil {
		p.log.Warn("telemetry", "err", err)
		return g
	}
	_, was := g.Paused()
	g = g.Next(t)
	reason, paused := g.Paused()
	if paused == was {
		return g
	}
	if paused {
		p.seller.SetOpen(0)
		p.emit(ProviderEvent{State: "paused", Detail: reason})
		why := lease.Thermal
		if !p.o.Schedule.Open(t.Time) {
			why = lease.Schedule
		}
		p.reclaim(ctx, why)
	} else {
		p.seller.SetOpen(p.o.Slots)
		p.emit(ProviderEvent{State: "ready", Slots: p.o.Slots, Free: p.seller.Free()})
	}
	return g
}

// reclaim gives the holders of all leases notice.
func (p *provider) reclaim(ctx context.Context, why lease.Reason) {
	all, err := p.seller.Leases()
	if err != nil {
		p.log.Warn("reclaim", "err", err)
	}
	for _, l := range all {
		if !l.Live() {
			continue
		}
		if err := p.seller.Reclaim(ctx, l.ID, why, reclaimNotice); err != nil {
			p.log.Debug("reclaim", "lease", l.ID.Short(), "err", err) // it drains already, or its holder is away
		}
	}
}
