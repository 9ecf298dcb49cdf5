package main

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/capacloud/capanode/node"
)

func (a *app) storageGetCommand() *cobra.Command {
	var from, seeds []string
	c := &cobra.Command{Use: "get CID DEST", Short: "Write an object to a path, fetching it from peers if need be", Args: args(2, 2), Long: fetchHelp, RunE: func(cmd *cobra.Command, given []string) error {
		u, err := a.fetching(seeds)
		if err != nil {
			return err
		}
		u.From = from
		if err := node.Get(cmd.Context(), u, given[0], given[1]); err != nil {
			return err
		}
		return a.print(map[string]string{"cid": given[0], "path": given[1]}, table{rows: [][]string{{given[1]}}})
	}}
	fetchFlags(c, &from, &seeds)
	return c
}

func (a *app) storagePinCommand() *cobra.Command {
	var from, seeds []string
	var lease time.Duration
	c := &cobra.Command{Use: "pin CID [NAME]", Short: "Protect an object, fetching it if need be", Args: args(1, 2), RunE: func(cmd *cobra.Command, given []string) error {
		u, err := a.fetching(seeds)
		if err != nil {
			return err
		}
		name := given[0]
		if len(given) > 1 {
			name = given[1]
		}
		u.From = from
		if err := node.Pin(cmd.Context(), u, name, given[0], lease); err != nil {
			return err
		}
		return a.print(map[string]string{"cid": given[0], "pin": name}, table{rows: [][]string{{name, given[0]}}})
	}}
	fetchFlags(c, &from, &seeds)
	c.Flags().DurationVar(&lease, "for", 0, "how long, such as 24h (default: until it is unpinned)")
	return c
}

// fetchFlags say whom a command asks for what is not here.
func fetchFlags(c *cobra.Command, from, seeds *[]string) {
	c.Flags().StringArrayVar(from, "from", nil, "address of a node, or of an IPFS node, that is asked first (repeatable)")
	c.Flags().StringArrayVar(seeds, "seed", nil, "web server that has the content, beside the peers (repeatable)")
}
