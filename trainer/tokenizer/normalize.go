package tokenizer

import (
	_ "embed"
	"slices"
	"sync"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// actorsText lists the code points above ASCII that take part in normalisation as the Python package tokenizers 0.23.3 knows
// it (Unicode 13): those that decompose, compose, or have a combining class. Every other one is a border that normalisation
// does not cross, so that a newer Unicode version in the Go library changes nothing.
//
//go:embed actors.txt
var actorsText string

// actors is built once.
var actors = sync.OnceValue(func() *classTable {
	t := &classTable{blocks: make([][256]class, 1)}
	eachRange(actorsText, func(from, to rune, _ string) {
		for r := from; r <= to; r++ {
			if t.page[r>>8] == 0 {
				t.page[r>>8] = uint16(len(t.blocks))
				t.blocks = append(t.blocks, [256]class{})
			}
			t.blocks[t.page[r>>8]][r&0xff] = 1
		}
	})
	return t
})

// normalizer is a list of Unicode normalisation forms, applied in turn.
type normalizer []norm.Form

// apply returns the normalised text, which may be text itself.
func (n normalizer) apply(text []byte) []byte {
	for _, form := range n {
		if isASCII(text) {
			return text
		}
		text = normalForm(form, text)
	}
	return text
}

func isASCII(text []byte) bool {
	for _, b := range text {
		if b >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// part is a character on its way to being normalised.
type part struct {
	r     rune
	class uint8 // canonical combining class
}

// normalForm returns a text in a form. It is written out, over the library's tables of single characters, because the
// library's own function puts U+034F into long runs of combining characters and composes some pairs above U+FFFF that do
// not compose.
func normalForm(form norm.Form, text []byte) []byte {
	table := actors()
	compose := form == norm.NFC || form == norm.NFKC
	out := make([]byte, 0, len(text)+len(text)/8)
	var parts []part
	flush := func() {
		order(parts)
		if compose {
			parts = composed(parts)
		}
		for _, p := range parts {
			out = utf8.AppendRune(out, p.r)
		}
		parts = parts[:0]
	}
	for len(text) > 0 {
		r, size := utf8.DecodeRune(text)
		if r == utf8.RuneError && size == 1 || r >= utf8.RuneSelf && table.of(r) == 0 {
			flush()
			out = append(out, text[:size]...)
			text = text[size:]
			continue
		}
		if r < utf8.RuneSelf { // starts anew, but may compose with what follows
			flush()
			parts = append(parts, part{r: r})
		} else {
			parts = decomposed(parts, form, text[:size], r)
		}
		text = text[size:]
	}
	flush()
	return out
}

const (
	hangulBase, hangulEnd = 0xac00, 0xd7a4
	leadBase, vowelBase   = 0x1100, 0x1161
	trailBase             = 0x11a7
	leads, vowels, trails = 19, 21, 28
	syllablesOfLead       = vowels * trails
)

// decomposed appends the full decomposition of a character.
func decomposed(parts []part, form norm.Form, encoded []byte, r rune) []part {
	if r >= hangulBase && r < hangulEnd {
		s := r - hangulBase
		parts = append(parts, part{r: leadBase + s/syllablesOfLead}, part{r: vowelBase + s%syllablesOfLead/trails})
		if t := s % trails; t > 0 {
			parts = append(parts, part{r: trailBase + t})
		}
		return parts
	}
	full := norm.NFD
	if form == norm.NFKC || form == norm.NFKD {
		full = norm.NFKD
	}
	p := full.Properties(encoded)
	d := p.Decomposition()
	if d == nil {
		return append(parts, part{r, p.CCC()})
	}
	for len(d) > 0 {
		r, size := utf8.DecodeRune(d)
		parts = append(parts, part{r, full.Properties(d[:size]).CCC()})
		d = d[size:]
	}
	return parts
}

// order sorts each run of combining characters by class and keeps the order of equals.
func order(parts []part) {
	for len(parts) > 0 {
		n := slices.IndexFunc(parts, func(p part) bool { return p.class == 0 })
		if n < 0 {
			n = len(parts)
		}
		slices.SortStableFunc(parts[:n], func(a, b part) int { return int(a.class) - int(b.class) })
		parts = parts[min(n+1, len(parts)):]
	}
}

// composed is the canonical composition algorithm (Unicode 3.11, D117).
func composed(parts []part) []part {
	kept := parts[:0]
	starter, last := -1, uint8(0) // last starter in kept; class of the last that stayed behind it
	for _, p := range parts {
		if starter >= 0 && (len(kept)-1 == starter || last < p.class) {
			if r, ok := pairOfRunes(kept[starter].r, p.r); ok {
				kept[starter].r = r
				continue
			}
		}
		if p.class == 0 {
			starter = len(kept)
		}
		last = p.class
		kept = append(kept, p)
	}
	return kept
}

// pairOfRunes returns what two characters compose to.
func pairOfRunes(a, b rune) (rune, bool) {
	if a >= leadBase && a < leadBase+leads && b >= vowelBase && b < vowelBase+vowels {
		return hangulBase + ((a-leadBase)*vowels+b-vowelBase)*trails, true
	}
	if a >= hangulBase && a < hangulEnd && (a-hangulBase)%trails == 0 && b > trailBase && b < trailBase+trails {
		return a + b - trailBase, true
	}
	if b < utf8.RuneSelf {
		return 0, false
	}
	var pair, whole [4 * utf8.UTFMax]byte
	two := utf8.AppendRune(utf8.AppendRune(pair[:0], a), b)
	one := norm.NFC.Append(whole[:0], two...)
	r, size := utf8.DecodeRune(one)
	if size != len(one) || (r > 0xffff) != (a > 0xffff) || r >= utf8.RuneSelf && actors().of(r) == 0 {
		return 0, false
	}
	return r, true
}
