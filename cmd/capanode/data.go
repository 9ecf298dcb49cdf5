package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/capacloud/capanode/node"
	"github.com/capacloud/capanode/trainer/data"
	"github.com/capacloud/capanode/trainer/data/corpus"
	"github.com/capacloud/capanode/trainer/job"
)

func (a *app) dataCommand() *cobra.Command {
	var add, look node.DataOptions
	html := ""
	adding := &cobra.Command{
		Use: "add PATH…", Short: "Make a dataset of files, folders and patterns, and print its CID",
		Long: "Reads, cleans, tokenises and shuffles a corpus, and stores it as shards under one CID that a job's data.cid may name.\n" +
			"Formats are told from content and name; --format forces one. What is filtered, damaged or repaired is counted.",
		Args: args(1, -1), RunE: func(cmd *cobra.Command, given []string) error {
			u, err := a.use()
			if err != nil {
				return err
			}
			add.Paths = given
			added, err := node.AddData(cmd.Context(), u, add)
			if added.Dataset == "" {
				return err
			}
			return errors.Join(a.print(added, addedTable(added)), err)
		}}
	dataFlags(adding, &add)
	adding.Flags().StringVar(&add.Name, "name", "corpus", "name of the dataset, for people")
	adding.Flags().IntVar(&add.ShardTokens, "shard-tokens", 0, "tokens in one shard; 0 chooses by corpus size")
	adding.Flags().IntVar(&add.Context, "context", 512, "tokens in a training window: each shard holds some of them")
	adding.Flags().IntVar(&add.Peers, "peers", 1, "peers that will train at once: each needs a shard")
	inspecting := &cobra.Command{
		Use: "inspect CID|PATH…", Short: "Report on the quality of a dataset or of files",
		Long: "Duplicates, languages, lengths, repetition, boilerplate, hints of personal data, tokens, and how much of the held-out text\n" +
			"the training text has too. Nothing is stored; files are read once. docs/data.md says how each figure is made.",
		Args: args(1, -1), RunE: func(cmd *cobra.Command, given []string) error {
			u, err := a.use()
			if err != nil {
				return err
			}
			look.Paths = given
			report, err := node.InspectData(cmd.Context(), u, look)
			if err != nil {
				return err
			}
			if html != "" {
				if err := node.WritePage(html, given, report); err != nil {
					return err
				}
			}
			return a.print(report, inspectionTable(report))
		}}
	dataFlags(inspecting, &look)
	inspecting.Flags().StringVar(&html, "html", "", "also write the report as one HTML file that needs nothing else; replaces the file")
	return group("data", "Datasets: make one of files, and look at its quality", adding, inspecting)
}

// dataFlags adds the flags that say which files are read and how; their names are those of a job's data section.
func dataFlags(c *cobra.Command, o *node.DataOptions) {
	d := job.Defaults()
	f := c.Flags()
	f.StringVar(&o.Format, "format", d.Data.Format, "form of every file: "+corpus.FormatNames())
	f.StringVar(&o.Text, "text", d.Data.Text, "field of JSON (dots descend) or column of CSV and Parquet that holds the text")
	f.StringVar(&o.Tokenizer, "tokenizer", d.Data.Tokenizer, "bytes; bpe:SIZE, trained on the corpus; the path of a tokenizer.json, or its CID")
	f.StringArrayVar(&o.Include, "include", nil, "file name suffix or pattern to keep in folders (repeatable)")
	f.StringArrayVar(&o.Exclude, "exclude", nil, "file name suffix or pattern to leave out (repeatable)")
	f.StringArrayVar(&o.Filters, "filter", nil, "what documents must be like: gopher, c4, near_duplicates, language=en+de, min_words=20 … (repeatable)")
	f.Int64Var(&o.MaxBytes, "max-bytes", 0, "read at most so many bytes of text; 0 is no cap")
	f.Int64Var(&o.MaxDocs, "max-documents", 0, "read at most so many documents; 0 is no cap")
	f.Float64Var(&o.Sample, "sample", 0, "share of the documents to keep; 0 keeps all")
	f.Float64Var(&o.Validation, "validation", d.Data.Validation, "share of documents held out")
	f.Uint64Var(&o.Seed, "seed", d.Train.Seed, "seed of the shuffle, the sample and the held-out choice")
}

func percent(share float64) string { return fmt.Sprintf("%.1f %%", 100*share) }

func addedTable(d node.DataAdded) table {
	t := table{rows: [][]string{
		{"dataset", d.Dataset},
		{"documents", fmt.Sprintf("%s of %s, %d exact duplicates", count(d.Kept), size(d.Bytes), d.Duplicates)},
		{"train", fmt.Sprintf("%s tokens in %d shards", count(int64(d.TrainTokens)), d.TrainShards)},
		{"held out", fmt.Sprintf("%s tokens in %d shards", count(int64(d.ValTokens)), d.ValShards)},
		{"stored", size(d.StoredBytes)},
	}}
	for _, x := range d.Dropped {
		t.rows = append(t.rows, []string{"dropped", fmt.Sprintf("%s documents, %s, by %s", count(x.Documents), size(x.Bytes), x.Reason)})
	}
	return t.and("read", d.Read.Lines()).and("problem", problems(d.Read)).and("warning", d.Warnings)
}

// and adds a row for each line.
func (t table) and(name string, lines []string) table {
	for _, l := range lines {
		t.rows = append(t.rows, []string{name, oneLine(l)})
	}
	return t
}

func problems(c corpus.Counts) (lines []string) {
	for _, p := range c.Problems {
		lines = append(lines, p.Path+": "+p.Why)
	}
	return lines
}

func inspectionTable(r data.Inspection) table {
	t := table{rows: [][]string{
		{"documents", fmt.Sprintf("%s, %s, %s words, %s lines", count(r.Documents), size(r.Bytes), count(r.Words), count(r.Lines))},
		{"lengths", fmt.Sprintf("%s to %s, median %s, 90 %% below %s", size(r.Lengths.Min), size(r.Lengths.Max), size(r.Lengths.P50), size(r.Lengths.P90))},
		{"exact duplicates", fmt.Sprintf("%s documents, %s of the text", count(r.ExactDuplicates.Documents), percent(r.ExactDuplicates.Share))},
		{"near duplicates", fmt.Sprintf("%s documents, %s of the text", count(r.NearDuplicates.Documents), percent(r.NearDuplicates.Share))},
		{"boilerplate", percent(r.Boilerplate.Share) + " of the text"},
	}}
	t = t.and("language", shareLines(r.Languages)).and("source", shareLines(r.Sources)).and("characters", []string{shareLine(r.Classes)}).and("scripts", []string{shareLine(r.Scripts)})
	if v := r.Tokens; v != nil {
		t = t.and("tokens", []string{fmt.Sprintf("%s of %s, %d of %d in use, %.2f bytes each, %.2f bits of entropy", count(v.Tokens), v.Tokenizer, v.Used, v.Size, v.BytesPerToken, v.Entropy)})
	}
	if r.Leakage.Grams > 0 {
		t = t.and("leakage", []string{fmt.Sprintf("%s of the held-out runs of %d words are in the training text", percent(r.Leakage.Share), r.Leakage.Length)})
	}
	for _, h := range r.Personal {
		if h.Count > 0 {
			t = t.and("personal", []string{fmt.Sprintf("%s: %s in %s documents, such as %s", h.Kind, count(h.Count), count(h.Documents), strings.Join(h.Samples, ", "))})
		}
	}
	for _, b := range r.Rules {
		t = t.and("rule", []string{fmt.Sprintf("%s would drop %s documents, %s", b.Rule, count(b.Documents), percent(b.Share))})
	}
	for _, d := range r.Dropped {
		t = t.and("filter", []string{fmt.Sprintf("%s drops %s documents, %s", d.Reason, count(d.Documents), size(d.Bytes))})
	}
	for _, l := range r.Boilerplate.Lines[:min(5, len(r.Boilerplate.Lines))] {
		t = t.and("line", []string{fmt.Sprintf("in %s documents: %s", count(l.Documents), l.Text)})
	}
	if r.Read != nil {
		t = t.and("read", r.Read.Lines()).and("problem", problems(*r.Read))
	}
	return t.and("warning", r.Warnings)
}

func shareLines(all []data.Share) (lines []string) {
	for _, s := range all[:min(8, len(all))] {
		line := fmt.Sprintf("%s: %s, %s documents, %s", s.Name, percent(s.Share), count(s.Documents), size(s.Count))
		if s.Language != "" {
			line += ", mostly " + s.Language
		}
		lines = append(lines, line)
	}
	return lines
}

func shareLine(all []data.Share) string {
	var parts []string
	for _, s := range all {
		if s.Share >= 0.001 {
			parts = append(parts, s.Name+" "+percent(s.Share))
		}
	}
	return strings.Join(parts, ", ")
}
