package gpu

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

func TestClassOf(t *testing.T) {
	for name, want := range map[string]string{
		"NVIDIA H100 80GB HBM3":              "h100",
		"NVIDIA H100 PCIe":                   "h100",
		"NVIDIA A100-SXM4-80GB":              "a100",
		"NVIDIA GeForce RTX 4090":            "4090",
		"NVIDIA GeForce RTX 3080 Ti":         "3080-ti",
		"NVIDIA GeForce RTX 4090 Laptop GPU": "4090-laptop",
		"NVIDIA RTX A6000":                   "a6000",
		"NVIDIA RTX 6000 Ada Generation":     "6000-ada",
		"Quadro RTX 6000":                    "quadro-6000",
		"Tesla T4":                           "t4",
		"NVIDIA Graphics Device":             "unknown",
		"":                                   "unknown",
		"显卡":                                 "unknown",
		strings.Repeat("longname ", 20):      "longname-longname-longname-longn",
	} {
		if got := ClassOf(name); got != want {
			t.Errorf("%q is %q, want %q", name, got, want)
		}
	}
}

func FuzzClassOf(f *testing.F) {
	f.Add("NVIDIA H100 80GB HBM3")
	f.Fuzz(func(t *testing.T, name string) {
		class := ClassOf(name)
		info := Info{ID: "x", Kind: KindCUDA, Name: "x", Class: class, MemoryBytes: 1, Cores: 1}
		if err := info.Check(); err != nil {
			t.Fatalf("class %q of %q: %v", class, name, err)
		}
	})
}

func TestInfoCheck(t *testing.T) {
	good := Info{ID: "GPU-1", Kind: KindCUDA, Name: "H100", Class: "h100", MemoryBytes: 80 << 30, Cores: 16896}
	if err := good.Check(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Info){
		"no ID":      func(i *Info) { i.ID = "" },
		"control":    func(i *Info) { i.Name = "H\x1b[31m" },
		"long class": func(i *Info) { i.Class = strings.Repeat("x", 33) },
		"kind":       func(i *Info) { i.Kind = "tpu" },
		"no memory":  func(i *Info) { i.MemoryBytes = 0 },
		"underflow":  func(i *Info) { i.MemoryBytes = ^uint64(0) },
		"no cores":   func(i *Info) { i.Cores = 0 },
		"index":      func(i *Info) { i.Index = -1 },
	} {
		bad := good
		change(&bad)
		if err := bad.Check(); !errors.Is(err, ErrRange) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWithin(t *testing.T) {
	if r := Within(4294967295, 0, 150); r.Known || r.Value != 0 {
		t.Errorf("an impossible temperature reads %+v", r)
	}
	if r := Within(41, 0, 150); r != Known(41) {
		t.Errorf("41 °C reads %+v", r)
	}
}

func TestMetricsNameWhatIsKnown(t *testing.T) {
	m := Telemetry{Temperature: Known(41), MemoryTemperature: Known(50), Utilization: Known(0)}.Metrics()
	want := []Metric{
		{"capanode_gpu_temperature_celsius", "core", 41},
		{"capanode_gpu_temperature_celsius", "memory", 50},
		{"capanode_gpu_utilization_ratio", "", 0},
	}
	if len(m) != len(want) {
		t.Fatalf("metrics %v", m)
	}
	for i := range m {
		if m[i] != want[i] {
			t.Errorf("metric %d is %v", i, m[i])
		}
	}
}

// lockDir tells the test binary to play a second process.
const lockDir = "CAPANODE_TEST_LOCK_DIR"

func TestLockKeepsOtherProcessesOut(t *testing.T) {
	const id = "GPU-4a/../x"
	if dir := os.Getenv(lockDir); dir != "" {
		_, err := Acquire(dir, id)
		if !errors.Is(err, ErrBusy) {
			t.Fatalf("second process: %v", err)
		}
		return
	}
	dir := t.TempDir()
	lock, err := Acquire(dir, id)
	if err != nil {
		t.Fatal(err)
	}
	second := exec.Command(os.Args[0], "-test.run=^TestLockKeepsOtherProcessesOut$")
	second.Env = append(os.Environ(), lockDir+"="+dir)
	if out, err := second.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if other, err := Acquire(dir, "GPU-other"); err != nil {
		t.Errorf("another device: %v", err)
	} else if err := other.Release(); err != nil {
		t.Error(err)
	}
	if err := lock.Release(); err != nil {
		t.Fatal(err)
	}
	again, err := Acquire(dir, id)
	if err != nil {
		t.Fatalf("after release: %v", err)
	}
	if err := again.Release(); err != nil {
		t.Error(err)
	}
	if _, err := Acquire(dir, ""); !errors.Is(err, ErrRange) {
		t.Errorf("empty ID: %v", err)
	}
}

func TestGovernorPausesAndResumes(t *testing.T) {
	start := time.Date(2026, 1, 5, 12, 0, 0, 0, time.UTC)
	g := NewGovernor(Rules{})
	for _, step := range []struct {
		second       int
		core, memory float64
		paused       bool
	}{
		{0, 82.9, 94, false},
		{1, 83, 60, true},
		{2, 76, 60, true}, // cooler, but not by 8 °C
		{3, 75, 60, true}, // cool enough: the minute starts
		{40, 76, 60, true},
		{41, 70, 60, true}, // starts again
		{100, 70, 60, true},
		{101, 70, 60, false},
		{102, 60, 95, true}, // memory
		{103, 60, 88, true},
		{104, 60, 87, true},
		{164, 60, 87, false},
	} {
		g = g.Next(Telemetry{
			Time: start.Add(time.Duration(step.second) * time.Second), Temperature: Known(step.core), MemoryTemperature: Known(step.memory),
		})
		if reason, paused := g.Paused(); paused != step.paused || paused == (reason == "") {
			t.Fatalf("second %d: paused %v, reason %q", step.second, paused, reason)
		}
	}
}

func TestGovernorWithoutSensors(t *testing.T) {
	g := NewGovernor(Rules{}).Next(Telemetry{Time: time.Now()})
	if reason, paused := g.Paused(); paused {
		t.Fatalf("paused: %s", reason)
	}
}

func TestSchedule(t *testing.T) {
	s, err := ParseSchedule("Mon-Fri 18:00-08:00, sat-sun 00:00-24:00")
	if err != nil {
		t.Fatal(err)
	}
	for text, open := range map[string]bool{
		"2026-01-05 17:59": false, // a Monday
		"2026-01-05 18:00": true,
		"2026-01-06 07:59": true,
		"2026-01-06 08:00": false,
		"2026-01-10 13:00": true,  // Saturday
		"2026-01-11 23:59": true,  // Sunday
		"2026-01-12 00:00": false, // Monday: Sunday's window does not run over
		"2026-01-12 12:00": false,
	} {
		at, err := time.Parse("2006-01-02 15:04", text)
		if err != nil {
			t.Fatal(err)
		}
		if s.Open(at) != open {
			t.Errorf("%s (%s): open %v", text, at.Weekday(), s.Open(at))
		}
	}
	if empty, err := ParseSchedule("  "); err != nil || !empty.Open(time.Now()) {
		t.Errorf("empty schedule: %v", err)
	}
	closed := NewGovernor(Rules{Schedule: s}).Next(Telemetry{Time: time.Date(2026, 1, 5, 12, 0, 0, 0, time.UTC)})
	if reason, paused := closed.Paused(); !paused || !strings.Contains(reason, "schedule") {
		t.Errorf("outside the schedule: %q", reason)
	}
	for _, bad := range []string{"mon", "18:00", "18:00-18:00", "25:00-26:00", "xyz 10:00-11:00", "10:60-11:00", ",", "1a:00-11:00", "24:00-01:00"} {
		if _, err := ParseSchedule(bad); !errors.Is(err, ErrSchedule) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func FuzzParseSchedule(f *testing.F) {
	f.Add("mon-fri 18:00-08:00, sat-sun 00:00-24:00")
	f.Add("22:00-06:00")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseSchedule(text)
		if err != nil {
			return
		}
		open := 0
		for m := range 7 * minutesPerDay {
			if s.Open(time.Date(2026, 1, 4, 0, m, 0, 0, time.UTC)) {
				open++
			}
		}
		if open == 0 {
			t.Fatalf("%q is never open", text)
		}
	})
}
