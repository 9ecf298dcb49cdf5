package tokenizer

import "unicode/utf8"

// A splitter cuts text into pre-tokens, across which nothing is merged. Each one is a hand-written form of a regular
// expression with look-ahead, which Go's package cannot run; the tests hold it to a slow matcher of the expression
// itself, and to the Python package.

// splitter returns the length of the first pre-token of a text that is not empty: at least one byte, at most all.
type splitter func(t *classTable, text []byte) int

// knownSplit is an expression that the program can apply.
type knownSplit struct {
	regex string
	next  splitter
}

// The expressions that the program can apply, as they are spelled in tokenizer.json.
const (
	regexGPT2 = `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`

	contractions = `(?i:'s|'t|'re|'ve|'m|'ll|'d)`
	tail         = `|\s*[\r\n]+|\s+(?!\S)|\s+`
	wordOrOther  = `|[^\r\n\p{L}\p{N}]?\p{L}+|`
	symbols      = `| ?[^\s\p{L}\p{N}]+[\r\n]*`
	upperChars   = `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]`
	lowerChars   = `[\p{Ll}\p{Lm}\p{Lo}\p{M}]`
	prefix       = `[^\r\n\p{L}\p{N}]?`

	regexLlama3 = contractions + wordOrOther + `\p{N}{1,3}` + symbols + tail
	regexQwen2  = contractions + wordOrOther + `\p{N}` + symbols + tail
	regexO200k  = prefix + upperChars + `*` + lowerChars + `+` + contractions + `?|` +
		prefix + upperChars + `+` + lowerChars + `*` + contractions + `?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*` + tail
	regexTekken = prefix + upperChars + `*` + lowerChars + `+|` + prefix + upperChars + `+` + lowerChars + `*` +
		`|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*` + tail
	regexTriples = `\p{N}{1,3}`
	regexNumber  = `\p{N}`
	regexTriple  = `[0-9][0-9][0-9]`
)

// knownSplits lists the expressions in the order in which the documentation names them.
func knownSplits() []knownSplit {
	return []knownSplit{
		{regexGPT2, splitGPT2},
		{regexLlama3, func(t *classTable, text []byte) int { return splitWords(t, text, 3) }},
		{regexQwen2, func(t *classTable, text []byte) int { return splitWords(t, text, 1) }},
		{regexO200k, func(t *classTable, text []byte) int { return splitCased(t, text, 3, true) }},
		{regexTekken, func(t *classTable, text []byte) int { return splitCased(t, text, 1, false) }},
		{regexTriples, func(t *classTable, text []byte) int { return splitNumbers(t, text, 3) }},
		{regexNumber, func(t *classTable, text []byte) int { return splitNumbers(t, text, 1) }},
		{regexTriple, splitTriple},
	}
}

// splitGPT2 is [regexGPT2].
func splitGPT2(t *classTable, text []byte) int {
	if n := contraction(text, false); n > 0 {
		return n
	}
	c, size := t.at(text)
	start := 0
	if text[0] == ' ' {
		if after, n := t.at(text[1:]); n > 0 && after&space == 0 {
			c, size, start = after, n, 1
		}
	}
	switch end := start + size; {
	case c&letter != 0:
		return t.run(text, end, letter)
	case c&number != 0:
		return t.run(text, end, number)
	case c&space == 0:
		return t.without(text, end, nonOther)
	}
	return blanks(t, text, size)
}

// splitWords is [regexLlama3], and [regexQwen2] with one digit.
func splitWords(t *classTable, text []byte, digits int) int {
	if n := contraction(text, true); n > 0 {
		return n
	}
	c, size := t.at(text)
	if c&letter != 0 {
		return t.run(text, size, letter)
	}
	if c&(newline|number) == 0 {
		if after, n := t.at(text[size:]); after&letter != 0 {
			return t.run(text, size+n, letter)
		}
	}
	if c&number != 0 {
		return numbers(t, text, size, digits)
	}
	if n := others(t, text); n > 0 {
		return t.run(text, n, newline)
	}
	return lines(t, text)
}

// splitCased is [regexO200k], and [regexTekken] with one digit and no contractions.
func splitCased(t *classTable, text []byte, digits int, contract bool) int {
	if n := casedWord(t, text); n > 0 {
		if contract {
			n += contraction(text[n:], true)
		}
		return n
	}
	if c, size := t.at(text); c&number != 0 {
		return numbers(t, text, size, digits)
	}
	if n := others(t, text); n > 0 {
		for n < len(text) && (text[n] == '\r' || text[n] == '\n' || text[n] == '/') {
			n++
		}
		return n
	}
	return lines(t, text)
}

// casedWord returns the length of the word at the start of a text, without its contraction, 0 for none: the first two
// alternatives of [regexO200k], each with its optional character in front tried first.
func casedWord(t *classTable, text []byte) int {
	c, size := t.at(text)
	front := c&(newline|letter|number) == 0 // may be the character in front
	if front {
		if n := endsLower(t, text, size); n > 0 {
			return n
		}
	}
	if c&(letter|mark) != 0 {
		if n := endsLower(t, text, 0); n > 0 {
			return n
		}
	}
	if front {
		if n := t.run(text, size, upper|uncased|mark); n > size {
			return n
		}
	}
	return t.run(text, 0, upper|uncased|mark)
}

// endsLower matches upperChars* lowerChars+ from i on and returns its end, 0 where it does not match. Where the run of
// upper characters leaves nothing for the second part, the run gives back down to its last uncased character.
func endsLower(t *classTable, text []byte, i int) int {
	const upperSet, lowerSet = upper | uncased | mark, lower | uncased | mark
	both := 0 // end of the last character that is in both sets
	for i < len(text) {
		c, size := t.at(text[i:])
		if c&upperSet == 0 {
			if c&lowerSet != 0 {
				return t.run(text, i+size, lowerSet)
			}
			break
		}
		i += size
		if c&lowerSet != 0 {
			both = i
		}
	}
	return both
}

// contraction returns the length of an English contraction at the start of a text, 0 for none. Without case the long s
// (U+017F) counts as an s, as in every regular expression that folds case.
func contraction(text []byte, fold bool) int {
	if len(text) < 2 || text[0] != '\'' {
		return 0
	}
	at := func(i int) byte {
		if i >= len(text) {
			return 0
		}
		if b := text[i]; fold && b >= 'A' && b <= 'Z' {
			return b | 0x20
		}
		return text[i]
	}
	switch at(1) {
	case 's', 't', 'm', 'd':
		return 2
	case 'r', 'v':
		if at(2) == 'e' {
			return 3
		}
	case 'l':
		if at(2) == 'l' {
			return 3
		}
	case 0xc5:
		if fold && at(2) == 0xbf {
			return 3
		}
	}
	return 0
}

// numbers returns the end of a run of at most limit numbers whose first ends at i.
func numbers(t *classTable, text []byte, i, limit int) int {
	for range limit - 1 {
		c, size := t.at(text[i:])
		if c&number == 0 {
			break
		}
		i += size
	}
	return i
}

// others matches ` ?[^\s\p{L}\p{N}]+` and returns its end, 0 where it does not match.
func others(t *classTable, text []byte) int {
	start := 0
	if text[0] == ' ' {
		start = 1
	}
	if end := t.without(text, start, nonOther); end > start {
		return end
	}
	return 0
}

// lines matches `\s*[\r\n]+|\s+(?!\S)|\s+` on a text that starts with white space.
func lines(t *classTable, text []byte) int {
	end := t.run(text, 0, space)
	for i := end; i > 0; i-- {
		if b := text[i-1]; b == '\n' || b == '\r' {
			return i
		}
	}
	_, size := t.at(text)
	return blanks(t, text, size)
}

// blanks matches `\s+(?!\S)|\s+` on a text that starts with a white space of the given size: all of the run but the last
// character, which goes with the word behind it, unless the run ends the text or is that character.
func blanks(t *classTable, text []byte, size int) int {
	end := t.run(text, size, space)
	if end == len(text) || end == size {
		return end
	}
	_, last := t.before(text[:end])
	return end - last
}

// splitNumbers isolates what `\p{N}{1,limit}` matches and leaves what lies between whole.
func splitNumbers(t *classTable, text []byte, limit int) int {
	if c, size := t.at(text); c&number != 0 {
		return numbers(t, text, size, limit)
	}
	return t.without(text, 0, number)
}

// splitTriple is [regexTriple].
func splitTriple(_ *classTable, text []byte) int {
	isTriple := func(i int) bool {
		return i+3 <= len(text) && isDigit(text[i]) && isDigit(text[i+1]) && isDigit(text[i+2])
	}
	if isTriple(0) {
		return 3
	}
	for i := 1; i < len(text); i++ {
		if isTriple(i) {
			return i
		}
	}
	return len(text)
}

func isDigit(b byte) bool { return b >= '0' && b <= '9' }

// splitDigits isolates numbers, each on its own or runs of them, and leaves what lies between whole. It is the Digits
// pre-tokenizer, whose numbers are those of Unicode 17: thirteen more than the regular expressions know.
func splitDigits(t *classTable, text []byte, each bool) int {
	digit, size := digitAt(t, text)
	for i := size; !digit || !each; {
		next, n := digitAt(t, text[i:])
		if n == 0 || next != digit {
			return i
		}
		i += n
	}
	return size
}

// digitAt reports whether a text starts with a number of Unicode 17, and the size of its first character.
func digitAt(t *classTable, text []byte) (bool, int) {
	c, size := t.at(text)
	if c&number != 0 || size < 4 {
		return c&number != 0, size
	}
	r, _ := utf8.DecodeRune(text)
	return r >= 0x11de0 && r <= 0x11de9 || r >= 0x16ff4 && r <= 0x16ff6, size
}

// everywhere reports whether an expression matches every character, so that removing what it does not match is nothing.
func (k knownSplit) everywhere() bool {
	return k.regex != regexTriples && k.regex != regexNumber && k.regex != regexTriple
}
