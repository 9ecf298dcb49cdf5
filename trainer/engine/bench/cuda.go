package bench

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/engine/gomlx"
	"github.com/capacloud/capanode/trainer/engine/native"
	"github.com/capacloud/capanode/trainer/model"
)

// DeviceOptions configure the measurements on a device with an XLA plugin.
type DeviceOptions struct {
	Device     gomlx.Device
	Name       string        // as the maker calls it, to know its peak
	Memory     int64         // bytes that may be planned; 0 means no limit
	MemoryUsed func() int64  // bytes in use on the device by everybody; nil where nobody can tell
	PerModel   time.Duration // time to train each model; 0 means 4 s
	Parts      []string      // of DeviceParts; empty means all
	Say        func(format string, args ...any)
}

// DeviceParts lists what Device measures, in order. Each can be run by itself.
func DeviceParts() []string {
	return []string{"agreement", "large-bf16", "large-fp32", "llama-110m-bf16", "llama-110m-fp32", "llama-1b-bf16"}
}

// ErrPart reports a part that does not exist.
var ErrPart = errors.New("unknown part of the benchmark")

// DeviceFigures are the results by name. What could not be measured is missing, and Failures says why.
type DeviceFigures struct {
	Figures  map[string]float64
	Failures []error
}

// OnDevice measures: how far the losses of a hundred steps are from the processors', and what the device trains per second.
// A part that fails does not stop the others.
func OnDevice(ctx context.Context, o DeviceOptions) (DeviceFigures, error) {
	if o.PerModel <= 0 {
		o.PerModel = 4 * time.Second
	}
	if o.Say == nil {
		o.Say = func(string, ...any) {}
	}
	if len(o.Parts) == 0 {
		o.Parts = DeviceParts()
	}
	for _, part := range o.Parts {
		if !slices.Contains(DeviceParts(), part) {
			return DeviceFigures{}, fmt.Errorf("bench: %w: %.40q, known are %s", ErrPart, part, strings.Join(DeviceParts(), ", "))
		}
	}
	out := DeviceFigures{Figures: map[string]float64{}}
	for _, part := range o.Parts {
		start := time.Now()
		o.Say("%s begins", part)
		var err error
		switch name, precision := cutPrecision(part); name {
		case "agreement":
			err = agreement(ctx, o, out.Figures)
		default:
			err = throughput(ctx, o, name, precision, out.Figures)
		}
		if err != nil {
			out.Failures = append(out.Failures, fmt.Errorf("%s: %w", part, err))
			o.Say("%s failed after %.1f s: %v", part, time.Since(start).Seconds(), err)
		}
		if ctx.Err() != nil {
			return out, ctx.Err()
		}
		o.Say("%s ends after %.1f s", part, time.Since(start).Seconds())
	}
	return out, nil
}

func cutPrecision(part string) (name string, p gomlx.Precision) {
	if at := strings.LastIndexByte(part, '-'); at > 0 {
		return part[:at], gomlx.Precision(part[at+1:])
	}
	return part, ""
}

// agreementSteps is how many optimiser steps device and processors are compared over.
const agreementSteps = 100

// agreement trains the small model on the processors and on the device, from the same weights on the same batches.
func agreement(ctx context.Context, o DeviceOptions, figures map[string]float64) error {
	program, err := small.llama()
	if err != nil {
		return err
	}
	want, err := losses(ctx, program, func() (engine.Engine, error) { return native.New(program, native.Options{Seed: 1}) })
	if err != nil {
		return err
	}
	figures["processor_loss_last"] = want[len(want)-1]
	var errs []error
	for _, p := range []gomlx.Precision{gomlx.FP32, gomlx.BF16} {
		opts := gomlx.Options{Seed: 1, MemoryLimit: o.Memory, Device: o.Device}
		opts.Device.Precision = p
		got, err := losses(ctx, program, func() (engine.Engine, error) { return gomlx.New(program, opts) })
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", p, err))
			continue
		}
		most := 0.0
		for i := range got {
			most = max(most, math.Abs(got[i]-want[i]))
		}
		figures["loss_difference_"+string(p)] = most
		figures["loss_last_"+string(p)] = got[len(got)-1]
		o.Say("agreement %s: largest difference of the loss %.3g nats over %d steps, last loss %.5f, the processors' %.5f",
			p, most, len(got), got[len(got)-1], want[len(want)-1])
	}
	return errors.Join(errs...)
}

// losses trains for agreementSteps on a text that can be learned and returns the loss of each step.
func losses(ctx context.Context, program engine.Program, build func() (engine.Engine, error)) ([]float64, error) {
	e, err := build()
	if err != nil {
		return nil, err
	}
	defer e.Close()
	rng := rand.New(rand.NewPCG(3, 3))
	text := learnable(rng, 1<<14, program.Vocab)
	var all []float64
	for i := range agreementSteps {
		b := engine.Batch{Rows: small.rows, Context: program.Context}
		for range b.Rows {
			at := rng.IntN(len(text) - b.Context - 1)
			b.Inputs = append(b.Inputs, text[at:at+b.Context]...)
			b.Targets = append(b.Targets, text[at+1:at+b.Context+1]...)
		}
		loss, err := e.Train(ctx, []engine.Batch{b}, benchStep)
		if err != nil {
			return nil, fmt.Errorf("step %d: %w", i, err)
		}
		all = append(all, loss)
	}
	return all, nil
}

// learnable returns tokens in which each follows from the one before in three of four cases.
func learnable(rng *rand.Rand, n, vocab int) []int32 {
	text := make([]int32, n)
	for i := 1; i < n; i++ {
		text[i] = (text[i-1]*5 + 7) % int32(vocab)
		if rng.IntN(4) == 0 {
			text[i] = int32(rng.IntN(vocab))
		}
	}
	return text
}

var benchStep = engine.Step{LearningRate: 1e-3, Beta1: 0.9, Beta2: 0.95, Epsilon: 1e-8, WeightDecay: 0.1, ClipNorm: 1}

// setup is a model and the rows of a micro-batch.
type setup struct {
	spec model.Spec
	rows int
}

// deviceSetup returns a model and the rows of a micro-batch that fill a large card.
func deviceSetup(name string, p gomlx.Precision) (setup, error) {
	switch name {
	case "large":
		return setup{large.spec(), 64}, nil
	case "llama-110m":
		spec, err := model.Preset("llama-110m")
		if p == gomlx.FP32 {
			return setup{spec, 8}, err // scores are stored
		}
		return setup{spec, 32}, err
	case "llama-1b":
		return setup{model.Spec{Family: model.FamilyLlama, Vocab: 32000, Width: 2048, Layers: 16, Heads: 32, KVHeads: 8,
			FeedForward: 8192, Context: 2048, RopeTheta: 500000, NormEps: 1e-5, TieEmbeddings: true}, 4}, nil
	}
	return setup{}, fmt.Errorf("%w: %s", ErrPart, name)
}

// throughput trains one model on random tokens and sets tokens per second, peak memory and the share of the device's peak.
// A batch that does not fit is halved.
func throughput(ctx context.Context, o DeviceOptions, name string, p gomlx.Precision, figures map[string]float64) error {
	s, err := deviceSetup(name, p)
	if err != nil {
		return err
	}
	program, err := s.spec.Program()
	if err != nil {
		return err
	}
	flops, err := program.FLOPsPerToken(s.spec.Context)
	if err != nil {
		return err
	}
	o.Device.Precision = p
	for ; s.rows > 0; s.rows /= 2 {
		r, err := trainOn(ctx, program, s, o)
		if errors.Is(err, engine.ErrMemory) && s.rows > 1 {
			o.Say("%s %s: %d rows do not fit: %v", name, p, s.rows, err)
			continue
		}
		if err != nil {
			return err
		}
		suffix := "_" + strings.ReplaceAll(name, "-", "_") + "_" + string(p)
		figures["tokens_per_second"+suffix] = r.tokens
		figures["tokens_per_step"+suffix] = float64(s.rows * s.spec.Context)
		figures["first_step_seconds"+suffix] = r.first
		figures["teraflops"+suffix] = r.tokens * float64(flops) / 1e12
		if r.memory > 0 {
			figures["peak_memory_mb"+suffix] = r.memory
		}
		share := 0.0
		if peak := peakBF16(o.Name); peak > 0 && p == gomlx.BF16 {
			share = r.tokens * float64(flops) / peak
			figures["share_of_bf16_peak"+suffix] = share
		}
		o.Say("%s %s: %.0f tokens/s (%d × %d a step), %.1f TFLOP/s, %.1f %% of the bf16 peak, %.0f MB, first step %.1f s, loss %.3f",
			name, p, r.tokens, s.rows, s.spec.Context, r.tokens*float64(flops)/1e12, 100*share, r.memory, r.first, r.loss)
		return nil
	}
	return engine.ErrMemory
}

// peakBF16 is the vendor's figure for dense bf16 products, operations per second, or 0 for an unknown card.
func peakBF16(name string) float64 {
	for card, peak := range map[string]float64{"H100": 989.4e12, "H200": 989.4e12, "A100": 312e12} {
		if strings.Contains(name, card) && !strings.Contains(name, "PCIe") && !strings.Contains(name, "NVL") {
			return peak
		}
	}
	return 0
}

// deviceResult is what training one model on a device gave.
type deviceResult struct{ tokens, memory, first, loss float64 }

func trainOn(ctx context.Context, program engine.Program, s setup, o DeviceOptions) (r deviceResult, err error) {
	watch := watchMemory(o.MemoryUsed)
	e, err := gomlx.New(program, gomlx.Options{Seed: 1, MemoryLimit: o.Memory, Device: o.Device})
	if err != nil {
		watch()
		return r, err
	}
	defer func() {
		err = errors.Join(err, e.Close())
		r.memory = watch()
	}()
	rng := rand.New(rand.NewPCG(1, 1))
	batch := engine.Batch{Rows: s.rows, Context: s.spec.Context}
	for range batch.Rows * batch.Context {
		batch.Inputs = append(batch.Inputs, int32(rng.IntN(s.spec.Vocab)))
		batch.Targets = append(batch.Targets, int32(rng.IntN(s.spec.Vocab)))
	}
	step := func() error {
		r.loss, err = e.Train(ctx, []engine.Batch{batch}, benchStep)
		return err
	}
	start := time.Now()
	if err := step(); err != nil {
		return r, err
	}
	r.first = time.Since(start).Seconds()
	for range 2 {
		if err := step(); err != nil {
			return r, err
		}
	}
	var times []float64
	for start := time.Now(); len(times) < 5 || time.Since(start) < o.PerModel; {
		from := time.Now()
		if err := step(); err != nil {
			return r, err
		}
		times = append(times, time.Since(from).Seconds())
	}
	slices.Sort(times)
	r.tokens = float64(len(batch.Inputs)) / times[len(times)/2]
	return r, nil
}

// watchMemory looks at the memory in use until the returned function is called, which says by how many 10^6 bytes it grew
// at most.
func watchMemory(used func() int64) (stop func() float64) {
	if used == nil {
		return func() float64 { return 0 }
	}
	before := used()
	most := before
	end, done := make(chan struct{}), sync.WaitGroup{}
	done.Go(func() {
		ticker := time.NewTicker(20 * time.Millisecond)
		defer ticker.Stop()
		for {
			select {
			case <-end:
				return
			case <-ticker.C:
				most = max(most, used())
			}
		}
	})
	return func() float64 {
		close(end)
		done.Wait()
		return float64(most-before) / 1e6
	}
}
