package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
)

// docsCommand writes the command reference, one Markdown page per top-level command, from the same text as --help.
func (a *app) docsCommand() *cobra.Command {
	return &cobra.Command{Use: "docs DIR", Short: "Write the command reference as Markdown", Hidden: true, Args: args(1, 1), RunE: func(cmd *cobra.Command, given []string) error {
		if err := os.MkdirAll(given[0], 0o755); err != nil {
			return err
		}
		index := "# Commands\n\nWritten by `make docs` from the same text as `--help`.\n\n| command | what it does |\n|---|---|\n"
		for _, c := range cmd.Root().Commands() {
			if c.Hidden || c.Name() == "help" {
				continue
			}
			if c.Name() == "completion" { // the library's own command, described here in one line
				index += "| completion | Print a completion script for bash, zsh, fish or PowerShell |\n"
				continue
			}
			index += fmt.Sprintf("| [%s](%s.md) | %s |\n", c.Name(), c.Name(), c.Short)
			var page strings.Builder
			reference(&page, c, 1)
			if err := os.WriteFile(filepath.Join(given[0], c.Name()+".md"), []byte(page.String()), 0o644); err != nil {
				return err
			}
		}
		index += "\nFlags of every command:\n\n```\n" + cmd.Root().PersistentFlags().FlagUsages() + "```\n"
		return os.WriteFile(filepath.Join(given[0], "README.md"), []byte(index), 0o644)
	}}
}

// reference writes one command and those below it.
func reference(w *strings.Builder, c *cobra.Command, level int) {
	text := c.Long
	if text == "" {
		text = c.Short + "."
	}
	fmt.Fprintf(w, "%s capanode%s\n\n%s\n", strings.Repeat("#", level), strings.TrimPrefix(c.CommandPath(), "capanode"), text)
	if c.Runnable() {
		fmt.Fprintf(w, "\n```\n%s\n", c.UseLine())
		if f := c.NonInheritedFlags(); f.HasAvailableFlags() {
			fmt.Fprintf(w, "\n%s", f.FlagUsages())
		}
		fmt.Fprint(w, "```\n")
	}
	for _, sub := range c.Commands() {
		if !sub.Hidden {
			fmt.Fprintln(w)
			reference(w, sub, level+1)
		}
	}
}
