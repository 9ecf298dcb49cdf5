package fake_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/capacloud/capanode/gpu"
	"github.com/capacloud/capanode/gpu/fake"
	"github.com/capacloud/capanode/gpu/gputest"
)

func TestConformance(t *testing.T) {
	gputest.Run(t, func(*testing.T) gpu.Device {
		return fake.New(fake.Script{Info: fake.Card("NVIDIA GeForce RTX 3090", 1), Frames: []fake.Frame{
			{Telemetry: gpu.Telemetry{Temperature: gpu.Known(50), Energy: gpu.Known(1000)}},
		}})
	})
}

func TestFramesPlayInOrderAndTheLastStays(t *testing.T) {
	d := fake.New(fake.Script{Info: fake.Card("x", 0), Frames: []fake.Frame{
		{Telemetry: gpu.Telemetry{Temperature: gpu.Known(50)}},
		{Err: gpu.ErrLost},
		{Telemetry: gpu.Telemetry{Temperature: gpu.Known(60)}},
	}})
	ctx := context.Background()
	if m, err := d.Telemetry(ctx); err != nil || m.Temperature.Value != 50 {
		t.Fatalf("%+v, %v", m, err)
	}
	if _, err := d.Telemetry(ctx); !errors.Is(err, gpu.ErrLost) {
		t.Fatal(err)
	}
	for range 2 {
		if m, err := d.Telemetry(ctx); err != nil || m.Temperature.Value != 60 {
			t.Fatalf("%+v, %v", m, err)
		}
	}
}

// work takes its time from the bubble's clock.
type work struct {
	took       []time.Duration
	operations uint64
	err        error
	steps      int
}

func (w *work) Step(ctx context.Context) (uint64, error) {
	took := w.took[w.steps%len(w.took)]
	w.steps++
	select {
	case <-time.After(took):
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	return w.operations, w.err
}

func TestBenchmark(t *testing.T) {
	frames := []fake.Frame{
		{Telemetry: gpu.Telemetry{Energy: gpu.Known(1000)}},
		{Telemetry: gpu.Telemetry{Energy: gpu.Known(1700)}},
	}
	synctest.Test(t, func(t *testing.T) {
		d := fake.New(fake.Script{Info: fake.Card("x", 0), Frames: frames})
		w := &work{took: []time.Duration{100 * time.Millisecond, 100 * time.Millisecond, time.Second}, operations: 2e9}
		r, err := gpu.Benchmark(t.Context(), d, w, gpu.Effort{Warmup: 1, Least: 3, Time: 2 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		// After the warm-up: 100, 1000, 100, 100, 1000 ms.
		if r.Steps != 5 || r.Duration != 2300*time.Millisecond || r.Median != 100*time.Millisecond || r.Operations != 1e10 {
			t.Errorf("%+v", r)
		}
		if r.PerSecond != 2e10 || r.Energy != gpu.Known(700) || r.DeviceID != d.Info().ID {
			t.Errorf("%+v", r)
		}
	})
}

func TestBenchmarkEndsAtMost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := fake.New(fake.Script{Info: fake.Card("x", 0)})
		w := &work{took: []time.Duration{time.Millisecond}, operations: 1}
		r, err := gpu.Benchmark(t.Context(), d, w, gpu.Effort{Most: 7})
		if err != nil || r.Steps != 7 || r.Energy.Known {
			t.Errorf("%+v, %v", r, err)
		}
	})
}

func TestBenchmarkFailures(t *testing.T) {
	broken := errors.New("kernel failed")
	synctest.Test(t, func(t *testing.T) {
		cancelled, cancel := context.WithCancel(t.Context())
		cancel()
		for name, c := range map[string]struct {
			ctx  context.Context
			w    *work
			d    fake.Script
			want error
		}{
			"error":    {t.Context(), &work{took: []time.Duration{1}, err: broken}, fake.Script{}, broken},
			"idle":     {t.Context(), &work{took: []time.Duration{1}}, fake.Script{}, gpu.ErrNoWork},
			"instant":  {t.Context(), &work{took: []time.Duration{0}, operations: 1}, fake.Script{}, gpu.ErrNoWork},
			"cancel":   {cancelled, &work{took: []time.Duration{time.Hour}}, fake.Script{}, context.Canceled},
			"lost GPU": {t.Context(), &work{took: []time.Duration{1}, operations: 1}, fake.Script{Frames: []fake.Frame{{Err: gpu.ErrLost}}}, gpu.ErrLost},
		} {
			if _, err := gpu.Benchmark(c.ctx, fake.New(c.d), c.w, gpu.Effort{}); !errors.Is(err, c.want) {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}
