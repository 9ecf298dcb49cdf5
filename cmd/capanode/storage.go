package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/capacloud/capanode/node"
	"github.com/capacloud/capanode/storage"
)

func (a *app) storageCommand() *cobra.Command {
	return group("storage", "The content-addressed store",
		a.storageAddCommand(), a.storageGetCommand(), a.storageListCommand(), a.storagePinCommand(), a.storageUnpinCommand(), a.storageRemoveCommand(),
		a.storageCollectCommand(), a.storageVerifyCommand(), a.exportCARCommand(), a.importCARCommand())
}

func (a *app) storageAddCommand() *cobra.Command {
	var inPlace bool
	c := &cobra.Command{Use: "add PATH…", Short: "Put files and folders into the store and print their CIDs", Args: args(1, -1), RunE: func(cmd *cobra.Command, given []string) error {
		u, err := a.use()
		if err != nil {
			return err
		}
		added, err := node.Add(cmd.Context(), u, given, inPlace)
		t := table{}
		for _, x := range added {
			if x.Error == "" {
				t.rows = append(t.rows, []string{x.CID, x.Path})
			}
		}
		return errors.Join(a.print(orEmpty(added), t), err)
	}}
	c.Flags().BoolVar(&inPlace, "in-place", false, "serve the files from where they lie instead of copying them; they must stay there, unchanged")
	return c
}

func (a *app) storageListCommand() *cobra.Command {
	return &cobra.Command{Use: "ls", Short: "List the stored objects", Args: args(0, 0), RunE: func(cmd *cobra.Command, _ []string) error {
		c, err := a.settings()
		if err != nil {
			return err
		}
		all, err := node.View[[]node.Object](cmd.Context(), a.home, c, "objects", nil)
		if err != nil {
			return err
		}
		t := table{head: []string{"CID", "KIND", "CLASS", "SIZE", "PINS"}}
		for _, o := range all {
			if o.Damaged {
				o.Class += ", damaged"
			}
			t.rows = append(t.rows, []string{o.CID, o.Kind, o.Class, size(o.Size), strings.Join(o.Pins, " ")})
		}
		return a.print(orEmpty(all), t)
	}}
}

func (a *app) storageUnpinCommand() *cobra.Command {
	return &cobra.Command{Use: "unpin NAME", Short: "Remove a pin; the object stays until it is collected", Args: args(1, 1), RunE: func(cmd *cobra.Command, given []string) error {
		u, err := a.use()
		if err != nil {
			return err
		}
		return node.Unpin(cmd.Context(), u, given[0])
	}}
}

func (a *app) storageRemoveCommand() *cobra.Command {
	return &cobra.Command{Use: "rm CID…", Short: "Delete objects; a file that was added in place stays where it is", Args: args(1, -1), RunE: func(cmd *cobra.Command, given []string) error {
		u, err := a.use()
		if err != nil {
			return err
		}
		return node.Remove(cmd.Context(), u, given)
	}}
}

func (a *app) storageCollectCommand() *cobra.Command {
	return &cobra.Command{Use: "gc", Short: "Remove cached objects that nothing protects", Args: args(0, 0), RunE: func(cmd *cobra.Command, _ []string) error {
		u, err := a.use()
		if err != nil {
			return err
		}
		r, err := node.Collect(cmd.Context(), u)
		if err != nil {
			return err
		}
		return a.print(r, table{rows: [][]string{{fmt.Sprintf("removed %d objects, %s", r.Objects, size(r.Bytes))}}})
	}}
}

func (a *app) storageVerifyCommand() *cobra.Command {
	return &cobra.Command{Use: "verify [CID]", Short: "Rehash every block of one object, or of all", Args: args(0, 1), RunE: func(cmd *cobra.Command, given []string) error {
		u, err := a.use()
		if err != nil {
			return err
		}
		r, err := node.VerifyStore(cmd.Context(), u, strings.Join(given, ""))
		if err != nil && !errors.Is(err, storage.ErrCorrupt) {
			return err
		}
		return errors.Join(a.print(r, verifyTable(r)), err)
	}}
}

func verifyTable(r storage.Report) table {
	t := table{rows: [][]string{{fmt.Sprintf("%d objects, %d blocks, %s, %d faults", r.Objects, r.Blocks, size(r.Bytes), len(r.Faults))}}}
	for _, f := range r.Faults {
		t.rows = append(t.rows, []string{fmt.Sprintf("%s  block %d  %s", f.CID, f.Block, oneLine(f.Err.Error()))})
	}
	return t
}
