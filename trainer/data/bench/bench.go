// Package bench owns the measurement of the data pipeline on this machine: how fast a corpus is read and cleaned, for each
// processor, beside plain readings of the same bytes in the same run. It makes its own corpus, the same on every machine, and
// refuses to print or to judge.
package bench

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/capacloud/capanode/trainer/data/corpus"
	"github.com/capacloud/capanode/trainer/data/quality"
)

// Options says how much is measured.
type Options struct {
	Bytes  int    // of text; 0 means 16 MiB
	Rounds int    // each figure is the median of so many; 0 means 5
	Dir    string // where the corpus is written; empty means the folder for temporary files
}

// Figures are rates in MB (10⁶ bytes) of text for each second of processor time, all goroutines and the kernel together, so that they
// hold for one core and on a busy machine; and quotients of rates that were taken one right after the other.
type Figures struct {
	Read      float64 `json:"read_mb_per_second"`           // JSON lines to pieces of text
	ReadText  float64 `json:"read_text_mb_per_second"`      // plain text to pieces
	ReadGzip  float64 `json:"read_gzip_mb_per_second"`      // JSON lines in gzip
	ReadCSV   float64 `json:"read_csv_mb_per_second"`       // a table of two columns
	Clean     float64 `json:"clean_mb_per_second"`          // measures, filters of Gopher, personal data and signatures
	OverStd   float64 `json:"read_over_encoding_json"`      // Read over encoding/json on the same lines
	OverScan  float64 `json:"read_over_scan"`               // Read over a bufio.Scanner that only finds the lines
	GzipShare float64 `json:"read_gzip_over_gunzip"`        // ReadGzip over decompression alone
	Signature float64 `json:"near_duplicate_mb_per_second"` // signatures and their search alone

	Baseline struct {
		Scan   float64 `json:"scan_mb_per_second"`          // bufio.Scanner over the JSON lines
		JSON   float64 `json:"encoding_json_mb_per_second"` // bufio.Scanner and json.Unmarshal into a struct with the text
		Gunzip float64 `json:"gunzip_mb_per_second"`        // compress/gzip
		Fields float64 `json:"fields_mb_per_second"`        // bytes.Fields over the text, the least that any measure of words does
	} `json:"baseline"`
}

// run is a corpus on disk and in memory.
type run struct {
	o                  Options
	texts              [][]byte
	bytes              int
	jsonl, gz, csv, md string // files
}

// Run measures. The corpus comes from the page cache. Where the system does not tell processor time, the clock is taken.
func Run(ctx context.Context, o Options) (f Figures, err error) {
	if o.Bytes == 0 {
		o.Bytes = 16 << 20
	}
	if o.Rounds == 0 {
		o.Rounds = 5
	}
	dir, err := os.MkdirTemp(o.Dir, "capanode-bench-*")
	if err != nil {
		return f, fmt.Errorf("bench: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	r := &run{o: o}
	if err := r.write(dir); err != nil {
		return f, fmt.Errorf("bench: %w", err)
	}
	steps := []struct {
		rate *float64
		do   func(context.Context) error
	}{
		{&f.Read, r.reading(r.jsonl)}, {&f.Baseline.Scan, r.scan}, {&f.Baseline.JSON, r.std}, {&f.ReadText, r.reading(r.md)}, {&f.ReadCSV, r.reading(r.csv)},
		{&f.ReadGzip, r.reading(r.gz)}, {&f.Baseline.Gunzip, r.gunzip}, {&f.Clean, r.clean}, {&f.Baseline.Fields, r.fields}, {&f.Signature, r.near},
	}
	rates := make([][]float64, len(steps))
	for range o.Rounds {
		for i, s := range steps {
			start, used := time.Now(), processTime()
			if err := s.do(ctx); err != nil {
				return f, fmt.Errorf("bench: %w", err)
			}
			took := processTime() - used
			if took <= 0 { // it counts in ticks, or is not known
				took = time.Since(start)
			}
			rates[i] = append(rates[i], float64(r.bytes)/1e6/took.Seconds())
		}
	}
	for i, s := range steps {
		*s.rate = median(rates[i])
	}
	quotient := func(a, b int) float64 {
		q := make([]float64, o.Rounds)
		for i := range q {
			q[i] = rates[a][i] / rates[b][i]
		}
		return median(q)
	}
	f.OverScan, f.OverStd, f.GzipShare = quotient(0, 1), quotient(0, 2), quotient(5, 6)
	return f, nil
}

func median(all []float64) float64 {
	s := slices.Sorted(slices.Values(all))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

// write makes the corpus: documents of words in a Zipf distribution, with escapes, numbers, addresses and repeated lines, the same
// on every machine.
func (r *run) write(dir string) error {
	random := rand.New(rand.NewPCG(1, 2))
	zipf := rand.NewZipf(random, 1.2, 4, 40_000)
	var jsonl, csv, md bytes.Buffer
	csv.WriteString("id,text\n")
	for i := 0; r.bytes < r.o.Bytes; i++ {
		var doc bytes.Buffer
		for range 5 + random.IntN(40) {
			for range 6 + random.IntN(14) {
				doc.WriteString(spell(zipf.Uint64()))
				doc.WriteByte(' ')
			}
			doc.WriteString("\"end\".\n")
		}
		if i%50 == 0 {
			fmt.Fprintf(&doc, "Write to person%d@example.org or call +49 30 %07d.\n", i, random.IntN(1e7))
		}
		text := doc.Bytes()
		r.texts = append(r.texts, text)
		r.bytes += len(text)
		line, err := json.Marshal(struct {
			ID   int    `json:"id"`
			Text string `json:"text"`
		}{i, string(text)})
		if err != nil {
			return err
		}
		jsonl.Write(append(line, '\n'))
		fmt.Fprintf(&csv, "%d,\"%s\"\n", i, strings.ReplaceAll(string(text), `"`, `""`))
		md.Write(text)
	}
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := z.Write(jsonl.Bytes()); err != nil {
		return err
	}
	if err := z.Close(); err != nil {
		return err
	}
	for _, x := range []struct {
		path *string
		name string
		b    []byte
	}{{&r.jsonl, "a.jsonl", jsonl.Bytes()}, {&r.gz, "a.jsonl.gz", packed.Bytes()}, {&r.csv, "a.csv", csv.Bytes()}, {&r.md, "a.md", md.Bytes()}} {
		*x.path = filepath.Join(dir, x.name)
		if err := os.WriteFile(*x.path, x.b, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// spell writes a number as a word of consonants and vowels, short for small ones as in real vocabularies.
func spell(n uint64) string {
	var b []byte
	for n += 3; n > 0; n /= 90 {
		b = append(b, "bcdfghklmnprstvwxz"[n%90/5], "aeiou"[n%5])
	}
	return string(b)
}

// reading reads a file on one goroutine ahead of one that drops the pieces.
func (r *run) reading(path string) func(context.Context) error {
	return func(ctx context.Context) error {
		bytes := int64(0)
		counts, err := corpus.Read(ctx, corpus.Options{Paths: []string{path}}, func(b *corpus.Batch) error {
			for _, p := range b.Pieces {
				bytes += int64(len(p.Text))
			}
			return nil
		})
		if err == nil && (bytes != int64(r.bytes) || counts.Broken() > 0) {
			err = fmt.Errorf("read %d of %d bytes: %+v", bytes, r.bytes, counts)
		}
		return err
	}
}

func (r *run) lines(f func(line []byte) error) error {
	file, err := os.Open(r.jsonl)
	if err != nil {
		return err
	}
	defer file.Close()
	s := bufio.NewScanner(file)
	s.Buffer(make([]byte, 1<<20), 1<<20)
	for s.Scan() {
		if err := f(s.Bytes()); err != nil {
			return err
		}
	}
	return s.Err()
}

func (r *run) scan(context.Context) error { return r.lines(func([]byte) error { return nil }) }

func (r *run) std(context.Context) error {
	return r.lines(func(line []byte) error {
		var record struct {
			Text string `json:"text"`
		}
		return json.Unmarshal(line, &record)
	})
}

func (r *run) gunzip(context.Context) error {
	file, err := os.Open(r.gz)
	if err != nil {
		return err
	}
	defer file.Close()
	z, err := gzip.NewReader(bufio.NewReader(file))
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, z)
	return err
}

// clean does what a build with filters does to each document.
func (r *run) clean(context.Context) error {
	filters, err := quality.ParseFilters([]string{"gopher", "near_duplicates", "max_personal=0", "max_boilerplate=0.5"})
	if err != nil {
		return err
	}
	var a quality.Analyzer
	near, lines := quality.NewNear(64<<20), quality.NewLines()
	var hashes []quality.LineHash
	for _, text := range r.texts {
		var t quality.Text
		a.Measure(&t.Measure, text)
		hashes = a.LineHashes(hashes[:0], text)
		t.Boilerplate = lines.Document(hashes, text)
		if filters.NeedsNear(&t) {
			s := quality.NewSignature()
			a.Signature(&s)
			t.Near = near.Seen(&s)
		}
		filters.Drop(&t)
	}
	return nil
}

func (r *run) fields(context.Context) error {
	for _, text := range r.texts {
		bytes.Fields(text)
	}
	return nil
}

// near measures and searches signatures, without any filter.
func (r *run) near(context.Context) error {
	var a quality.Analyzer
	n := quality.NewNear(64 << 20)
	for _, text := range r.texts {
		var m quality.Measure
		a.Measure(&m, text)
		s := quality.NewSignature()
		a.Signature(&s)
		n.Seen(&s)
	}
	return nil
}
