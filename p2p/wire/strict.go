package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"unicode/utf8"
)

// ErrMalformed reports bytes that are not the one deterministic encoding of a record.
var ErrMalformed = errors.New("not deterministic dag-cbor")

const (
	maxDepth  = 32      // nested arrays, maps and links
	maxItems  = 1 << 16 // elements of one array
	maxFields = 1 << 12 // keys of one map
)

// CBOR major types.
const (
	majorUint = iota
	majorNegative
	majorBytes
	majorText
	majorArray
	majorMap
	majorTag
	majorSimple
)

// strict checks that b is exactly one item of the dag-cbor profile in its only allowed encoding. Two encodings of one
// value would have two CIDs and two signatures. It allocates nothing.
func strict(b []byte) error {
	w := walker{b: b}
	if err := w.item(0); err != nil {
		return fmt.Errorf("%w: at byte %d: %w", ErrMalformed, w.at, err)
	}
	if w.at != len(b) {
		return fmt.Errorf("%w: at byte %d: %d bytes follow the record", ErrMalformed, w.at, len(b)-w.at)
	}
	return nil
}

// walker reads one item after the other.
type walker struct {
	b  []byte
	at int
}

var (
	errShort   = errors.New("record ends early")
	errLong    = errors.New("number not in its shortest form, or of indefinite length")
	errDepth   = errors.New("nested too deep")
	errMany    = errors.New("too many elements")
	errText    = errors.New("text is not UTF-8")
	errKeyType = errors.New("map key is not text")
	errKeys    = errors.New("map keys repeat or are not sorted by length, then bytes")
	errTag     = errors.New("tag is not 42")
	errLink    = errors.New("link is not a byte string that starts with 0")
	errSimple  = errors.New("simple value is not false, true, null or a 64-bit float")
	errFloat   = errors.New("float is NaN or infinite")
)

// head reads an item's major type and argument.
func (w *walker) head() (major int, arg uint64, err error) {
	if w.at >= len(w.b) {
		return 0, 0, errShort
	}
	first := w.b[w.at]
	major, arg = int(first>>5), uint64(first&31)
	if major == majorSimple {
		return major, arg, nil // its argument is a value, not a number
	}
	w.at++
	if arg < 24 {
		return major, arg, nil
	}
	if arg > 27 {
		return 0, 0, errLong
	}
	width := 1 << (arg - 24)
	if len(w.b)-w.at < width {
		return 0, 0, errShort
	}
	var full [8]byte
	copy(full[8-width:], w.b[w.at:w.at+width])
	arg = binary.BigEndian.Uint64(full[:])
	w.at += width
	least := uint64(24) // the smallest argument that needs this width
	if width > 1 {
		least = 1 << (8 * width / 2)
	}
	if arg < least {
		return 0, 0, errLong
	}
	return major, arg, nil
}

func (w *walker) item(depth int) error {
	if depth > maxDepth {
		return errDepth
	}
	major, arg, err := w.head()
	if err != nil {
		return err
	}
	switch major {
	case majorBytes, majorText:
		text, err := w.take(arg)
		if err == nil && major == majorText && !utf8.Valid(text) {
			err = errText
		}
		return err
	case majorArray:
		if arg > maxItems {
			return errMany
		}
		for range arg {
			if err := w.item(depth + 1); err != nil {
				return err
			}
		}
	case majorMap:
		return w.fields(arg, depth)
	case majorTag:
		return w.link(arg)
	case majorSimple:
		return w.simple(arg)
	}
	return nil
}

func (w *walker) take(n uint64) ([]byte, error) {
	if n > uint64(len(w.b)-w.at) {
		return nil, errShort
	}
	b := w.b[w.at : w.at+int(n)]
	w.at += int(n)
	return b, nil
}

func (w *walker) fields(n uint64, depth int) error {
	if n > maxFields {
		return errMany
	}
	var last []byte
	for i := range n {
		major, length, err := w.head()
		if err != nil {
			return err
		}
		if major != majorText {
			return errKeyType
		}
		key, err := w.take(length)
		if err != nil {
			return err
		}
		if !utf8.Valid(key) {
			return errText
		}
		if i > 0 && (len(key) < len(last) || len(key) == len(last) && bytes.Compare(key, last) <= 0) {
			return errKeys
		}
		last = key
		if err := w.item(depth + 1); err != nil {
			return err
		}
	}
	return nil
}

func (w *walker) link(tag uint64) error {
	if tag != linkTag {
		return errTag
	}
	major, length, err := w.head()
	if err != nil {
		return err
	}
	if major != majorBytes {
		return errLink
	}
	raw, err := w.take(length)
	if err == nil && (len(raw) < 2 || raw[0] != 0) {
		err = errLink
	}
	return err
}

func (w *walker) simple(kind uint64) error {
	switch kind {
	case 20, 21, 22: // false, true, null
		w.at++
		return nil
	case 27:
		raw, err := w.take(9)
		if err != nil {
			return err
		}
		if f := math.Float64frombits(binary.BigEndian.Uint64(raw[1:])); math.IsNaN(f) || math.IsInf(f, 0) {
			return errFloat
		}
		return nil
	}
	return errSimple
}
