package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/capacloud/capanode/node"
	"github.com/capacloud/capanode/storage/dataset"
	"github.com/capacloud/capanode/trainer/data/corpus"
	"github.com/capacloud/capanode/trainer/job"
)

func (a *app) evalCommand() *cobra.Command {
	var o node.EvalOptions
	split, format := "", ""
	c := &cobra.Command{
		Use: "eval MODEL", Short: "Measure a model on text: loss, perplexity, bits per byte, accuracy", Args: args(1, 1),
		Long: "Eval measures how well a model (a folder, a CID or a run) foresees each token of a text from those before it.\n\n" +
			"--data names text, files and folders of every format that `data add` reads, or the CID of a dataset, of which the\n" +
			"held-out part is taken; it may be given several times, and each gets a row. Without it the held-out part of what the\n" +
			"model was trained on is taken. Files are read from their beginning to their end, and nothing of them is dropped.\n\n" +
			"The loss is in nats per token, perplexity is e to that power, and accuracy is the share of the tokens that the model\n" +
			"held for the likeliest. Bits per byte compares models of different tokenizers. Equal models and texts give equal\n" +
			"figures on every machine.",
		RunE: func(cmd *cobra.Command, given []string) error {
			u, err := a.evaluating()
			if err != nil {
				return err
			}
			switch split {
			case "held-out":
				o.Split = dataset.Val
			case "train":
				o.Split = dataset.Train
			default:
				return fmt.Errorf("%w: --split %q: write held-out or train", errUsage, split)
			}
			o.Use, o.Model, o.Corpus.Format = u, given[0], corpus.Format(format)
			out, err := node.Eval(cmd.Context(), o)
			if len(out.Data) == 0 {
				return err
			}
			return errors.Join(a.print(out, evalTable(out)), err)
		}}
	d := job.Defaults()
	f := c.Flags()
	f.StringArrayVar(&o.Data, "data", nil, "file, folder, pattern, or CID of a dataset (repeatable)")
	f.StringVar(&split, "split", "held-out", "part of a dataset: held-out or train")
	f.IntVar(&o.Context, "context", 0, "tokens that the model sees at once (default as many as it takes)")
	f.IntVar(&o.Stride, "stride", 0, "tokens from one window to the next; a shorter one gives each token more to be foreseen from (default the context)")
	f.Uint64Var(&o.Most, "tokens", 0, "measure at most so many tokens of each; 0 is all")
	f.IntVar(&o.Threads, "threads", 0, "processors to use (default all)")
	f.StringVar(&format, "format", d.Data.Format, "form of every file: "+corpus.FormatNames())
	f.StringVar(&o.Corpus.Field, "text", d.Data.Text, "field of JSON (dots descend) or column of CSV and Parquet that holds the text")
	f.StringArrayVar(&o.Corpus.Include, "include", nil, "file name suffix or pattern to keep in folders (repeatable)")
	f.StringArrayVar(&o.Corpus.Exclude, "exclude", nil, "file name suffix or pattern to leave out (repeatable)")
	return c
}

// evaluating is use for eval: it shows how far fetches and the measurement are.
func (a *app) evaluating() (node.Use, error) {
	u, err := a.fetching(nil)
	file, _ := a.err.(*os.File)
	fetch := u.Emit
	switch {
	case a.format == "jsonl":
		u.Emit = func(event any) { _ = json.NewEncoder(a.out).Encode(event) } // a closed pipe must not stop the measurement
	case a.format == "table" && file != nil && term.IsTerminal(int(file.Fd())):
		u.Emit = func(event any) {
			if e, ok := event.(node.EvalProgressEvent); ok {
				evalLine(a.err, e)
				return
			}
			fetch(event)
		}
	}
	return u, err
}

// evalLine writes one line over the last one. The end leaves an empty one.
func evalLine(w io.Writer, e node.EvalProgressEvent) {
	const clear = "\r\x1b[K"
	if e.Ended {
		fmt.Fprint(w, clear)
		return
	}
	fmt.Fprintf(w, clear+"%s  %s tokens", oneLine(e.Data), count(int64(e.Tokens)))
	if e.Total > 0 {
		fmt.Fprintf(w, " of %s  %.0f %%", count(int64(e.Total)), 100*float64(e.Tokens)/float64(e.Total))
	}
	fmt.Fprintf(w, "  %s/s", count(int64(e.TokensPerSecond)))
	if e.Total > e.Tokens && e.TokensPerSecond > 0 {
		fmt.Fprintf(w, "  %s left", time.Duration(float64(e.Total-e.Tokens)/e.TokensPerSecond*float64(time.Second)).Round(time.Second))
	}
}

func evalTable(e node.Evaluation) table {
	t := table{head: []string{"DATA", "TOKENS", "LOSS", "PERPLEXITY", "BITS/BYTE", "ACCURACY"}}
	for _, d := range e.Data {
		name := d.Data
		if d.Name != "" {
			name = d.Name + " (" + map[string]string{string(dataset.Val): "held-out", string(dataset.Train): "train"}[d.Split] + ")"
		}
		t.rows = append(t.rows, []string{oneLine(name), number(d.Tokens), fmt.Sprintf("%.4f", d.Loss), fmt.Sprintf("%.4g", d.Perplexity), fmt.Sprintf("%.4f", d.BitsPerByte), percent(d.Accuracy)})
	}
	return t
}
