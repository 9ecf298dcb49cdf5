// Package fake owns scripted devices: what tests and rehearsals use in place of hardware. It refuses to compute anything,
// and what it makes is never offered as a real card unless a test says so.
package fake

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/capacloud/capanode/gpu"
)

// Frame is what a device answers to one call of Telemetry.
type Frame struct {
	Telemetry gpu.Telemetry
	Err       error
}

// Script says what a device is and what it will report.
type Script struct {
	Info   gpu.Info
	Frames []Frame          // one per call; the last one stays
	Now    func() time.Time // fills Telemetry.Time where it is zero; nil is time.Now
}

// Device plays a script.
type Device struct {
	script Script
	mu     sync.Mutex // guards what follows
	next   int
	closed bool
}

// New returns a device that plays the script.
func New(s Script) *Device {
	if s.Now == nil {
		s.Now = time.Now
	}
	return &Device{script: s}
}

// Card returns the description of a made-up card, for scripts that only need one.
func Card(name string, index int) gpu.Info {
	return gpu.Info{
		ID: fmt.Sprintf("FAKE-%d-%s", index, gpu.ClassOf(name)), Kind: gpu.KindFake, Index: index, Name: name,
		Class: gpu.ClassOf(name), MemoryBytes: 24 << 30, Cores: 10496, Driver: "scripted",
	}
}

// Info describes the device.
func (d *Device) Info() gpu.Info { return d.script.Info }

// Telemetry plays the next frame.
func (d *Device) Telemetry(ctx context.Context) (gpu.Telemetry, error) {
	if err := ctx.Err(); err != nil {
		return gpu.Telemetry{}, fmt.Errorf("fake: telemetry: %w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return gpu.Telemetry{}, fmt.Errorf("fake: telemetry: %w", gpu.ErrClosed)
	}
	var f Frame
	if n := len(d.script.Frames); n > 0 {
		f = d.script.Frames[min(d.next, n-1)]
		d.next++
	}
	if f.Err != nil {
		return gpu.Telemetry{}, f.Err
	}
	if f.Telemetry.Time.IsZero() {
		f.Telemetry.Time = d.script.Now()
	}
	return f.Telemetry, nil
}

// Close ends the device's use.
func (d *Device) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	return nil
}
