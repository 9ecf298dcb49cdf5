package corpus

import (
	"bytes"
	"unicode/utf16"
	"unicode/utf8"
)

// found says what became of a record's text field.
type found int

const (
	gotText found = iota
	badJSON       // not one JSON object
	noField       // an object without the field
	notText       // the field is null, a number or a structure
)

// scan walks over one JSON value without building it. It is strict where a truncated or shifted record would show, and
// lenient within numbers and words that are skipped.
type scan struct {
	b          []byte
	i          int
	surrogates int64 // lone ones in what was unescaped
}

// jsonText returns the string at path in the object that b holds, unescaped; a later key wins over an earlier one. The text
// is dst's or b's memory.
func jsonText(b []byte, path []string, dst []byte) (text []byte, what found, surrogates int64) {
	s := scan{b: b}
	from, what := s.object(path)
	if s.space(); what == badJSON || s.i != len(b) {
		return nil, badJSON, 0
	}
	if what != gotText {
		return nil, what, 0
	}
	at := scan{b: b, i: from}
	text, ok := at.unescape(dst)
	if !ok {
		return nil, badJSON, 0
	}
	return text, gotText, at.surrogates
}

func (s *scan) space() {
	for s.i < len(s.b) && (s.b[s.i] == ' ' || s.b[s.i] == '\t' || s.b[s.i] == '\r' || s.b[s.i] == '\n') {
		s.i++
	}
}

func (s *scan) take(c byte) bool {
	s.space()
	if s.i < len(s.b) && s.b[s.i] == c {
		s.i++
		return true
	}
	return false
}

// object walks over an object and returns where the string at path begins.
func (s *scan) object(path []string) (from int, what found) {
	if !s.take('{') {
		return 0, badJSON
	}
	what = noField
	if s.take('}') {
		return 0, what
	}
	for {
		s.space()
		key := s.i
		if !s.skipString() || !s.take(':') {
			return 0, badJSON
		}
		s.space()
		if !s.keyIs(key, path[0]) {
			if !s.skip() {
				return 0, badJSON
			}
		} else if from, what = s.value(path[1:]); what == badJSON {
			return 0, badJSON
		}
		if s.take('}') {
			return from, what
		}
		if !s.take(',') {
			return 0, badJSON
		}
	}
}

// value walks over the value of a key that path led to.
func (s *scan) value(rest []string) (int, found) {
	if s.i >= len(s.b) {
		return 0, badJSON
	}
	from := s.i
	switch c := s.b[s.i]; {
	case len(rest) > 0 && c == '{':
		return s.object(rest)
	case !s.skip():
		return 0, badJSON
	case len(rest) > 0:
		return 0, noField
	case c != '"':
		return 0, notText
	}
	return from, gotText
}

// keyIs compares the key that begins at from with a name.
func (s *scan) keyIs(from int, name string) bool {
	at := scan{b: s.b, i: from}
	if raw := s.b[from+1:]; len(raw) > len(name) && raw[len(name)] == '"' && string(raw[:len(name)]) == name {
		return true
	}
	if end := bytes.IndexByte(s.b[from+1:], '"'); bytes.IndexByte(s.b[from+1:from+1+end], '\\') < 0 {
		return false
	}
	key, ok := at.unescape(nil)
	return ok && string(key) == name
}

// skipString walks over a string.
func (s *scan) skipString() bool {
	if s.i >= len(s.b) || s.b[s.i] != '"' {
		return false
	}
	for s.i++; ; {
		n := bytes.IndexByte(s.b[s.i:], '"')
		if n < 0 {
			s.i = len(s.b)
			return false
		}
		slashes := 0
		for at := s.i + n - 1; at >= s.i && s.b[at] == '\\'; at-- {
			slashes++
		}
		s.i += n + 1
		if slashes%2 == 0 {
			return true
		}
	}
}

// skip walks over any value, to any depth, in constant memory.
func (s *scan) skip() bool {
	for depth := 0; s.i < len(s.b); {
		switch s.b[s.i] {
		case '"':
			if !s.skipString() {
				return false
			}
		case '{', '[':
			depth++
			s.i++
			continue
		case '}', ']':
			if depth == 0 {
				return false
			}
			depth--
			s.i++
		case ' ', '\t', '\r', '\n', ',', ':':
			if depth == 0 {
				return false
			}
			s.i++
			continue
		default:
			from := s.i
			for s.i < len(s.b) && bytes.IndexByte([]byte("{}[]\",: \t\r\n"), s.b[s.i]) < 0 {
				s.i++
			}
			if s.i == from {
				return false
			}
		}
		if depth == 0 {
			return true
		}
	}
	return false
}

// unescape appends the string at the scan's place to dst and ends the scan. A lone surrogate becomes U+FFFD, as in encoding/json; raw bytes
// stay as they are.
func (s *scan) unescape(dst []byte) ([]byte, bool) {
	end := scan{b: s.b, i: s.i}
	if !end.skipString() {
		return dst, false
	}
	s.b = s.b[:end.i-1]
	for s.i++; ; {
		n := bytes.IndexByte(s.b[s.i:], '\\')
		if n < 0 {
			return append(dst, s.b[s.i:]...), true
		}
		dst = append(dst, s.b[s.i:s.i+n]...)
		s.i += n + 1
		if s.i >= len(s.b) {
			return dst, false
		}
		c := s.b[s.i]
		s.i++
		if c == 'u' {
			r, ok := s.unicode()
			if !ok {
				return dst, false
			}
			dst = utf8.AppendRune(dst, r)
			continue
		}
		at := bytes.IndexByte([]byte(`"\/bfnrt`), c)
		if at < 0 {
			return dst, false
		}
		dst = append(dst, "\"\\/\b\f\n\r\t"[at])
	}
}

// unicode reads the four digits after \u, and the other half of a pair.
func (s *scan) unicode() (rune, bool) {
	r, ok := s.hex4(s.i)
	if !ok {
		return 0, false
	}
	s.i += 4
	if !utf16.IsSurrogate(r) {
		return r, true
	}
	if s.i+6 <= len(s.b) && s.b[s.i] == '\\' && s.b[s.i+1] == 'u' {
		if low, ok := s.hex4(s.i + 2); ok {
			if pair := utf16.DecodeRune(r, low); pair != utf8.RuneError {
				s.i += 6
				return pair, true
			}
		}
	}
	s.surrogates++
	return utf8.RuneError, true
}

func (s *scan) hex4(at int) (r rune, ok bool) {
	if at+4 > len(s.b) {
		return 0, false
	}
	for _, c := range s.b[at : at+4] {
		switch {
		case c >= '0' && c <= '9':
			r = r<<4 | rune(c-'0')
		case c|0x20 >= 'a' && c|0x20 <= 'f':
			r = r<<4 | rune(c|0x20-'a'+10)
		default:
			return 0, false
		}
	}
	return r, true
}

// keys lists the keys of an object, those of objects within it behind a dot, at most limit.
func jsonKeys(b []byte, limit int) []string {
	var out []string
	s := scan{b: b}
	s.keys("", limit, &out)
	return out
}

func (s *scan) keys(prefix string, limit int, out *[]string) bool {
	if !s.take('{') || s.take('}') {
		return true
	}
	for len(*out) < limit {
		s.space()
		at := scan{b: s.b, i: s.i}
		if !s.skipString() || !s.take(':') {
			return false
		}
		key, _ := at.unescape(nil)
		*out = append(*out, prefix+string(key))
		s.space()
		if s.i < len(s.b) && s.b[s.i] == '{' && len(prefix) < 64 {
			if !s.keys(prefix+string(key)+".", limit, out) {
				return false
			}
		} else if !s.skip() {
			return false
		}
		if !s.take(',') {
			return s.take('}')
		}
	}
	return false
}
