package main

import (
	"fmt"
	"net/url"
	"time"

	"github.com/spf13/cobra"

	"github.com/capacloud/capanode/node"
)

func (a *app) leaseCommand() *cobra.Command {
	list := &cobra.Command{Use: "list", Short: "List the leases of this home, bought and sold", Args: args(0, 0), RunE: func(cmd *cobra.Command, _ []string) error {
		c, err := a.settings()
		if err != nil {
			return err
		}
		lines, err := node.View[[]node.LeaseLine](cmd.Context(), a.home, c, "leases", nil)
		if err != nil {
			return err
		}
		t := table{head: []string{"LEASE", "ROLE", "WITH", "RUN", "STATE", "REASON", "CREDITS/H", "AMOUNT", "TOKENS", "UNITS"}}
		for _, l := range lines {
			t.rows = append(t.rows, []string{short(l.Lease), l.Role, short(l.Other), short(l.Run), l.State, l.Reason, l.Price, l.Amount, count(int64(l.Tokens)), number(l.Units)})
		}
		return a.print(orEmpty(lines), t)
	}}
	show := &cobra.Command{Use: "show LEASE", Short: "Show one lease with its timeline", Args: args(1, 1), RunE: func(cmd *cobra.Command, given []string) error {
		c, err := a.settings()
		if err != nil {
			return err
		}
		l, err := node.View[node.LeaseLine](cmd.Context(), a.home, c, "lease", url.Values{"lease": {given[0]}})
		if err != nil {
			return err
		}
		t := table{rows: [][]string{{"lease", l.Lease}, {"role", l.Role}, {"with", l.Other}, {"run", l.Run}, {"slot", fmt.Sprintf("%d, epoch %d", l.Slot, l.Epoch)},
			{"state", l.State + " " + l.Reason}, {"price", l.Price + " credits/h"}, {"amount", fmt.Sprintf("%s credits, receipt %d", l.Amount, l.Receipt)},
			{"work", fmt.Sprintf("%d tokens, %d work units", l.Tokens, l.Units)}}}
		for _, s := range l.History {
			t.rows = append(t.rows, []string{s.At.Format(time.DateTime + ".000"), s.State + " " + s.Note})
		}
		return a.print(l, t)
	}}
	return group("lease", "Look at leases", list, show)
}
