package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/capacloud/capanode/gpu"
	"github.com/capacloud/capanode/gpu/detect"
	enginebench "github.com/capacloud/capanode/trainer/engine/bench"
)

// CUDABenchOptions say what BenchCUDA measures and on which card.
type CUDABenchOptions struct {
	Config Config
	Device string   // selector, such as cuda:0
	Parts  []string // of CUDAParts; empty means all
	Log    *slog.Logger
}

// CUDAParts lists the parts of the benchmark of a card.
func CUDAParts() []string { return enginebench.DeviceParts() }

const methodCUDA = "A card trains through the configured PJRT plugin. agreement takes 100 optimiser steps of the small model (0.81 M parameters) from the " +
	"same weights on the same batches as the processors and gives the largest difference of the loss, in nats. The others train on random " +
	"tokens for some seconds: large has 10.7 M parameters and context 256, llama-110m context 1024, llama-1b 1.04 G parameters and context 2048. Tokens per " +
	"second are those of the median step; first_step_seconds includes compiling; memory is what the card's use grew by at most. " +
	"The share of the peak counts the usual 6 operations per parameter and token, attention as if not causal, over the vendor's dense bf16 figure."

// BenchCUDA is the benchmark of a card.
func BenchCUDA(o CUDABenchOptions) Bench {
	wanted := []string{"loss_difference_fp32", "loss_difference_bf16"}
	for _, m := range []string{"large_fp32", "large_bf16", "llama_110m_fp32", "llama_110m_bf16", "llama_1b_bf16"} {
		wanted = append(wanted, "tokens_per_second_"+m, "peak_memory_mb_"+m)
	}
	if len(o.Parts) > 0 {
		wanted = nil
	}
	return Bench{"cuda", "Train on a card: loss against the processors, tokens per second, memory", methodCUDA, wanted,
		func(ctx context.Context, r *BenchReport) error { return benchCUDA(ctx, o, r) }}
}

func benchCUDA(ctx context.Context, o CUDABenchOptions, r *BenchReport) (err error) {
	devices, _, err := detect.Open(ctx, o.Device)
	if err != nil {
		return err
	}
	defer func() {
		for _, d := range devices {
			err = errors.Join(err, d.Close())
		}
	}()
	card := devices[0]
	device, err := engineFor(o.Config, card.Info())
	if err != nil {
		return err
	}
	if device.Plugin == "" { // asked for on purpose, say a CPU plugin
		if device.Plugin, err = o.Config.plugin(); err != nil {
			return err
		}
	}
	used := func() int64 {
		t, err := card.Telemetry(ctx)
		if err != nil || !t.MemoryUsed.Known {
			return 0
		}
		return int64(t.MemoryUsed.Value)
	}
	if card.Info().Kind != gpu.KindCUDA {
		used = nil
	}
	f, err := enginebench.OnDevice(ctx, enginebench.DeviceOptions{
		Device: device, Name: card.Info().Name, Memory: engineMemory(ctx, card), MemoryUsed: used, Parts: o.Parts,
		Say: func(format string, args ...any) { o.Log.Info(fmt.Sprintf(format, args...)) },
	})
	if err != nil {
		return err
	}
	r.Figures = f.Figures
	r.Machine.Device, r.Machine.Numerics = card.Info().Name, device.Numerics()
	if len(f.Figures) == 0 {
		return errors.Join(f.Failures...)
	}
	for _, failure := range f.Failures {
		o.Log.Error("part failed", "err", failure)
	}
	return nil
}
