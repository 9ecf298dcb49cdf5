// Package bench owns the speed figures of the engine: what one machine trains per second, and how much of the hardware's
// limit that is. It refuses to print; commands and continuous integration do.
package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/engine/gomlx"
	"github.com/capacloud/capanode/trainer/model"
)

// Options configure a run. The zero value is usable.
type Options struct {
	PerModel    time.Duration // time to train each model; 0 means 5 s
	Parallelism int           // goroutines; 0 means GOMAXPROCS
}

// Figures are the results. A figure that could not be measured is 0 and named in Missing.
type Figures struct {
	TokensPerSecondSmall float64  `json:"tokens_per_second_small"` // 0.81 M parameters, context 64, batch 12
	TokensPerSecondLarge float64  `json:"tokens_per_second_large"` // 10.7 M parameters, context 256, batch 8
	AllocationsPerStep   float64  `json:"allocations_per_step"`    // Go heap objects, small model
	BytesPerStep         float64  `json:"allocated_bytes_per_step"`
	PeakRSSMB            float64  `json:"peak_rss_mb"`          // of the whole process, 10^6 bytes
	FLOPsShareOfPeak     float64  `json:"flops_share_of_peak"`  // large model's matrix FLOPs over the peak of the cores in use
	MatmulShareOfPeak    float64  `json:"matmul_share_of_peak"` // 512³ product on one core over that core's peak
	PeakGFLOPsPerCore    float64  `json:"peak_gflops_per_core"` // float32 fused multiply-adds from registers, all cores busy
	Parallelism          int      `json:"parallelism"`
	Numerics             string   `json:"numerics"`
	Missing              []string `json:"missing"`
}

// small and large are the two GPTs that engines have been compared on, in Llama shape.
var (
	small = setup{model.Spec{Family: model.FamilyLlama, Vocab: 256, Width: 128, Layers: 4, Heads: 4, KVHeads: 4,
		FeedForward: 336, Context: 64, RopeTheta: 10000, NormEps: 1e-5, TieEmbeddings: true}, 12}
	large = setup{model.Spec{Family: model.FamilyLlama, Vocab: 256, Width: 384, Layers: 6, Heads: 6, KVHeads: 6,
		FeedForward: 1024, Context: 256, RopeTheta: 10000, NormEps: 1e-5, TieEmbeddings: true}, 8}
)

type setup struct {
	spec model.Spec
	rows int
}

// Run measures for about twice Options.PerModel and some seconds more. It returns early with the context's error.
func Run(ctx context.Context, opts Options) (Figures, error) {
	if opts.PerModel <= 0 {
		opts.PerModel = 5 * time.Second
	}
	if opts.Parallelism < 1 {
		opts.Parallelism = runtime.GOMAXPROCS(0)
	}
	f := Figures{Parallelism: opts.Parallelism, Numerics: gomlx.Numerics(), Missing: []string{}}
	a, err := train(ctx, small, opts)
	if err != nil {
		return Figures{}, fmt.Errorf("bench: small model: %w", err)
	}
	f.TokensPerSecondSmall, f.AllocationsPerStep, f.BytesPerStep = a.tokens, a.allocations, a.bytes
	b, err := train(ctx, large, opts)
	if err != nil {
		return Figures{}, fmt.Errorf("bench: large model: %w", err)
	}
	f.TokensPerSecondLarge = b.tokens
	if err := shares(&f, b, opts.Parallelism); err != nil {
		return Figures{}, fmt.Errorf("bench: %w", err)
	}
	if f.PeakRSSMB, err = peakRSS(); err != nil {
		f.Missing = append(f.Missing, "peak_rss_mb")
	}
	return f, ctx.Err()
}

// shares sets the figures that are relative to the hardware's peak.
func shares(f *Figures, large result, parallelism int) error {
	peak := peakFLOPs(parallelism)
	if peak == 0 {
		f.Missing = append(f.Missing, "peak_gflops_per_core", "flops_share_of_peak", "matmul_share_of_peak")
		return nil
	}
	product, err := gomlx.ProductSpeed(512, 500*time.Millisecond)
	if err != nil {
		return err
	}
	f.PeakGFLOPsPerCore = peak / float64(parallelism) / 1e9
	f.FLOPsShareOfPeak = large.tokens * float64(large.flops) / peak
	f.MatmulShareOfPeak = product / peakFLOPs(1)
	return nil
}

// result is what training one model gave, per second or per step.
type result struct {
	tokens, allocations, bytes float64
	flops                      int64 // per token
}

// train runs whole optimiser steps on random tokens for the time of the options, after two that do not count.
func train(ctx context.Context, s setup, opts Options) (result, error) {
	program, err := s.spec.Program()
	if err != nil {
		return result{}, err
	}
	flops, err := program.FLOPsPerToken(s.spec.Context)
	if err != nil {
		return result{}, err
	}
	e, err := gomlx.New(program, gomlx.Options{Seed: 1, Parallelism: opts.Parallelism})
	if err != nil {
		return result{}, err
	}
	defer e.Close()
	rng := rand.New(rand.NewPCG(1, 1))
	batch := engine.Batch{Rows: s.rows, Context: s.spec.Context}
	for range batch.Rows * batch.Context {
		batch.Inputs = append(batch.Inputs, int32(rng.IntN(s.spec.Vocab)))
		batch.Targets = append(batch.Targets, int32(rng.IntN(s.spec.Vocab)))
	}
	step := engine.Step{LearningRate: 1e-3, Beta1: 0.9, Beta2: 0.95, Epsilon: 1e-8, WeightDecay: 0.1, ClipNorm: 1}
	for range 2 {
		if _, err := e.Train(ctx, []engine.Batch{batch}, step); err != nil {
			return result{}, err
		}
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	steps, start := 0, time.Now()
	for ; steps == 0 || time.Since(start) < opts.PerModel; steps++ {
		if _, err := e.Train(ctx, []engine.Batch{batch}, step); err != nil {
			return result{}, err
		}
	}
	seconds := time.Since(start).Seconds()
	runtime.ReadMemStats(&after)
	return result{
		tokens:      float64(steps*len(batch.Inputs)) / seconds,
		allocations: float64(after.Mallocs-before.Mallocs) / float64(steps),
		bytes:       float64(after.TotalAlloc-before.TotalAlloc) / float64(steps),
		flops:       flops,
	}, nil
}

// peakFLOPs returns the float32 operations per second of that many cores at once, or 0 when this build cannot tell.
func peakFLOPs(cores int) float64 {
	speeds := make([]float64, cores)
	var wg sync.WaitGroup
	for i := range speeds {
		wg.Go(func() {
			for range 5 { // the best of five: a peak is what the hardware can do undisturbed
				start := time.Now()
				operations := multiplyAdds()
				speeds[i] = max(speeds[i], 2*float64(operations)/time.Since(start).Seconds())
			}
		})
	}
	wg.Wait()
	sum := 0.0
	for _, s := range speeds {
		sum += s
	}
	return sum
}

var errNoRSS = errors.New("the system does not tell the peak resident size")

// peakRSS returns the process's largest resident size in 10^6 bytes, where Linux's proc tells it.
func peakRSS() (float64, error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, errNoRSS
	}
	for line := range strings.Lines(string(status)) {
		rest, ok := strings.CutPrefix(line, "VmHWM:")
		if !ok {
			continue
		}
		kib, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 64)
		if err != nil {
			return 0, errNoRSS
		}
		return kib * 1024 / 1e6, nil
	}
	return 0, errNoRSS
}
