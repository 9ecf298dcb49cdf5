package data

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ipfs/go-cid"
	"github.com/klauspost/compress/zstd"

	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/dataset"
	"github.com/capacloud/capanode/trainer/data/corpus"
	"github.com/capacloud/capanode/trainer/data/quality"
	"github.com/capacloud/capanode/trainer/tokenizer"
)

var update = flag.Bool("update", false, "rewrite golden files")

// write lays files below a new folder; names may have slashes.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func memory(t *testing.T) *storage.Store {
	t.Helper()
	store, err := storage.OpenMem()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	return store
}

// documents returns the texts of one side of a dataset, in its order.
func documents(t *testing.T, store *storage.Store, m dataset.Manifest, split dataset.Split) []string {
	t.Helper()
	ids := slices.Concat(side(t, m, store, split)...)
	var texts []string
	for len(ids) > 0 {
		end := slices.Index(ids, tokenizer.Byte{}.EndOfText())
		if end < 0 {
			t.Fatalf("the last document of %s has no end", split)
		}
		texts = append(texts, string(tokenizer.Byte{}.Decode(nil, ids[:end])))
		ids = ids[end+1:]
	}
	return texts
}

// prose makes n different texts.
func prose(n int) map[string]string {
	files := map[string]string{}
	for i := range n {
		files[fmt.Sprintf("d%d/%03d.txt", i%3, i)] = strings.Repeat(fmt.Sprintf("text %d has words\n", i), 20+i%7)
	}
	return files
}

func options(root string) Options {
	return Options{Corpus: corpus.Options{Paths: []string{root}}, Tokenizer: tokenizer.Byte{}, ValFraction: 0.1, Context: 16, Seed: 7}
}

func TestBuildKeepsEveryDocumentOnce(t *testing.T) {
	files := prose(200)
	store := memory(t)
	m, link, report, err := Build(context.Background(), options(write(t, files)), store)
	if err != nil {
		t.Fatal(err)
	}
	train, val := documents(t, store, m, dataset.Train), documents(t, store, m, dataset.Val)
	var want []string
	for _, text := range files {
		want = append(want, text)
	}
	all := append(slices.Clone(train), val...)
	slices.Sort(all)
	slices.Sort(want)
	if !slices.Equal(all, want) {
		t.Fatalf("%d documents came out, %d went in", len(all), len(want))
	}
	if slices.IsSorted(train) {
		t.Error("the documents were not shuffled")
	}
	if len(val) < 8 || len(val) > 40 {
		t.Errorf("%d of 200 documents are held out", len(val))
	}
	if report.TrainShards < 24 || report.Kept != 200 || m.TrainTokens+m.ValTokens != uint64(report.Bytes)+200 {
		t.Errorf("report %+v", report)
	}
	least := m.Shards[0].Tokens
	for _, s := range m.Shards[:report.TrainShards] {
		least = min(least, s.Tokens)
		if s.Split != dataset.Train || s.Tokens > least+1 {
			t.Errorf("shard of %d tokens, %s; another has %d", s.Tokens, s.Split, least)
		}
	}
	record, err := store.ReadAll(context.Background(), link.Cid, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if decoded, err := dataset.Decode(record); err != nil || len(decoded.Shards) != len(m.Shards) {
		t.Errorf("stored manifest: %v", err)
	}
}

func TestBuildDependsOnContentAlone(t *testing.T) {
	files := prose(50)
	build := func(change func(*Options)) string {
		o := options(filepath.Join(write(t, files), "d*"))
		change(&o)
		_, link, _, err := Build(context.Background(), o, memory(t))
		if err != nil {
			t.Fatal(err)
		}
		return link.String()
	}
	first := build(func(*Options) {})
	if again := build(func(*Options) {}); again != first {
		t.Errorf("the same files elsewhere give %s and %s", first, again)
	}
	if other := build(func(o *Options) { o.Seed++ }); other == first {
		t.Error("another seed gives the same dataset")
	}
}

func TestReportCountsWhatIsLeftOut(t *testing.T) {
	var packed, squeezed bytes.Buffer
	gz := gzip.NewWriter(&packed)
	fmt.Fprint(gz, strings.Repeat("inside gzip\n", 50))
	if err := gz.Close(); err != nil {
		t.Fatal(err)
	}
	zw, err := zstd.NewWriter(&squeezed)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(zw, strings.Repeat("inside zstd\n", 50))
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	noise := make([]byte, 4096)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	latin := strings.Repeat("caf\xe9 au lait\n", 40)
	root := write(t, map[string]string{
		"a.txt":       strings.Repeat("plain\n", 50),
		"copy.txt":    strings.Repeat("plain\n", 50),
		"b.txt.gz":    packed.String(),
		"c.txt.zst":   squeezed.String(),
		"latin.txt":   latin,
		"empty.txt":   "",
		"noise.txt":   string(noise),
		"zeros.txt":   "a\x00\x00b\x00c\x00\x00d",
		"photo.png":   "not asked for",
		".git/config": "hidden",
		"sub/.secret": "hidden",
	})
	o := options(root)
	o.Corpus.Include = []string{".txt"}
	store := memory(t)
	m, _, report, err := Build(context.Background(), o, store)
	if err != nil {
		t.Fatal(err)
	}
	cafe := strings.ReplaceAll(latin, "\xe9", "é")
	if report.Kept != 4 || report.Duplicates != 1 || report.Bytes != 300+600+600+int64(len(cafe)) || report.Read.Files != 8 || report.Read.Empty != 1 ||
		report.Read.Binary != 2 || report.Read.Excluded != 1 || report.Read.Hidden != 2 || report.Read.Windows1252 != 40 {
		t.Errorf("report %+v", report)
	}
	all := append(documents(t, store, m, dataset.Train), documents(t, store, m, dataset.Val)...)
	for _, text := range []string{cafe, strings.Repeat("inside gzip\n", 50), strings.Repeat("inside zstd\n", 50)} {
		if !slices.Contains(all, text) {
			t.Errorf("%.20q is missing or changed", text)
		}
	}
	if s := m.Sources[0]; s.Name != filepath.Base(root) || s.Documents != 4 || s.Bytes != uint64(report.Bytes) || s.Tokens != m.Total() {
		t.Errorf("source %+v", s)
	}
}

func TestOneBigFileHasHeldOutText(t *testing.T) {
	var text strings.Builder
	for i := 0; text.Len() < 2<<20; i++ {
		fmt.Fprintf(&text, "line %d of a long book\n", i)
	}
	root := write(t, map[string]string{"book.txt": text.String()})
	o := options(filepath.Join(root, "book.txt"))
	store := memory(t)
	m, _, report, err := Build(context.Background(), o, store)
	if err != nil {
		t.Fatal(err)
	}
	if share := float64(m.ValTokens) / float64(m.Total()); share < 0.01 || share > 0.4 {
		t.Errorf("%.3f of the book is held out", share)
	}
	parts := append(documents(t, store, m, dataset.Train), documents(t, store, m, dataset.Val)...)
	total := 0
	for _, p := range parts {
		total += len(p)
		if !strings.Contains(text.String(), p) || !strings.HasSuffix(p, "\n") {
			t.Errorf("a part of %d bytes is no run of whole lines", len(p))
		}
	}
	if total != text.Len() || report.TrainShards < 24 {
		t.Errorf("%d of %d bytes, report %+v", total, text.Len(), report)
	}
}

func TestHeldOutDocumentsStayHeldOut(t *testing.T) {
	held := func(n int) []string {
		store := memory(t)
		m, _, _, err := Build(context.Background(), options(write(t, prose(n))), store)
		if err != nil {
			t.Fatal(err)
		}
		return documents(t, store, m, dataset.Val)
	}
	small, large := held(100), held(180)
	for _, text := range small {
		if !slices.Contains(large, text) {
			t.Errorf("%.12q moved into training when the corpus grew", text)
		}
	}
}

func TestMaxBytesEndsTheReading(t *testing.T) {
	o := options(write(t, prose(50)))
	o.Corpus.MaxBytes = 5000
	_, _, report, err := Build(context.Background(), o, memory(t))
	if err != nil || !report.Read.Capped || report.Bytes != 5000 {
		t.Fatalf("%+v, %v", report, err)
	}
}

func TestBuildFailures(t *testing.T) {
	text := options(write(t, prose(3)))
	broken := write(t, map[string]string{"a.txt.gz": "\x1f\x8b\x08 no gzip"})
	cancelled, cancel := context.WithCancel(context.Background())
	cancel()
	for name, c := range map[string]struct {
		ctx    context.Context
		change func(*Options)
		want   error
	}{
		"missing":       {nil, func(o *Options) { o.Corpus.Paths = []string{"/nowhere/at/all"} }, fs.ErrNotExist},
		"no match":      {nil, func(o *Options) { o.Corpus.Paths[0] += "/*.xyz" }, fs.ErrNotExist},
		"no paths":      {nil, func(o *Options) { o.Corpus.Paths = nil }, ErrEmpty},
		"all filtered":  {nil, func(o *Options) { o.Corpus.Include = []string{".rs"} }, ErrEmpty},
		"corrupt gzip":  {nil, func(o *Options) { o.Corpus.Paths = []string{broken} }, ErrEmpty},
		"no tokenizer":  {nil, func(o *Options) { o.Tokenizer = nil }, ErrOptions},
		"all held out":  {nil, func(o *Options) { o.ValFraction = 1 }, ErrOptions},
		"negative cap":  {nil, func(o *Options) { o.Corpus.MaxBytes = -1 }, corpus.ErrOptions},
		"bad filter":    {nil, func(o *Options) { o.Filters = []string{"gofer"} }, quality.ErrRule},
		"negative peer": {nil, func(o *Options) { o.Peers = -1 }, ErrOptions},
		"bad name":      {nil, func(o *Options) { o.Name = "\xff" }, ErrOptions},
		"cancelled":     {cancelled, func(*Options) {}, context.Canceled},
	} {
		o := text
		o.Corpus.Paths = slices.Clone(text.Corpus.Paths)
		c.change(&o)
		ctx := c.ctx
		if ctx == nil {
			ctx = context.Background()
		}
		if _, _, _, err := Build(ctx, o, memory(t)); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTooSmallSaysHowMuchIsMissing(t *testing.T) {
	o := options(write(t, map[string]string{"a.txt": strings.Repeat("x", 1000)}))
	o.Context, o.Peers = 64, 4
	_, _, _, err := Build(context.Background(), o, memory(t))
	var small *TooSmallError
	if !errors.As(err, &small) || small.Tokens != 1001 || small.Need != 4*(4*64+1) {
		t.Fatalf("%+v, %v", small, err)
	}
	o.Peers = 3
	if _, _, report, err := Build(context.Background(), o, memory(t)); err != nil || report.TrainShards != 3 {
		t.Fatalf("%+v, %v", report, err)
	}
}

// TestGolden pins sampling: which documents, in which order, on which side. The compressed bytes are not pinned.
func TestGolden(t *testing.T) {
	store := memory(t)
	o := options(filepath.Join("testdata", "corpus"))
	o.Context, o.ValFraction, o.ShardTokens = 8, 0.3, 40
	m, _, _, err := Build(context.Background(), o, store)
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	for i, s := range m.Shards {
		tokens, err := m.ReadShard(context.Background(), store.ReadAll, i)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&got, "%s %d %s %x\n", s.Split, s.Tokens, m.Dtype, sha256.Sum256(tokens.Raw))
	}
	path := filepath.Join("testdata", "dataset.golden")
	if *update {
		if err := os.WriteFile(path, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("dataset\n%swant\n%s", got.String(), want)
	}
}

// failing refuses to store.
type failing struct{ err error }

func (f failing) PutBytes(context.Context, []byte, storage.PutOptions) (cid.Cid, error) {
	return cid.Undef, f.err
}

func (f failing) PutRecord(context.Context, []byte, storage.PutOptions) (cid.Cid, error) {
	return cid.Undef, f.err
}

func TestFullStore(t *testing.T) {
	_, _, report, err := Build(context.Background(), options(write(t, prose(5))), failing{storage.ErrQuota})
	if !errors.Is(err, storage.ErrQuota) || report.Kept != 5 {
		t.Fatalf("%+v, %v", report, err)
	}
}
