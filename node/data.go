package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/p2p/wire"
	"github.com/capacloud/capanode/storage/dataset"
	"github.com/capacloud/capanode/trainer/data"
	"github.com/capacloud/capanode/trainer/data/corpus"
	"github.com/capacloud/capanode/trainer/job"
	"github.com/capacloud/capanode/trainer/tokenizer"
)

// DataOptions says what [AddData] makes a dataset of and what [InspectData] looks at. The words are those of a job's data section.
type DataOptions struct {
	Paths []string
	Name  string
	job.DataPart
	Seed    uint64
	Context int
	Peers   int
}

// DataAdded is a dataset and what its corpus was like.
type DataAdded struct {
	Dataset  string   `json:"dataset"` // CID of the manifest
	Name     string   `json:"name"`
	Warnings []string `json:"warnings"`
	data.Report
}

// options is what the options mean for the data pipeline, but for the tokenizer, which may have to be fetched or trained.
func (o DataOptions) options() (data.Options, error) {
	if _, err := o.Choice(); err != nil {
		return data.Options{}, fmt.Errorf("%w: tokenizer %w", ErrUsage, err)
	}
	return data.Options{
		Name: o.Name, Corpus: corpusOptions(o.DataPart, o.Paths, o.Seed), Filters: o.Filters, ValFraction: o.Validation,
		ShardTokens: uint64(max(o.ShardTokens, 0)), Context: o.Context, Peers: o.Peers, Seed: o.Seed,
	}, nil
}

// tokenizer returns the tokenizer that is asked for: bytes, one from a file or the network, or one trained on what the dataset trains
// on, with a warning when that comes out smaller. The node may be nil where none is fetched.
func (o DataOptions) tokenizer(ctx context.Context, n *Node, d data.Options) (tok tokenizer.Tokenizer, warning string, err error) {
	var b blobs
	if o.fetches() {
		choice, _ := o.Choice() // it was read before
		if err := n.need(ctx, choice.File); err != nil {
			return nil, "", fmt.Errorf("tokenizer: %w", err)
		}
		b.store = n.store
	}
	tok, vocab, err := chosenTokenizer(ctx, b, o.DataPart, "")
	if err != nil {
		return nil, "", fmt.Errorf("%w: tokenizer: %w", ErrUsage, err)
	}
	if tok != nil {
		return tok, "", nil
	}
	if tok, _, err = trainedTokenizer(ctx, d, vocab); err != nil {
		return nil, "", err
	}
	return tok, smallVocabulary(tok, vocab), nil
}

// fetches tells whether the tokenizer is named by its CID.
func (o DataOptions) fetches() bool {
	choice, err := o.Choice()
	return err == nil && choice.File.Defined()
}

// corpusOptions says which files a data section means.
func corpusOptions(d job.DataPart, paths []string, seed uint64) corpus.Options {
	return corpus.Options{
		Paths: paths, Include: d.Include, Exclude: d.Exclude, Format: corpus.Format(d.Format), Field: d.Text,
		MaxBytes: d.MaxBytes, MaxDocuments: d.MaxDocs, Sample: d.Sample, Seed: seed,
	}
}

// dataTemp is the folder where documents wait for their place in a dataset. What an earlier process left there is removed: the home
// is this one's alone.
func (n *Node) dataTemp() (string, error) {
	dir, err := n.home.sub("tmp")
	if err != nil {
		return "", err
	}
	old, err := filepath.Glob(filepath.Join(dir, "capanode-data-*"))
	for _, o := range old {
		err = errors.Join(err, os.RemoveAll(o))
	}
	return dir, err
}

// AddData makes a dataset of files and pins it in the store. With files that could not be read as a whole it is made of the others,
// and the error is [ErrPartly].
func AddData(ctx context.Context, u Use, o DataOptions) (added DataAdded, err error) {
	options, err := o.options()
	if err != nil {
		return added, err
	}
	err = u.with(ctx, func(n *Node) error {
		if options.TempDir, err = n.dataTemp(); err != nil {
			return err
		}
		tok, warning, err := o.tokenizer(ctx, n, options)
		if err != nil {
			return err
		}
		options.Tokenizer = tok
		m, link, report, err := data.Build(ctx, options, n.store)
		if err != nil {
			return err
		}
		if err := n.store.Pin(ctx, dataPin(link.Cid.String()), link.Cid); err != nil {
			return err
		}
		added = DataAdded{Dataset: link.Cid.String(), Name: m.Name, Warnings: append([]string{}, report.Warnings()...), Report: report}
		if warning != "" {
			added.Warnings = append(added.Warnings, warning)
		}
		return nil
	})
	if err == nil && added.Read.Broken() > 0 {
		err = fmt.Errorf("%w: %s; the dataset holds the rest", ErrPartly, added.Warnings[0])
	}
	return added, err
}

// InspectData reports on the quality of files, or of a dataset when what is given is one CID and no file. Files are looked at
// without opening the home.
func InspectData(ctx context.Context, u Use, o DataOptions) (report data.Inspection, err error) {
	options, err := o.options()
	if err != nil {
		return report, err
	}
	c, isSet := datasetCID(o.Paths)
	if !isSet && !o.fetches() {
		return o.inspectFiles(ctx, nil, options)
	}
	err = u.with(ctx, func(n *Node) (err error) {
		if !isSet {
			report, err = o.inspectFiles(ctx, n, options)
			return err
		}
		read := func(ctx context.Context, c cid.Cid, limit int64) ([]byte, error) {
			if err := n.need(ctx, c); err != nil {
				return nil, err
			}
			return n.store.ReadAll(ctx, c, limit)
		}
		record, err := read(ctx, c, wire.MaxRecord)
		if err != nil {
			return fmt.Errorf("dataset %s: %w", c, err)
		}
		m, err := dataset.Decode(record)
		if err != nil {
			return fmt.Errorf("%w: %s is no dataset: %w", ErrUsage, c, err)
		}
		report, err = data.InspectDataset(ctx, m, read, options)
		return err
	})
	return report, err
}

// inspectFiles looks at files with the tokenizer that is asked for.
func (o DataOptions) inspectFiles(ctx context.Context, n *Node, options data.Options) (data.Inspection, error) {
	tok, warning, err := o.tokenizer(ctx, n, options)
	if err != nil {
		return data.Inspection{}, err
	}
	options.Tokenizer = tok
	report, err := data.Inspect(ctx, options)
	if err == nil && warning != "" {
		report.Warnings = append(report.Warnings, warning)
	}
	return report, err
}

// datasetCID tells whether what is given names a dataset and no file.
func datasetCID(given []string) (cid.Cid, bool) {
	if len(given) != 1 || strings.ContainsRune(given[0], filepath.Separator) {
		return cid.Undef, false
	}
	if _, err := os.Lstat(given[0]); err == nil {
		return cid.Undef, false
	}
	c, err := cid.Decode(given[0])
	return c, err == nil
}
