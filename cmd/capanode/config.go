package main

import (
	"fmt"
	"sort"

	"github.com/spf13/cobra"

	"github.com/capacloud/capanode/node"
	"github.com/capacloud/capanode/trainer/job"
)

func (a *app) configCommand() *cobra.Command {
	var origin bool
	show := &cobra.Command{Use: "show", Short: "Print the merged configuration", Args: args(0, 0), RunE: func(*cobra.Command, []string) error {
		c, err := a.settings()
		if err != nil {
			return err
		}
		t := table{head: []string{"KEY", "VALUE"}}
		if origin {
			t.head = append(t.head, "ORIGIN")
		}
		for _, v := range c.Values() {
			row := []string{v.Key, fmt.Sprint(v.Value)}
			if origin {
				row = append(row, v.Origin)
			}
			t.rows = append(t.rows, row)
		}
		return a.print(c.Values(), t)
	}}
	show.Flags().BoolVar(&origin, "origin", false, "say where each value comes from")
	path := &cobra.Command{Use: "path", Short: "Print the paths of the home and of the configuration file", Args: args(0, 0), RunE: func(*cobra.Command, []string) error {
		file := a.config
		if file == "" {
			file = node.ConfigPath()
		}
		v := map[string]string{"home": a.home, "config": file}
		return a.print(v, keyValues(v))
	}}
	schema := &cobra.Command{Use: "schema", Short: "Print the JSON Schema of the job file", Args: args(0, 0), RunE: func(*cobra.Command, []string) error {
		t := table{head: []string{"KEY", "TYPE", "DEFAULT", "MEANING"}}
		for _, f := range job.Schema() {
			def := ""
			if f.Default != nil {
				def = fmt.Sprint(f.Default)
			}
			t.rows = append(t.rows, []string{f.Key, f.Type, def, f.Doc})
		}
		return a.print(job.JSONSchema(), t)
	}}
	return group("config", "Show the configuration and the job file's schema", show, path, schema)
}

// keyValues is a two-column table sorted by key.
func keyValues(m map[string]string) table {
	var t table
	for k, v := range m {
		t.rows = append(t.rows, []string{k, v})
	}
	sort.Slice(t.rows, func(i, j int) bool { return t.rows[i][0] < t.rows[j][0] })
	return t
}
