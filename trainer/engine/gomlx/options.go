package gomlx

import (
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"time"

	"github.com/capacloud/capanode/trainer/engine"
)

// Precision is what an executor on a device multiplies matrices and keeps results in.
type Precision string

// The precisions. Weights, moments, gradients of weights, norms, softmax and losses are float32 in both.
const (
	FP32 Precision = "fp32"
	BF16 Precision = "bf16"
)

// Options configure an executor. The zero value is usable.
type Options struct {
	Seed        uint64        // of the initial weights
	MemoryLimit int64         // bytes the executor may plan to use; 0 means no limit
	Watchdog    time.Duration // longest time for one execution; 0 means DefaultWatchdog
	Parallelism int           // goroutines that compute on processors; 0 means GOMAXPROCS. Results do not depend on it
	Log         *slog.Logger  // nil discards
	Device      Device        // the zero value is this machine's processors
}

// Device names a device that an XLA plugin computes on.
type Device struct {
	Plugin     string    // path of the PJRT plugin, a shared library; empty for processors without one
	Index      int       // of the device in the driver's order
	Capability string    // the device's compute capability, such as 9.0; for the numerics class
	Precision  Precision // empty means FP32
}

// DefaultWatchdog is the time that one execution may take when the options say nothing. On processors that is a chunk of
// a few hundred tokens, so this leaves room for models a thousand times slower than those a CPU is good for.
const DefaultWatchdog = 10 * time.Minute

func (o Options) withDefaults() (Options, error) {
	if o.Parallelism < 1 {
		o.Parallelism = runtime.GOMAXPROCS(0)
	}
	if o.Watchdog <= 0 {
		o.Watchdog = DefaultWatchdog
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Device.Precision == "" {
		o.Device.Precision = FP32
	}
	if p := o.Device.Precision; p != FP32 && (p != BF16 || o.Device.Plugin == "") {
		return o, fmt.Errorf("gomlx: precision %q: %w: processors compute in fp32, devices in fp32 or bf16", p, engine.ErrPlugin)
	}
	return o, nil
}

// Numerics returns the numerics class of what an executor on the device computes, such as xla-cuda/sm90/bf16. Results of
// one class agree within rounding; on processors without a plugin they are the same bits, see [Numerics].
func (d Device) Numerics() string {
	if d.Plugin == "" {
		return Numerics()
	}
	precision := d.Precision
	if precision == "" {
		precision = FP32
	}
	unit := "unknown"
	if d.Capability != "" {
		unit = "sm" + strings.ReplaceAll(d.Capability, ".", "")
	}
	return fmt.Sprintf("xla-%s/%s/%s", platform(d.Plugin), unit, precision)
}

// platform guesses what a plugin computes on from its path, as the library that loads it does.
func platform(plugin string) string {
	if name := strings.ToLower(plugin); strings.Contains(name, "cuda") || strings.Contains(name, "nvidia") {
		return "cuda"
	}
	return "cpu"
}
