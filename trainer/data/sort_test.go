package data

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/capacloud/capanode/storage/dataset"
)

// Sorting in whatever little memory gives the order that sorting at once gives, and every duplicate of a document is left out, the
// first one kept.
func TestSorterIsASort(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var parts []part
		for number := range uint64(rapid.IntRange(0, 40).Draw(t, "documents")) {
			text := rapid.IntRange(0, 20).Draw(t, "text") // several documents have the same
			count := text%3 + 1
			for i := range count {
				p := part{order: uint64(text % 5), document: number, index: uint32(i), key: uint64(text), source: uint32(number % 2), bytes: uint32(text), last: i+1 == count}
				p.sum[3] = byte(text)
				p.tokens = []byte(strings.Repeat(fmt.Sprint(text, i), text))
				p.size = len(p.tokens)
				parts = append(parts, p)
			}
		}
		describe := func(memory int64, tokens bool) (lines []string, duplicates int64) {
			s, err := newSorter("", memory)
			if err != nil {
				t.Fatal(err)
			}
			defer s.close()
			for _, p := range parts {
				if err := s.add(&p); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.finish(); err != nil {
				t.Fatal(err)
			}
			duplicates, err = s.each(tokens, func(p *part) error {
				line := fmt.Sprint(p.order, p.sum[3], p.document, p.index, p.key, p.source, p.bytes, p.last, p.size)
				if tokens {
					line += string(p.tokens)
				}
				lines = append(lines, line)
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			return lines, duplicates
		}
		want, dups := describe(1<<30, true)
		first := map[byte]uint64{}
		kept := 0
		for _, p := range parts {
			if d, ok := first[p.sum[3]]; !ok || d == p.document {
				first[p.sum[3]] = p.document
				kept++
			}
		}
		if len(want) != kept {
			t.Fatalf("%d parts, want %d", len(want), kept)
		}
		for _, memory := range []int64{150, 2000} {
			if got, d := describe(memory, true); !slices.Equal(got, want) || d != dups {
				t.Fatalf("%d bytes of memory: %d parts and %d duplicates, want %d and %d", memory, len(got), d, len(want), dups)
			}
		}
		heads, _ := describe(200, false)
		if len(heads) != len(want) {
			t.Fatalf("%d parts without their tokens, want %d", len(heads), len(want))
		}
	})
}

// A build that spills gives the same dataset as one in memory, and leaves nothing behind.
func TestBuildInLittleMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("a long text; the long form runs without -short")
	}
	files := prose(300)
	var long strings.Builder
	for i := 0; long.Len() < 9<<20; i++ { // longer than what waits in memory for a document's end
		fmt.Fprintf(&long, "line %d of a very long book without any end in sight\n", i)
	}
	files["long.txt"], files["long-copy.txt"] = long.String(), long.String()
	root := write(t, files)
	var links []string
	for _, room := range []int64{1 << 30, 200 << 10} {
		o := options(root)
		o.Memory, o.TempDir = room, t.TempDir()
		_, link, report, err := Build(context.Background(), o, memory(t))
		if err != nil {
			t.Fatal(err)
		}
		if (room < 1<<30) != (report.Spilled > 0) || report.Duplicates != 1 || report.Kept != 301 {
			t.Errorf("memory of %d: %+v", room, report)
		}
		links = append(links, link.String())
		if left, err := os.ReadDir(o.TempDir); err != nil || len(left) > 0 {
			t.Errorf("%d files left behind, %v", len(left), err)
		}
	}
	if links[0] != links[1] {
		t.Errorf("spilling gives %s, memory %s", links[1], links[0])
	}
}

func TestFullDiskIsExplained(t *testing.T) {
	o := options(write(t, prose(3)))
	o.TempDir = filepath.Join(t.TempDir(), "missing")
	if _, _, _, err := Build(context.Background(), o, memory(t)); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// What the readers of many formats give is the same dataset as from plain files.
func TestFormatsGiveTheSameDataset(t *testing.T) {
	files := prose(40)
	names := make([]string, 0, len(files))
	for n := range files {
		names = append(names, n)
	}
	slices.Sort(names)
	var lines, table strings.Builder
	table.WriteString("text\n")
	for _, n := range names {
		fmt.Fprintf(&lines, "{\"text\":%q}\n", files[n])
		fmt.Fprintf(&table, "%q\n", files[n])
	}
	csv := strings.ReplaceAll(table.String(), `\n`, "\n")
	var first []uint64
	for name, root := range map[string]string{
		"files": write(t, files), "jsonl": write(t, map[string]string{"a.jsonl": lines.String()}), "csv": write(t, map[string]string{"a.csv": csv}),
	} {
		m, _, _, err := Build(context.Background(), options(root), memory(t))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var got []uint64
		for _, s := range m.Shards {
			got = append(got, s.Tokens, s.Bytes)
		}
		if first == nil {
			first = got
		}
		if !slices.Equal(got, first) {
			t.Errorf("%s: another dataset", name)
		}
	}
}

func TestFiltersDropUnderTheirReason(t *testing.T) {
	files := prose(30)
	files["short.txt"] = "too short"
	files["near.txt"] = strings.Repeat("text 7 has words\n", 27) // as 007 but for one line
	o := options(write(t, files))
	o.Filters = []string{"min_words=5", "near_duplicates"}
	m, _, report, err := Build(context.Background(), o, memory(t))
	if err != nil {
		t.Fatal(err)
	}
	reasons := map[string]int64{}
	for _, d := range report.Dropped {
		reasons[d.Reason] = d.Documents
	}
	if reasons["min_words"] != 1 || reasons["near_duplicates"] < 1 || report.Kept+report.Dropped[0].Documents+report.Dropped[1].Documents != 32 {
		t.Errorf("%+v", report)
	}
	if m.Sources[0].Documents != uint64(report.Kept) {
		t.Errorf("manifest has %d documents, report %d", m.Sources[0].Documents, report.Kept)
	}
	o.Filters = []string{"min_words=1000"}
	if _, _, _, err = Build(context.Background(), o, memory(t)); !errors.Is(err, ErrEmpty) || !strings.Contains(err.Error(), "dropped by min_words") {
		t.Error(err)
	}
}

func TestReadyTokens(t *testing.T) {
	raw := make([]byte, 0, 4000)
	for i := range 2000 {
		raw = append(raw, byte(i%250), byte(0))
	}
	root := write(t, map[string]string{"a.bin": string(raw)})
	o := options(root)
	o.ValFraction = 0
	store := memory(t)
	m, _, _, err := Build(context.Background(), o, store)
	if err != nil {
		t.Fatal(err)
	}
	if ids := slices.Concat(side(t, m, store, dataset.Train)...); len(ids) != 2001 || ids[251] != 1 || ids[2000] != 256 {
		t.Errorf("%d tokens", len(ids))
	}
	raw[100], raw[101] = 0x51, 0xc3 // 50001
	o.Corpus.Paths = []string{write(t, map[string]string{"a.bin": string(raw)})}
	if _, _, _, err := Build(context.Background(), o, store); !errors.Is(err, ErrVocabulary) || !strings.Contains(err.Error(), "50001") {
		t.Error(err)
	}
}
