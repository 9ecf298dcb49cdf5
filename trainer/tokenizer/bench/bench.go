// Package bench owns the measurement of tokenizers on this machine: how fast a byte-level BPE is trained and applied, for each
// processor, beside plain implementations and, where it is installed, the Python package tokenizers, on the same text in the
// same run. It makes its own text and refuses to print or to judge.
package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/capacloud/capanode/trainer/tokenizer"
)

// Options says how much is measured.
type Options struct {
	Bytes int // of text; 0 means 16 MiB
	Plain int // of text for the plain implementations, which are slow; 0 means 256 KiB
	Vocab int // of the tokenizer; 0 means 8192
}

// Figures are rates in MB (10⁶ bytes) of text for each second of processor time, all goroutines together, so that they are those of
// one core and hold on a busy machine, each the best of three; and quotients of rates on the same text.
type Figures struct {
	Encode        float64 `json:"tokenize_mb_per_second"`
	Train         float64 `json:"bpe_train_mb_per_second"`
	EncodeOver    float64 `json:"tokenize_over_plain"`
	TrainOver     float64 `json:"bpe_train_over_plain"`
	EncodeOverPkg float64 `json:"tokenize_over_python"`  // the package tokenizers, line by line, on one thread
	TrainOverPkg  float64 `json:"bpe_train_over_python"` // its trainer, on one thread

	Baseline struct {
		Encode float64 `json:"plain_tokenize_mb_per_second"`
		Train  float64 `json:"plain_bpe_train_mb_per_second"`
		PkgEnc float64 `json:"python_tokenize_mb_per_second"`
		PkgTra float64 `json:"python_bpe_train_mb_per_second"`
	} `json:"baseline"`
	Missing []string `json:"missing"`
}

// Run measures.
func Run(ctx context.Context, o Options) (f Figures, err error) {
	o.Bytes, o.Plain, o.Vocab = orElse(o.Bytes, 16<<20), orElse(o.Plain, 256<<10), orElse(o.Vocab, 8192)
	text := Text(o.Bytes)
	small := text[:min(o.Plain, len(text))]
	var tok *tokenizer.BPE
	train := func(text []byte, vocab int) func() error {
		return func() (err error) {
			tok, _, err = tokenizer.Train(ctx, lines(text), tokenizer.TrainOptions{Vocab: vocab, Workers: 1})
			return err
		}
	}
	const plainVocab = 512
	fast, err := rate(ctx, small, train(small, plainVocab))
	if err != nil {
		return f, err
	}
	var merges [][2]string
	if f.Baseline.Train, err = rate(ctx, small, func() error { merges = plainTrain(small, plainVocab-257); return nil }); err != nil {
		return f, err
	}
	f.TrainOver = fast / f.Baseline.Train
	ids := make([]int32, 0, len(text))
	encode := func(text []byte) func() error {
		return func() error { ids = tok.Encode(ids[:0], text); return nil }
	}
	if fast, err = rate(ctx, small, encode(small)); err != nil {
		return f, err
	}
	count := 0
	if f.Baseline.Encode, err = rate(ctx, small, func() error { count = plainEncode(merges, small); return nil }); err != nil {
		return f, err
	}
	if count != len(ids) {
		return f, fmt.Errorf("bench: the plain implementation has %d tokens, the program %d: %w", count, len(ids), errDiffer)
	}
	f.EncodeOver = fast / f.Baseline.Encode
	if f.Train, err = rate(ctx, text, train(text, o.Vocab)); err != nil {
		return f, err
	}
	if f.Encode, err = rate(ctx, text, encode(text)); err != nil {
		return f, err
	}
	return f, f.python(ctx, text, o.Vocab)
}

var errDiffer = errors.New("results differ")

func orElse(n, otherwise int) int {
	if n == 0 {
		return otherwise
	}
	return n
}

// rate returns the best of three rates in MB of text for each second of processor time.
func rate(ctx context.Context, text []byte, do func() error) (float64, error) {
	best := 0.0
	for range 3 {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		began, used := time.Now(), processTime()
		if err := do(); err != nil {
			return 0, fmt.Errorf("bench: %w", err)
		}
		took := processTime() - used
		if took <= 0 { // it counts in ticks, or is not known
			took = time.Since(began)
		}
		best = max(best, float64(len(text))/1e6/took.Seconds())
	}
	return best, nil
}

func lines(text []byte) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for line := range bytes.Lines(text) {
			if !yield(line, nil) {
				return
			}
		}
	}
}

// Text makes n bytes of text or a little more: words in a Zipf distribution, numbers, punctuation, letters beyond ASCII; the
// same on every machine.
func Text(n int) []byte {
	random := rand.New(rand.NewPCG(3, 5))
	zipf := rand.NewZipf(random, 1.15, 4, 60_000)
	b := make([]byte, 0, n+1024)
	for len(b) < n {
		for range 5 + random.IntN(14) {
			b = append(spell(b, zipf.Uint64()), ' ')
		}
		switch random.IntN(6) {
		case 0:
			b = fmt.Appendf(b, "in %d, (%d.%d %%)", 1900+random.IntN(130), random.IntN(100), random.IntN(10))
		case 1:
			b = append(b, "don't — “yes”"...)
		}
		b = append(b, ".\n"...)
	}
	return b
}

// spell makes a word of a number: the same word for the same number, short ones for small numbers.
func spell(b []byte, n uint64) []byte {
	syllables := []string{"an", "be", "ko", "ter", "li", "sch", "ö", "ma", "ing", "st", "re", "un", "da", "é", "tion", "x"}
	for n++; n > 0; n /= 16 {
		b = append(b, syllables[n*7%16]...)
	}
	return b
}

// plainEncode counts tokens with the textbook's merging: for each word, the pair of the lowest rank again and again.
func plainEncode(merges [][2]string, text []byte) int {
	rank := make(map[[2]string]int, len(merges))
	for i, m := range merges {
		rank[m] = i
	}
	tokens := 0
	for word := range tokenizer.Words(text) {
		symbols := letters(word)
		for {
			best, at := len(merges), -1
			for i := 1; i < len(symbols); i++ {
				if r, ok := rank[[2]string{symbols[i-1], symbols[i]}]; ok && r < best {
					best, at = r, i-1
				}
			}
			if at < 0 {
				break
			}
			symbols[at] += symbols[at+1]
			symbols = append(symbols[:at+1], symbols[at+2:]...)
		}
		tokens += len(symbols)
	}
	return tokens
}

func letters(word []byte) []string {
	symbols := make([]string, len(word))
	for i := range word {
		symbols[i] = string(word[i : i+1])
	}
	return symbols
}

// plainTrain finds merges as the textbook does: all pairs are counted anew for each. Ties are broken as [tokenizer.Train] breaks
// them, by the order of IDs.
func plainTrain(text []byte, n int) [][2]string {
	counts := map[string]int{}
	for word := range tokenizer.Words(text) {
		counts[string(word)]++
	}
	words, id := map[string][]string{}, plainIDs()
	for w := range counts {
		words[w] = letters([]byte(w))
	}
	var merges [][2]string
	for len(merges) < n {
		pairs := map[[2]string]int{}
		for w, symbols := range words {
			for i := 1; i < len(symbols); i++ {
				pairs[[2]string{symbols[i-1], symbols[i]}] += counts[w]
			}
		}
		var best [2]string
		for p, c := range pairs {
			b := pairs[best]
			if c > b || c == b && (id[p[0]] < id[best[0]] || p[0] == best[0] && id[p[1]] < id[best[1]]) {
				best = p
			}
		}
		if pairs[best] < 2 {
			break
		}
		merges, id[best[0]+best[1]] = append(merges, best), 257+len(merges)
		for w, symbols := range words {
			for i := 0; i+1 < len(symbols); i++ {
				if symbols[i] == best[0] && symbols[i+1] == best[1] {
					symbols = slices.Concat(symbols[:i], []string{best[0] + best[1]}, symbols[i+2:])
				}
			}
			words[w] = symbols
		}
	}
	return merges
}

// plainIDs numbers the bytes: those that print first, as in GPT-2.
func plainIDs() map[string]int {
	id := map[string]int{}
	for _, printable := range []bool{true, false} {
		for b := range 256 {
			if prints := b >= '!' && b <= '~' || b >= 0xa1 && b != 0xad; prints == printable {
				id[string([]byte{byte(b)})] = len(id)
			}
		}
	}
	return id
}

// script times the Python package on the lines of a file.
const script = `
import json, os, sys, time
os.environ["TOKENIZERS_PARALLELISM"] = "false"
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
path, vocab, spec = sys.argv[1], int(sys.argv[2]), sys.argv[3]
lines = list(open(path, encoding="utf-8", newline="\n"))
t = Tokenizer.from_file(spec)
began = time.process_time()
for line in lines:
    t.encode(line, add_special_tokens=False)
encode = time.process_time() - began
n = Tokenizer(models.BPE())
n.pre_tokenizer = t.pre_tokenizer
began = time.process_time()
n.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=vocab - 1, min_frequency=2, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
print(json.dumps({"encode": encode, "train": time.process_time() - began}))
`

// python measures the Python package on a quarter of the text, with the tokenizer that the program trains on it. Without the package its
// figures are missing.
func (f *Figures) python(ctx context.Context, text []byte, vocab int) error {
	part := text[:bytes.LastIndexByte(text[:len(text)/4], '\n')+1]
	tok, _, err := tokenizer.Train(ctx, lines(part), tokenizer.TrainOptions{Vocab: vocab, Workers: 1})
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "capanode-bench-*")
	if err != nil {
		return fmt.Errorf("bench: %w", err)
	}
	defer os.RemoveAll(dir)
	path, spec := filepath.Join(dir, "text"), filepath.Join(dir, tokenizer.HuggingFaceName)
	file, _ := tok.File()
	if err := errors.Join(os.WriteFile(path, part, 0o600), os.WriteFile(spec, file, 0o600)); err != nil {
		return fmt.Errorf("bench: %w", err)
	}
	interpreter := os.Getenv("CAPANODE_PYTHON")
	if interpreter == "" {
		interpreter = "python3"
	}
	var took struct{ Encode, Train float64 }
	out, err := exec.CommandContext(ctx, interpreter, "-c", script, path, fmt.Sprint(vocab), spec).Output()
	if err == nil {
		err = json.Unmarshal(out, &took)
	}
	if err != nil || took.Encode <= 0 || took.Train <= 0 {
		f.Missing = append(f.Missing, "tokenize_over_python", "bpe_train_over_python", "python_tokenize_mb_per_second", "python_bpe_train_mb_per_second")
		return ctx.Err()
	}
	mb := float64(len(part)) / 1e6
	f.Baseline.PkgEnc, f.Baseline.PkgTra = mb/took.Encode, mb/took.Train
	ids := make([]int32, 0, len(part))
	encode, err := rate(ctx, part, func() error { ids = tok.Encode(ids[:0], part); return nil })
	if err != nil {
		return err
	}
	train, err := rate(ctx, part, func() error {
		_, _, err := tokenizer.Train(ctx, lines(part), tokenizer.TrainOptions{Vocab: vocab, Workers: 1})
		return err
	})
	f.EncodeOverPkg, f.TrainOverPkg = encode/f.Baseline.PkgEnc, train/f.Baseline.PkgTra
	return err
}
