package cpu

import (
	"context"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/capacloud/capanode/gpu"
	"github.com/capacloud/capanode/gpu/gputest"
)

func TestConformance(t *testing.T) {
	gputest.Run(t, func(t *testing.T) gpu.Device {
		d, err := Open(Options{})
		if err != nil {
			t.Fatal(err)
		}
		return d
	})
}

func root(files map[string]string) fstest.MapFS {
	m := fstest.MapFS{}
	for name, text := range files {
		m[name] = &fstest.MapFile{Data: []byte(text)}
	}
	return m
}

func TestReadsTheSystem(t *testing.T) {
	d, err := Open(Options{Root: root(map[string]string{
		"proc/cpuinfo":             "processor\t: 0\nmodel name\t: AMD   EPYC 9654\n",
		"proc/meminfo":             "MemTotal:       24684092 kB\nMemFree: 1 kB\nMemAvailable:   24192392 kB\n",
		"proc/loadavg":             "0.00 0.64 0.39 2/90 12483\n",
		"etc/machine-id":           "0123456789abcdef\n",
		"sys/fs/cgroup/memory.max": "8589934592\n",
	})})
	if err != nil {
		t.Fatal(err)
	}
	i := d.Info()
	if i.Name != "AMD EPYC 9654" || i.Class != "cpu" || i.Kind != gpu.KindCPU || i.MemoryBytes != 8<<30 || i.Cores < 1 {
		t.Errorf("%+v", i)
	}
	if strings.Contains(i.ID, "0123456789abcdef") || !strings.HasPrefix(i.ID, "CPU-") {
		t.Errorf("ID %s", i.ID)
	}
	m, err := d.Telemetry(context.Background())
	if err != nil || m.Utilization != gpu.Known(0) || m.MemoryUsed != gpu.Known((24684092-24192392)*1024) {
		t.Errorf("%+v, %v", m, err)
	}
}

func TestStrangeSystems(t *testing.T) {
	for name, files := range map[string]map[string]string{
		"nothing": {},
		"garbage": {"proc/cpuinfo": "model name", "proc/meminfo": "MemTotal: many kB\nMemAvailable: -1 kB", "proc/loadavg": "NaN x", "sys/fs/cgroup/memory.max": "max"},
		"huge":    {"proc/meminfo": "MemTotal: 18446744073709551615 kB\n", "proc/loadavg": "1e300 0 0\n", "proc/cpuinfo": "model name: " + strings.Repeat("x", 1000)},
		"zero":    {"proc/meminfo": "MemTotal: 0 kB\nMemAvailable: 5 kB\n", "sys/fs/cgroup/memory.max": "0"},
	} {
		d, err := Open(Options{Root: root(files)})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		m, err := d.Telemetry(context.Background())
		if err != nil || m.MemoryUsed.Known || m.Utilization.Value > 1 {
			t.Errorf("%s: %+v, %v", name, m, err)
		}
	}
}
