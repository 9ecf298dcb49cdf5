//go:build cgo && linux

package nvml

import (
	"context"
	"encoding/binary"
	"errors"
	"testing"
	"time"

	driver "github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"

	"github.com/capacloud/capanode/gpu"
	"github.com/capacloud/capanode/gpu/gputest"
)

// TestConformanceOnHardware runs where an NVIDIA card is.
func TestConformanceOnHardware(t *testing.T) {
	devices, err := Open()
	if errors.Is(err, gpu.ErrUnsupported) || err == nil && len(devices) == 0 {
		t.Skipf("no NVIDIA card here: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	gputest.Run(t, func(t *testing.T) gpu.Device {
		again, err := Open()
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range again[1:] {
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
		}
		return again[0]
	})
	for _, d := range devices {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
}

// put writes a C string.
func put[T int8 | uint8](to []T, s string) {
	for i := range len(s) {
		to[i] = T(s[i])
	}
}

// card is a driver's view of one H100; tests change its answers.
func card() *mock.Device {
	return &mock.Device{
		GetUUIDFunc: func() (string, driver.Return) { return "GPU-5f1c", driver.SUCCESS },
		GetNameFunc: func() (string, driver.Return) { return "NVIDIA H100 80GB HBM3", driver.SUCCESS },
		GetMemoryInfoFunc: func() (driver.Memory, driver.Return) {
			return driver.Memory{Total: 80 << 30, Used: 3 << 30}, driver.SUCCESS
		},
		GetNumGpuCoresFunc:             func() (int, driver.Return) { return 16896, driver.SUCCESS },
		GetTemperatureFunc:             func(driver.TemperatureSensors) (uint32, driver.Return) { return 41, driver.SUCCESS },
		GetPowerUsageFunc:              func() (uint32, driver.Return) { return 350_500, driver.SUCCESS },
		GetEnforcedPowerLimitFunc:      func() (uint32, driver.Return) { return 700_000, driver.SUCCESS },
		GetTotalEnergyConsumptionFunc:  func() (uint64, driver.Return) { return 12_345, driver.SUCCESS },
		GetUtilizationRatesFunc:        func() (driver.Utilization, driver.Return) { return driver.Utilization{Gpu: 73}, driver.SUCCESS },
		GetComputeRunningProcessesFunc: func() ([]driver.ProcessInfo, driver.Return) { return make([]driver.ProcessInfo, 2), driver.SUCCESS },
		GetCurrentClocksEventReasonsFunc: func() (uint64, driver.Return) {
			return driver.ClocksThrottleReasonHwThermalSlowdown, driver.SUCCESS
		},
		GetCudaComputeCapabilityFunc: func() (int, int, driver.Return) { return 9, 0, driver.SUCCESS },
		GetPciInfoFunc: func() (driver.PciInfo, driver.Return) {
			var pci driver.PciInfo
			put(pci.BusId[:], "00000000:1B:00.0")
			return pci, driver.SUCCESS
		},
		GetClockInfoFunc: func(c driver.ClockType) (uint32, driver.Return) {
			return map[driver.ClockType]uint32{driver.CLOCK_SM: 1980, driver.CLOCK_MEM: 2619}[c], driver.SUCCESS
		},
		GetCurrPcieLinkGenerationFunc: func() (int, driver.Return) { return 5, driver.SUCCESS },
		GetCurrPcieLinkWidthFunc:      func() (int, driver.Return) { return 16, driver.SUCCESS },
		GetFieldValuesFunc: func(f []driver.FieldValue) driver.Return {
			binary.NativeEndian.PutUint32(f[0].Value[:], 52)
			return driver.SUCCESS
		},
	}
}

// machine is a driver with the given cards; shutdowns counts how often it was stopped.
func machine(shutdowns *int, cards ...*mock.Device) *mock.Interface {
	return &mock.Interface{
		InitFunc:                   func() driver.Return { return driver.SUCCESS },
		ShutdownFunc:               func() driver.Return { *shutdowns++; return driver.SUCCESS },
		SystemGetDriverVersionFunc: func() (string, driver.Return) { return "580.65.06", driver.SUCCESS },
		DeviceGetCountFunc:         func() (int, driver.Return) { return len(cards), driver.SUCCESS },
		DeviceGetHandleByIndexFunc: func(i int) (driver.Device, driver.Return) { return cards[i], driver.SUCCESS },
	}
}

func TestConformanceOnMock(t *testing.T) {
	gputest.Run(t, func(t *testing.T) gpu.Device {
		stops := 0
		devices, err := open(machine(&stops, card()), time.Now)
		if err != nil {
			t.Fatal(err)
		}
		return devices[0]
	})
}

func TestUnits(t *testing.T) {
	stops := 0
	now := time.Unix(1000, 0)
	devices, err := open(machine(&stops, card()), func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	want := gpu.Info{
		ID: "GPU-5f1c", Kind: gpu.KindCUDA, Name: "NVIDIA H100 80GB HBM3", Class: "h100", MemoryBytes: 80 << 30, Cores: 16896, Driver: "580.65.06",
		Capability: "9.0", Bus: "00000000:1B:00.0",
	}
	if got := devices[0].Info(); got != want {
		t.Errorf("info %+v", got)
	}
	m, err := devices[0].Telemetry(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if m != (gpu.Telemetry{
		Time: now, Temperature: gpu.Known(41), MemoryTemperature: gpu.Known(52), Power: gpu.Known(350.5), PowerLimit: gpu.Known(700),
		Energy: gpu.Known(12.345), Utilization: gpu.Known(0.73), MemoryUsed: gpu.Known(3 << 30), Processes: gpu.Known(2), Throttled: true,
		Clock: gpu.Known(1980), MemoryClock: gpu.Known(2619), LinkGeneration: gpu.Known(5), LinkWidth: gpu.Known(16),
	}) {
		t.Errorf("telemetry %+v", m)
	}
	if stops != 0 {
		t.Error("the library stopped under an open device")
	}
	if err := devices[0].Close(); err != nil || stops != 1 {
		t.Errorf("closed: %v, stopped %d times", err, stops)
	}
}

func TestMissingAndImpossibleReadings(t *testing.T) {
	c := card()
	c.GetTemperatureFunc = func(driver.TemperatureSensors) (uint32, driver.Return) { return 0xffffffff, driver.SUCCESS }
	c.GetPowerUsageFunc = func() (uint32, driver.Return) { return 7, driver.ERROR_NOT_SUPPORTED }
	c.GetUtilizationRatesFunc = func() (driver.Utilization, driver.Return) { return driver.Utilization{Gpu: 9999}, driver.SUCCESS }
	c.GetFieldValuesFunc = func(f []driver.FieldValue) driver.Return {
		f[0].NvmlReturn = uint32(driver.ERROR_NOT_SUPPORTED)
		return driver.SUCCESS
	}
	stops := 0
	devices, err := open(machine(&stops, c), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	defer devices[0].Close()
	m, err := devices[0].Telemetry(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for name, r := range map[string]gpu.Reading{
		"temperature": m.Temperature, "power": m.Power, "utilization": m.Utilization, "memory temperature": m.MemoryTemperature,
	} {
		if r.Known {
			t.Errorf("%s is %v", name, r.Value)
		}
	}
}

func TestFailures(t *testing.T) {
	absent := func(ret driver.Return) func(*mock.Interface, *mock.Device) {
		return func(m *mock.Interface, _ *mock.Device) { m.InitFunc = func() driver.Return { return ret } }
	}
	for name, c := range map[string]struct {
		change func(*mock.Interface, *mock.Device)
		want   error
		stops  int
	}{
		"no library":  {absent(driver.ERROR_LIBRARY_NOT_FOUND), gpu.ErrUnsupported, 0},
		"no driver":   {absent(driver.ERROR_DRIVER_NOT_LOADED), gpu.ErrUnsupported, 0},
		"not allowed": {absent(driver.ERROR_NO_PERMISSION), driver.ERROR_NO_PERMISSION, 0},
		"many cards": {func(m *mock.Interface, _ *mock.Device) {
			m.DeviceGetCountFunc = func() (int, driver.Return) { return 1 << 30, driver.SUCCESS }
		}, gpu.ErrRange, 1},
		"no memory": {func(_ *mock.Interface, d *mock.Device) {
			d.GetMemoryInfoFunc = func() (driver.Memory, driver.Return) { return driver.Memory{}, driver.SUCCESS }
		}, gpu.ErrRange, 1},
		"lost at once": {func(_ *mock.Interface, d *mock.Device) {
			d.GetUUIDFunc = func() (string, driver.Return) { return "", driver.ERROR_GPU_IS_LOST }
		}, gpu.ErrLost, 1},
	} {
		stops := 0
		broken := card()
		m := machine(&stops, card(), broken)
		c.change(m, broken)
		devices, err := open(m, time.Now)
		if !errors.Is(err, c.want) || len(devices) != 0 || stops != c.stops {
			t.Errorf("%s: %d devices, %v, stopped %d times", name, len(devices), err, stops)
		}
	}
}

func TestLostCard(t *testing.T) {
	c := card()
	stops := 0
	devices, err := open(machine(&stops, c), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	defer devices[0].Close()
	c.GetPowerUsageFunc = func() (uint32, driver.Return) { return 0, driver.ERROR_GPU_IS_LOST }
	if _, err := devices[0].Telemetry(context.Background()); !errors.Is(err, gpu.ErrLost) {
		t.Fatal(err)
	}
}
