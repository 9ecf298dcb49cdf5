package main

import (
	"context"
	"fmt"
	"io"
	"sort"
	"strings"

	"github.com/spf13/cobra"

	"github.com/capacloud/capanode/node"
)

func (a *app) benchCommand() *cobra.Command {
	var short []*cobra.Command
	for _, b := range node.Benches() {
		switch b.Name {
		case "averaging":
			short = append(short, a.benchAveragingCommand())
			continue
		case "storage":
			short = append(short, a.benchStorageCommand())
			continue
		}
		short = append(short, &cobra.Command{Use: b.Name, Short: b.Doc, Long: b.Doc + ".\n\n" + b.Method, Args: args(0, 0), RunE: func(cmd *cobra.Command, _ []string) error {
			return a.bench(cmd.Context(), b)
		}})
	}
	short = append(short, a.benchGroupsCommand(), a.benchCUDACommand(), a.benchPageCommand())
	return group("bench", "Measure this machine; every figure that the docs claim comes from here", short...)
}

// bench runs a benchmark and prints what it found, its comparisons after its figures.
func (a *app) bench(ctx context.Context, b node.Bench) error {
	r, err := b.Run(ctx)
	if err != nil {
		return fmt.Errorf("bench %s: %w", b.Name, err)
	}
	if err := a.print(r, benchTable(r)); err != nil || a.format != "table" {
		return err
	}
	for _, t := range r.Tables {
		fmt.Fprintf(a.out, "\n%s\n", t.Title)
		if err := a.print(nil, table{t.Head, t.Rows}); err != nil {
			return err
		}
	}
	return nil
}

// benchAveragingCommand measures averaging, in short or in full.
func (a *app) benchAveragingCommand() *cobra.Command {
	var o node.AveragingBenchOptions
	doc := node.BenchAveraging(o)
	c := &cobra.Command{Use: doc.Name, Short: doc.Doc, Long: doc.Doc + ".\n\n" + doc.Method, Args: args(0, 0), RunE: func(cmd *cobra.Command, _ []string) error {
		return a.bench(cmd.Context(), node.BenchAveraging(o))
	}}
	c.Flags().BoolVar(&o.Full, "full", false, "compare the methods over three seeds and longer runs; takes an hour")
	c.Flags().StringVar(&o.Text, "text", "", "file that the methods train on (default: Go's own sources)")
	return c
}

// benchGroupsCommand compares sizes of groups.
func (a *app) benchGroupsCommand() *cobra.Command {
	var o node.GroupsBenchOptions
	doc := node.BenchGroups(o)
	c := &cobra.Command{Use: doc.Name, Short: doc.Doc, Long: doc.Doc + ".\n\n" + doc.Method, Args: args(0, 0), RunE: func(cmd *cobra.Command, _ []string) error {
		return a.bench(cmd.Context(), node.BenchGroups(o))
	}}
	c.Flags().IntVar(&o.Seeds, "seeds", 3, "seeds that every loss is a mean over; one takes a quarter of an hour")
	c.Flags().StringVar(&o.Text, "text", "", "file that the methods train on (default: Go's own sources)")
	return c
}

// benchStorageCommand measures the store, and kubo beside it.
func (a *app) benchStorageCommand() *cobra.Command {
	var o node.StorageBenchOptions
	doc := node.BenchStorage(o)
	c := &cobra.Command{Use: doc.Name, Short: doc.Doc, Long: doc.Doc + ".\n\n" + doc.Method, Args: args(0, 0), RunE: func(cmd *cobra.Command, _ []string) error {
		if o.PeerBinary == "" {
			a.say("kubo is not measured: --peer-binary names its program `ipfs`")
		}
		return a.bench(cmd.Context(), node.BenchStorage(o))
	}}
	c.Flags().StringVar(&o.PeerBinary, "peer-binary", "", "kubo's program `ipfs`, which is measured on the same file")
	return c
}

// benchCUDACommand measures a card; unlike the others it needs a plugin.
func (a *app) benchCUDACommand() *cobra.Command {
	var o node.CUDABenchOptions
	doc := node.BenchCUDA(o)
	c := &cobra.Command{Use: doc.Name, Short: doc.Doc, Long: doc.Doc + ".\n\n" + doc.Method, Args: args(0, 0), RunE: func(cmd *cobra.Command, _ []string) error {
		c, err := a.settings()
		if err != nil {
			return err
		}
		c.Log = "info" // a part says when it begins and ends
		o.Config, o.Log = c, a.logger(c)
		return a.bench(cmd.Context(), node.BenchCUDA(o))
	}}
	c.Flags().StringVar(&o.Device, "device", "cuda:0", "card to measure")
	c.Flags().StringArrayVar(&o.Parts, "part", nil, "measure this alone (repeatable): "+strings.Join(node.CUDAParts(), ", "))
	return c
}

// benchPageCommand writes docs/benchmarks.md for `make bench`.
func (a *app) benchPageCommand() *cobra.Command {
	var plots string
	c := &cobra.Command{Use: "page FILE...", Short: "Render reports, written with -o json, as a page", Hidden: true, Args: args(1, -1), RunE: func(_ *cobra.Command, given []string) error {
		reports, err := node.ReadBenchReports(given)
		if err != nil {
			return err
		}
		if plots != "" {
			if err := node.WriteBenchPlots(plots, reports); err != nil {
				return err
			}
		}
		_, err = io.WriteString(a.out, node.BenchPage(reports))
		return err
	}}
	c.Flags().StringVar(&plots, "plots", "", "folder that the page's plots are written to")
	return c
}

func benchTable(r node.BenchReport) table {
	t := table{head: []string{"FIGURE", "VALUE"}}
	for name, v := range r.Figures {
		t.rows = append(t.rows, []string{name, node.FormatFigure(v)})
	}
	for name, v := range r.Baseline {
		t.rows = append(t.rows, []string{"baseline " + name, node.FormatFigure(v)})
	}
	sort.Slice(t.rows, func(i, j int) bool { return t.rows[i][0] < t.rows[j][0] })
	if len(r.Missing) > 0 {
		t.rows = append(t.rows, []string{"missing", strings.Join(r.Missing, ", ")})
	}
	if r.Machine.Device != "" {
		t.rows = append(t.rows, []string{"device", r.Machine.Device})
	}
	t.rows = append(t.rows, []string{"machine", fmt.Sprintf("%s, %d cores, %s, %s", r.Machine.Processor, r.Machine.Cores, r.Machine.Numerics, r.Machine.Go)})
	return t
}
