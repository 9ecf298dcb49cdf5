package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/capacloud/capanode/node"
	"github.com/capacloud/capanode/p2p"
	"github.com/capacloud/capanode/storage/ipfs"
)

// app is one command line: where it prints, how, and which home it works on.
type app struct {
	stop     <-chan struct{}
	out, err io.Writer
	format   string
	home     string
	config   string
	flags    *pflag.FlagSet
}

// root builds the command tree.
func (a *app) root() *cobra.Command {
	c := &cobra.Command{
		Use:           "capanode",
		Short:         "Pretrain models on GPUs that strangers own",
		Long:          "Capanode turns GPUs owned by strangers into a pretraining cluster: provide sells slots, train leases them,\nbootstrap introduces peers. Data, updates and checkpoints travel by content address.",
		SilenceErrors: true, SilenceUsage: true,
		Args:              cobra.ArbitraryArgs,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return a.checkGlobals() },
		RunE:              onlyGroups,
	}
	f := c.PersistentFlags()
	a.flags = f
	f.StringVarP(&a.format, "output", "o", "table", "table, json or jsonl")
	f.StringVar(&a.home, "home", os.Getenv("CAPANODE_HOME"), "folder of this node (default $XDG_DATA_HOME/capanode)")
	f.StringVar(&a.config, "config", os.Getenv("CAPANODE_CONFIG"), "configuration file (default $XDG_CONFIG_HOME/capanode/config.yaml)")
	f.StringArray("bootstrap", nil, "address of a bootstrap node, with /p2p/ peer ID (repeatable)")
	f.StringArray("listen", nil, "address to listen on (repeatable)")
	f.String("network", "", "network to join")
	f.String("log", "", "debug, info, warn or error")
	f.Bool("mdns", true, "find nodes on the local network")
	f.Bool("ipfs", false, "exchange blocks with connected IPFS nodes over bitswap")
	f.Int64("quota", 0, "most bytes that the object store may hold")
	f.String("plugin", "", "PJRT plugin that trains on CUDA cards, an absolute path")
	f.String("precision", "", "what cards multiply in: bf16 or fp32")
	c.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w: %w; see `%s --help`", errUsage, err, cmd.CommandPath())
	})
	c.AddCommand(a.commands()...)
	return c
}

func (a *app) checkGlobals() error {
	if !slices.Contains([]string{"table", "json", "jsonl"}, a.format) {
		return fmt.Errorf("%w: -o %q: write table, json or jsonl", errUsage, a.format)
	}
	if a.home == "" {
		d, err := node.DefaultHome()
		if err != nil {
			return err
		}
		a.home = d
	}
	return nil
}

// settings merges flags, environment, file and defaults.
func (a *app) settings() (node.Config, error) {
	given := map[string]any{}
	for _, s := range node.Settings() {
		f := a.flags.Lookup(s.Key)
		if f == nil || !f.Changed {
			continue
		}
		switch s.Default.(type) {
		case []string:
			given[s.Key], _ = a.flags.GetStringArray(s.Key)
		case bool:
			given[s.Key], _ = a.flags.GetBool(s.Key)
		default:
			given[s.Key] = f.Value.String()
		}
	}
	path, required := a.config, a.config != ""
	if !required {
		path = node.ConfigPath()
	}
	return node.LoadConfig(path, required, given)
}

// logger writes to standard error at the configured level.
func (a *app) logger(c node.Config) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(c.Log)) // checked by LoadConfig
	h := slog.NewTextHandler(a.err, &slog.HandlerOptions{Level: level})
	p2p.RouteLogs(h)
	ipfs.RouteLogs(h)
	return slog.New(h)
}

// say prints a line for people on standard error.
func (a *app) say(format string, args ...any) {
	fmt.Fprintf(a.err, strings.TrimSuffix(format, "\n")+"\n", args...)
}

// args checks the number of arguments and answers with usage otherwise.
func args(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, given []string) error {
		if len(given) < least || most >= 0 && len(given) > most {
			return fmt.Errorf("%w: %s; see `%s --help`", errUsage, cmd.UseLine(), cmd.CommandPath())
		}
		return nil
	}
}

// group makes a command that only holds others; an unknown one is a usage error.
func group(use, short string, commands ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, RunE: onlyGroups}
	c.AddCommand(commands...)
	return c
}

// onlyGroups prints the help of a command that only holds others.
func onlyGroups(cmd *cobra.Command, given []string) error {
	if len(given) == 0 {
		return cmd.Help()
	}
	hint := ""
	if near := cmd.SuggestionsFor(given[0]); len(near) > 0 {
		hint = fmt.Sprintf("did you mean %q? ", near[0])
	}
	return fmt.Errorf("%w: %s has no command %q; %ssee `%s --help`", errUsage, cmd.CommandPath(), given[0], hint, cmd.CommandPath())
}
