//go:build cgo && linux

package nvml

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	driver "github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/capacloud/capanode/gpu"
)

// maxDevices is the most cards of one machine that are looked at.
const maxDevices = 64

// slowdowns are the clock event reasons that mean heat or a power brake, as opposed to idling and ordinary limits.
const slowdowns = driver.ClocksEventReasonSwThermalSlowdown | driver.ClocksThrottleReasonHwThermalSlowdown |
	driver.ClocksThrottleReasonHwPowerBrakeSlowdown

// Open lists the machine's NVIDIA cards in the driver's order. A machine without the driver's library is
// [gpu.ErrUnsupported]; one with the library and no cards gives none. Close every device.
func Open() ([]gpu.Device, error) { return open(driver.New(), time.Now) }

// library keeps the driver's library open while one of its devices is.
type library struct {
	lib driver.Interface
	now func() time.Time

	mu    sync.Mutex
	users int
}

func open(lib driver.Interface, now func() time.Time) ([]gpu.Device, error) {
	switch ret := lib.Init(); ret {
	case driver.SUCCESS:
	case driver.ERROR_LIBRARY_NOT_FOUND:
		return nil, fmt.Errorf("nvml: the NVIDIA driver's library is not installed: %w", gpu.ErrUnsupported)
	case driver.ERROR_DRIVER_NOT_LOADED:
		return nil, fmt.Errorf("nvml: the NVIDIA driver is installed but not loaded: %w", gpu.ErrUnsupported)
	default:
		return nil, fmt.Errorf("nvml: start the NVIDIA library: %w", failure(ret))
	}
	l := &library{lib: lib, now: now, users: 1}
	devices, err := l.devices()
	if err != nil {
		for _, d := range devices {
			err = errors.Join(err, d.Close())
		}
		devices = nil
	}
	return devices, errors.Join(err, l.release())
}

func (l *library) devices() ([]gpu.Device, error) {
	version, ret := l.lib.SystemGetDriverVersion()
	if ret != driver.SUCCESS {
		return nil, fmt.Errorf("nvml: driver version: %w", failure(ret))
	}
	count, ret := l.lib.DeviceGetCount()
	if ret != driver.SUCCESS {
		return nil, fmt.Errorf("nvml: count cards: %w", failure(ret))
	}
	if count < 0 || count > maxDevices {
		return nil, fmt.Errorf("nvml: %d cards: %w", count, gpu.ErrRange)
	}
	var devices []gpu.Device
	for i := range count {
		handle, ret := l.lib.DeviceGetHandleByIndex(i)
		if ret != driver.SUCCESS {
			return devices, fmt.Errorf("nvml: card %d: %w", i, failure(ret))
		}
		info, err := describe(handle, i, version)
		if err != nil {
			return devices, fmt.Errorf("nvml: card %d: %w", i, err)
		}
		l.mu.Lock()
		l.users++
		l.mu.Unlock()
		devices = append(devices, &device{library: l, handle: handle, info: info})
	}
	return devices, nil
}

func (l *library) release() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.users--; l.users > 0 {
		return nil
	}
	if ret := l.lib.Shutdown(); ret != driver.SUCCESS {
		return fmt.Errorf("nvml: stop the NVIDIA library: %w", failure(ret))
	}
	return nil
}

// describe asks a card what it is. The number of shader cores is not known to every driver; 1 stands in.
func describe(handle driver.Device, index int, version string) (gpu.Info, error) {
	uuid, ret := handle.GetUUID()
	if ret != driver.SUCCESS {
		return gpu.Info{}, fmt.Errorf("UUID: %w", failure(ret))
	}
	name, ret := handle.GetName()
	if ret != driver.SUCCESS {
		return gpu.Info{}, fmt.Errorf("name: %w", failure(ret))
	}
	memory, ret := handle.GetMemoryInfo()
	if ret != driver.SUCCESS {
		return gpu.Info{}, fmt.Errorf("memory: %w", failure(ret))
	}
	info := gpu.Info{
		ID: uuid, Kind: gpu.KindCUDA, Index: index, Name: name, Class: gpu.ClassOf(name), MemoryBytes: memory.Total,
		Cores: 1, Driver: version,
	}
	if cores, ret := handle.GetNumGpuCores(); ret == driver.SUCCESS {
		info.Cores = cores
	}
	if major, minor, ret := handle.GetCudaComputeCapability(); ret == driver.SUCCESS {
		info.Capability = fmt.Sprintf("%d.%d", major, minor)
	}
	if pci, ret := handle.GetPciInfo(); ret == driver.SUCCESS {
		info.Bus = text(pci.BusId[:])
	}
	return info, info.Check()
}

// text reads a C string.
func text[T int8 | uint8](chars []T) string {
	var b []byte
	for _, c := range chars {
		if c == 0 {
			break
		}
		b = append(b, byte(c))
	}
	return string(b)
}

// device is one card.
type device struct {
	*library
	handle driver.Device
	info   gpu.Info

	state  sync.RWMutex // held shared during a call into the driver
	closed bool
}

func (d *device) Info() gpu.Info { return d.info }

// Close frees the card and, after the last one, the library.
func (d *device) Close() error {
	d.state.Lock()
	defer d.state.Unlock()
	if d.closed {
		return nil
	}
	d.closed = true
	return d.release()
}

// Telemetry asks the driver. What a card does not measure stays unknown; a card that is gone is [gpu.ErrLost].
func (d *device) Telemetry(ctx context.Context) (gpu.Telemetry, error) {
	if err := ctx.Err(); err != nil {
		return gpu.Telemetry{}, fmt.Errorf("nvml: telemetry: %w", err)
	}
	d.state.RLock()
	defer d.state.RUnlock()
	if d.closed {
		return gpu.Telemetry{}, fmt.Errorf("nvml: telemetry: %w", gpu.ErrClosed)
	}
	p := probe{}
	t := gpu.Telemetry{Time: d.now()}
	celsius, ret := d.handle.GetTemperature(driver.TEMPERATURE_GPU)
	t.Temperature = p.reading(ret, float64(celsius), 150)
	milliwatts, ret := d.handle.GetPowerUsage()
	t.Power = p.reading(ret, float64(milliwatts)/1000, 10_000)
	milliwatts, ret = d.handle.GetEnforcedPowerLimit()
	t.PowerLimit = p.reading(ret, float64(milliwatts)/1000, 10_000)
	millijoules, ret := d.handle.GetTotalEnergyConsumption()
	t.Energy = p.reading(ret, float64(millijoules)/1000, 1e15)
	busy, ret := d.handle.GetUtilizationRates()
	t.Utilization = p.reading(ret, float64(busy.Gpu)/100, 1)
	memory, ret := d.handle.GetMemoryInfo()
	t.MemoryUsed = p.reading(ret, float64(memory.Used), float64(d.info.MemoryBytes))
	processes, ret := d.handle.GetComputeRunningProcesses()
	t.Processes = p.reading(ret, float64(len(processes)), 1e6)
	clock, ret := d.handle.GetClockInfo(driver.CLOCK_SM)
	t.Clock = p.reading(ret, float64(clock), 1e5)
	clock, ret = d.handle.GetClockInfo(driver.CLOCK_MEM)
	t.MemoryClock = p.reading(ret, float64(clock), 1e5)
	link, ret := d.handle.GetCurrPcieLinkGeneration()
	t.LinkGeneration = p.reading(ret, float64(link), 16)
	link, ret = d.handle.GetCurrPcieLinkWidth()
	t.LinkWidth = p.reading(ret, float64(link), 64)
	reasons, ret := d.handle.GetCurrentClocksEventReasons()
	t.Throttled = p.reading(ret, 0, 0).Known && reasons&slowdowns != 0
	t.MemoryTemperature = d.memoryTemperature(&p)
	if p.lost {
		return gpu.Telemetry{}, fmt.Errorf("nvml: %s: %w", d.info.ID, gpu.ErrLost)
	}
	return t, nil
}

// memoryTemperature reads the hottest memory, which only data-centre cards report.
func (d *device) memoryTemperature(p *probe) gpu.Reading {
	field := []driver.FieldValue{{FieldId: driver.FI_DEV_MEMORY_TEMP}}
	ret := d.handle.GetFieldValues(field)
	if ret == driver.SUCCESS {
		ret = driver.Return(field[0].NvmlReturn)
	}
	r := p.reading(ret, float64(binary.NativeEndian.Uint32(field[0].Value[:4])), 150)
	if r.Value == 0 {
		return gpu.Reading{} // 0 °C is how a missing sensor reads
	}
	return r
}

// probe collects the outcome of several questions to one card.
type probe struct{ lost bool }

// reading is v when the driver answered and v is in [0, most].
func (p *probe) reading(ret driver.Return, v, most float64) gpu.Reading {
	if ret == driver.ERROR_GPU_IS_LOST || ret == driver.ERROR_UNINITIALIZED {
		p.lost = true
	}
	if ret != driver.SUCCESS {
		return gpu.Reading{}
	}
	return gpu.Within(v, 0, most)
}

// failure turns the driver's code into an error.
func failure(ret driver.Return) error {
	if ret == driver.ERROR_GPU_IS_LOST {
		return fmt.Errorf("%w: %w", gpu.ErrLost, ret)
	}
	return ret
}
