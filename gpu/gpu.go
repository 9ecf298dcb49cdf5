// Package gpu owns what the program knows about compute devices: what they are, how they feel, who has them, how fast
// they run a given workload and when their owner wants them left alone. It refuses to know about peers, jobs and tensors.
//
// Back-ends live in packages below: nvml (NVIDIA cards through the driver's library), cpu (the machine's processors) and
// fake (scripted, for tests). Package detect chooses among them; package gputest holds what all of them must do.
package gpu

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
)

// ErrUnsupported reports a back-end that this build or machine cannot have.
var ErrUnsupported = errors.New("not supported here")

// ErrNoDevice reports a device that does not exist.
var ErrNoDevice = errors.New("no such device")

// ErrLost reports a device that stopped answering: it fell off the bus or its driver failed.
var ErrLost = errors.New("device lost")

// ErrClosed reports the use of a closed device.
var ErrClosed = errors.New("device is closed")

// ErrRange reports a value from a driver that no device can have.
var ErrRange = errors.New("device reports an impossible value")

// Device is one device that can be sold. Its methods are safe for concurrent use.
type Device interface {
	// Info says what the device is; it never changes.
	Info() Info
	// Telemetry measures the device now.
	Telemetry(ctx context.Context) (Telemetry, error)
	// Close frees the handle. It may be called again.
	Close() error
}

// Kind is the sort of a device.
type Kind string

// The kinds of devices.
const (
	KindCPU  Kind = "cpu"
	KindCUDA Kind = "cuda"
	KindFake Kind = "fake"
)

// Limits of an [Info].
const (
	MaxText   = 128     // bytes in a name or ID
	MaxClass  = 32      // bytes in a class
	MaxMemory = 1 << 50 // bytes
	MaxCores  = 1 << 20
)

// Info describes a device.
type Info struct {
	ID          string // stable over restarts and unique among machines, such as the driver's UUID
	Kind        Kind
	Index       int    // position in the driver's list
	Name        string // as the maker calls it
	Class       string // what the market calls it: equal for equal hardware, such as "h100" or "4090"
	MemoryBytes uint64
	Cores       int    // processors of a CPU, shader cores of a GPU
	Driver      string // version; empty where there is none
	Capability  string // compute capability of a CUDA card, such as "9.0"; empty where there is none
	Bus         string // PCI address; empty where there is none
}

// Check refuses an Info that no real device has. Back-ends call it on what drivers tell them.
func (i Info) Check() error {
	for _, f := range []struct {
		field, value string
		most         int
	}{{"ID", i.ID, MaxText}, {"name", i.Name, MaxText}, {"class", i.Class, MaxClass}} {
		if f.value == "" || len(f.value) > f.most || strings.ContainsFunc(f.value, unicode.IsControl) {
			return fmt.Errorf("gpu: %s %.40q: %w", f.field, f.value, ErrRange)
		}
	}
	switch {
	case i.Kind != KindCPU && i.Kind != KindCUDA && i.Kind != KindFake:
		return fmt.Errorf("gpu: %s: kind %.40q: %w", i.ID, i.Kind, ErrRange)
	case i.MemoryBytes == 0 || i.MemoryBytes > MaxMemory:
		return fmt.Errorf("gpu: %s: %d bytes of memory: %w", i.ID, i.MemoryBytes, ErrRange)
	case i.Cores < 1 || i.Cores > MaxCores:
		return fmt.Errorf("gpu: %s: %d cores: %w", i.ID, i.Cores, ErrRange)
	case len(i.Capability) > 8 || strings.ContainsFunc(i.Capability, func(r rune) bool { return r != '.' && (r < '0' || r > '9') }):
		return fmt.Errorf("gpu: %s: compute capability %.40q: %w", i.ID, i.Capability, ErrRange)
	case len(i.Bus) > MaxText || strings.ContainsFunc(i.Bus, unicode.IsControl):
		return fmt.Errorf("gpu: %s: bus address %.40q: %w", i.ID, i.Bus, ErrRange)
	case i.Index < 0 || i.Index > 1<<10:
		return fmt.Errorf("gpu: %s: index %d: %w", i.ID, i.Index, ErrRange)
	}
	return nil
}

// Reading is one measured value, or the fact that the device does not measure it.
type Reading struct {
	Value float64
	Known bool
}

// Known returns the reading of a measured value.
func Known(v float64) Reading { return Reading{v, true} }

// Within returns the reading of v, or an unknown one when v is outside [low, high]: drivers report such values when a
// sensor is missing.
func Within(v, low, high float64) Reading {
	if v >= low && v <= high {
		return Known(v)
	}
	return Reading{}
}

// Telemetry is how a device is at one moment.
type Telemetry struct {
	Time              time.Time
	Temperature       Reading // of the core, °C
	MemoryTemperature Reading // °C
	Power             Reading // W
	PowerLimit        Reading // W
	Energy            Reading // J, counts up while the driver is loaded
	Utilization       Reading // share of time busy, 0 to 1
	MemoryUsed        Reading // bytes, by all processes
	Processes         Reading // compute processes on the device
	Clock             Reading // of the cores, MHz
	MemoryClock       Reading // MHz
	LinkGeneration    Reading // of PCI Express, as it runs now
	LinkWidth         Reading // lanes in use
	Throttled         bool    // slowed down by heat or by a power brake
}

// Metric is one number for a metrics page, named and in units as Prometheus wants them.
type Metric struct {
	Name   string // such as capanode_gpu_temperature_celsius
	Sensor string // which of several sensors; empty where there is one
	Value  float64
}

// Metrics returns what is known, always in the same order.
func (t Telemetry) Metrics() []Metric {
	var known []Metric
	for _, m := range []struct {
		name, sensor string
		reading      Reading
	}{
		{"capanode_gpu_temperature_celsius", "core", t.Temperature},
		{"capanode_gpu_temperature_celsius", "memory", t.MemoryTemperature},
		{"capanode_gpu_power_watts", "", t.Power},
		{"capanode_gpu_power_limit_watts", "", t.PowerLimit},
		{"capanode_gpu_energy_joules_total", "", t.Energy},
		{"capanode_gpu_utilization_ratio", "", t.Utilization},
		{"capanode_gpu_memory_used_bytes", "", t.MemoryUsed},
		{"capanode_gpu_processes", "", t.Processes},
		{"capanode_gpu_clock_megahertz", "core", t.Clock},
		{"capanode_gpu_clock_megahertz", "memory", t.MemoryClock},
		{"capanode_gpu_link_generation", "", t.LinkGeneration},
		{"capanode_gpu_link_lanes", "", t.LinkWidth},
	} {
		if m.reading.Known {
			known = append(known, Metric{m.name, m.sensor, m.reading.Value})
		}
	}
	return known
}

// vendorWords stand in makers' names and say nothing about what the hardware can do.
var vendorWords = map[string]bool{
	"nvidia": true, "geforce": true, "rtx": true, "gtx": true, "tesla": true, "graphics": true, "gpu": true, "device": true,
	"generation": true, "pcie": true, "nvl": true,
}

// ClassOf turns a maker's name into the market's class: the model number without brand, bus and memory, such as
// "NVIDIA H100 80GB HBM3" → "h100", "NVIDIA GeForce RTX 3080 Ti" → "3080-ti". A name that leaves nothing is "unknown".
func ClassOf(name string) string {
	words := strings.FieldsFunc(strings.ToLower(name), func(r rune) bool {
		return r > unicode.MaxASCII || !unicode.IsLetter(r) && !unicode.IsDigit(r)
	})
	var kept []string
	for _, w := range words {
		memory := strings.HasSuffix(w, "gb") && unicode.IsDigit(rune(w[0]))
		if !vendorWords[w] && !memory && !strings.HasPrefix(w, "sxm") && !strings.HasPrefix(w, "hbm") {
			kept = append(kept, w)
		}
	}
	class := strings.Join(kept, "-")
	if len(class) > MaxClass {
		class = strings.TrimRight(class[:MaxClass], "-")
	}
	if class == "" {
		return "unknown"
	}
	return class
}
