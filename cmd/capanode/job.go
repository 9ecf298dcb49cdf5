package main

import (
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/capacloud/capanode/node"
)

func (a *app) jobCommand() *cobra.Command {
	list := &cobra.Command{Use: "list", Short: "List the runs of this home", Args: args(0, 0), RunE: func(cmd *cobra.Command, _ []string) error {
		c, err := a.settings()
		if err != nil {
			return err
		}
		runs, err := node.View[[]node.Run](cmd.Context(), a.home, c, "jobs", nil)
		if err != nil {
			return err
		}
		t := table{head: []string{"RUN", "NAME", "ROLE", "STATE", "ROUND", "LOSS", "TOKENS", "SPENT", "CHECKPOINT"}}
		for _, r := range runs {
			t.rows = append(t.rows, []string{short(r.ID), r.Name, r.Role, string(r.State), fmt.Sprintf("%d/%d", r.Round, r.Rounds),
				fmt.Sprintf("%.4f", r.Loss), count(int64(r.Tokens)), fmt.Sprintf("%.6f", r.Spent), short(r.Checkpoint)})
		}
		return a.print(orEmpty(runs), t)
	}}
	show := &cobra.Command{Use: "show RUN", Short: "Show one run, by ID, start of an ID, or name", Args: args(1, 1), RunE: func(cmd *cobra.Command, given []string) error {
		r, err := a.run(cmd, given[0])
		if err != nil {
			return err
		}
		t := table{rows: [][]string{{"run", r.ID}, {"name", r.Name}, {"role", r.Role}, {"state", string(r.State)}, {"reason", r.Reason},
			{"started", r.Started.String()}, {"updated", r.Updated.String()}, {"round", fmt.Sprintf("%d of %d", r.Round, r.Rounds)},
			{"loss", fmt.Sprintf("%.4f", r.Loss)}, {"tokens", number(r.Tokens)}, {"spent", fmt.Sprintf("%.6f credits", r.Spent)},
			{"dataset", r.Dataset}, {"checkpoint", r.Checkpoint}, {"out", r.Out}}}
		return a.print(r, t)
	}}
	logs := &cobra.Command{Use: "logs RUN", Short: "Print the events of a run, one JSON object per line", Args: args(1, 1), RunE: func(cmd *cobra.Command, given []string) error {
		r, err := a.run(cmd, given[0])
		if err != nil {
			return err
		}
		f, err := os.Open(filepath.Join(a.home, "runs", r.ID, "metrics.jsonl"))
		if err != nil {
			return fmt.Errorf("run %s has no events: %w", r.ID, err)
		}
		defer f.Close()
		_, err = io.Copy(a.out, f)
		return err
	}}
	stop := &cobra.Command{Use: "stop", Short: "End the run that is under way on this home after its round, and settle", Args: args(0, 0), RunE: func(cmd *cobra.Command, _ []string) error {
		return node.StopRunning(cmd.Context(), a.home)
	}}
	return group("job", "Look at runs and stop them", list, show, logs, stop)
}

func (a *app) run(cmd *cobra.Command, what string) (node.Run, error) {
	c, err := a.settings()
	if err != nil {
		return node.Run{}, err
	}
	return node.View[node.Run](cmd.Context(), a.home, c, "job", url.Values{"run": {what}})
}

// orEmpty makes JSON show [] instead of null.
func orEmpty[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
