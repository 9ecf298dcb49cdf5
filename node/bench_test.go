package node

import (
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/capacloud/capanode/trainer/lab/chart"
)

var update = flag.Bool("update", false, "rewrite golden files")

func TestBenchesCoverTheList(t *testing.T) {
	var names []string
	for _, b := range Benches() {
		names = append(names, b.Name)
		if b.Doc == "" || b.Method == "" || len(b.Wanted) == 0 || b.run == nil {
			t.Errorf("%s lacks a doc, a method, figures or its measurement", b.Name)
		}
	}
	for _, want := range []string{"engine", "codec", "averaging", "storage", "market"} {
		if !slices.Contains(names, want) {
			t.Errorf("no benchmark %q among %q", want, names)
		}
	}
}

func TestEveryWantedFigureIsThereOrNamed(t *testing.T) {
	r := BenchReport{Figures: map[string]float64{}, Baseline: map[string]float64{}}
	err := r.take(struct {
		Got      float64   `json:"got"`
		Unknown  float64   `json:"unknown"`
		Missing  []string  `json:"missing"`
		Baseline any       `json:"baseline"`
		Ignored  [2]string `json:"-"`
	}{Got: 3, Missing: []string{"unknown", "other"}, Baseline: map[string]float64{"bound": 5}})
	if err != nil {
		t.Fatal(err)
	}
	r.complete([]string{"got", "unknown", "later"})
	if len(r.Figures) != 1 || r.Figures["got"] != 3 || r.Baseline["bound"] != 5 || !slices.Equal(r.Missing, []string{"later", "other", "unknown"}) {
		t.Errorf("%+v", r)
	}
}

func TestBenchPageIsGolden(t *testing.T) {
	machine := Machine{Processor: "Abacus 9", Cores: 2, OS: "linux", Arch: "amd64", Go: "go1.26", Numerics: "go/amd64/avx2", Load: 1.25}
	quiet := machine
	quiet.Load = 0
	dir, reports := t.TempDir(), []BenchReport{
		{Bench: "storage", Figures: map[string]float64{"fetch_mb_per_second": 123456.7, "fetch_over_raw_stream": 0.61234567},
			Baseline: map[string]float64{"raw_stream_mb_per_second": 1000}, Missing: []string{"fetch_over_kubo_get", "gc_100k_seconds"},
			Machine: machine, Date: "2026-02-03", Seconds: 12.4},
		{Bench: "codec", Figures: map[string]float64{"int8_bits_per_parameter": 8.0401}, Machine: quiet, Date: "2026-02-03", Seconds: 0.6,
			Tables: []BenchTable{{Title: "Loss at equal tokens:", Head: []string{"method", "loss"}, Rows: [][]string{{"a", "2.1"}, {"b", "**2.0**"}}}},
			Plots:  []BenchPlot{{"loss-bytes", chart.Chart{Title: "Loss against bytes", Lines: []chart.Line{{Name: "a", Points: [][2]float64{{1, 2}, {3, 4}}}}}}}},
	}
	var paths []string
	for _, r := range reports {
		b, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		paths = append(paths, filepath.Join(dir, r.Bench+".json"))
		if err := os.WriteFile(paths[len(paths)-1], b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	read, err := ReadBenchReports(paths)
	if err != nil {
		t.Fatal(err)
	}
	got, golden := BenchPage(read), filepath.Join("testdata", "benchmarks.md")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if want, err := os.ReadFile(golden); err != nil || got != string(want) {
		t.Errorf("the page differs from %s (%v); after a wanted change run with -update. Got:\n%s", golden, err, got)
	}
}

func TestBenchPlotsAreWritten(t *testing.T) {
	dir := t.TempDir()
	r := BenchReport{Plots: []BenchPlot{{"../loss-bytes", chart.Chart{Title: "Loss against bytes"}}}}
	if err := WriteBenchPlots(dir, []BenchReport{r}); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "loss-bytes.svg")); err != nil || !strings.HasPrefix(string(b), "<svg") {
		t.Errorf("%.20s (%v)", b, err)
	}
	if err := WriteBenchPlots(filepath.Join(dir, "nowhere"), []BenchReport{r}); err == nil {
		t.Error("written into no folder")
	}
}

func TestReadBenchReportsRefusesOtherFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.json")
	for _, text := range []string{"", "{}", "[1]"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadBenchReports([]string{path}); !errors.Is(err, ErrUsage) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestFormatFigure(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 0.2251: "0.2251", 12345.6: "12350", 2.061e6: "2061000", 0.000123456: "0.0001235", 8.04: "8.04"} {
		if got := FormatFigure(v); got != want {
			t.Errorf("%g is written %s, want %s", v, got, want)
		}
	}
}
