package node

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"slices"
	"time"

	"github.com/capacloud/capanode/gpu/cpu"
	enginebench "github.com/capacloud/capanode/trainer/engine/bench"
	"github.com/capacloud/capanode/trainer/engine/native"
	"github.com/capacloud/capanode/trainer/lab/chart"
)

// BenchReport is what a benchmark found, in the form that the documentation quotes.
type BenchReport struct {
	Bench    string             `json:"bench"`
	Figures  map[string]float64 `json:"figures"`
	Baseline map[string]float64 `json:"baseline"` // measured in the same run, to compare with
	Missing  []string           `json:"missing"`  // figures that could not be measured here
	Tables   []BenchTable       `json:"tables,omitempty"`
	Plots    []BenchPlot        `json:"plots,omitempty"`
	Machine  Machine            `json:"machine"`
	Date     string             `json:"date"`
	Seconds  float64            `json:"seconds"`
}

// BenchTable is a comparison that single figures do not show.
type BenchTable struct {
	Title string     `json:"title"`
	Head  []string   `json:"head"`
	Rows  [][]string `json:"rows"`
}

// BenchPlot is a picture of a benchmark.
type BenchPlot struct {
	Name  string      `json:"name"` // of the file, without its ending
	Chart chart.Chart `json:"chart"`
}

// Machine says where a benchmark ran.
type Machine struct {
	Processor string  `json:"processor"`
	Device    string  `json:"device,omitempty"` // card, where one was measured
	Cores     int     `json:"cores"`
	OS        string  `json:"os"`
	Arch      string  `json:"arch"`
	Go        string  `json:"go"`
	Numerics  string  `json:"numerics"`
	Load      float64 `json:"load"` // mean of runnable processes in the minute before, where Linux tells it
}

// Bench is one benchmark.
type Bench struct {
	Name   string
	Doc    string // one line
	Method string // what is measured, on what
	// Wanted names the figures that the benchmark is for. Those that a run does not give are reported as missing.
	Wanted []string
	run    func(ctx context.Context, r *BenchReport) error
}

// Benches lists the benchmarks.
func Benches() []Bench {
	return []Bench{
		{"engine", "Train the two reference models: tokens per second and shares of the processor's peak",
			"Two models in Llama shape and in GPT-2's train on random tokens with AdamW for some seconds each, on all cores and on one: small has 0.81 M parameters, " +
				"context 64 and batch 12; large has 10.7 M, context 256 and batch 8. The same models train with GoMLX, and with PyTorch in eager mode where the python3 " +
				"on the path, or the one that CAPANODE_PYTHON names, has it; over_gomlx and over_pytorch are quotients of rates taken one after the other. " +
				"matmul_share_of_peak is a product of 512³ on one core. The peak is what fused multiply-adds from registers reach, in the same run.",
			enginebench.Wanted(), benchEngine},
		{"codec", "Encode, decode and add updates: bits, rates and relative errors",
			"An update of 64 MB of normally distributed float32 is encoded, decoded, and added to a sum, on one core and on all; the best of seven. MB count float32. " +
				"The baseline copies the same bytes; over_copy is a quotient of rates on one core. sparse is top64: of every 4,096 elements the 64 largest; top512 the 512 " +
				"largest. Errors are the norm of what is lost over the norm of the vector, for normal and for Laplace distribution, without error feedback.",
			[]string{"sparse_bits_per_parameter", "sparse_encode_mb_per_second_per_core", "sparse_decode_mb_per_second_per_core",
				"sparse_add_mb_per_second", "int8_encode_mb_per_second_per_core", "int8_decode_mb_per_second_per_core", "four_bit_encode_mb_per_second_per_core"},
			benchCodec},
		BenchAveraging(AveragingBenchOptions{}),
		BenchStorage(StorageBenchOptions{}),
		{"data", "Read and clean a corpus, train and apply tokenizers: rates of one processor", methodData + "\n\n" + methodTokenizers,
			append([]string{"read_mb_per_second", "clean_mb_per_second"}, wantedTokenizers()...), benchData},
		{"market", "Time from the planner's start to ACTIVE leases over loopback, the handshake, the book", methodMarket,
			[]string{"first_lease_ms_p95", "cold_lease_ms_p95", "gang3_ms_p95", "gang8_ms_p95", "handshake_ms_p50", "handshake_ms_p99", "beacons_per_second_per_core",
				"duplicates_per_second_per_core", "query_10k_ms_p99", "query_100k_ms_p99", "bytes_per_offer"},
			benchMarket},
	}
}

// Run measures.
func (b Bench) Run(ctx context.Context) (BenchReport, error) {
	start := time.Now()
	r := BenchReport{Bench: b.Name, Figures: map[string]float64{}, Baseline: map[string]float64{}, Missing: []string{}, Date: start.UTC().Format(time.DateOnly)}
	r.Machine = Machine{Processor: "unknown", Cores: runtime.NumCPU(), OS: runtime.GOOS, Arch: runtime.GOARCH, Go: runtime.Version(), Numerics: native.Numerics()}
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		_, _ = fmt.Sscan(string(b), &r.Machine.Load) // 0 says that it is unknown
	}
	if d, err := cpu.Open(cpu.Options{}); err == nil {
		r.Machine.Processor = d.Info().Name
		if err := d.Close(); err != nil {
			return r, err
		}
	}
	err := b.run(ctx, &r)
	r.complete(b.Wanted)
	r.Seconds = seconds(time.Since(start))
	return r, err
}

// complete names what is missing, once: what a room could not measure, and what was wanted and did not come.
func (r *BenchReport) complete(wanted []string) {
	for _, name := range r.Missing {
		delete(r.Figures, name)
		delete(r.Baseline, name)
	}
	for _, name := range wanted {
		if _, ok := r.Figures[name]; !ok {
			r.Missing = append(r.Missing, name)
		}
	}
	slices.Sort(r.Missing)
	r.Missing = slices.Compact(r.Missing)
}

// take copies the numbers of a room's figures, a struct with JSON names, into the report. A struct within it is the baseline.
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
		case map[string]any:
			for n, x := range v {
				if x, ok := x.(float64); ok {
					r.Baseline[n] = x
				}
			}
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
	r.Figures, r.Baseline, r.Missing = f.Figures, f.Baseline, append(r.Missing, f.Missing...)
	return nil
}
