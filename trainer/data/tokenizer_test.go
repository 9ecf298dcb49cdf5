package data

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/capacloud/capanode/storage/dataset"
	"github.com/capacloud/capanode/trainer/data/corpus"
	"github.com/capacloud/capanode/trainer/data/quality"
	"github.com/capacloud/capanode/trainer/tokenizer"
)

// trainedOn returns a small BPE of texts.
func trainedOn(t testing.TB, texts iter.Seq2[[]byte, error]) *tokenizer.BPE {
	t.Helper()
	tok, _, err := tokenizer.Train(context.Background(), texts, tokenizer.TrainOptions{Vocab: 300})
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func TestBuildWithBPE(t *testing.T) {
	files := prose(60)
	files["long.txt"] = strings.Repeat("A line of many words, one after the other.\n\n  Indented;\n", 8000)
	o := options(write(t, files))
	o.Tokenizer = nil
	tok := trainedOn(t, Texts(t.Context(), o))
	o.Tokenizer = tok
	store := memory(t)
	m, link, report, err := Build(t.Context(), o, store)
	if err != nil {
		t.Fatal(err)
	}
	if m.Tokenizer.Kind != tok.Name() || m.Tokenizer.Vocab != uint64(tok.Vocab()) || m.Dtype != dataset.U16 {
		t.Errorf("the manifest says %+v, %s", m.Tokenizer, m.Dtype)
	}
	if total := report.TrainTokens + report.ValTokens; 2*int64(total) > report.Bytes {
		t.Errorf("%d tokens for %d bytes", total, report.Bytes)
	}
	opened, err := tokenizer.Open(t.Context(), m.Tokenizer.Kind, store.ReadAll)
	if err != nil || opened.Name() != tok.Name() {
		t.Fatalf("from the store: %v, %v", opened, err)
	}
	if _, err := store.ReadAll(t.Context(), m.Tokenizer.Link.Cid, tokenizer.MaxFile); err != nil {
		t.Errorf("the manifest's link: %v", err)
	}
	// What the shards hold is the corpus, and the long text is cut where the IDs of the whole stay as they are.
	var ids []int32
	for i := range m.Shards {
		tokens, err := m.ReadShard(t.Context(), store.ReadAll, i)
		if err != nil {
			t.Fatal(err)
		}
		part := make([]int32, tokens.Len())
		tokens.Copy(part, 0)
		ids = append(ids, part...)
	}
	if got := len(opened.Decode(nil, ids)); int64(got) != report.Bytes {
		t.Errorf("the shards hold %d bytes of text, %d were read", got, report.Bytes)
	}
	whole := tok.Encode(nil, []byte(files["long.txt"]))
	var cut []int32
	pieces := 0
	_, err = corpus.Read(t.Context(), corpus.Options{Paths: []string{filepath.Join(o.Corpus.Paths[0], "long.txt")}, Cut: cutOf(tok)}, func(b *corpus.Batch) error {
		for _, p := range b.Pieces {
			cut = tok.Encode(cut, p.Text)
			pieces++
		}
		return nil
	})
	if err != nil || pieces < 4 || !slices.Equal(cut, whole) {
		t.Errorf("%d tokens in %d sections, %d of the whole: %v", len(cut), pieces, len(whole), err)
	}
	if again, second, _, err := Build(t.Context(), o, memory(t)); err != nil || second != link || again.Tokenizer != m.Tokenizer {
		t.Errorf("built again: %v, %v", second, err)
	}
}

// joined reads all texts.
func joined(t *testing.T, o Options) []byte {
	t.Helper()
	var got []byte
	for part, err := range Texts(t.Context(), o) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, part...)
	}
	return got
}

// The texts are those of the training side, whatever is dropped, capped, held out in sections, or waits on disk.
func TestTextsAreWhatIsTrainedOn(t *testing.T) {
	files := prose(100)
	files["twice.txt"] = files["d0/000.txt"]
	files["short.txt"] = "three short words"
	files["long.txt"] = strings.Repeat("A line of many words, one after the other.\n\n  Indented;\n", 9000)
	root := write(t, files)
	for name, change := range map[string]func(*Options){
		"all":      func(*Options) {},
		"none out": func(o *Options) { o.ValFraction = 0 },
		"most out": func(o *Options) { o.ValFraction = 0.9 },
		"filtered": func(o *Options) { o.Filters = []string{"min_words=10", "near_duplicates"} },
		"capped":   func(o *Options) { o.Corpus.MaxBytes = 400_000 },
		"sampled":  func(o *Options) { o.Corpus.Sample, o.Corpus.Seed = 0.5, 3 },
		"on disk":  func(o *Options) { o.Memory = 20_000 },
	} {
		t.Run(name, func(t *testing.T) {
			o := options(root)
			o.TempDir = t.TempDir()
			change(&o)
			store := memory(t)
			m, _, report, err := Build(t.Context(), o, store)
			if err != nil {
				t.Fatal(err)
			}
			if (name == "on disk") != (report.Spilled > 0) {
				t.Errorf("%d bytes waited on disk", report.Spilled)
			}
			got := joined(t, o)
			if want := strings.Join(documents(t, store, m, dataset.Train), ""); string(got) != want {
				t.Errorf("%d bytes of text, the training side has %d", len(got), len(want))
			}
			for _, text := range documents(t, store, m, dataset.Val) {
				if !strings.HasPrefix(text, "A line of") && bytes.Contains(got, []byte(text)) {
					t.Fatalf("%.30q is held out and read", text)
				}
			}
			if left, err := os.ReadDir(o.TempDir); err != nil || len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
}

// A tokenizer that is yet to be trained cuts, and so holds out, as the trained one does.
func TestTextsBeforeTheTokenizer(t *testing.T) {
	o := options(write(t, map[string]string{"one.txt": strings.Repeat("A line of many words, one after the other.\n\n  Indented;\n", 16000)}))
	o.Tokenizer = nil
	before := joined(t, o)
	o.Tokenizer = trainedOn(t, Texts(t.Context(), o))
	store := memory(t)
	m, _, _, err := Build(t.Context(), o, store)
	if err != nil {
		t.Fatal(err)
	}
	ids := slices.Concat(side(t, m, store, dataset.Train)...)
	if got := o.Tokenizer.Decode(nil, ids); m.ValTokens == 0 || !bytes.Equal(got, before) {
		t.Errorf("trained on %d bytes, the dataset's training side has %d; %d tokens held out", len(before), len(got), m.ValTokens)
	}
}

func TestTextsFailAsBuildDoes(t *testing.T) {
	tokens := write(t, map[string]string{"a.bin": strings.Repeat("\x05\x00", 400)})
	for name, c := range map[string]struct {
		change func(*Options)
		want   error
	}{
		"empty":       {func(o *Options) { o.Corpus.Paths = []string{write(t, map[string]string{"empty": ""})} }, ErrEmpty},
		"only tokens": {func(o *Options) { o.Corpus.Paths = []string{tokens} }, ErrEmpty},
		"filter":      {func(o *Options) { o.Filters = []string{"nonsense"} }, quality.ErrRule},
		"share":       {func(o *Options) { o.ValFraction = 1 }, ErrOptions},
		"path":        {func(o *Options) { o.Corpus.Paths = []string{"/nowhere"} }, fs.ErrNotExist},
	} {
		o := options(write(t, prose(3)))
		c.change(&o)
		var last error
		for text, err := range Texts(t.Context(), o) {
			if last = err; err == nil {
				t.Errorf("%s: text %.20q", name, text)
			}
		}
		if !errors.Is(last, c.want) {
			t.Errorf("%s: %v, want %v", name, last, c.want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	read := 0
	for _, err := range Texts(ctx, options(write(t, prose(50)))) {
		if cancel(); err == nil {
			read++
		} else if !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
	}
	if read > 1 {
		t.Errorf("%d texts came, all but one after the end of the context", read)
	}
	for range Texts(t.Context(), options(write(t, prose(50)))) {
		break // must not be called again, and leaves nothing open
	}
}
