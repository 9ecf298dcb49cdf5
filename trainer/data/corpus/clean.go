package corpus

import (
	"bytes"
	"context"
	"io"
	"unicode/utf8"
)

// eachSection calls f with consecutive pieces of at most [PieceBytes], each ending where cut allows it or after a line end,
// where its second half has such a place, else between characters. The piece is only valid during the call. What came before an error is handed over.
func eachSection(ctx context.Context, r io.Reader, cut func([]byte) int, f func(part []byte) error) error {
	buf := make([]byte, PieceBytes)
	have := 0
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := readFull(r, buf[have:])
		have += n
		if err != nil {
			if have > 0 {
				if e := f(buf[:have]); e != nil {
					return e
				}
			}
			if err == io.EOF {
				return nil
			}
			return err
		}
		end := sectionEnd(buf, cut)
		if err := f(buf[:end]); err != nil {
			return err
		}
		have = copy(buf, buf[end:])
	}
}

// readFull fills buf or returns why not: io.EOF only where the stream ends in order, which io.ReadFull does not tell from a
// stream that was cut.
func readFull(r io.Reader, buf []byte) (int, error) {
	for n, idle := 0, 0; ; {
		m, err := r.Read(buf[n:])
		n += m
		if err != nil || n == len(buf) {
			return n, err
		}
		if idle++; m > 0 {
			idle = 0
		} else if idle > 100 {
			return n, io.ErrNoProgress
		}
	}
}

// sectionEnd returns where to cut a full buffer.
func sectionEnd(buf []byte, cut func([]byte) int) int {
	if cut != nil {
		if at := cut(buf); at >= len(buf)/2 && at < len(buf) {
			return at
		}
	}
	if line := bytes.LastIndexByte(buf, '\n') + 1; line >= len(buf)/2 {
		return line
	}
	if buf[len(buf)-1] == '\r' { // its line feed may follow
		return len(buf) - 1
	}
	return wholeRunes(buf)
}

// wholeRunes returns where the last whole character of a text ends.
func wholeRunes(buf []byte) int {
	for back := 1; back < utf8.UTFMax && back <= len(buf); back++ { // a character cut in two would count as invalid twice
		if tail := buf[len(buf)-back:]; utf8.RuneStart(tail[0]) {
			if !utf8.FullRune(tail) {
				return len(buf) - back
			}
			break
		}
	}
	return len(buf)
}

// invalidBytes counts the bytes that belong to no valid UTF-8 character.
func invalidBytes(text []byte) int64 {
	if utf8.Valid(text) {
		return 0
	}
	var n int64
	for len(text) > 0 {
		r, size := utf8.DecodeRune(text)
		if r == utf8.RuneError && size == 1 {
			n++
		}
		text = text[size:]
	}
	return n
}

// binaryText judges the first section of a file: text has next to no NUL bytes, and even a text in an old 8-bit code
// page is mostly ASCII.
func binaryText(first []byte, invalid int64) bool {
	n := len(first)
	return bytes.Count(first, []byte{0}) > n/512 || invalid > int64(n)*3/10
}

// clean appends a piece of text to dst: line ends become one line feed, NUL bytes go, lines in Windows-1252 become UTF-8,
// other invalid bytes stay. A clean text costs three searches.
func (r *reading) clean(dst, text []byte) []byte {
	valid := utf8.Valid(text)
	if valid && bytes.IndexByte(text, '\r') < 0 && bytes.IndexByte(text, 0) < 0 {
		return append(dst, text...)
	}
	for line := range bytes.Lines(text) {
		if !valid && !utf8.Valid(line) {
			if windows1252(line) {
				r.counts.Windows1252++
				dst = appendWindows1252(dst, line, &r.counts)
				continue
			}
			r.counts.InvalidUTF8 += invalidBytes(line)
		}
		for i, b := range line {
			switch {
			case b == 0:
				r.counts.NUL++
			case b == '\r' && i+1 < len(line) && line[i+1] == '\n':
				r.counts.CRLF++
			default:
				dst = append(dst, b)
			}
		}
	}
	return dst
}

// windows1252 judges a line that is no valid UTF-8: whether it reads as Western text in an 8-bit code page. Nothing in it may
// look like the beginning of an UTF-8 character, at most three of ten bytes may be beyond ASCII, and the bytes that
// Windows-1252 leaves undefined may not occur.
func windows1252(line []byte) bool {
	high := 0
	for i, b := range line {
		if b < 0x80 {
			continue
		}
		high++
		if highRunes[b&0x7f] == utf8.RuneError {
			return false
		}
		if b >= 0xc2 && b <= 0xf4 && i+1 < len(line) && line[i+1] >= 0x80 && line[i+1] < 0xc0 {
			return false
		}
	}
	return high*10 <= len(line)*3+9
}

func appendWindows1252(dst, line []byte, counts *Counts) []byte {
	for i, b := range line {
		switch {
		case b == 0:
			counts.NUL++
		case b == '\r' && i+1 < len(line) && line[i+1] == '\n':
			counts.CRLF++
		case b < 0x80:
			dst = append(dst, b)
		default:
			dst = utf8.AppendRune(dst, highRunes[b&0x7f])
		}
	}
	return dst
}

// highRunes are the characters of the bytes 0x80 to 0xff in Windows-1252, which agrees with Latin-1 from 0xa0 on.
var highRunes = func() (t [128]rune) {
	for i := range t {
		t[i] = rune(0x80 + i)
	}
	for i, r := range []rune("€\ufffd‚ƒ„…†‡ˆ‰Š‹Œ\ufffdŽ\ufffd\ufffd‘’“”•–—˜™š›œ\ufffdžŸ") {
		t[i] = r
	}
	return t
}()
