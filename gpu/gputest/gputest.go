// Package gputest owns the conformance suite of devices: what every back-end must do, real or scripted. It refuses to
// test anything that only one back-end has.
package gputest

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/capacloud/capanode/gpu"
)

// Run holds a back-end to the contract of [gpu.Device]. open returns a fresh, working device at each call.
func Run(t *testing.T, open func(t *testing.T) gpu.Device) {
	t.Helper()
	device := func(t *testing.T) gpu.Device {
		d := open(t)
		t.Cleanup(func() {
			if err := d.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		})
		return d
	}
	t.Run("describes itself", func(t *testing.T) {
		d := device(t)
		if err := d.Info().Check(); err != nil {
			t.Error(err)
		}
		if first, again := d.Info(), d.Info(); again != first {
			t.Errorf("info changed from %+v to %+v", first, again)
		}
	})
	t.Run("keeps its ID when opened again", func(t *testing.T) {
		if a, b := device(t).Info().ID, device(t).Info().ID; a != b {
			t.Errorf("IDs %s and %s", a, b)
		}
	})
	t.Run("measures within reason", func(t *testing.T) { checkTelemetry(t, device(t)) })
	t.Run("obeys a cancelled context", func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if _, err := device(t).Telemetry(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("telemetry: %v", err)
		}
	})
	t.Run("closes twice and answers no more", func(t *testing.T) {
		d := open(t)
		info := d.Info()
		for range 2 {
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		}
		if _, err := d.Telemetry(context.Background()); !errors.Is(err, gpu.ErrClosed) {
			t.Errorf("telemetry of a closed device: %v", err)
		}
		if d.Info() != info {
			t.Error("a closed device forgot what it is")
		}
	})
	t.Run("serves many callers", func(t *testing.T) {
		d := open(t)
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				if i == 7 {
					if err := d.Close(); err != nil {
						t.Error(err)
					}
				}
				if _, err := d.Telemetry(context.Background()); err != nil && !errors.Is(err, gpu.ErrClosed) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	})
}

func checkTelemetry(t *testing.T, d gpu.Device) {
	t.Helper()
	m, err := d.Telemetry(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if m.Time.IsZero() {
		t.Error("telemetry without a time")
	}
	for _, r := range []struct {
		name    string
		reading gpu.Reading
		most    float64
	}{
		{"temperature", m.Temperature, 150},
		{"memory temperature", m.MemoryTemperature, 150},
		{"power", m.Power, 10_000},
		{"power limit", m.PowerLimit, 10_000},
		{"energy", m.Energy, 1e15},
		{"utilization", m.Utilization, 1},
		{"memory used", m.MemoryUsed, gpu.MaxMemory},
		{"processes", m.Processes, 1e6},
		{"clock", m.Clock, 1e5},
		{"memory clock", m.MemoryClock, 1e5},
		{"link generation", m.LinkGeneration, 16},
		{"link width", m.LinkWidth, 64},
	} {
		if v := r.reading; v.Known && !(v.Value >= 0 && v.Value <= r.most) || !v.Known && v.Value != 0 {
			t.Errorf("%s: %+v", r.name, v)
		}
	}
	if len(m.Metrics()) == 0 {
		t.Error("no reading is known")
	}
}
