package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/capacloud/capanode/market/credit"
	"github.com/capacloud/capanode/node"
)

// commands lists the top-level commands in the order of a first session.
func (a *app) commands() []*cobra.Command {
	return []*cobra.Command{
		a.doctorCommand(), a.bootstrapCommand(), a.provideCommand(), a.trainCommand(), a.initCommand(), a.offersCommand(),
		a.jobCommand(), a.leaseCommand(), a.ledgerCommand(), a.dataCommand(), a.storageCommand(), a.checkpointCommand(), a.exportCommand(),
		a.evalCommand(), a.sampleCommand(), a.statusCommand(), a.benchCommand(), a.engineCommand(), a.configCommand(), a.versionCommand(), a.docsCommand(),
	}
}

// use says which home a tool works on. What goes wrong in a tool is its error, once: it logs only when that is asked for.
func (a *app) use() (node.Use, error) {
	c, err := a.settings()
	u := node.Use{Home: a.home, Config: c}
	if c.Origin["log"] != "default" {
		u.Log = a.logger(c)
	}
	return u, err
}

// amount reads a flag in credits; empty is 0.
func amount(flag, text string) (credit.Micro, error) {
	if text == "" {
		return 0, nil
	}
	m, err := credit.Parse(text)
	if err != nil {
		return 0, fmt.Errorf("%w: %s %q: %w", errUsage, flag, text, err)
	}
	return m, nil
}

// number formats a count for a table cell.
func number[T int | int64 | uint32 | uint64](n T) string { return fmt.Sprint(n) }
