package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	trainerbench "github.com/capacloud/capanode/trainer/bench"
	"github.com/capacloud/capanode/trainer/lab"
	"github.com/capacloud/capanode/trainer/lab/chart"
)

// AveragingBenchOptions say how much of the comparison of averaging methods is measured.
type AveragingBenchOptions struct {
	Full bool   // three seeds, 300 steps and all cases instead of one seed and 150 steps
	Text string // file to train on; "" means Go's own sources
}

// BenchAveraging returns the benchmark of averaging.
func BenchAveraging(o AveragingBenchOptions) Bench {
	return Bench{"averaging", "Aggregate updates; training by averaging against data-parallel training and other methods, at equal tokens", methodAveraging,
		[]string{"loss_over_data_parallel_n4", "loss_over_data_parallel_n8", "loss_over_diloco_n4", "loss_over_diloco_n8", "bytes_over_data_parallel",
			"front_budgets_won", "bytes_per_token_up", "bytes_per_token_down", "dense_averaging_mb_per_second", "dense_int4_averaging_mb_per_second",
			"sparse_averaging_mb_per_second", "validation_loss_3_peers", "loss_ratio_3_over_1"},
		func(ctx context.Context, r *BenchReport) error {
			if err := benchAveraging(ctx, r); err != nil {
				return err
			}
			return benchMethods(ctx, r, o)
		}}
}

// benchMethods compares the methods of package lab.
func benchMethods(ctx context.Context, r *BenchReport, o AveragingBenchOptions) error {
	text, err := benchText(ctx, o.Text)
	if err != nil && o.Text == "" {
		r.Missing = append(r.Missing, fmt.Sprintf("comparison of methods (%v)", err))
		return nil
	}
	if err != nil {
		return err
	}
	c, err := trainerbench.Compare(ctx, lab.Split(text), o.Full)
	if err != nil {
		return err
	}
	r.Figures["loss_over_data_parallel_n4"], r.Figures["loss_over_data_parallel_n8"] = c.Parity[0].OverParallel, c.Parity[1].OverParallel
	r.Figures["loss_over_diloco_n4"], r.Figures["loss_over_diloco_n8"] = c.Parity[0].OverDiLoCo, c.Parity[1].OverDiLoCo
	r.Figures["bytes_over_data_parallel"] = c.Parity[0].Share
	r.Figures["front_budgets_won"] = float64(c.Won)
	r.Figures["local_steps_loss_over_data_parallel_n4"], r.Figures["local_steps_loss_over_data_parallel_n8"] = c.Parity[0].Local, c.Parity[1].Local
	r.Baseline["validation_loss_data_parallel_n4"], r.Baseline["validation_loss_data_parallel_n8"] = c.Parity[0].Parallel, c.Parity[1].Parallel
	r.Tables = append(r.Tables, parityTable(c), frontTable(c))
	r.Plots = append(r.Plots, BenchPlot{"averaging-loss-bytes", frontPlot(c)}, BenchPlot{"averaging-loss-tokens", tokensPlot(c)})
	return nil
}

// benchText reads the text that the methods train on.
func benchText(ctx context.Context, file string) ([]byte, error) {
	if file != "" {
		return os.ReadFile(file)
	}
	folders, err := goSources(ctx)
	if err != nil {
		return nil, err
	}
	var text bytes.Buffer
	for _, folder := range folders {
		err = errors.Join(err, filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") {
				return err
			}
			b, err := os.ReadFile(path)
			text.Write(b)
			return err
		}))
	}
	return text.Bytes(), err
}

// percent writes a ratio as a signed difference from one.
func percent(ratio float64) string { return fmt.Sprintf("%+.1f %%", 100*(ratio-1)) }

// share writes a share of data-parallel bytes as 1/n.
func share(v float64) string {
	if v == 0 {
		return "0"
	}
	return fmt.Sprintf("1/%.0f", 1/v)
}

// settingsOf writes a method with its settings.
func settingsOf(o lab.Outcome) string {
	if o.Method.Name() == o.Family {
		return o.Family
	}
	return o.Family + ": " + o.Method.Name()
}

func parityTable(c trainerbench.Comparison) BenchTable {
	t := BenchTable{Title: fmt.Sprintf("Loss at equal tokens (%s):", c.Conditions),
		Head: []string{"peers", "method", "validation loss", "over data-parallel", "bytes", "rounds"}}
	for _, p := range c.Parity {
		for _, o := range p.Outcomes {
			t.Rows = append(t.Rows, []string{fmt.Sprint(p.Peers), settingsOf(o), fmt.Sprintf("%.4f", o.Loss), percent(o.Loss / p.Parallel),
				share(o.Share), FormatFigure(o.Rounds)})
		}
	}
	return t
}

func frontTable(c trainerbench.Comparison) BenchTable {
	t := BenchTable{Head: []string{"method"}, Title: "Loss under a budget of bytes, four peers; the lowest of a budget is bold, unless one that needs fewer bytes is lower."}
	for _, o := range c.Front {
		if o.Budget == 0 {
			t.Title += fmt.Sprintf(" %s: %.4f.", o.Family, o.Loss)
		}
	}
	for _, b := range lab.Budgets {
		t.Head = append(t.Head, share(b))
	}
	for _, family := range c.Families() {
		row := []string{family}
		for _, b := range lab.Budgets {
			cell := ""
			if o, ok := c.At(family, b); ok {
				cell = fmt.Sprintf("%.4f (%s)", o.Loss, o.Method.Name())
				if best, _ := c.Best(b); best.Family == family && best.Budget == b {
					cell = "**" + cell + "**"
				}
			}
			row = append(row, cell)
		}
		t.Rows = append(t.Rows, row)
	}
	return t
}

func frontPlot(c trainerbench.Comparison) chart.Chart {
	p := chart.Chart{Title: "Validation loss under a budget of bytes, four peers", X: chart.Axis{Label: "bytes that a peer downloads, as a share of data-parallel training's", Log: true},
		Y: chart.Axis{Label: "validation loss (nats per byte)"}}
	for _, o := range c.Front {
		if o.Budget == 0 && o.Share > 0 {
			p.Lines = append(p.Lines, chart.Line{Name: o.Family, Dots: true, Strong: true, Points: [][2]float64{{o.Share, o.Loss}}})
		}
	}
	for _, family := range c.Families() {
		line := chart.Line{Name: family, Dots: true, Strong: family == lab.Ours, Dashed: family == lab.LocalSteps}
		for _, b := range lab.Budgets {
			if o, ok := c.At(family, b); ok {
				line.Points = append(line.Points, [2]float64{o.Share, o.Loss})
			}
		}
		p.Lines = append(p.Lines, line)
	}
	return p
}

func tokensPlot(c trainerbench.Comparison) chart.Chart {
	p := chart.Chart{Title: "Validation loss against tokens, four peers", X: chart.Axis{Label: "tokens of all peers together"},
		Y: chart.Axis{Label: "validation loss (nats per byte)"}}
	for _, o := range c.Curves() {
		line := chart.Line{Name: o.Label, Strong: o.Family == lab.Ours, Dashed: o.Family == lab.DataParallel || o.Family == lab.LocalSteps}
		for _, q := range o.Curve {
			line.Points = append(line.Points, [2]float64{q.Tokens, q.Loss})
		}
		p.Lines = append(p.Lines, line)
	}
	return p
}
