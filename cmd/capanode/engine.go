package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/capacloud/capanode/node"
)

func (a *app) engineCommand() *cobra.Command {
	list := &cobra.Command{Use: "list", Short: "List processors and cards, what they measure, and whether the engine computes on them", Args: args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.settings()
			if err != nil {
				return err
			}
			views, err := node.Engines(cmd.Context(), c)
			if err != nil {
				return err
			}
			t := table{head: []string{"DEVICE", "NAME", "MEMORY", "°C", "W", "BUSY", "MHZ", "PCIE", "NUMERICS", "ENGINE"}}
			for _, v := range views {
				r := v.Telemetry
				t.rows = append(t.rows, []string{v.Device, v.Name, size(int64(v.MemoryBytes)), reading(r.Temperature, 1), reading(r.Power, 1),
					reading(r.Utilization, 100), reading(r.Clock, 1), reading(r.LinkGeneration, 1) + "x" + reading(r.LinkWidth, 1), v.Numerics, oneLine(v.Engine)})
			}
			return a.print(views, t)
		}}
	return group("engine", "Show what the engine computes on", list)
}

// reading formats a measured value times factor, or a dash.
func reading(v *float64, factor float64) string {
	if v == nil {
		return "-"
	}
	return fmt.Sprintf("%.0f", *v*factor)
}
