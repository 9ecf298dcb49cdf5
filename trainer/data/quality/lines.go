package quality

import (
	"bytes"
	"cmp"
	"slices"
	"strings"
)

const (
	sketchRows  = 4
	sketchWidth = 1 << 19
	// CommonLine is the number of documents from which on a line is boilerplate.
	CommonLine   = 6
	leastLine    = 12  // bytes; shorter lines, such as a brace, repeat in any text
	headBytes    = 80  // of a line that reports show
	maxLineHeads = 512 // most frequent lines that are remembered with their text
)

// Lines counts in how many documents lines occur, by a count-min sketch (Cormode and Muthukrishnan 2005): 8 MiB whatever the corpus. It
// may overcount a line by collisions, never undercount.
type Lines struct {
	sketch [sketchRows][sketchWidth]uint32
	seen   map[uint64]struct{} // lines of the document under way
	heads  map[uint64]*CommonText
}

// CommonText is a line and in how many documents it was seen.
type CommonText struct {
	Text      string `json:"text"`
	Documents int64  `json:"documents"`
}

// NewLines returns an empty count.
func NewLines() *Lines {
	return &Lines{seen: map[uint64]struct{}{}, heads: map[uint64]*CommonText{}}
}

// LineHash is a line's hash and where its text is.
type LineHash struct {
	Hash        uint64
	From, Bytes int32
}

// LineHashes appends the lines of a text that are long enough to be boilerplate. Call it with the text that Measure saw last.
func (a *Analyzer) LineHashes(dst []LineHash, text []byte) []LineHash {
	at := 0
	for line := range bytes.Lines(text) {
		from, trimmed := at, bytes.TrimSpace(line)
		at += len(line)
		if len(trimmed) >= leastLine {
			from += len(line) - len(bytes.TrimLeft(line, " \t\r\n\v\f"))
			dst = append(dst, LineHash{hashBytes(trimmed), int32(from), int32(len(trimmed))})
		}
	}
	return dst
}

// Document counts the lines of one document, or of 64 KiB of a long one, and returns how many of their bytes are boilerplate: in
// lines that at least [CommonLine]−1 documents before had too. text is what the lines are of, to remember the most frequent
// ones; it may be nil.
func (l *Lines) Document(lines []LineHash, text []byte) (boilerplate int64) {
	clear(l.seen)
	for _, line := range lines {
		if _, again := l.seen[line.Hash]; again {
			continue
		}
		l.seen[line.Hash] = struct{}{}
		n := l.add(line.Hash)
		if n < CommonLine {
			continue
		}
		boilerplate += int64(line.Bytes)
		if head, ok := l.heads[line.Hash]; ok {
			head.Documents = int64(n)
		} else if text != nil && len(l.heads) < maxLineHeads {
			head := text[line.From : line.From+min(line.Bytes, headBytes)]
			l.heads[line.Hash] = &CommonText{strings.ToValidUTF8(string(head), ""), int64(n)}
		}
	}
	return boilerplate
}

// add counts a line and returns the estimate of how many documents had it, with conservative update (Estan and Varghese 2002).
func (l *Lines) add(h uint64) uint32 {
	var at [sketchRows]*uint32
	least := ^uint32(0)
	for r := range at {
		at[r] = &l.sketch[r][mix(h+uint64(r)*hashSeed)%sketchWidth]
		least = min(least, *at[r])
	}
	for _, c := range at {
		*c = max(*c, least+1)
	}
	return least + 1
}

// Common lists the most frequent lines, at most n.
func (l *Lines) Common(n int) []CommonText {
	var all []CommonText
	for _, h := range l.heads {
		all = append(all, *h)
	}
	slices.SortFunc(all, func(a, b CommonText) int {
		return cmp.Or(cmp.Compare(b.Documents, a.Documents), cmp.Compare(a.Text, b.Text))
	})
	return all[:min(n, len(all))]
}
