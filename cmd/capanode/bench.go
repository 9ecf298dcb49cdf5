package main

import (
	"fmt"
	"sort"
	"strings"

	"github.com/spf13/cobra"

	"github.com/capacloud/capanode/node"
)

func (a *app) benchCommand() *cobra.Command {
	var short []*cobra.Command
	for _, b := range node.Benches() {
		short = append(short, &cobra.Command{Use: b.Name, Short: b.Doc, Args: args(0, 0), RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := b.Run(cmd.Context())
			if err != nil {
				return fmt.Errorf("bench %s: %w", b.Name, err)
			}
			return a.print(r, benchTable(r))
		}})
	}
	return group("bench", "Measure this machine; every figure that the docs claim comes from here", short...)
}

func benchTable(r node.BenchReport) table {
	t := table{head: []string{"FIGURE", "VALUE"}}
	for name, v := range r.Figures {
		t.rows = append(t.rows, []string{name, fmt.Sprintf("%.4g", v)})
	}
	for name, v := range r.Baseline {
		t.rows = append(t.rows, []string{"baseline " + name, fmt.Sprintf("%.4g", v)})
	}
	sort.Slice(t.rows, func(i, j int) bool { return t.rows[i][0] < t.rows[j][0] })
	if len(r.Missing) > 0 {
		t.rows = append(t.rows, []string{"missing", strings.Join(r.Missing, ", ")})
	}
	t.rows = append(t.rows, []string{"machine", fmt.Sprintf("%s, %d cores, %s, %s", r.Machine.Processor, r.Machine.Cores, r.Machine.Numerics, r.Machine.Go)})
	return t
}
