// Package bench owns the speed figures of the engine: what one machine trains per second, how much of the hardware's
// limit that is, and what other engines reach beside it. It refuses to print; commands and continuous integration do.
package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/engine/gomlx"
	"github.com/capacloud/capanode/trainer/engine/native"
	"github.com/capacloud/capanode/trainer/engine/native/kernel"
)

// Options configure a run. The zero value is usable.
type Options struct {
	PerModel    time.Duration // time to train each model on each engine; 0 means 3 s
	Parallelism int           // the larger number of threads; 0 means GOMAXPROCS
	Small       bool          // leave the large model out
}

// Report is the results. A figure that could not be measured is named in Missing.
type Report struct {
	Figures  map[string]float64 // see Wanted
	Baseline map[string]float64 // other engines, and the hardware
	Missing  []string
}

// Wanted names the figures of a complete run. tokens_per_second is of the small (0.81 M parameters, context 64, batch 12)
// and the large model (10.7 M, 256, 8) in Llama shape on all threads, with suffixes for GPT-2's shape and one thread.
// over_gomlx and over_pytorch are quotients of what two engines trained one after the other.
func Wanted() []string {
	names := []string{"matmul_share_of_peak", "matmul_1024_share_of_peak", "allocations_per_step", "flops_share_of_peak", "peak_rss_mb"}
	for _, c := range cases(2) {
		names = append(names, "tokens_per_second_"+c.name(), "over_pytorch_"+c.name())
		if c.threads > 1 {
			names = append(names, "over_gomlx_"+c.name())
		}
	}
	return names
}

// setting is one model on some threads.
type setting struct {
	size
	shape   string
	program func(size) (engine.Program, error)
	threads int
}

func (c setting) name() string {
	name := c.size.name
	if c.shape != "llama" {
		name += "_" + c.shape
	}
	if c.threads == 1 {
		name += "_1_thread"
	}
	return name
}

// cases lists what is measured, on one thread and on that many.
func cases(threads int) (all []setting) {
	for _, n := range slices.Compact([]int{threads, 1}) {
		for _, shape := range shapes {
			for _, s := range []size{small, large} {
				all = append(all, setting{s, shape.name, shape.program, n})
			}
		}
	}
	return all
}

// Run measures for some minutes where PyTorch is present, and for about one where not. It returns early with the context's
// error.
func Run(ctx context.Context, opts Options) (Report, error) {
	if opts.PerModel <= 0 {
		opts.PerModel = 3 * time.Second
	}
	if opts.Parallelism < 1 {
		opts.Parallelism = runtime.GOMAXPROCS(0)
	}
	r := Report{Figures: map[string]float64{"parallelism": float64(opts.Parallelism)}, Baseline: map[string]float64{}}
	interpreter := python(ctx)
	for _, c := range cases(opts.Parallelism) {
		if opts.Small && c.size == large {
			continue
		}
		if err := r.compare(ctx, c, interpreter, opts); err != nil {
			return r, fmt.Errorf("bench: %s model: %w", c.name(), err)
		}
	}
	if err := r.products(); err != nil {
		return r, fmt.Errorf("bench: %w", err)
	}
	if rss, err := peakRSS(); err == nil {
		r.Figures["peak_rss_mb"] = rss
	}
	for _, name := range Wanted() {
		if _, ok := r.Figures[name]; !ok {
			r.Missing = append(r.Missing, name)
		}
	}
	return r, ctx.Err()
}

// compare trains one model with all engines, the native one before and after the others, because the machine may have
// other work; the better half of each counts.
func (r *Report) compare(ctx context.Context, c setting, interpreter string, opts Options) error {
	first, err := c.native(ctx, opts.PerModel)
	if err != nil {
		return err
	}
	if interpreter != "" {
		rate, err := pytorch(ctx, interpreter, c, opts.PerModel)
		if err != nil {
			return err
		}
		r.Baseline["pytorch_tokens_per_second_"+c.name()] = rate
	}
	peak, err := peakFLOPs(c.threads)
	if err != nil {
		return err
	}
	if c.threads == opts.Parallelism { // on one thread it is slower still, and takes minutes
		other, err := c.gomlx(ctx, opts.PerModel/3)
		switch {
		case err == nil:
			r.Baseline["gomlx_tokens_per_second_"+c.name()] = other.tokens
		case !errors.Is(err, engine.ErrShape): // an operation that it has no lowering for
			return err
		}
	}
	best, err := c.native(ctx, opts.PerModel)
	if err != nil {
		return err
	}
	if first.tokens > best.tokens {
		best.tokens = first.tokens
	}
	r.Figures["tokens_per_second_"+c.name()] = best.tokens
	for _, rival := range []string{"pytorch", "gomlx"} {
		if rate := r.Baseline[rival+"_tokens_per_second_"+c.name()]; rate > 0 {
			r.Figures["over_"+rival+"_"+c.name()] = best.tokens / rate
		}
	}
	if c.shape == "llama" && c.threads == opts.Parallelism {
		switch c.size.name {
		case small.name:
			r.Figures["allocations_per_step"] = best.allocations
		case large.name:
			if peak > 0 {
				r.Baseline["peak_gflops_per_core"] = peak / float64(c.threads) / 1e9
				r.Figures["flops_share_of_peak"] = best.tokens * float64(best.flops) / peak
			}
		}
	}
	return nil
}

func (c setting) native(ctx context.Context, limit time.Duration) (result, error) {
	return c.train(ctx, limit, func(p engine.Program) (engine.Engine, error) {
		return native.New(p, native.Options{Seed: 1, Parallelism: c.threads})
	})
}

func (c setting) gomlx(ctx context.Context, limit time.Duration) (result, error) {
	return c.train(ctx, limit, func(p engine.Program) (engine.Engine, error) {
		return gomlx.New(p, gomlx.Options{Seed: 1, Parallelism: c.threads})
	})
}

// result is what training one model gave, per second or per step.
type result struct {
	tokens, allocations float64
	flops               int64 // per token
}

// train runs whole optimiser steps on random tokens for that time, after two that do not count.
func (c setting) train(ctx context.Context, limit time.Duration, build func(engine.Program) (engine.Engine, error)) (result, error) {
	program, err := c.program(c.size)
	if err != nil {
		return result{}, err
	}
	flops, err := program.FLOPsPerToken(c.context)
	if err != nil {
		return result{}, err
	}
	e, err := build(program)
	if err != nil {
		return result{}, err
	}
	defer e.Close()
	rng := rand.New(rand.NewPCG(1, 1))
	batches := []engine.Batch{{Rows: c.rows, Context: c.context}}
	for range c.rows * c.context {
		batches[0].Inputs = append(batches[0].Inputs, int32(rng.IntN(c.vocab)))
		batches[0].Targets = append(batches[0].Targets, int32(rng.IntN(c.vocab)))
	}
	step := engine.Step{LearningRate: 1e-3, Beta1: 0.9, Beta2: 0.95, Epsilon: 1e-8, WeightDecay: 0.1, ClipNorm: 1}
	for range 2 {
		if _, err := e.Train(ctx, batches, step); err != nil {
			return result{}, err
		}
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	steps, start := 0, time.Now()
	for ; steps == 0 || time.Since(start) < limit; steps++ {
		if _, err := e.Train(ctx, batches, step); err != nil {
			return result{}, err
		}
	}
	seconds := time.Since(start).Seconds()
	runtime.ReadMemStats(&after)
	return result{
		tokens:      float64(steps*c.rows*c.context) / seconds,
		allocations: float64((after.Mallocs - before.Mallocs) / uint64(steps)), // whole ones: the runtime makes some of its own
		flops:       flops,
	}, nil
}

// products measures square matrix products on one core against its peak, each between two looks at the peak.
func (r *Report) products() error {
	set, err := kernel.Select()
	if err != nil {
		return err
	}
	for n, name := range map[int]string{512: "matmul_share_of_peak", 1024: "matmul_1024_share_of_peak"} {
		before, err := peakFLOPs(1)
		if err != nil {
			return err
		}
		speed := productFLOPs(set, n)
		after, err := peakFLOPs(1)
		if err != nil {
			return err
		}
		if peak := max(before, after); peak > 0 {
			r.Figures[name] = speed / peak
		}
	}
	return nil
}

// productFLOPs multiplies n×n matrices, the second one laid out beforehand as weights are, and returns the operations per
// second of the best of ten.
func productFLOPs(set kernel.Set, n int) float64 {
	a, b, c := make([]float32, n*n), make([]float32, kernel.PackedSize(n, n)), make([]float32, n*n)
	for i := range a {
		a[i] = float32(i%7) / 8
	}
	set.Pack(b, a, n, n)
	p := &kernel.Product{M: n, N: n, K: n, A: a, ARow: n, AStep: 1, B: b, BStep: 16, BPanel: 16 * n, C: c, CRow: n}
	best := time.Duration(1<<63 - 1)
	for range 10 {
		start := time.Now()
		set.Multiply(p)
		best = min(best, time.Since(start))
	}
	return 2 * float64(n) * float64(n) * float64(n) / best.Seconds()
}

// peakFLOPs returns the float32 operations per second of that many cores at once, or 0 when the kernels cannot tell.
func peakFLOPs(cores int) (float64, error) {
	set, err := kernel.Select()
	if err != nil {
		return 0, err
	}
	speeds := make([]float64, cores)
	var wg sync.WaitGroup
	for i := range speeds {
		wg.Go(func() {
			for range 5 { // the best of five: a peak is what the hardware can do undisturbed
				start := time.Now()
				operations := set.MultiplyAdds()
				speeds[i] = max(speeds[i], 2*float64(operations)/time.Since(start).Seconds())
			}
		})
	}
	wg.Wait()
	sum := 0.0
	for _, s := range speeds {
		sum += s
	}
	return sum, nil
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
