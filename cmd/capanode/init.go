package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/capacloud/capanode/trainer/job"
)

func (a *app) initCommand() *cobra.Command {
	var data string
	c := &cobra.Command{Use: "job [NAME]", Short: "Write a commented job file, NAME.yaml", Args: args(0, 1), RunE: func(_ *cobra.Command, given []string) error {
		name := "job"
		if len(given) > 0 {
			name = given[0]
		}
		file := name + ".yaml"
		text := job.Template(name, data)
		if _, err := job.Parse(file, []byte(text)); err != nil {
			return err
		}
		f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("%w: %s exists; choose another NAME, it is never overwritten", errUsage, file)
		}
		if err != nil {
			return err
		}
		_, err = f.WriteString(text)
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return err
		}
		a.say("edit data.paths, then: capanode train %s --local 3", file)
		return a.print(map[string]string{"file": file}, table{rows: [][]string{{file}}})
	}}
	c.Flags().StringVar(&data, "data", "./corpus", "corpus to name in the file")
	return group("init", "Write a starting point", c)
}
