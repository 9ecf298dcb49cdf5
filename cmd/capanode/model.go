package main

import (
	"fmt"
	"sync"

	"github.com/spf13/cobra"

	"github.com/capacloud/capanode/node"
)

func (a *app) checkpointCommand() *cobra.Command {
	list := &cobra.Command{Use: "list", Short: "List the models of this home's runs, their sizes and what each has in common with the one before it", Args: args(0, 0), RunE: func(cmd *cobra.Command, _ []string) error {
		c, err := a.settings()
		if err != nil {
			return err
		}
		all, err := node.View[[]node.Checkpoint](cmd.Context(), a.home, c, "checkpoints", nil)
		if err != nil {
			return err
		}
		t := table{head: []string{"RUN", "ROUND", "CHECKPOINT", "SIZE", "SHARED"}}
		for _, p := range all {
			t.rows = append(t.rows, []string{p.Run, number(p.Round), p.CID, size(p.Size), size(p.Shared)})
		}
		return a.print(orEmpty(all), t)
	}}
	pull := &cobra.Command{Use: "pull CID|RUN", Short: "Fetch a model and keep it, so that others can fetch it from here", Args: args(1, 1), RunE: func(cmd *cobra.Command, given []string) error {
		u, err := a.use()
		if err != nil {
			return err
		}
		p, model, err := node.Pull(cmd.Context(), u, given[0])
		if err != nil {
			return err
		}
		return a.print(map[string]any{"checkpoint": model, "provenance": p}, table{rows: [][]string{{model, p.Name, fmt.Sprintf("round %d", p.Round)}}})
	}}
	verify := &cobra.Command{Use: "verify CID|RUN", Short: "Rehash a model's blocks and check that it loads", Args: args(1, 1), RunE: func(cmd *cobra.Command, given []string) error {
		u, err := a.use()
		if err != nil {
			return err
		}
		r, p, err := node.VerifyModel(cmd.Context(), u, given[0])
		if err != nil {
			return err
		}
		return a.print(map[string]any{"report": r, "provenance": p}, verifyTable(r))
	}}
	return group("checkpoint", "Models in the store", list, pull, verify)
}

func (a *app) exportCommand() *cobra.Command {
	var o node.ExportOptions
	c := &cobra.Command{Use: "export CID|RUN DIR", Short: "Write a model as a Hugging Face folder, or an adapter as a PEFT folder", Args: args(2, 2), RunE: func(cmd *cobra.Command, given []string) error {
		u, err := a.use()
		if err != nil {
			return err
		}
		model, err := node.Export(cmd.Context(), u, given[0], given[1], o)
		if err != nil {
			return err
		}
		return a.print(map[string]string{"checkpoint": model, "out": given[1]}, table{rows: [][]string{{model, given[1]}}})
	}}
	c.Flags().StringVar(&o.Type, "dtype", "", "fp32, or bf16 or fp16 for weights of half the size, rounded to nearest (default: as stored)")
	c.Flags().BoolVar(&o.Merge, "merge", false, "write an adapter merged into its model, as a Hugging Face folder")
	return c
}

func (a *app) sampleCommand() *cobra.Command {
	o := node.SampleOptions{}
	c := &cobra.Command{Use: "sample MODEL [PROMPT]", Short: "Continue a prompt with a model: a folder, a CID or a run", Args: args(1, 2), RunE: func(cmd *cobra.Command, given []string) error {
		u, err := a.use()
		if err != nil {
			return err
		}
		o.Use, o.Model = u, given[0]
		if len(given) > 1 {
			o.Prompt = given[1]
		}
		var text []byte
		begin := sync.OnceFunc(func() { fmt.Fprint(a.out, o.Prompt) }) // once the model is there: a failure prints nothing
		err = node.Sample(cmd.Context(), o, func(piece []byte) error {
			if a.format != "table" {
				text = append(text, piece...)
				return nil
			}
			begin()
			_, err := a.out.Write(piece)
			return err
		})
		if err != nil {
			return err
		}
		if a.format == "table" {
			begin()
			fmt.Fprintln(a.out)
			return nil
		}
		return a.print(map[string]any{"prompt": o.Prompt, "text": string(text), "seed": o.Seed}, table{})
	}}
	f := c.Flags()
	f.IntVar(&o.Tokens, "tokens", 200, "tokens to write")
	f.Float64Var(&o.Temperature, "temperature", 0.8, "0 always takes the likeliest token")
	f.IntVar(&o.TopK, "top-k", 0, "draw from so many likeliest tokens; 0 is all")
	f.Float64Var(&o.TopP, "top-p", 0.95, "draw from the likeliest tokens with this probability together")
	f.Uint64Var(&o.Seed, "seed", 0, "of the draws; equal seeds give equal texts")
	f.IntVar(&o.Threads, "threads", 0, "processors to use (default all)")
	return c
}
