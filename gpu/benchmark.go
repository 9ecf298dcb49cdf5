package gpu

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Workload is something that a device can be timed on. The room that owns the tensors implements it.
type Workload interface {
	// Step does one unit of work to its end and returns its floating-point operations.
	Step(ctx context.Context) (operations uint64, err error)
}

// Effort bounds a benchmark. Zero fields take the defaults in brackets.
type Effort struct {
	Warmup int           // steps before timing starts [2]
	Least  int           // timed steps at least [5]
	Most   int           // timed steps at most [1000]
	Time   time.Duration // timed for so long, unless Most ends it [2 s]
}

// Result is what a benchmark measured.
type Result struct {
	DeviceID   string
	Steps      int
	Duration   time.Duration // of all timed steps
	Median     time.Duration // of one step
	Operations uint64        // floating-point operations of all timed steps
	PerSecond  float64       // operations of the median step per second
	Energy     Reading       // J, of all timed steps
}

// ErrNoWork reports a workload that did nothing or took no time.
var ErrNoWork = errors.New("workload did no work")

// Benchmark runs the workload and measures the device's speed. The figure is that of the median step, so that a pause of
// the machine does not change it.
func Benchmark(ctx context.Context, d Device, w Workload, effort Effort) (Result, error) {
	effort = effort.withDefaults()
	for range effort.Warmup {
		if _, err := w.Step(ctx); err != nil {
			return Result{}, fmt.Errorf("gpu: benchmark %s: %w", d.Info().ID, err)
		}
	}
	before, err := d.Telemetry(ctx)
	if err != nil {
		return Result{}, fmt.Errorf("gpu: benchmark %s: %w", d.Info().ID, err)
	}
	r := Result{DeviceID: d.Info().ID}
	var times []time.Duration
	var speeds []float64 // operations per second of each step
	for len(times) < effort.Most && (len(times) < effort.Least || r.Duration < effort.Time) {
		start := time.Now()
		operations, err := w.Step(ctx)
		took := time.Since(start)
		if err == nil && (operations == 0 || took <= 0) {
			err = ErrNoWork
		}
		if err != nil {
			return Result{}, fmt.Errorf("gpu: benchmark %s: step %d: %w", r.DeviceID, len(times), err)
		}
		r.Operations += operations
		r.Duration += took
		times = append(times, took)
		speeds = append(speeds, float64(operations)/took.Seconds())
	}
	after, err := d.Telemetry(ctx)
	if err != nil {
		return Result{}, fmt.Errorf("gpu: benchmark %s: %w", r.DeviceID, err)
	}
	if before.Energy.Known && after.Energy.Known && after.Energy.Value >= before.Energy.Value {
		r.Energy = Known(after.Energy.Value - before.Energy.Value)
	}
	slices.Sort(times)
	slices.Sort(speeds)
	r.Steps, r.Median, r.PerSecond = len(times), times[len(times)/2], speeds[len(speeds)/2]
	return r, nil
}

func (e Effort) withDefaults() Effort {
	if e.Warmup == 0 {
		e.Warmup = 2
	}
	if e.Least == 0 {
		e.Least = 5
	}
	if e.Most == 0 {
		e.Most = 1000
	}
	if e.Time == 0 {
		e.Time = 2 * time.Second
	}
	e.Most = max(e.Most, e.Least)
	return e
}
