package tokenizer

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"hash/maphash"
	"iter"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"unicode/utf8"
)

const (
	// MaxWords is how many distinct pre-tokens training keeps by default: with what is known of each about half a gigabyte.
	MaxWords = 1 << 21
	// longestWord is the longest pre-token in bytes that training counts as one. Longer ones, such as lines of a script
	// without spaces, count as their pieces.
	longestWord = 256
	blockBytes  = 16 << 20 // of text that is counted before the counts are joined
	pieceBytes  = 64 << 10 // of text that a worker takes at once, where texts are longer
)

// wordCounts counts distinct byte strings.
type wordCounts struct {
	seed  maphash.Seed
	slots []uint32 // index of words + 1; 0 is empty
	words []countedWord
	text  []byte // of all words
}

// countedWord is a pre-token and how often it was seen.
type countedWord struct {
	count int64
	hash  uint64
	at    uint32 // in text
	size  uint32
}

func newWordCounts(seed maphash.Seed) *wordCounts {
	return &wordCounts{seed: seed, slots: make([]uint32, 1<<10)}
}

func (w *wordCounts) bytes(c *countedWord) []byte { return w.text[c.at : c.at+c.size] }

// add counts a word n times more.
func (w *wordCounts) add(word []byte, hash uint64, n int64) {
	mask := uint64(len(w.slots) - 1)
	i := hash & mask
	for ; w.slots[i] != 0; i = (i + 1) & mask {
		c := &w.words[w.slots[i]-1]
		if c.hash == hash && bytes.Equal(w.bytes(c), word) {
			c.count += n
			return
		}
	}
	w.words = append(w.words, countedWord{n, hash, uint32(len(w.text)), uint32(len(word))})
	w.text = append(w.text, word...)
	w.slots[i] = uint32(len(w.words))
	if 2*len(w.words) > len(w.slots) {
		w.rehash(2 * len(w.slots))
	}
}

func (w *wordCounts) rehash(size int) {
	w.slots = make([]uint32, size)
	mask := uint64(size - 1)
	for k := range w.words {
		i := w.words[k].hash & mask
		for w.slots[i] != 0 {
			i = (i + 1) & mask
		}
		w.slots[i] = uint32(k + 1)
	}
}

// reset forgets all words and keeps the memory.
func (w *wordCounts) reset() {
	clear(w.slots)
	w.words, w.text = w.words[:0], w.text[:0]
}

// keep drops all but the n most frequent words; of equally frequent ones the lesser bytes stay.
func (w *wordCounts) keep(n int) {
	slices.SortFunc(w.words, func(a, b countedWord) int {
		return cmp.Or(cmp.Compare(b.count, a.count), bytes.Compare(w.bytes(&a), w.bytes(&b)))
	})
	kept := newWordCounts(w.seed)
	for i := range w.words[:n] {
		c := &w.words[i]
		kept.add(w.bytes(c), c.hash, c.count)
	}
	*w = *kept
}

// counter counts the pre-tokens of a stream of texts on several processors. The result does not depend on how many.
type counter struct {
	next    splitter
	limit   int // distinct words
	all     *wordCounts
	parts   []*wordCounts // of each worker
	block   []byte
	ends    []int // of the pieces in block
	dropped int64 // words forgotten, each time that they were
	total   int64 // bytes
}

// countWords counts the pre-tokens of texts. The stream is cut into blocks of 16 MiB; whenever more than limit distinct words are
// known after a block, the rarest are forgotten until half the limit is left.
func countWords(ctx context.Context, texts iter.Seq2[[]byte, error], next splitter, limit, workers int) (*counter, error) {
	if workers <= 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	c := &counter{next: next, limit: limit, all: newWordCounts(maphash.MakeSeed()), block: make([]byte, 0, 1<<20)}
	for range workers {
		c.parts = append(c.parts, newWordCounts(c.all.seed))
	}
	for text, err := range texts {
		if err != nil {
			return nil, fmt.Errorf("tokenizer: read the texts to train on: %w", err)
		}
		c.total += int64(len(text))
		for len(text) > 0 {
			n := c.piece(text)
			c.block = append(c.block, text[:n]...)
			c.ends = append(c.ends, len(c.block))
			if text = text[n:]; len(c.block) >= blockBytes {
				if err := c.flush(ctx); err != nil {
					return nil, err
				}
			}
		}
	}
	return c, c.flush(ctx)
}

// piece returns how much of a text is counted at once: it ends where cutting changes no pre-token, if it can.
func (c *counter) piece(text []byte) int {
	if len(text) <= pieceBytes {
		return len(text)
	}
	if n := TrainedCut(text[:pieceBytes]); n > 0 {
		return n
	}
	return wholeRunes(text[:pieceBytes])
}

// flush counts the block on all workers and joins what they found.
func (c *counter) flush(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	var taken atomic.Int64
	var work sync.WaitGroup
	for _, part := range c.parts {
		work.Go(func() {
			for table := classes(); ; {
				i := int(taken.Add(1)) - 1
				if i >= len(c.ends) {
					return
				}
				start := 0
				if i > 0 {
					start = c.ends[i-1]
				}
				part.count(table, c.next, c.block[start:c.ends[i]])
			}
		})
	}
	work.Wait()
	for _, part := range c.parts {
		for i := range part.words {
			w := &part.words[i]
			c.all.add(part.bytes(w), w.hash, w.count)
		}
		part.reset()
	}
	c.block, c.ends = c.block[:0], c.ends[:0]
	if n := len(c.all.words); n > c.limit {
		c.all.keep(c.limit / 2)
		c.dropped += int64(n - c.limit/2)
	}
	return nil
}

// count counts the pre-tokens of a text.
func (w *wordCounts) count(t *classTable, next splitter, text []byte) {
	for len(text) > 0 {
		n := next(t, text)
		for word := text[:n]; len(word) > 0; {
			k := len(word)
			if k > longestWord {
				k = wholeRunes(word[:longestWord])
			}
			w.add(word[:k], maphash.Bytes(w.seed, word[:k]), 1)
			word = word[k:]
		}
		text = text[n:]
	}
}

// wholeRunes returns the length of a text without a character that its end cuts in two.
func wholeRunes(text []byte) int {
	for back := 1; back < utf8.UTFMax && back < len(text); back++ {
		if tail := text[len(text)-back:]; utf8.RuneStart(tail[0]) {
			if !utf8.FullRune(tail) {
				return len(text) - back
			}
			break
		}
	}
	return len(text)
}
