package tokenizer

import (
	"context"
	"fmt"
	"iter"
	"slices"
)

// TrainOptions says what tokenizer to make.
type TrainOptions struct {
	Vocab        int      // IDs: 256 bytes, the special tokens, merges; a corpus that runs out of pairs gives fewer
	MinFrequency int64    // a pair that is rarer is not merged; 0 means 2
	Special      []string // special tokens, the end of a text first; none means <|endoftext|>
	Words        int      // distinct pre-tokens to keep; 0 means [MaxWords]
	Workers      int      // 0 means one for each processor; the result does not depend on it
}

// TrainReport says what training saw.
type TrainReport struct {
	Bytes   int64 // of text
	Words   int   // distinct pre-tokens at the end
	Dropped int64 // distinct pre-tokens that were forgotten because there were too many
	Merges  int
}

// Train makes a byte-level BPE of texts, cut into pre-tokens as Llama 3 does. A text may come in pieces cut where [Cut] says.
//
// The rule is that of Sennrich et al. (2016, arXiv:1508.07909) over the distinct pre-tokens and their counts: merge the most
// frequent pair of neighbours, of equally frequent ones the pair with the lowest IDs, left before right, until the vocabulary
// is full. IDs are 256 bytes in the order of their symbols, the special tokens, then merges. Equal texts in equal pieces
// give the same tokenizer on every machine, whatever its number of processors.
//
// Memory is bounded by [TrainOptions].Words: whenever more distinct pre-tokens are known after 16 MiB of text, the rarest are
// forgotten until half are left, the greater bytes first among equally rare ones. Pre-tokens longer than 256 bytes count as
// their pieces.
func Train(ctx context.Context, texts iter.Seq2[[]byte, error], o TrainOptions) (*BPE, TrainReport, error) {
	var report TrainReport
	o, err := o.checked()
	if err != nil {
		return nil, report, err
	}
	c, err := countWords(ctx, texts, llama3Split().next, o.Words, o.Workers)
	if err != nil {
		return nil, report, err
	}
	report = TrainReport{Bytes: c.total, Words: len(c.all.words), Dropped: c.dropped}
	s := newSpec(o.Special)
	t := newTrainer(c.all, int32(len(s.vocab)), o.MinFrequency)
	c.all = nil
	if err := t.grow(ctx, s, o.Vocab); err != nil {
		return nil, report, err
	}
	report.Merges = len(s.merges)
	b, err := s.build(256, s.configFor(s.added[0]))
	return b, report, err
}

func (o TrainOptions) checked() (TrainOptions, error) {
	if len(o.Special) == 0 {
		o.Special = []string{EndOfTextSymbol}
	}
	if o.MinFrequency == 0 {
		o.MinFrequency = 2
	}
	if o.Words == 0 {
		o.Words = MaxWords
	}
	least := 256 + len(o.Special)
	if o.Vocab < least || o.Vocab > maxVocab || o.MinFrequency < 1 || o.Words < 2 || o.Words > 1<<24 {
		return o, fmt.Errorf("tokenizer: vocabulary of %d, minimum frequency %d, %d words kept; allowed: %d to %d, from 1, 2 to %d: %w",
			o.Vocab, o.MinFrequency, o.Words, least, maxVocab, 1<<24, ErrInvalid)
	}
	for i, token := range o.Special {
		if token == "" || len(token) > maxToken || len([]rune(token)) == 1 || slices.Contains(o.Special[:i], token) {
			return o, fmt.Errorf("tokenizer: special token %.40q is too short, longer than %d bytes or there twice: %w", token, maxToken, ErrInvalid)
		}
	}
	return o, nil
}

func llama3Split() knownSplit { return knownSplits()[1] }

// newSpec returns a tokenizer without merges.
func newSpec(special []string) *spec {
	s := &spec{merges: []string{}, steps: []step{splitStep(llama3Split()), byteLevelStep(false, true, false)}}
	for _, r := range bytesInOrder() {
		s.vocab = append(s.vocab, string(byteSymbols()[r]))
	}
	for _, token := range special {
		s.added = append(s.added, addedJSON{ID: int32(len(s.vocab)), Content: token, Special: true})
		s.vocab = append(s.vocab, token)
	}
	return s
}

// bytesInOrder returns the bytes in the order of their symbols' code points, which is that of their IDs, as in GPT-2.
func bytesInOrder() []byte {
	all, symbols := make([]byte, 256), byteSymbols()
	for i := range all {
		all[i] = byte(i)
	}
	slices.SortFunc(all, func(a, b byte) int { return int(symbols[a]) - int(symbols[b]) })
	return all
}

// trainer holds every distinct pre-token as a run of symbols, and which pairs of neighbours occur how often and where.
type trainer struct {
	symbols []int32 // of all words; merging makes words shorter in place
	words   []trainWord
	pairs   []trainPair
	index   pairTable // pair → its place in pairs
	queue   pairQueue
	least   int64
	nextID  int32
}

type trainWord struct {
	count      int64
	start, end uint32 // in symbols
}

type trainPair struct {
	count int64
	pair  uint64
	words []uint32 // in which it was seen; it may be gone from some
}

func newTrainer(c *wordCounts, nextID int32, least int64) *trainer {
	t := &trainer{least: least, nextID: nextID, symbols: make([]int32, 0, len(c.text)), words: make([]trainWord, 0, len(c.words))}
	var ids [256]int32
	for id, b := range bytesInOrder() {
		ids[b] = int32(id)
	}
	for i := range c.words {
		w := &c.words[i]
		start := uint32(len(t.symbols))
		for _, b := range c.bytes(w) {
			t.symbols = append(t.symbols, ids[b])
		}
		t.words = append(t.words, trainWord{w.count, start, uint32(len(t.symbols))})
	}
	for i := range t.words {
		w := &t.words[i]
		s := t.symbols[w.start:w.end]
		for k := 1; k < len(s); k++ {
			t.add(s[k-1], s[k], w.count, uint32(i))
		}
	}
	t.offer(0)
	return t
}

// add counts a pair in a word.
func (t *trainer) add(a, b int32, n int64, word uint32) {
	where, isNew := t.index.at(pairOf(a, b), uint64(len(t.pairs)))
	if isNew {
		t.pairs = append(t.pairs, trainPair{pair: pairOf(a, b)})
	}
	p := &t.pairs[*where]
	p.count += n
	if k := len(p.words); k == 0 || p.words[k-1] != word {
		p.words = append(p.words, word)
	}
}

// remove takes a pair back that a merge has broken.
func (t *trainer) remove(a, b int32, n int64) {
	if at, ok := t.index.get(pairOf(a, b)); ok {
		t.pairs[at].count -= n
	}
}

// offer queues the pairs from a place on: those that are new.
func (t *trainer) offer(from int) {
	for i := from; i < len(t.pairs); i++ {
		if p := &t.pairs[i]; p.count >= t.least {
			t.queue.push(queuedPair{p.count, p.pair, uint32(i)})
		}
	}
}

// grow merges until the vocabulary has so many tokens.
func (t *trainer) grow(ctx context.Context, s *spec, vocab int) error {
	for len(s.vocab) < vocab && len(t.queue) > 0 {
		top := t.queue.pop()
		p := &t.pairs[top.at]
		if p.count != top.count { // counts of known pairs only fall
			if p.count >= t.least {
				t.queue.push(queuedPair{p.count, p.pair, top.at})
			}
			continue
		}
		if len(s.merges)%256 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		left, right := s.vocab[p.pair>>32], s.vocab[uint32(p.pair)]
		s.merges = append(s.merges, left+" "+right)
		s.vocab = append(s.vocab, left+right)
		t.merge(top.at)
	}
	return nil
}

// merge replaces a pair by a new symbol everywhere and counts the pairs that this makes and breaks.
func (t *trainer) merge(at uint32) {
	words, first := t.pairs[at].words, len(t.pairs)
	a, b, product := int32(t.pairs[at].pair>>32), int32(uint32(t.pairs[at].pair)), t.nextID
	t.nextID++
	for _, word := range words {
		w := &t.words[word]
		s := t.symbols[w.start:w.end]
		kept := 0
		for i := 0; i < len(s); i++ {
			if s[i] != a || i+1 == len(s) || s[i+1] != b {
				s[kept] = s[i]
				kept++
				continue
			}
			if kept > 0 {
				t.remove(s[kept-1], a, w.count)
				t.add(s[kept-1], product, w.count, word)
			}
			if i+2 < len(s) {
				t.remove(b, s[i+2], w.count)
				t.add(product, s[i+2], w.count, word)
			}
			s[kept] = product
			kept++
			i++
		}
		w.end = w.start + uint32(kept)
	}
	t.pairs[at].words, t.pairs[at].count = nil, 0
	t.offer(first)
}

// queuedPair is a pair with the count that it had when it was queued.
type queuedPair struct {
	count int64
	pair  uint64
	at    uint32
}

// before is the order of merging.
func (q queuedPair) before(o queuedPair) bool {
	return q.count > o.count || q.count == o.count && q.pair < o.pair
}

// pairQueue is a binary heap.
type pairQueue []queuedPair

func (q *pairQueue) push(p queuedPair) {
	h := append(*q, p)
	for i := len(h) - 1; i > 0; {
		parent := (i - 1) / 2
		if !h[i].before(h[parent]) {
			break
		}
		h[i], h[parent] = h[parent], h[i]
		i = parent
	}
	*q = h
}

func (q *pairQueue) pop() queuedPair {
	h := *q
	top, last := h[0], len(h)-1
	h[0] = h[last]
	h = h[:last]
	for i := 0; ; {
		child := 2*i + 1
		if child >= last {
			break
		}
		if child+1 < last && h[child+1].before(h[child]) {
			child++
		}
		if !h[child].before(h[i]) {
			break
		}
		h[i], h[child] = h[child], h[i]
		i = child
	}
	*q = h
	return top
}
