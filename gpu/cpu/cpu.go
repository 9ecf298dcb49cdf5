// Package cpu owns the back-end that sells the machine's own processors. It refuses to set anything: it only reads what
// the operating system says.
package cpu

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/capacloud/capanode/gpu"
)

// maxProc is the most that is read of one file of the operating system, in bytes.
const maxProc = 1 << 20

// fallbackMemory is assumed, in bytes, where the system does not say how much memory there is.
const fallbackMemory = 1 << 30

// Options says where to look. The zero value is this machine.
type Options struct {
	Root fs.FS            // a Linux root; nil is os.DirFS("/")
	Now  func() time.Time // nil is time.Now
}

// Device is the machine's processors as one device.
type Device struct {
	root   fs.FS
	now    func() time.Time
	info   gpu.Info
	closed atomic.Bool
}

// Open describes the machine's processors. On systems without /proc the name is the architecture and the memory a
// cautious guess.
func Open(o Options) (*Device, error) {
	if o.Root == nil {
		o.Root = os.DirFS("/")
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	d := &Device{root: o.Root, now: o.Now}
	d.info = gpu.Info{
		ID:          d.id(),
		Kind:        gpu.KindCPU,
		Name:        d.name(),
		Class:       "cpu",
		MemoryBytes: d.memory(),
		Cores:       runtime.NumCPU(),
	}
	if err := d.info.Check(); err != nil {
		return nil, err
	}
	return d, nil
}

// Info describes the processors.
func (d *Device) Info() gpu.Info { return d.info }

// Telemetry reads load and memory. Utilization is the one-minute load per core, at most 1.
func (d *Device) Telemetry(ctx context.Context) (gpu.Telemetry, error) {
	if err := ctx.Err(); err != nil {
		return gpu.Telemetry{}, fmt.Errorf("cpu: telemetry: %w", err)
	}
	if d.closed.Load() {
		return gpu.Telemetry{}, fmt.Errorf("cpu: telemetry: %w", gpu.ErrClosed)
	}
	t := gpu.Telemetry{Time: d.now()}
	if load, _, ok := strings.Cut(d.read("proc/loadavg"), " "); ok {
		if v, err := strconv.ParseFloat(load, 64); err == nil && v >= 0 {
			t.Utilization = gpu.Known(min(v/float64(d.info.Cores), 1))
		}
	}
	total, ok1 := d.kilobytes("MemTotal")
	free, ok2 := d.kilobytes("MemAvailable")
	if ok1 && ok2 && free <= total {
		t.MemoryUsed = gpu.Known(float64(total - free))
	}
	return t, nil
}

// Close ends the device's use.
func (d *Device) Close() error {
	d.closed.Store(true)
	return nil
}

// id is a hash of the machine's own ID, which is not for strangers, or of the host name.
func (d *Device) id() string {
	machine := strings.TrimSpace(d.read("etc/machine-id"))
	if machine == "" {
		machine, _ = os.Hostname()
	}
	sum := sha256.Sum256([]byte("capanode cpu " + machine))
	return "CPU-" + hex.EncodeToString(sum[:8])
}

func (d *Device) name() string {
	for line := range strings.Lines(d.read("proc/cpuinfo")) {
		key, value, _ := strings.Cut(line, ":")
		if key = strings.TrimSpace(key); key != "model name" && key != "Model" {
			continue
		}
		if name := strings.Join(strings.Fields(value), " "); name != "" {
			return name[:min(len(name), gpu.MaxText)]
		}
	}
	return runtime.GOARCH + " processor"
}

// memory is what processes of this machine, or of this container, may use.
func (d *Device) memory() uint64 {
	total, ok := d.kilobytes("MemTotal")
	if !ok || total == 0 {
		total = fallbackMemory
	}
	limit, err := strconv.ParseUint(strings.TrimSpace(d.read("sys/fs/cgroup/memory.max")), 10, 64)
	if err == nil && limit > 0 {
		total = min(total, limit)
	}
	return min(total, gpu.MaxMemory)
}

// kilobytes returns a line of /proc/meminfo in bytes.
func (d *Device) kilobytes(key string) (uint64, bool) {
	for line := range strings.Lines(d.read("proc/meminfo")) {
		name, value, _ := strings.Cut(line, ":")
		if name != key {
			continue
		}
		kb, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		return kb * 1024, err == nil && kb <= gpu.MaxMemory/1024
	}
	return 0, false
}

// read returns a file of the operating system, or nothing.
func (d *Device) read(name string) string {
	f, err := d.root.Open(name)
	if err != nil {
		return ""
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxProc))
	if err != nil {
		return ""
	}
	return string(raw)
}
