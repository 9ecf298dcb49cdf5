package node

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime"
	"time"

	"github.com/capacloud/capanode/gpu/cpu"
	enginebench "github.com/capacloud/capanode/trainer/engine/bench"
	"github.com/capacloud/capanode/trainer/engine/gomlx"
)

// BenchReport is what a benchmark found, in the form that the documentation quotes.
type BenchReport struct {
	Bench    string             `json:"bench"`
	Figures  map[string]float64 `json:"figures"`
	Baseline map[string]float64 `json:"baseline"` // measured in the same run, to compare with
	Missing  []string           `json:"missing"`  // figures that could not be measured here
	Machine  Machine            `json:"machine"`
	Date     string             `json:"date"`
	Seconds  float64            `json:"seconds"`
}

// Machine says where a benchmark ran.
type Machine struct {
	Processor string `json:"processor"`
	Cores     int    `json:"cores"`
	OS        string `json:"os"`
	Arch      string `json:"arch"`
	Go        string `json:"go"`
	Numerics  string `json:"numerics"`
}

// Bench is one benchmark.
type Bench struct {
	Name string
	Doc  string
	run  func(ctx context.Context, r *BenchReport) error
}

// Benches lists the benchmarks.
func Benches() []Bench {
	return []Bench{
		{"engine", "Train the two reference models: tokens per second and shares of the processor's peak", benchEngine},
		{"averaging", "Encode, decode and aggregate updates; validation loss of three peers against one", benchAveraging},
		{"storage", "Import and fetch over loopback, against a raw stream in the same run", benchStorage},
		{"market", "Time from the planner's start to ACTIVE leases over loopback, and the handshake", benchMarket},
	}
}

// Run measures.
func (b Bench) Run(ctx context.Context) (BenchReport, error) {
	start := time.Now()
	r := BenchReport{Bench: b.Name, Figures: map[string]float64{}, Baseline: map[string]float64{}, Missing: []string{}, Date: start.UTC().Format(time.DateOnly)}
	r.Machine = Machine{Processor: "unknown", Cores: runtime.NumCPU(), OS: runtime.GOOS, Arch: runtime.GOARCH, Go: runtime.Version(), Numerics: gomlx.Numerics()}
	if d, err := cpu.Open(cpu.Options{}); err == nil {
		r.Machine.Processor = d.Info().Name
		if err := d.Close(); err != nil {
			return r, err
		}
	}
	err := b.run(ctx, &r)
	r.Seconds = seconds(time.Since(start))
	return r, err
}

// take copies the numbers of a room's figures, a struct with JSON names, into the report.
func (r *BenchReport) take(figures any) error {
	b, err := json.Marshal(figures)
	if err != nil {
		return fmt.Errorf("figures: %w", err)
	}
	var all map[string]any
	if err := json.Unmarshal(b, &all); err != nil {
		return fmt.Errorf("figures: %w", err)
	}
	for name, v := range all {
		switch v := v.(type) {
		case float64:
			r.Figures[name] = v
		case []any:
			for _, m := range v {
				r.Missing = append(r.Missing, fmt.Sprint(m))
			}
		}
	}
	return nil
}

func benchEngine(ctx context.Context, r *BenchReport) error {
	f, err := enginebench.Run(ctx, enginebench.Options{})
	if err != nil {
		return err
	}
	return r.take(f)
}
