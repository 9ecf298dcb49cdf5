package main

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/capacloud/capanode/node"
)

// errUnwell reports that a check of the doctor failed.
var errUnwell = errors.New("a check failed; the lines above say what to do")

func (a *app) doctorCommand() *cobra.Command {
	var device string
	c := &cobra.Command{Use: "doctor", Short: "Check this machine: home, disk, device, engine, network, clock", Args: args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			u, err := a.use()
			if err != nil {
				return err
			}
			checks := node.Doctor(cmd.Context(), u, device)
			t := table{}
			failed := false
			for _, c := range checks {
				t.rows = append(t.rows, []string{verdictMark(c.Verdict), c.Check, c.Finding})
				if c.Next != "" {
					t.rows = append(t.rows, []string{"", "", "→ " + c.Next})
				}
				failed = failed || c.Verdict == node.Fail
			}
			if err := a.print(checks, t); err != nil || !failed {
				return err
			}
			return errUnwell
		}}
	c.Flags().StringVar(&device, "device", "auto", "auto, cpu or cuda:0")
	return c
}
