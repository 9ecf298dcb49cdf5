package node

import (
	"context"

	databench "github.com/capacloud/capanode/trainer/data/bench"
)

// methodData says what [benchData] measures of corpora; [methodTokenizers] has the rest.
const methodData = "16 MiB of generated text, the same on every machine, are read as JSON lines, as plain text, as CSV and in gzip, and cleaned: measured as " +
	"Gopher's filters, personal data, boilerplate and near duplicates need it. MB count text, seconds are of processor time, so that the rates are those of one " +
	"core; each figure is the median of five. The baselines find the lines with a bufio.Scanner, decode them with encoding/json, decompress, and cut the text with " +
	"bytes.Fields; read_over_scan, read_over_encoding_json and read_gzip_over_gunzip are quotients of rates taken one after the other."

func benchData(ctx context.Context, r *BenchReport) error {
	f, err := databench.Run(ctx, databench.Options{})
	if err != nil {
		return err
	}
	if err := r.take(f); err != nil {
		return err
	}
	return benchTokenizers(ctx, r)
}
