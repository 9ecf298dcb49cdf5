package tokenizer

import (
	_ "embed"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"
)

// classesText lists the character classes that splitters ask for, as of Unicode 16.0: the version of the Python package
// tokenizers 0.23.3. It is kept here, and not taken from Go's library, because equal names must mean equal IDs whatever
// toolchain built the program. The interop test compares every code point.
//
// A line is a range of code points in hex and a letter: u Lu, l Ll, t Lt, m Lm, o Lo, k M, d Nd, n other numbers, s white
// space, w what else belongs to words (\w of Unicode regular expressions).
//
//go:embed classes.txt
var classesText string

// class says what a character is; the bits may be tested together.
type class uint8

const (
	upper   class = 1 << iota // Lu, Lt
	lower                     // Ll
	uncased                   // Lm, Lo
	mark                      // M
	number                    // N
	space                     // White_Space
	newline                   // CR, LF
	word                      // \w

	letter   = upper | lower | uncased
	nonOther = letter | number | space // what [^\s\p{L}\p{N}] leaves out
)

// classTable maps code points to classes: a page of 256 for each of the first two bytes of the number.
type classTable struct {
	ascii  [utf8.RuneSelf]class
	page   [(utf8.MaxRune + 1) >> 8]uint16
	blocks [][256]class
}

// classes is built once, in about a millisecond.
var classes = sync.OnceValue(func() *classTable { return newClassTable(classesText) })

func newClassTable(text string) *classTable {
	t := &classTable{blocks: make([][256]class, 1)}
	kinds := map[string]class{
		"u": upper | word, "t": upper | word, "l": lower | word, "m": uncased | word, "o": uncased | word, "k": mark | word,
		"d": number | word, "n": number, "s": space, "w": word,
	}
	eachRange(text, func(from, to rune, kind string) {
		for r := from; r <= to; r++ {
			if t.page[r>>8] == 0 {
				t.page[r>>8] = uint16(len(t.blocks))
				t.blocks = append(t.blocks, [256]class{})
			}
			t.blocks[t.page[r>>8]][r&0xff] = kinds[kind]
		}
	})
	block := &t.blocks[t.page[0]]
	block['\r'] |= newline
	block['\n'] |= newline
	copy(t.ascii[:], block[:])
	return t
}

// eachRange calls f for each line of a list of ranges.
func eachRange(text string, f func(from, to rune, kind string)) {
	for line := range strings.Lines(text) {
		span, kind, _ := strings.Cut(strings.TrimSpace(line), " ")
		low, high, wide := strings.Cut(span, "-")
		if !wide {
			high = low
		}
		from, err := strconv.ParseUint(low, 16, 21)
		to, err2 := strconv.ParseUint(high, 16, 21)
		if err == nil && err2 == nil && to <= utf8.MaxRune {
			f(rune(from), rune(to), kind)
		}
	}
}

// of returns the class of a code point.
func (t *classTable) of(r rune) class { return t.blocks[t.page[r>>8]][r&0xff] }

// at returns the class and the size in bytes of the first character of a text. A byte that is no UTF-8 is a character of
// no class; at the end of the text both are 0.
func (t *classTable) at(text []byte) (class, int) {
	if len(text) == 0 {
		return 0, 0
	}
	if b := text[0]; b < utf8.RuneSelf {
		return t.ascii[b], 1
	}
	r, size := utf8.DecodeRune(text)
	if r == utf8.RuneError && size == 1 {
		return 0, 1
	}
	return t.of(r), size
}

// before returns the class of the last character of a text, 0 for none.
func (t *classTable) before(text []byte) (class, int) {
	r, size := utf8.DecodeLastRune(text)
	if r == utf8.RuneError && size <= 1 {
		return 0, size
	}
	return t.of(r), size
}

// run returns where the run of characters from i on that have one of the classes ends.
func (t *classTable) run(text []byte, i int, want class) int {
	for i < len(text) {
		if b := text[i]; b < utf8.RuneSelf {
			if t.ascii[b]&want == 0 {
				return i
			}
			i++
			continue
		}
		c, size := t.at(text[i:])
		if c&want == 0 {
			return i
		}
		i += size
	}
	return i
}

// without returns where the run of characters from i on that have none of the classes ends.
func (t *classTable) without(text []byte, i int, avoid class) int {
	for i < len(text) {
		c, size := t.at(text[i:])
		if c&avoid != 0 {
			return i
		}
		i += size
	}
	return i
}
