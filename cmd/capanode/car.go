package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/capacloud/capanode/node"
)

func (a *app) exportCARCommand() *cobra.Command {
	return &cobra.Command{Use: "export-car CID FILE", Short: "Write an object with all its blocks to a CAR file; - is standard output", Args: args(2, 2),
		RunE: func(cmd *cobra.Command, given []string) error {
			u, err := a.use()
			if err != nil {
				return err
			}
			if given[1] == "-" {
				_, err := node.WriteCAR(cmd.Context(), u, given[0], a.out)
				return err
			}
			s, err := node.ExportCAR(cmd.Context(), u, given[0], given[1])
			if err != nil {
				return err
			}
			return a.print(s, table{rows: [][]string{{given[1], fmt.Sprintf("%d blocks", s.Blocks), size(s.Bytes)}}})
		}}
}

func (a *app) importCARCommand() *cobra.Command {
	return &cobra.Command{Use: "import-car FILE", Short: "Store what a CAR file holds and pin its roots under their CIDs; - is standard input", Args: args(1, 1),
		Long: "Store what a CAR file holds and pin its roots under their CIDs; - is standard input.\n\nThe file is read to its end and every block hashed before " +
			"anything is stored: a file that is damaged, cut off or without a\nblock that its roots need changes nothing.",
		RunE: func(cmd *cobra.Command, given []string) (err error) {
			u, err := a.use()
			if err != nil {
				return err
			}
			in := os.Stdin
			if given[0] != "-" {
				if in, err = os.Open(given[0]); err != nil {
					return err
				}
				defer func() { err = errors.Join(err, in.Close()) }()
			}
			s, err := node.ImportCAR(cmd.Context(), u, in)
			if err != nil {
				return fmt.Errorf("%s: %w", given[0], err)
			}
			t := table{}
			for _, root := range s.Roots {
				t.rows = append(t.rows, []string{root})
			}
			return a.print(s, t)
		}}
}
