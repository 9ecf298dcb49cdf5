package main

import (
	"encoding/json"

	"github.com/spf13/cobra"

	"github.com/capacloud/capanode/node"
)

func (a *app) bootstrapCommand() *cobra.Command {
	var public bool
	c := &cobra.Command{Use: "bootstrap", Short: "Run a meeting point for peers and print its join line", Args: args(0, 0),
		Long: "Bootstrap runs a node that introduces peers to each other. It knows no job and takes no money; a run goes on without it.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.settings()
			if err != nil {
				return err
			}
			if public && c.Origin["listen"] == "default" {
				c.Listen = []string{"/ip4/0.0.0.0/tcp/4001", "/ip4/0.0.0.0/udp/4001/quic-v1", "/ip6/::/tcp/4001", "/ip6/::/udp/4001/quic-v1"}
			}
			return node.Bootstrap(cmd.Context(), node.BootstrapOptions{Home: a.home, Config: c, Log: a.logger(c), Stop: a.stop, Emit: a.showBootstrap})
		}}
	c.Flags().BoolVar(&public, "public", false, "listen on port 4001 of every interface, IPv4 and IPv6, for a join line that stays")
	return c
}

func (a *app) showBootstrap(event any) {
	e, ok := event.(node.BootstrapEvent)
	if a.format != "table" || !ok {
		_ = json.NewEncoder(a.out).Encode(event) // a closed pipe must not stop the node
		return
	}
	if e.State != "ready" {
		a.say("stopped")
		return
	}
	a.say("bootstrap node %s of network %q", e.Peer, e.Network)
	for _, addr := range e.Addresses {
		a.say("listens on %s", addr)
	}
	a.say("others join with: capanode provide --network %s --bootstrap %s", e.Network, e.Join)
	_ = a.print(e, table{rows: [][]string{{e.Join}}})
}
