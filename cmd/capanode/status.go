package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/capacloud/capanode/node"
)

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{Use: "status", Short: "Show this home at a glance", Args: args(0, 0), RunE: func(cmd *cobra.Command, _ []string) error {
		c, err := a.settings()
		if err != nil {
			return err
		}
		s, err := node.View[node.Status](cmd.Context(), a.home, c, "status", nil)
		if err != nil {
			return err
		}
		state := "no process runs on this home"
		if s.Running {
			state = fmt.Sprintf("running on network %q, %d peers, %d offers known", s.Network, s.Peers, s.Offers)
		}
		t := table{rows: [][]string{{"peer", s.Peer}, {"home", s.Home}, {"state", state}}}
		for _, addr := range s.Addresses {
			t.rows = append(t.rows, []string{"listens", addr})
		}
		t.rows = append(t.rows, []string{"leases", fmt.Sprintf("%d open", s.Leases)}, []string{"runs", number(int64(s.Runs))},
			[]string{"store", fmt.Sprintf("%d objects, %s of %s", s.Objects, size(s.Bytes), size(s.Quota))},
			[]string{"money", fmt.Sprintf("earned %s, owed %s credits", s.Earned, s.Owed)})
		return a.print(s, t)
	}}
}
