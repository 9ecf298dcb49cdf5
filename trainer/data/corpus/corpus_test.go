package corpus

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/klauspost/compress/zstd"
)

// write lays files below a new folder; names may have slashes.
func write(t testing.TB, files map[string]string) string {
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

// collect reads a corpus and joins the pieces of each document.
func collect(t testing.TB, o Options) (docs []string, tokens []int32, c Counts, err error) {
	t.Helper()
	var text strings.Builder
	open := false
	c, err = Read(context.Background(), o, func(b *Batch) error {
		for _, p := range b.Pieces {
			if p.First == open {
				t.Fatal("a document begins within another")
			}
			open = !p.Last
			text.Write(p.Text)
			tokens = append(tokens, p.Tokens...)
			if p.Last {
				docs = append(docs, text.String())
				text.Reset()
			}
		}
		return nil
	})
	return docs, tokens, c, err
}

func read(t testing.TB, files map[string]string, change func(*Options)) ([]string, Counts) {
	t.Helper()
	o := Options{Paths: []string{write(t, files)}}
	if change != nil {
		change(&o)
	}
	docs, _, c, err := collect(t, o)
	if err != nil {
		t.Fatal(err)
	}
	return docs, c
}

func zipped(t testing.TB, text string) string {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, _ = z.Write([]byte(text))
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func squeezed(t testing.TB, text string) string {
	t.Helper()
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return string(z.EncodeAll([]byte(text), nil))
}

func wide(text string, order binary.AppendByteOrder, mark bool) string {
	units := utf16.Encode([]rune(text))
	if mark {
		units = append([]uint16{0xfeff}, units...)
	}
	var b []byte
	for _, u := range units {
		b = order.AppendUint16(b, u)
	}
	return string(b)
}

// noise compresses badly and is text.
func noise(n int) string {
	var b strings.Builder
	x := uint64(88172645463325252)
	for i := 0; b.Len() < n; i++ {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		fmt.Fprintf(&b, "%x ", x)
		if i%5 == 4 {
			b.WriteByte('\n')
		}
	}
	return b.String()[:n]
}

// Each kind of dirt that real files have is survived, repaired where that is safe, and counted under its name.
func TestDirt(t *testing.T) {
	prose := strings.Repeat("A plain line of text.\n", 20)
	wideText := "Grüße, 日本, 😀\n" + prose
	big := noise(300_000)
	for name, x := range map[string]struct {
		file, content string
		want          []string
		counts        Counts
	}{
		"plain":              {"a.txt", prose, []string{prose}, Counts{}},
		"no ending":          {"a", "one line without end", []string{"one line without end"}, Counts{}},
		"empty":              {"a.txt", "", nil, Counts{Empty: 1}},
		"CRLF":               {"a.txt", "one\r\ntwo\r\n", []string{"one\ntwo\n"}, Counts{CRLF: 2}},
		"lone CR stays":      {"a.txt", "one\rtwo", []string{"one\rtwo"}, Counts{}},
		"byte order mark":    {"a.txt", "\xef\xbb\xbfhello", []string{"hello"}, Counts{ByteOrderMarks: 1}},
		"UTF-16 LE":          {"a.txt", wide(wideText, binary.LittleEndian, true), []string{wideText}, Counts{ByteOrderMarks: 1, UTF16: 1}},
		"UTF-16 BE":          {"a.txt", wide(wideText, binary.BigEndian, true), []string{wideText}, Counts{ByteOrderMarks: 1, UTF16: 1}},
		"UTF-16 no mark":     {"a.txt", wide(prose, binary.LittleEndian, false), []string{prose}, Counts{UTF16: 1}},
		"UTF-16 odd byte":    {"a.txt", wide("hello", binary.LittleEndian, true) + "x", []string{"hello"}, Counts{ByteOrderMarks: 1, UTF16: 1, Damaged: 1}},
		"UTF-16 lone half":   {"a.txt", "\xff\xfea\x00\x00\xd8b\x00", []string{"a\ufffdb"}, Counts{ByteOrderMarks: 1, UTF16: 1, Surrogates: 1}},
		"UTF-16 half at end": {"a.txt", "\xff\xfea\x00\x00\xd8", []string{"a\ufffd"}, Counts{ByteOrderMarks: 1, UTF16: 1, Surrogates: 1}},
		"Latin-1":            {"a.txt", strings.Repeat("caf\xe9 au lait\n", 3), []string{strings.Repeat("café au lait\n", 3)}, Counts{Windows1252: 3}},
		"Windows-1252":       {"a.txt", "\x93quoted\x94 for 5 \x80\n", []string{"“quoted” for 5 €\n"}, Counts{Windows1252: 1}},
		"broken UTF-8":       {"a.txt", "fine 日本\nbroken \xe6\x97 here\n", []string{"fine 日本\nbroken \xe6\x97 here\n"}, Counts{InvalidUTF8: 2}},
		"a NUL":              {"a.txt", prose + prose + "a\x00b", []string{prose + prose + "ab"}, Counts{NUL: 1}},
		"binary":             {"a.txt", "\x7fELF\x02\x01\x01\x00\x00\x00" + prose, nil, Counts{Binary: 1}},
		"one long line":      {"a.txt", strings.ReplaceAll(big, "\n", " "), []string{strings.ReplaceAll(big, "\n", " ")}, Counts{}},
		"gzip":               {"a.txt.gz", zipped(t, prose), []string{prose}, Counts{}},
		"gzip by content":    {"a.dat", zipped(t, prose), []string{prose}, Counts{}},
		"two gzip members":   {"a.gz", zipped(t, "one\n") + zipped(t, "two\n"), []string{"one\ntwo\n"}, Counts{}},
		"zstd":               {"a.txt.zst", squeezed(t, prose), []string{prose}, Counts{}},
		"gz that is none":    {"a.txt.gz", prose, []string{prose}, Counts{}},
		"corrupt gzip":       {"a.gz", "\x1f\x8b\x08garbage", nil, Counts{Damaged: 1}},
		"gzip of nothing":    {"a.gz", zipped(t, ""), nil, Counts{Empty: 1}},
		"parquet by content": {"a.txt", "PAR1 is how this text begins", nil, Counts{Damaged: 1}},
		"images":             {"a.tar", tarOf(t, "1.png", "\x89PNG", "1.cls", "3"), nil, Counts{OtherMembers: 2}},
	} {
		docs, c := read(t, map[string]string{x.file: x.content}, nil)
		if !slices.Equal(docs, x.want) {
			t.Errorf("%s: read %.80q, want %.80q", name, docs, x.want)
		}
		x.counts.Files, x.counts.Documents = 1, int64(len(x.want))
		for _, d := range x.want {
			x.counts.Bytes += int64(len(d))
		}
		same(t, name, c, x.counts)
	}
}

func same(t *testing.T, name string, got, want Counts) {
	t.Helper()
	got.Problems, want.Problems = nil, nil
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s: counts\n%+v, want\n%+v", name, got, want)
	}
}

func TestTruncatedFilesKeepWhatCameBefore(t *testing.T) {
	text := noise(400_000)
	flat := strings.ReplaceAll(text, "\n", " ")
	records := ""
	for i := range 2000 {
		records += fmt.Sprintf(`{"text":"record %d %s"}`+"\n", i, flat[i*100:i*100+90])
	}
	members := tarOf(t, "a.txt", text[:5000], "b.txt", text[5000:90_000])
	for name, content := range map[string]string{
		"text.gz": zipped(t, text), "text.zst": squeezed(t, text), "lines.jsonl.gz": zipped(t, records),
		"set.tar": members, "set.tar.gz": zipped(t, members),
	} {
		docs, c := read(t, map[string]string{name: content[:len(content)*2/3]}, nil)
		if len(docs) == 0 || c.Damaged != 1 || c.Broken() != 1 || len(c.Problems) != 1 || !strings.Contains(c.Problems[0].Why, "ends in the middle") {
			t.Errorf("%s: %d documents, %+v", name, len(docs), c)
		}
	}
}

func TestBombsAreLeft(t *testing.T) {
	if testing.Short() {
		t.Skip("one goroutine and much arithmetic; the long form runs without -short")
	}
	bomb := strings.Repeat("boom boom\n", 3<<20)
	for name, content := range map[string]string{"a.txt.gz": zipped(t, bomb), "a.txt.zst": squeezed(t, bomb)} {
		_, c := read(t, map[string]string{name: content}, nil)
		if c.Bombs != 1 || c.Bytes > 2*bombFree {
			t.Errorf("%s: %+v", name, c)
		}
	}
}

func TestWhatIsNoFile(t *testing.T) {
	root := write(t, map[string]string{"a.txt": "text\n", ".hidden/b.txt": "no\n", "sub/.c": "no\n", "photo.png": "no\n"})
	for _, err := range []error{
		os.Symlink(root, filepath.Join(root, "sub", "loop")), os.Symlink("/nowhere", filepath.Join(root, "dangling")), mkfifo(filepath.Join(root, "pipe")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	o := Options{Paths: []string{root}, Exclude: []string{".png"}}
	docs, _, c, err := collect(t, o)
	if err != nil || !slices.Equal(docs, []string{"text\n"}) {
		t.Fatalf("%q, %v", docs, err)
	}
	same(t, "folder", c, Counts{Files: 1, Documents: 1, Bytes: 5, Hidden: 2, Links: 2, Special: 1, Excluded: 1})
	for path, want := range map[string]error{
		filepath.Join(root, "pipe"): ErrOptions, "/dev/null": ErrOptions, "/nowhere/at/all": fs.ErrNotExist, filepath.Join(root, "*.rs"): fs.ErrNotExist,
		root + "/{9..1}": ErrOptions, root + "/{1..99999999}": ErrOptions, root + "/{0..999}{0..999}": ErrOptions, root + "/[": ErrOptions,
	} {
		if _, _, _, err := collect(t, Options{Paths: []string{path}}); !errors.Is(err, want) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestUnreadableFilesAreCounted(t *testing.T) {
	if os.Getuid() == 0 {
		t.Skip("the superuser reads everything")
	}
	root := write(t, map[string]string{"a.txt": "text\n", "secret.txt": "no\n"})
	if err := os.Chmod(filepath.Join(root, "secret.txt"), 0); err != nil {
		t.Fatal(err)
	}
	if docs, _, c, err := collect(t, Options{Paths: []string{root}}); err != nil || len(docs) != 1 || c.Unreadable != 1 {
		t.Fatalf("%q %+v %v", docs, c, err)
	}
}

func TestFileThatChangesMeanwhile(t *testing.T) {
	root := write(t, map[string]string{"a.txt": noise(8 << 20)})
	grown := false
	c, err := Read(context.Background(), Options{Paths: []string{root}}, func(*Batch) error {
		if !grown {
			grown = true
			return os.WriteFile(filepath.Join(root, "a.txt"), []byte(noise(9<<20)), 0o644)
		}
		return nil
	})
	if err != nil || c.Changed != 1 || c.Broken() != 1 {
		t.Fatalf("%+v, %v", c, err)
	}
}

func TestPatternsAndOrder(t *testing.T) {
	files := map[string]string{}
	for i := range 12 {
		files[fmt.Sprintf("part-%03d.txt", i)] = fmt.Sprintf("document %d\n", i)
	}
	root := write(t, files)
	for pattern, want := range map[string]int{"part-{000..004}.txt": 5, "part-*{1,3}.txt": 3, "*": 12, "part-00?.txt": 10, "{part,none}-011.txt": 1} {
		docs, _, _, err := collect(t, Options{Paths: []string{filepath.Join(root, pattern)}})
		if err != nil || len(docs) != want {
			t.Errorf("%s: %d documents, %v", pattern, len(docs), err)
		}
		sorted := slices.IsSortedFunc(docs, func(a, b string) int { return len(a) - len(b) })
		if pattern == "*" && !sorted {
			t.Errorf("%s: not in the order of the names: %q", pattern, docs)
		}
	}
}

func TestIncludeTakesPatterns(t *testing.T) {
	for include, want := range map[string]bool{".go": true, "*_test.go": true, "a_*": true, "a_test.go.gz": true, ".txt": false, "[": false} {
		if got := included("a_test.go.gz", []string{include}, nil); got != want {
			t.Errorf("%q: %v", include, got)
		}
		if got := included("a_test.go.gz", nil, []string{include}); got == want {
			t.Errorf("exclude %q: %v", include, got)
		}
	}
}

func TestCapsAndSample(t *testing.T) {
	lines := ""
	for i := range 1000 {
		lines += fmt.Sprintf(`{"text":"document number %d"}`+"\n", i)
	}
	files := map[string]string{"a.jsonl": lines}
	docs, c := read(t, files, func(o *Options) { o.MaxDocuments = 10 })
	if len(docs) != 10 || !c.Capped || c.Documents != 10 {
		t.Errorf("%d documents, %+v", len(docs), c)
	}
	docs, c = read(t, files, func(o *Options) { o.MaxBytes = 100 })
	if got := strings.Join(docs, ""); len(got) != 100 || c.Bytes != 100 || !c.Capped {
		t.Errorf("%q, %+v", got, c)
	}
	half, c := read(t, files, func(o *Options) { o.Sample = 0.5 })
	if len(half) < 420 || len(half) > 580 || c.NotSampled != int64(1000-len(half)) {
		t.Errorf("%d of 1000 are half, %+v", len(half), c)
	}
	other, _ := read(t, files, func(o *Options) { o.Sample, o.Seed = 0.5, 1 })
	if slices.Equal(half, other) {
		t.Error("another seed samples the same")
	}
}

func TestOptionsAreChecked(t *testing.T) {
	for name, x := range map[string]struct {
		o    Options
		want error
	}{
		"images": {Options{Format: Images}, ErrFormat}, "no format": {Options{Format: "docx"}, ErrOptions}, "cap": {Options{MaxBytes: -1}, ErrOptions},
		"sample": {Options{Sample: 2}, ErrOptions}, "width": {Options{Width: 3}, ErrOptions},
	} {
		if _, err := Read(context.Background(), x.o, nil); !errors.Is(err, x.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A reader that stops, for an error or because it is cancelled, leaves no goroutine and no file open.
func TestStopping(t *testing.T) {
	files := map[string]string{}
	for i := range 50 {
		files[fmt.Sprintf("%02d.txt", i)] = noise(300_000)
	}
	root := write(t, files)
	before := runtime.NumGoroutine()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	full := errors.New("full")
	for _, want := range []error{full, context.Canceled} {
		_, err := Read(ctx, Options{Paths: []string{root}}, func(*Batch) error {
			cancel()
			if want == full {
				return full
			}
			return nil
		})
		if !errors.Is(err, want) {
			t.Errorf("%v, want %v", err, want)
		}
	}
	if after := runtime.NumGoroutine(); after > before {
		t.Errorf("%d goroutines, before %d", after, before)
	}
}

func tarOf(t testing.TB, namesAndTexts ...string) string {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for pair := range slices.Chunk(namesAndTexts, 2) {
		if err := w.WriteHeader(&tar.Header{Name: pair[0], Mode: 0o600, Size: int64(len(pair[1])), Format: tar.FormatUSTAR}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(pair[1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}
