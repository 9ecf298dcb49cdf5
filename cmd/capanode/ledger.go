package main

import (
	"encoding/csv"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/capacloud/capanode/market/ledger"
	"github.com/capacloud/capanode/node"
)

func (a *app) ledgerCommand() *cobra.Command {
	show := &cobra.Command{Use: "show", Short: "Print the balance of every account", Args: args(0, 0), RunE: func(cmd *cobra.Command, _ []string) error {
		c, err := a.settings()
		if err != nil {
			return err
		}
		all, err := node.View[[]node.Balance](cmd.Context(), a.home, c, "ledger", nil)
		if err != nil {
			return err
		}
		t := table{head: []string{"ACCOUNT", "CREDITS"}}
		for _, b := range all {
			t.rows = append(t.rows, []string{b.Account, b.Credits})
		}
		return a.print(orEmpty(all), t)
	}}
	verify := &cobra.Command{Use: "verify", Short: "Check the books against the signed receipts", Args: args(0, 0), RunE: func(cmd *cobra.Command, _ []string) error {
		c, err := a.settings()
		if err != nil {
			return err
		}
		r, err := node.View[ledger.Report](cmd.Context(), a.home, c, "verify", nil)
		if err != nil {
			return err
		}
		return a.print(r, table{rows: [][]string{{fmt.Sprintf("ok  %d leases, %d receipts, %d entries, %s credits: signatures, chains, sums and balances agree", r.Leases, r.Receipts, r.Entries, r.Total)}}})
	}}
	var from, to, format string
	statement := &cobra.Command{Use: "statement", Short: "List the booked receipts", Args: args(0, 0), RunE: func(cmd *cobra.Command, _ []string) error {
		c, err := a.settings()
		if err != nil {
			return err
		}
		rows, err := node.View[[]node.StatementRow](cmd.Context(), a.home, c, "statement", url.Values{"from": {from}, "to": {to}})
		if err != nil {
			return err
		}
		t := table{head: []string{"TIME", "LEASE", "RECEIPT", "FROM", "TO", "ADDED", "TOTAL"}}
		for _, r := range rows {
			t.rows = append(t.rows, []string{r.At.Format(time.RFC3339), r.Lease, number(r.Receipt), r.Requester, r.Provider, r.Added, r.Total})
		}
		if format == "csv" {
			w := csv.NewWriter(a.out)
			return w.WriteAll(append([][]string{t.head}, t.rows...))
		}
		for _, row := range t.rows {
			row[1], row[3], row[4] = short(row[1]), short(owner(row[3])), short(owner(row[4]))
		}
		return a.print(orEmpty(rows), t)
	}}
	statement.Flags().StringVar(&from, "from", "", "first day or time, such as 2026-11-23")
	statement.Flags().StringVar(&to, "to", "", "end, not included")
	statement.Flags().StringVar(&format, "format", "", "csv for a spreadsheet")
	return group("ledger", "Look at money", show, verify, statement)
}

// owner is the peer ID inside an account's name, such as provider:PEER:earned.
func owner(account string) string {
	part := strings.Split(account, ":")
	return part[len(part)/2]
}
