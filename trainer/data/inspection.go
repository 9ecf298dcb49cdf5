package data

import (
	"cmp"
	"math"
	"slices"

	"github.com/capacloud/capanode/trainer/data/corpus"
	"github.com/capacloud/capanode/trainer/data/quality"
)

// maxSamples is how many masked examples of personal data a report has of each kind.
const maxSamples = 3

// Inspection is the data-quality report of a corpus or a dataset. Shares are between 0 and 1.
type Inspection struct {
	Read       *corpus.Counts `json:"read,omitempty"` // what the files were like; not of a dataset
	Documents  int64          `json:"documents"`
	Bytes      int64          `json:"bytes"` // of text
	Characters int64          `json:"characters"`
	Words      int64          `json:"words"`
	Lines      int64          `json:"lines"`
	Lengths    Lengths        `json:"document_bytes"`
	Classes    []Share        `json:"character_classes"` // by characters
	Scripts    []Share        `json:"scripts"`           // by letters
	Languages  []Share        `json:"languages"`         // a guess, by documents and bytes
	Sources    []Share        `json:"sources"`           // by path, or split of a dataset

	ExactDuplicates Duplicates  `json:"exact_duplicates"`
	NearDuplicates  Duplicates  `json:"near_duplicates"` // without the exact ones
	Boilerplate     Boilerplate `json:"boilerplate"`
	Personal        []Hints     `json:"personal"`
	Rules           []Broken    `json:"rules"`             // of Gopher and C4: how many documents each would drop
	Dropped         []Drop      `json:"dropped,omitempty"` // what the given filters would drop, under the first reason
	Tokens          *Vocabulary `json:"tokens,omitempty"`
	Leakage         Leakage     `json:"leakage"`
	Warnings        []string    `json:"warnings"`
}

// Lengths are quantiles of the documents' sizes in bytes, within 10 %.
type Lengths struct {
	Min int64 `json:"min"`
	P10 int64 `json:"p10"`
	P50 int64 `json:"p50"`
	P90 int64 `json:"p90"`
	P99 int64 `json:"p99"`
	Max int64 `json:"max"`
}

// Share is a part of the corpus.
type Share struct {
	Name      string  `json:"name"`
	Documents int64   `json:"documents,omitempty"`
	Count     int64   `json:"count"` // bytes, or characters of a class or script
	Share     float64 `json:"share"` // of all counts
	Language  string  `json:"language,omitempty"`
}

// Duplicates counts documents that resemble an earlier one.
type Duplicates struct {
	Documents int64   `json:"documents"`
	Bytes     int64   `json:"bytes"`
	Share     float64 `json:"share"` // of the bytes
	Window    int64   `json:"window,omitempty"`
}

// Boilerplate is text in lines that many documents have.
type Boilerplate struct {
	Bytes int64                `json:"bytes"`
	Share float64              `json:"share"`
	Lines []quality.CommonText `json:"lines"` // the most frequent ones
}

// Hints counts what looks like personal or secret data of one kind.
type Hints struct {
	Kind      string   `json:"kind"`
	Count     int64    `json:"count"`
	Documents int64    `json:"documents"`
	Samples   []string `json:"samples"` // masked
}

// Broken is a rule of a published corpus and how many documents break it.
type Broken struct {
	Rule      string  `json:"rule"`
	Documents int64   `json:"documents"`
	Share     float64 `json:"share"` // of the documents
}

// Vocabulary is what the tokenizer makes of the corpus.
type Vocabulary struct {
	Tokenizer     string  `json:"tokenizer"`
	Tokens        int64   `json:"tokens"`
	Size          int     `json:"vocabulary"`
	Used          int     `json:"used"` // tokens that occur
	BytesPerToken float64 `json:"bytes_per_token"`
	Entropy       float64 `json:"entropy_bits"` // of single tokens: log2 of the perplexity of a model that knows nothing else
}

// Leakage says how much of the held-out text the training text has too.
type Leakage struct {
	Share  float64 `json:"share"`           // of the held-out n-grams
	Grams  int64   `json:"held_out_ngrams"` // that the estimate rests on; 0 says that nothing was held out
	Length int     `json:"ngram_words"`
}

// sizes is a histogram of document sizes whose classes are 10 % wide.
type sizes struct {
	counts   [512]int64
	min, max int64
	total    int64
}

func (s *sizes) add(n int64) {
	if s.total == 0 || n < s.min {
		s.min = n
	}
	s.max = max(s.max, n)
	s.total++
	s.counts[min(len(s.counts)-1, int(math.Log(float64(max(n, 1)))/math.Log(1.1)))]++
}

func (s *sizes) lengths() Lengths {
	at := func(q float64) int64 {
		rank, seen := int64(math.Ceil(q*float64(s.total))), int64(0)
		for i, n := range s.counts {
			if seen += n; seen >= rank {
				return min(max(int64(math.Pow(1.1, float64(i)+0.5)), s.min), s.max)
			}
		}
		return s.max
	}
	return Lengths{s.min, at(0.1), at(0.5), at(0.9), at(0.99), s.max}
}

// tally is counts by name.
type tally map[string]*Share

func (t tally) add(name string, documents, count int64) {
	s := t[name]
	if s == nil {
		s = &Share{Name: name}
		t[name] = s
	}
	s.Documents += documents
	s.Count += count
}

// list orders a tally by count, then name.
func (t tally) list() []Share {
	out, sum := []Share{}, int64(0)
	for _, s := range t {
		if s.Count > 0 || s.Documents > 0 {
			out = append(out, *s)
			sum += s.Count
		}
	}
	for i := range out {
		if sum > 0 {
			out[i].Share = float64(out[i].Count) / float64(sum)
		}
	}
	slices.SortFunc(out, func(a, b Share) int { return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Name, b.Name)) })
	return out
}

func ratio(a, b int64) float64 {
	if b == 0 {
		return 0
	}
	return float64(a) / float64(b)
}

// entropy is Shannon's, in bits, of a histogram.
func entropy(counts []int64) (bits float64, total int64, used int) {
	for _, n := range counts {
		total += n
	}
	for _, n := range counts {
		if n > 0 {
			used++
			p := float64(n) / float64(total)
			bits -= p * math.Log2(p)
		}
	}
	return bits, total, used
}
