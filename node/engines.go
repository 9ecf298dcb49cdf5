package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/capacloud/capanode/gpu"
	"github.com/capacloud/capanode/gpu/detect"
	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/engine/gomlx"
	"github.com/capacloud/capanode/trainer/engine/native"
)

// pluginPathVariable holds folders or files that the XLA binding looks for plugins in; it is read when no plugin is
// configured.
const pluginPathVariable = "PJRT_PLUGIN_LIBRARY_PATH"

// pluginHint says where a plugin comes from.
const pluginHint = "pass --plugin PATH (or set CAPANODE_PLUGIN) with the absolute path of a CUDA PJRT plugin, such as " +
	"jax_plugins/xla_cuda13/xla_cuda_plugin.so of the Python packages jax-cuda13-plugin and jax-cuda13-pjrt; nothing is downloaded by itself"

// plugin returns the absolute path of the PJRT plugin for CUDA cards. Without one the error is [engine.ErrPlugin].
func (c Config) plugin() (string, error) {
	if c.Plugin != "" {
		path, err := filepath.Abs(c.Plugin)
		if err == nil {
			_, err = os.Stat(path)
		}
		if err != nil {
			return "", fmt.Errorf("plugin: %w: %w: %s", engine.ErrPlugin, err, pluginHint)
		}
		return path, nil
	}
	for _, entry := range filepath.SplitList(os.Getenv(pluginPathVariable)) {
		for _, pattern := range []string{"", "pjrt_c_api_*cuda*.so", "pjrt[-_]plugin[-_]*cuda*.so", "xla_cuda*plugin.so"} {
			found, _ := filepath.Glob(filepath.Join(entry, pattern)) // the patterns are well formed
			for _, path := range found {
				if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && filepath.IsAbs(path) {
					return path, nil
				}
			}
		}
	}
	return "", fmt.Errorf("plugin: %w: none is configured: %s", engine.ErrPlugin, pluginHint)
}

// engineFor says how the engine computes on a device: by the plugin on cards, without one on processors.
func engineFor(c Config, info gpu.Info) (gomlx.Device, error) {
	if info.Kind != gpu.KindCUDA {
		return gomlx.Device{}, nil
	}
	path, err := c.plugin()
	if err != nil {
		return gomlx.Device{}, fmt.Errorf("%s: %w", info.Name, err)
	}
	return gomlx.Device{Plugin: path, Index: info.Index, Capability: info.Capability, Precision: gomlx.Precision(c.Precision)}, nil
}

// newEngine makes the executor of a program for a device: XLA on cards, the native one on processors.
func newEngine(p engine.Program, d gomlx.Device, o native.Options) (engine.Engine, error) {
	if d.Plugin == "" {
		return native.New(p, o)
	}
	return gomlx.New(p, gomlx.Options{Seed: o.Seed, MemoryLimit: o.MemoryLimit, Parallelism: o.Parallelism, Device: d})
}

// numerics names the class of what newEngine's executor computes on a device.
func numerics(d gomlx.Device) string {
	if d.Plugin == "" {
		return native.Numerics()
	}
	return d.Numerics()
}

// cardShare is how much of a card's free memory the engine plans to use.
const cardShare = 0.92

// engineMemory is how much memory the engine may plan to use on a device: all of the processors', and of a card what is
// free now, less a reserve for the driver and its libraries.
func engineMemory(ctx context.Context, d gpu.Device) int64 {
	info := d.Info()
	if info.Kind != gpu.KindCUDA {
		return int64(info.MemoryBytes)
	}
	free := float64(info.MemoryBytes)
	if t, err := d.Telemetry(ctx); err == nil && t.MemoryUsed.Known {
		free -= t.MemoryUsed.Value
	}
	return int64(free * cardShare)
}

// EngineView is one device of this machine and what the engine makes of it.
type EngineView struct {
	Device      string   `json:"device"` // as --device takes it
	Name        string   `json:"name"`
	ID          string   `json:"id"`
	Class       string   `json:"class"`
	Bus         string   `json:"bus,omitempty"`
	Driver      string   `json:"driver,omitempty"`
	Capability  string   `json:"compute_capability,omitempty"`
	Cores       int      `json:"cores"`
	MemoryBytes uint64   `json:"memory_bytes"`
	Telemetry   Readings `json:"telemetry"`
	Numerics    string   `json:"numerics,omitempty"` // class of what the engine computes there
	Engine      string   `json:"engine"`             // ready, or why not
	Usable      bool     `json:"usable"`
}

// Readings is a device's telemetry; what it does not measure is absent.
type Readings struct {
	Temperature       *float64 `json:"temperature_celsius,omitempty"`
	MemoryTemperature *float64 `json:"memory_temperature_celsius,omitempty"`
	Power             *float64 `json:"power_watts,omitempty"`
	PowerLimit        *float64 `json:"power_limit_watts,omitempty"`
	Energy            *float64 `json:"energy_joules,omitempty"`
	Utilization       *float64 `json:"utilization,omitempty"`
	MemoryUsed        *float64 `json:"memory_used_bytes,omitempty"`
	Processes         *float64 `json:"processes,omitempty"`
	Clock             *float64 `json:"clock_megahertz,omitempty"`
	MemoryClock       *float64 `json:"memory_clock_megahertz,omitempty"`
	LinkGeneration    *float64 `json:"pcie_generation,omitempty"`
	LinkWidth         *float64 `json:"pcie_lanes,omitempty"`
	Throttled         bool     `json:"throttled"`
}

func readings(t gpu.Telemetry) Readings {
	at := func(r gpu.Reading) *float64 {
		if !r.Known {
			return nil
		}
		return &r.Value
	}
	return Readings{
		Temperature: at(t.Temperature), MemoryTemperature: at(t.MemoryTemperature), Power: at(t.Power), PowerLimit: at(t.PowerLimit),
		Energy: at(t.Energy), Utilization: at(t.Utilization), MemoryUsed: at(t.MemoryUsed), Processes: at(t.Processes), Clock: at(t.Clock),
		MemoryClock: at(t.MemoryClock), LinkGeneration: at(t.LinkGeneration), LinkWidth: at(t.LinkWidth), Throttled: t.Throttled,
	}
}

// Engines lists the processors and cards of this machine, what they measure and whether the engine computes on them.
func Engines(ctx context.Context, c Config) ([]EngineView, error) {
	var views []EngineView
	for _, selector := range []string{"cpu", "cuda"} {
		devices, _, err := detect.Open(ctx, selector)
		if err != nil && selector == "cpu" {
			return nil, err
		}
		for _, d := range devices { // none where there is no card
			v, verr := engineView(ctx, c, d)
			views, err = append(views, v), errors.Join(verr, d.Close())
			if err != nil {
				return nil, err
			}
		}
	}
	return views, nil
}

func engineView(ctx context.Context, c Config, d gpu.Device) (EngineView, error) {
	info := d.Info()
	t, err := d.Telemetry(ctx)
	if err != nil {
		return EngineView{}, err
	}
	v := EngineView{
		Device: "cpu", Name: info.Name, ID: info.ID, Class: info.Class, Bus: info.Bus, Driver: info.Driver, Capability: info.Capability,
		Cores: info.Cores, MemoryBytes: info.MemoryBytes, Telemetry: readings(t), Engine: "ready", Usable: true,
	}
	if info.Kind == gpu.KindCUDA {
		v.Device = fmt.Sprintf("cuda:%d", info.Index)
	}
	device, err := engineFor(c, info)
	if err == nil && device.Plugin != "" {
		var found string
		if found, err = gomlx.Probe(device); err == nil {
			v.Engine = "ready: " + found
		}
	}
	if err != nil {
		v.Engine, v.Usable = strings.TrimSpace(err.Error()), false
		return v, nil
	}
	v.Numerics = numerics(device)
	return v, nil
}
