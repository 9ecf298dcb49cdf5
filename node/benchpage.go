package node

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// ReadBenchReports reads the files that `bench NAME -o json` wrote.
func ReadBenchReports(paths []string) ([]BenchReport, error) {
	var reports []BenchReport
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		var r BenchReport
		if err := json.Unmarshal(b, &r); err != nil || r.Bench == "" {
			return nil, fmt.Errorf("%w: %s is no report of a benchmark: write one with `capanode bench NAME -o json`", ErrUsage, path)
		}
		reports = append(reports, r)
	}
	return reports, nil
}

// BenchPage renders reports as the Markdown page docs/benchmarks.md, in the order of [Benches].
func BenchPage(reports []BenchReport) string {
	var w strings.Builder
	w.WriteString(benchIntro)
	for _, b := range Benches() {
		for _, r := range reports {
			if r.Bench == b.Name {
				benchSection(&w, b, r)
			}
		}
	}
	return w.String()
}

const benchIntro = `# Benchmarks

Written by ` + "`make bench`" + `, never by hand. Run it, and this page holds the figures of your machine.

Each section names the machine, its load, and a baseline that was measured in the same run. The load is the mean number of
processes that wanted a processor in the minute before, the previous benchmark among them. The machines on which this page is
usually made are shared with other work: absolute figures say little there, and the ratio of a figure to its baseline is what
counts. Figures that are wanted and not measured yet are listed by name.
`

func benchSection(w *strings.Builder, b Bench, r BenchReport) {
	fmt.Fprintf(w, "\n## %s\n\n%s.\n\n%s\n\n", b.Name, b.Doc, b.Method)
	rows := func(head string, values map[string]float64) {
		if len(values) == 0 {
			return
		}
		fmt.Fprintf(w, "| %s | value |\n|---|---:|\n", head)
		for _, name := range slices.Sorted(maps.Keys(values)) {
			fmt.Fprintf(w, "| `%s` | %s |\n", name, FormatFigure(values[name]))
		}
		w.WriteString("\n")
	}
	rows("figure", r.Figures)
	rows("baseline of the same run", r.Baseline)
	for _, t := range r.Tables {
		benchTable(w, t)
	}
	for _, p := range r.Plots {
		fmt.Fprintf(w, "![%s](%s.svg)\n\n", p.Chart.Title, p.Name)
	}
	if len(r.Missing) > 0 {
		fmt.Fprintf(w, "Not measured: `%s`.\n\n", strings.Join(r.Missing, "`, `"))
	}
	m := r.Machine
	load := ""
	if m.Load > 0 {
		load = fmt.Sprintf(", load %s", FormatFigure(m.Load))
	}
	fmt.Fprintf(w, "%s, %d cores%s, %s/%s, %s, kernels %s. Measured on %s in %.0f s; repeat with `capanode bench %s`.\n",
		m.Processor, m.Cores, load, m.OS, m.Arch, m.Go, m.Numerics, r.Date, r.Seconds, b.Name)
}

// benchTable writes a table; columns after the first are figures.
func benchTable(w *strings.Builder, t BenchTable) {
	fmt.Fprintf(w, "%s\n\n| %s |\n|---%s|\n", t.Title, strings.Join(t.Head, " | "), strings.Repeat("|---:", len(t.Head)-1))
	for _, row := range t.Rows {
		fmt.Fprintf(w, "| %s |\n", strings.Join(row, " | "))
	}
	w.WriteString("\n")
}

// WriteBenchPlots writes the plots that the page of the reports shows into a folder.
func WriteBenchPlots(folder string, reports []BenchReport) error {
	for _, r := range reports {
		for _, p := range r.Plots {
			if err := os.WriteFile(filepath.Join(folder, filepath.Base(p.Name)+".svg"), []byte(p.Chart.SVG()), 0o644); err != nil {
				return fmt.Errorf("plot: %w", err)
			}
		}
	}
	return nil
}

// FormatFigure writes a figure with four significant digits and no exponent.
func FormatFigure(v float64) string {
	rounded, err := strconv.ParseFloat(strconv.FormatFloat(v, 'e', 3, 64), 64)
	if err != nil {
		return fmt.Sprint(v)
	}
	return strconv.FormatFloat(rounded, 'f', -1, 64)
}
