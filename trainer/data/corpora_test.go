package data

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/capacloud/capanode/storage/dataset"
)

// corpora is a folder of real texts beside this tree, which not every machine has.
const corpora = "../../../shared/data/text"

// Three books and a law, English and German: every byte of them ends up on one side of the dataset, and the same dataset comes
// out twice.
func TestRealCorpora(t *testing.T) {
	if testing.Short() {
		t.Skip("megabytes of text; the long form runs without -short")
	}
	entries, err := os.ReadDir(corpora)
	if err != nil {
		t.Skipf("the real texts in %s are not here: %v", filepath.Clean(corpora), err)
	}
	var bytes int
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		bytes += int(info.Size())
	}
	store := memory(t)
	o := options(corpora)
	o.Context = 256
	m, link, report, err := Build(context.Background(), o, store)
	if err != nil {
		t.Fatal(err)
	}
	if report.Kept != int64(len(entries)) || report.Bytes != int64(bytes) {
		t.Errorf("read %+v, want %d files of %d bytes", report, len(entries), bytes)
	}
	var kept int
	for _, split := range []dataset.Split{dataset.Train, dataset.Val} {
		for _, text := range documents(t, store, m, split) {
			kept += len(text)
		}
	}
	if kept != bytes {
		t.Errorf("%d bytes of text in the shards, want %d", kept, bytes)
	}
	if share := float64(m.ValTokens) / float64(m.TrainTokens+m.ValTokens); share < 0.03 || share > 0.2 {
		t.Errorf("%.2f of the text is held out, want about 0.1", share)
	}
	if _, again, _, err := Build(context.Background(), o, store); err != nil || again.Cid != link.Cid {
		t.Errorf("a second reading gives %s, the first gave %s: %v", again.Cid, link.Cid, err)
	}
}
