package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// lettersOf makes n different letters as JSON lines.
func lettersOf(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `{"id":%d,"body":"Letter %d: the harbour is closed, and the ships of the %d have to wait for better weather.\n"}`+"\n", i, i, i*i)
	}
	return b.String()
}

// A corpus becomes a dataset, the dataset's report agrees with what was added, the dataset survives the end of a process, and unpinning
// lets it go.
func TestDataAddAndInspect(t *testing.T) {
	if testing.Short() {
		t.Skip("real processes; the long form runs without -short")
	}
	home, dir := filepath.Join(t.TempDir(), "home"), t.TempDir()
	path := filepath.Join(dir, "letters.jsonl")
	if err := os.WriteFile(path, []byte(lettersOf(300)+"no JSON\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, errs, code := capanode(t, "data", "add", path, "--text", "body", "--context", "64", "--home", home, "-o", "json")
	var added struct {
		Dataset   string
		Documents int64
		Bytes     int64
		Tokens    int64 `json:"train_tokens"`
		Read      struct {
			BadRecords int64 `json:"bad_records"`
		}
	}
	if err := json.Unmarshal([]byte(out), &added); err != nil || code != exitDone || added.Documents != 300 || added.Read.BadRecords != 1 {
		t.Fatalf("exit %d, %v: %s%s", code, err, out, errs)
	}
	out, errs, code = capanode(t, "data", "inspect", added.Dataset, "--home", home, "-o", "json")
	var report struct {
		Documents, Bytes int64
		Languages        []struct{ Name string }
		Tokens           struct{ Tokens int64 }
	}
	if err := json.Unmarshal([]byte(out), &report); err != nil || code != exitDone || report.Documents != 300 || report.Bytes != added.Bytes || report.Languages[0].Name != "en" {
		t.Fatalf("exit %d, %v: %s%s", code, err, out, errs)
	}
	if out, errs, code = capanode(t, "storage", "gc", "--home", home); code != exitDone || !strings.Contains(out, "removed 0 objects") {
		t.Errorf("exit %d: %s%s", code, out, errs)
	}
	if _, errs, code = capanode(t, "storage", "unpin", "data/"+added.Dataset, "--home", home); code != exitDone {
		t.Errorf("exit %d: %s", code, errs)
	}
	if out, errs, code = capanode(t, "storage", "gc", "--home", home); code != exitDone || strings.Contains(out, "removed 0 objects") {
		t.Errorf("exit %d: %s%s", code, out, errs)
	}
}

// A tokenizer is trained on the text that is added, lies beside the dataset, and serves for more text by its CID.
func TestDataAddTrainsATokenizer(t *testing.T) {
	if testing.Short() {
		t.Skip("real processes; the long form runs without -short")
	}
	home, dir := filepath.Join(t.TempDir(), "home"), t.TempDir()
	path := filepath.Join(dir, "letters.jsonl")
	if err := os.WriteFile(path, []byte(lettersOf(400)), 0o600); err != nil {
		t.Fatal(err)
	}
	type report struct {
		Dataset  string
		Bytes    int64
		Train    int64 `json:"train_tokens"`
		Held     int64 `json:"val_tokens"`
		Tokens   struct{ Tokenizer string }
		Warnings []string
	}
	run := func(args ...string) (r report) {
		t.Helper()
		out, errs, code := capanode(t, append(args, "--home", home, "-o", "json")...)
		if err := json.Unmarshal([]byte(out), &r); err != nil || code != exitDone {
			t.Fatalf("%q: exit %d, %v: %s%s", args, code, err, out, errs)
		}
		return r
	}
	added := run("data", "add", path, "--text", "body", "--context", "64", "--tokenizer", "bpe:300")
	if total := added.Train + added.Held; total == 0 || 3*total > 2*added.Bytes || len(added.Warnings) > 0 {
		t.Errorf("%d tokens for %d bytes, %q", total, added.Bytes, added.Warnings)
	}
	if again := run("data", "add", path, "--text", "body", "--context", "64", "--tokenizer", "bpe:300"); again.Dataset != added.Dataset {
		t.Errorf("a second time %s, first %s", again.Dataset, added.Dataset)
	}
	if out, errs, code := capanode(t, "storage", "gc", "--home", home); code != exitDone || !strings.Contains(out, "removed 0 objects") {
		t.Errorf("exit %d: %s%s", code, out, errs)
	}
	looked := run("data", "inspect", added.Dataset)
	kind, file, ok := strings.Cut(strings.TrimPrefix(looked.Tokens.Tokenizer, "bpe:"), ":")
	if looked.Bytes != added.Bytes || kind != "256" || !ok {
		t.Fatalf("%d bytes in, %d out, of %s", added.Bytes, looked.Bytes, looked.Tokens.Tokenizer)
	}
	if named := run("data", "add", path, "--text", "body", "--context", "64", "--tokenizer", file); named.Dataset != added.Dataset {
		t.Errorf("with the tokenizer's CID %s, trained %s", named.Dataset, added.Dataset)
	}
	for _, word := range []string{"bpe:300", file} {
		if files := run("data", "inspect", path, "--text", "body", "--tokenizer", word); files.Tokens.Tokenizer != looked.Tokens.Tokenizer {
			t.Errorf("%s: the files are of %s, the dataset of %s", word, files.Tokens.Tokenizer, looked.Tokens.Tokenizer)
		}
	}
	if _, errs, code := capanode(t, "storage", "unpin", "data/"+added.Dataset, "--home", home); code != exitDone {
		t.Errorf("exit %d: %s", code, errs)
	}
	if out, errs, code := capanode(t, "storage", "gc", "--home", home); code != exitDone || strings.Contains(out, "removed 0 objects") {
		t.Errorf("exit %d: %s%s", code, out, errs)
	}
	if out, errs, code := capanode(t, "storage", "ls", "--home", home, "-o", "json"); code != exitDone || strings.Contains(out, file) {
		t.Errorf("exit %d, the tokenizer outlives its dataset: %s%s", code, out, errs)
	}
	if much := run("data", "add", path, "--text", "body", "--context", "16", "--tokenizer", "bpe:60000"); len(much.Warnings) != 1 || !strings.Contains(much.Warnings[0], "bpe:60000 asks for more") {
		t.Errorf("%q", much.Warnings)
	}
}

// Each mistake has its exit code and one line that says what to do.
func TestDataMistakes(t *testing.T) {
	if testing.Short() {
		t.Skip("real processes; the long form runs without -short")
	}
	home, dir := filepath.Join(t.TempDir(), "home"), t.TempDir()
	for name, text := range map[string]string{
		"letters.jsonl": lettersOf(50), "short.txt": "a few words", "tokens.bin": "\x00\xff\x00\xff", "bad/broken.txt.gz": "\x1f\x8b\x08nonsense", "bad/fine.txt": strings.Repeat("words to read\n", 200),
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for line, want := range map[string]struct {
		code int
		says string
	}{
		"data add DIR/none.txt":                          {exitNoSuchThing, "none.txt"},
		"data add DIR/letters.jsonl":                     {exitUsage, `did you mean "body"?`},
		"data add DIR/short.txt":                         {exitUsage, "add text, or lower"},
		"data add DIR/tokens.bin":                        {exitUsage, "name the tokenizer that made the file"},
		"data add DIR/short.txt --format wav":            {exitUsage, "does not train"},
		"data add DIR/short.txt --filter gofer":          {exitUsage, "did you mean"},
		"data add DIR/short.txt --tokenizer x":           {exitUsage, "bpe:SIZE"},
		"data add DIR/short.txt --tokenizer bpe:5":       {exitUsage, "257"},
		"data add DIR/short.txt --tokenizer DIR/no.json": {exitUsage, "no.json"},
		"data add DIR/tokens.bin --tokenizer bpe:300":    {exitUsage, "it came as tokens"},
		"data add DIR/bad --context 64":                  {exitPartly, "broken.txt.gz"},
		"data inspect DIR/letters.jsonl":                 {exitUsage, `no such text field "text"`},
		"data inspect DIR/letters.jsonl --text id":       {exitUsage, "the corpus has no text"},
		"data inspect DIR/none":                          {exitNoSuchThing, "none"},
		"data inspect DIR/short.txt --include .go":       {exitDone, ""},
		"data inspect DIR/bad/broken.txt.gz --text abc":  {exitUsage, "1 damaged"},
	} {
		args := strings.Fields(strings.ReplaceAll(line, "DIR", dir))
		_, errs, code := capanode(t, append(args, "--home", home)...)
		if code != want.code || !strings.Contains(errs, want.says) || strings.Count(errs, "\n") > 1 {
			t.Errorf("%s: exit %d, want %d: %s", line, code, want.code, errs)
		}
	}
}
