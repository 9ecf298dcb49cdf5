// Package quality owns what can be said of a text without a model: its characters, words, lines and repetitions, which
// language it looks like, what in it looks like personal data, whether it was seen before, and which rules of published
// corpora it breaks. Measures are sums, so a long document is measured piece by piece. The package refuses to read files and
// to decide what a job filters; it knows texts as bytes.
package quality

import (
	"bytes"
	"math/bits"
	"unicode"
	"unicode/utf8"
)

// Measure counts one text. The zero value is an empty text; measures of consecutive pieces add up.
type Measure struct {
	Bytes, Chars                                           int64
	Letters, Digits, Spaces, Punctuation, Symbols, Control int64 // characters; Invalid bytes count as Control
	Upper, NonASCII                                        int64

	Words        int64 // runs of letters and digits; each character of a script without spaces is a word
	WordChars    int64 // characters of words
	AlphaWords   int64 // words with a letter
	Hashes       int64 // '#' characters and ellipses, the symbols of Gopher's rule
	EnglishStops int64 // occurrences of the eight words of Gopher's rule
	StopKinds    uint8 // which of the eight occur

	Lines, BulletLines, EllipsisLines, EndedLines int64 // not blank; that begin with a bullet, end with an ellipsis, end a sentence
	RepeatedLines, RepeatedLineBytes              int64 // lines that occurred before in the same piece
	Repeated5, RepeatedWords                      int64 // bytes of words in 5-grams that occurred before in the same piece; bytes of words
	Top2, Top3, Top4                              int64 // bytes of the most frequent 2-, 3- and 4-gram, all occurrences together
	Sentences                                     int64
	Curly, LoremIpsum                             int64

	Scripts  [scriptCount]int64 // letters
	Stops    [languageCount]int64
	Personal [personalKinds]int64
}

// Add adds the measure of the next piece.
func (m *Measure) Add(o *Measure) {
	kinds := m.StopKinds | o.StopKinds
	to, from := m.numbers(), o.numbers()
	for i := range to {
		*to[i] += *from[i]
	}
	for i := range m.Scripts {
		m.Scripts[i] += o.Scripts[i]
	}
	for i := range m.Stops {
		m.Stops[i] += o.Stops[i]
	}
	for i := range m.Personal {
		m.Personal[i] += o.Personal[i]
	}
	m.StopKinds = kinds
}

func (m *Measure) numbers() []*int64 {
	return []*int64{
		&m.Bytes, &m.Chars, &m.Letters, &m.Digits, &m.Spaces, &m.Punctuation, &m.Symbols, &m.Control, &m.Upper, &m.NonASCII,
		&m.Words, &m.WordChars, &m.AlphaWords, &m.Hashes, &m.EnglishStops, &m.Lines, &m.BulletLines, &m.EllipsisLines, &m.EndedLines,
		&m.RepeatedLines, &m.RepeatedLineBytes, &m.Repeated5, &m.RepeatedWords, &m.Top2, &m.Top3, &m.Top4, &m.Sentences, &m.Curly, &m.LoremIpsum,
	}
}

// word is a word of the piece under measure.
type word struct {
	hash  uint64 // of its lower-case form
	bytes int32
}

// Analyzer measures texts one after the other. It keeps its working memory, so it serves one goroutine.
type Analyzer struct {
	words   []word
	grams   []uint64   // hashes of the runs of five words
	lines   counter    // of the lines that are not blank
	repeats [4]counter // of runs of two to five words
}

// Measure adds a text of at most some hundred KiB to m. The words that it found stay for [Analyzer.Signature] and
// [Analyzer.Grams] until the next call.
func (a *Analyzer) Measure(m *Measure, text []byte) {
	a.words = a.words[:0]
	m.Bytes += int64(len(text))
	a.characters(m, text)
	a.lineRules(m, text)
	a.repetition(m)
	if at := bytes.Index(text, []byte("orem ipsum")); at > 0 && text[at-1]|0x20 == 'l' {
		m.LoremIpsum++
	}
	FindPersonal(text, func(kind Personal, _ []byte) { m.Personal[kind]++ })
}

// Classes of ASCII bytes.
const (
	classControl = iota
	classSpace
	classLower
	classUpper
	classDigit
	classPunctuation
	classSymbol
)

var classes = func() (t [utf8.RuneSelf]uint8) {
	for c := range t {
		switch r := rune(c); {
		case r == '\n' || r == '\t' || r == ' ' || r == '\r' || r == '\f' || r == '\v':
			t[c] = classSpace
		case r >= 'a' && r <= 'z':
			t[c] = classLower
		case r >= 'A' && r <= 'Z':
			t[c] = classUpper
		case r >= '0' && r <= '9':
			t[c] = classDigit
		case unicode.IsPunct(r):
			t[c] = classPunctuation
		case unicode.IsSymbol(r):
			t[c] = classSymbol
		}
	}
	return t
}()

const (
	hashSeed  = 0x9e3779b97f4a7c15
	hashPrime = 0xff51afd7ed558ccd
)

// step adds a character to a running hash.
func step(h uint64, r rune) uint64 { return (bits.RotateLeft64(h, 5) ^ uint64(r)) * hashPrime }

// mix spreads a hash over all its bits (the finaliser of MurmurHash3).
func mix(h uint64) uint64 {
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}

// inWord is the word that the walk over a text is within.
type inWord struct {
	hash  uint64
	chars int64
	from  int
	alpha bool
}

// characters walks over a text once and finds its words.
func (a *Analyzer) characters(m *Measure, text []byte) {
	var w inWord
	var ascii [classSymbol + 1]int64
	chars := int64(0)
	for i := 0; i < len(text); {
		c := text[i]
		chars++
		if c >= utf8.RuneSelf {
			i = a.wide(m, text, i, &w)
			continue
		}
		class := classes[c]
		ascii[class]++
		switch class {
		case classUpper, classLower:
			w.add(rune(c|0x20), i, true)
		case classDigit:
			w.add(rune(c), i, false)
		default:
			if w.chars > 0 {
				a.end(m, &w, i)
			}
			if class == classPunctuation {
				punctuation(m, text, i)
			}
		}
		i++
	}
	a.end(m, &w, len(text))
	m.Chars += chars
	m.Letters += ascii[classLower] + ascii[classUpper]
	m.Scripts[Latin] += ascii[classLower] + ascii[classUpper]
	m.Upper += ascii[classUpper]
	m.Digits += ascii[classDigit]
	m.Spaces += ascii[classSpace]
	m.Punctuation += ascii[classPunctuation]
	m.Symbols += ascii[classSymbol]
	m.Control += ascii[classControl]
}

func (w *inWord) add(r rune, at int, letter bool) {
	if w.chars == 0 {
		w.hash, w.from = hashSeed, at
	}
	w.hash = step(w.hash, r)
	w.chars++
	w.alpha = w.alpha || letter
}

// end closes a word before byte at.
func (a *Analyzer) end(m *Measure, w *inWord, at int) {
	if w.chars == 0 {
		return
	}
	h := mix(w.hash)
	a.words = append(a.words, word{h, int32(at - w.from)})
	m.Words++
	m.WordChars += w.chars
	if w.alpha {
		m.AlphaWords++
	}
	if stop := stopWords.find(h); stop != nil {
		for set := stop.languages; set != 0; set &= set - 1 {
			m.Stops[bits.TrailingZeros32(set)]++
		}
		if stop.gopher != 0 {
			m.EnglishStops++
			m.StopKinds |= stop.gopher
		}
	}
	*w = inWord{}
}

// wide counts a character beyond ASCII and returns where the next one begins.
func (a *Analyzer) wide(m *Measure, text []byte, i int, w *inWord) int {
	r, size := utf8.DecodeRune(text[i:])
	m.NonASCII++
	next := i + size
	switch {
	case r == utf8.RuneError && size == 1:
		m.Control++
	case unicode.IsLetter(r) || unicode.IsMark(r):
		m.Letters++
		script := scriptOf(r)
		m.Scripts[script]++
		if script.spaceless() {
			a.end(m, w, i)
			w.add(r, i, true)
			a.end(m, w, next)
			return next
		}
		lower := unicode.ToLower(r)
		if lower != r {
			m.Upper++
		}
		w.add(lower, i, true)
		return next
	case unicode.IsDigit(r):
		m.Digits++
		w.add(r, i, false)
		return next
	case unicode.IsSpace(r):
		m.Spaces++
	case r == '…':
		m.Punctuation++
		m.Hashes++
	case r == '。' || r == '！' || r == '？' || r == '।':
		m.Punctuation++
		m.Sentences++
	case unicode.IsPunct(r):
		m.Punctuation++
	default:
		m.Symbols++
	}
	a.end(m, w, i)
	return next
}

// punctuation counts what single marks mean.
func punctuation(m *Measure, text []byte, i int) {
	switch text[i] {
	case '#':
		m.Hashes++
	case '{', '}':
		m.Curly++
	case '.', '!', '?':
		next := byte('\n')
		if i+1 < len(text) {
			next = text[i+1]
		}
		switch {
		case next == ' ' || next == '\n' || next == '"' || next == '\'' || next == ')':
			m.Sentences++
		case text[i] == '.' && next == '.' && i+2 < len(text) && text[i+2] == '.':
			m.Hashes++
		}
	}
}

// lineRules judges the lines that are not blank.
func (a *Analyzer) lineRules(m *Measure, text []byte) {
	a.lines.reset(bytes.Count(text, []byte{'\n'}) + 1)
	for line := range bytes.Lines(text) {
		line = bytes.TrimSpace(line)
		if len(line) == 0 {
			continue
		}
		m.Lines++
		if a.lines.add(hashBytes(line)) > 1 {
			m.RepeatedLines++
			m.RepeatedLineBytes += int64(len(line))
		}
		switch {
		case bytes.HasPrefix(line, []byte("- ")), bytes.HasPrefix(line, []byte("* ")), bytes.HasPrefix(line, []byte("•")), bytes.HasPrefix(line, []byte("‣")):
			m.BulletLines++
		}
		switch last := line[len(line)-1]; {
		case bytes.HasSuffix(line, []byte("...")), bytes.HasSuffix(line, []byte("…")):
			m.EllipsisLines++
		case last == '.' || last == '!' || last == '?' || last == '"' || last == '\'' || bytes.HasSuffix(line, []byte("。")) || bytes.HasSuffix(line, []byte("”")):
			m.EndedLines++
		}
	}
}

// hashBytes hashes a text eight bytes at a time.
func hashBytes(b []byte) uint64 {
	h := uint64(len(b)) * hashSeed
	for ; len(b) >= 8; b = b[8:] {
		v := uint64(b[0]) | uint64(b[1])<<8 | uint64(b[2])<<16 | uint64(b[3])<<24 | uint64(b[4])<<32 | uint64(b[5])<<40 | uint64(b[6])<<48 | uint64(b[7])<<56
		h = (bits.RotateLeft64(h, 29) ^ v) * hashPrime
	}
	for _, c := range b {
		h = (bits.RotateLeft64(h, 29) ^ uint64(c)) * hashPrime
	}
	return mix(h)
}

// gram joins the hashes of consecutive words.
func gram(words []word) uint64 {
	h := uint64(hashSeed)
	for _, w := range words {
		h = (bits.RotateLeft64(h, 23) ^ w.hash) * hashPrime
	}
	return mix(h)
}

// repetition measures how much of a piece are word n-grams that occur more than once, as in the repetition rules of Gopher
// (Rae et al. 2021, table A1): of 2-, 3- and 4-grams the most frequent one where any repeats, of 5-grams every word that a repeated
// one covers.
func (a *Analyzer) repetition(m *Measure) {
	for k := range a.repeats {
		a.repeats[k].reset(len(a.words))
	}
	a.grams = a.grams[:0]
	var most [3]uint32
	var size [3]int64
	covered := 0 // words before this one are counted
	for i := range a.words {
		m.RepeatedWords += int64(a.words[i].bytes)
		h, bytes := uint64(hashSeed), int64(0)
		for k, w := range a.words[i:min(i+shingle, len(a.words))] {
			h = (bits.RotateLeft64(h, 23) ^ w.hash) * hashPrime // a run of words is hashed as a prefix of the longer ones
			bytes += int64(w.bytes)
			switch {
			case k == 0:
			case k < 4:
				if times := a.repeats[k-1].add(h); times > max(most[k-1], 1) {
					most[k-1], size[k-1] = times, bytes
				}
			default:
				a.grams = append(a.grams, mix(h))
				if a.repeats[3].add(h) == 1 {
					continue
				}
				for c := max(i, covered); c < i+shingle; c++ {
					m.Repeated5 += int64(a.words[c].bytes)
				}
				covered = i + shingle
			}
		}
	}
	m.Top2 += int64(most[0]) * size[0]
	m.Top3 += int64(most[1]) * size[1]
	m.Top4 += int64(most[2]) * size[2]
}

// counter counts hashes of one piece: open addressing with stamps, so that clearing costs nothing.
type counter struct {
	slots []slot
	stamp uint32
	shift int
	mask  uint64
}

type slot struct {
	hash  uint64
	stamp uint32
	count uint32
}

// reset forgets everything and makes room for n different hashes.
func (c *counter) reset(n int) {
	size := 1 << bits.Len(uint(max(2*n, 64)))
	if c.stamp++; size > len(c.slots) || c.stamp == 0 {
		c.slots, c.stamp = make([]slot, max(size, len(c.slots))), 1
	}
	c.mask, c.shift = uint64(size-1), 64-bits.Len(uint(size-1)) // a short text stays within the cache
}

// add counts a hash and returns how often it was there.
func (c *counter) add(h uint64) uint32 {
	for i := h >> c.shift; ; i = (i + 1) & c.mask {
		s := &c.slots[i]
		if s.stamp != c.stamp {
			*s = slot{h, c.stamp, 1}
			return 1
		}
		if s.hash == h {
			s.count++
			return s.count
		}
	}
}
