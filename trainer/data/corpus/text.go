package corpus

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"io"
	"unicode/utf16"
	"unicode/utf8"
)

// text reads a file that is one document.
func (r *reading) text(in *bufio.Reader) error {
	decoded, err := r.decode(in)
	if err != nil {
		return err
	}
	return r.document(decoded, true)
}

// decode takes a byte order mark away and turns UTF-16 into UTF-8.
func (r *reading) decode(in *bufio.Reader) (io.Reader, error) {
	head, err := in.Peek(headBytes)
	if err != nil && err != io.EOF && len(head) == 0 {
		return nil, err
	}
	var order binary.ByteOrder
	mark := 0
	switch {
	case bytes.HasPrefix(head, []byte("\xef\xbb\xbf")):
		mark = 3
	case bytes.HasPrefix(head, []byte("\xff\xfe")):
		mark, order = 2, binary.LittleEndian
	case bytes.HasPrefix(head, []byte("\xfe\xff")):
		mark, order = 2, binary.BigEndian
	default:
		order = unmarked(head)
	}
	if mark > 0 {
		r.counts.ByteOrderMarks++
		if _, err := in.Discard(mark); err != nil {
			return nil, err
		}
	}
	if order == nil {
		return in, nil
	}
	r.counts.UTF16++
	return &utf16Reader{in: in, order: order, counts: &r.counts}, nil
}

// unmarked tells UTF-16 without a mark: ASCII in it has a NUL in every second byte and none in the others.
func unmarked(head []byte) binary.ByteOrder {
	var zeros [2]int
	for i, b := range head {
		if b == 0 {
			zeros[i&1]++
		}
	}
	pairs := len(head) / 2
	switch {
	case pairs < 4:
	case zeros[1] > pairs*6/10 && zeros[0] <= pairs/100:
		return binary.LittleEndian
	case zeros[0] > pairs*6/10 && zeros[1] <= pairs/100:
		return binary.BigEndian
	}
	return nil
}

// runeRoom holds what one unit of UTF-16 may complete: a replacement for a lone surrogate, and a character.
const runeRoom = 2 * utf8.UTFMax

// utf16Reader gives UTF-8 for UTF-16. A lone surrogate becomes U+FFFD, an odd byte at the end an error.
type utf16Reader struct {
	in     *bufio.Reader
	order  binary.ByteOrder
	counts *Counts
	room   [runeRoom]byte
	left   []byte // of room: what did not fit
	high   uint16 // a high surrogate that waits for its other half
}

func (u *utf16Reader) Read(p []byte) (int, error) {
	if len(u.left) > 0 || len(p) == 0 {
		n := copy(p, u.left)
		u.left = u.left[n:]
		return n, nil
	}
	if len(p) < runeRoom {
		n, err := u.fill(u.room[:])
		u.left = u.room[:n]
		n = copy(p, u.left)
		u.left = u.left[n:]
		return n, err
	}
	return u.fill(p)
}

func (u *utf16Reader) fill(p []byte) (n int, err error) {
	for len(p)-n >= runeRoom {
		var pair [2]byte
		if _, err := io.ReadFull(u.in, pair[:]); err != nil {
			if u.high != 0 {
				u.high = 0
				u.counts.Surrogates++
				n += utf8.EncodeRune(p[n:], utf8.RuneError)
			}
			if n > 0 && err == io.EOF {
				return n, nil // the end comes with the next call
			}
			return n, err
		}
		for _, r := range u.join(u.order.Uint16(pair[:])) {
			if r >= 0 {
				n += utf8.EncodeRune(p[n:], r)
			}
		}
	}
	return n, nil
}

// join returns up to two characters that a unit completes; -1 is none.
func (u *utf16Reader) join(unit uint16) (out [2]rune) {
	out = [2]rune{-1, -1}
	if u.high != 0 {
		if r := utf16.DecodeRune(rune(u.high), rune(unit)); r != utf8.RuneError {
			u.high = 0
			out[0] = r
			return out
		}
		u.high = 0
		u.counts.Surrogates++
		out[0] = utf8.RuneError
	}
	switch {
	case unit >= 0xd800 && unit < 0xdc00:
		u.high = unit
	case unit >= 0xdc00 && unit < 0xe000:
		u.counts.Surrogates++
		out[1] = utf8.RuneError
	default:
		out[1] = rune(unit)
	}
	return out
}

// document hands over one document of any length. One that judge finds to be no text is [errBinary].
func (r *reading) document(in io.Reader, judge bool) error {
	held, waiting := Piece{First: true}, false // the last piece is known when nothing follows
	err := eachSection(r.ctx, in, r.o.Cut, func(part []byte) error {
		if judge && binaryText(part, invalidBytes(part)) {
			return errBinary
		}
		judge = false
		if waiting {
			if err := r.emit(held); err != nil {
				return err
			}
			held.First = false
		}
		held.Text, waiting = r.clean(held.Text[:0], part), true
		return nil
	})
	if !waiting {
		return err
	}
	held.Last = true
	if e := r.emit(held); e != nil {
		return e
	}
	return err
}

// record hands over one record as a document.
func (r *reading) record(text []byte) error {
	if len(bytes.TrimSpace(text)) == 0 {
		r.counts.NoText++
		return nil
	}
	if len(text) <= PieceBytes {
		return r.emitClean(text)
	}
	return r.document(bytes.NewReader(text), false)
}
