// Package safetensors owns the layout of safetensors files: the header that names the tensors, read as hostile input, and the
// cuts that make equal tensors of two files equal blocks. It refuses to look at a number inside a tensor.
//
// Format: https://huggingface.co/docs/safetensors/index.
package safetensors

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"unicode/utf8"
)

// ErrFormat reports a file that is malformed or lies about its content.
var ErrFormat = errors.New("malformed safetensors file")

const (
	// MaxHeader is the largest header, in bytes, that any implementation accepts.
	MaxHeader = 100_000_000

	metadata = "__metadata__"
)

// Tensor is one tensor of a file.
type Tensor struct {
	Name   string
	Type   string // of the elements as the file spells it: F32, BF16, …
	Shape  []int
	Offset int64 // of the first byte, from the start of the file
	Bytes  int64
}

// Width returns the bytes of one element of a type, 0 for a type that this package does not know.
func Width(elements string) int64 {
	switch elements {
	case "BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0":
		return 1
	case "U16", "I16", "F16", "BF16":
		return 2
	case "U32", "I32", "F32":
		return 4
	case "U64", "I64", "F64", "C64":
		return 8
	}
	return 0
}

// ReadHeader reads and checks the header of a safetensors file of size bytes: at most 100 MB and inside the file, valid
// JSON without duplicate keys, shapes that do not overflow, tensors that fill the data section from its first byte to its
// last without gap or overlap. The tensors come in file order. Of element types that [Width] does not know the size is not
// compared with the shape. Any failure to read is [ErrFormat] as well.
func ReadHeader(r io.ReaderAt, size int64) ([]Tensor, error) {
	var prefix [8]byte
	if _, err := r.ReadAt(prefix[:], 0); err != nil {
		return nil, fmt.Errorf("safetensors: no header length: %w: %w", ErrFormat, err)
	}
	n := binary.LittleEndian.Uint64(prefix[:])
	if n > MaxHeader || int64(n) > size-8 {
		return nil, fmt.Errorf("safetensors: header of %d bytes in a file of %d: %w", n, size, ErrFormat)
	}
	raw := make([]byte, n)
	if _, err := r.ReadAt(raw, 8); err != nil {
		return nil, fmt.Errorf("safetensors: read header: %w: %w", ErrFormat, err)
	}
	tensors, err := parseHeader(raw)
	if err != nil {
		return nil, fmt.Errorf("safetensors: %w", err)
	}
	slices.SortFunc(tensors, func(a, b Tensor) int { return cmp.Compare(a.Offset, b.Offset) })
	at := int64(0)
	for i := range tensors {
		t := &tensors[i]
		if t.Offset != at {
			return nil, fmt.Errorf("safetensors: tensor %q starts at %d, the one before ends at %d: %w", t.Name, t.Offset, at, ErrFormat)
		}
		at += t.Bytes
		t.Offset += 8 + int64(n)
	}
	if data := size - 8 - int64(n); at != data {
		return nil, fmt.Errorf("safetensors: tensors take %d bytes, the file has %d: %w", at, data, ErrFormat)
	}
	return tensors, nil
}

// parseHeader returns the tensors with Offset relative to the data section. It walks the JSON token by token, because
// encoding/json silently keeps the last of two equal keys.
func parseHeader(raw []byte) ([]Tensor, error) {
	if !utf8.Valid(raw) || len(raw) == 0 || raw[0] != '{' {
		return nil, fmt.Errorf("header is no JSON object in UTF-8: %w", ErrFormat)
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var tensors []Tensor
	err := eachKey(dec, func(name string) error {
		if name == metadata {
			return eachKey(dec, func(key string) error {
				token, err := dec.Token()
				if _, ok := token.(string); err == nil && !ok {
					err = fmt.Errorf("metadata %q is no string", key)
				}
				return err
			})
		}
		t, err := parseTensor(dec, name)
		if err != nil {
			return fmt.Errorf("tensor %q: %w", name, err)
		}
		tensors = append(tensors, t)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("header: %w: %w", ErrFormat, err)
	}
	if tail := bytes.Trim(raw[dec.InputOffset():], " "); len(tail) != 0 {
		return nil, fmt.Errorf("header: %d bytes after the JSON object: %w", len(tail), ErrFormat)
	}
	return tensors, nil
}

// eachKey reads one JSON object and calls f after each key; f must consume the value. A repeated key is an error.
func eachKey(dec *json.Decoder, f func(key string) error) error {
	if err := delim(dec, '{'); err != nil {
		return err
	}
	seen := map[string]bool{}
	for dec.More() {
		token, err := dec.Token()
		if err != nil {
			return err
		}
		key, ok := token.(string)
		if !ok || seen[key] {
			return fmt.Errorf("key %.80q is repeated", fmt.Sprint(token))
		}
		seen[key] = true
		if err := f(key); err != nil {
			return err
		}
	}
	return delim(dec, '}')
}

func delim(dec *json.Decoder, want json.Delim) error {
	token, err := dec.Token()
	if err == nil && token != want {
		err = fmt.Errorf("%.80q where %q belongs", fmt.Sprint(token), want.String())
	}
	return err
}

func parseTensor(dec *json.Decoder, name string) (Tensor, error) {
	t := Tensor{Name: name}
	var shape, offsets []int64
	err := eachKey(dec, func(key string) (err error) {
		switch key {
		case "dtype":
			var token json.Token
			token, err = dec.Token()
			t.Type, _ = token.(string)
		case "shape":
			shape, err = parseInts(dec)
		case "data_offsets":
			offsets, err = parseInts(dec)
		default:
			err = fmt.Errorf("unknown key %.80q", key)
		}
		return err
	})
	if err != nil {
		return t, err
	}
	if shape == nil || len(offsets) != 2 || offsets[0] > offsets[1] {
		return t, fmt.Errorf("shape %v, offsets %v", shape, offsets)
	}
	width := Width(t.Type)
	size := max(1, width)
	for _, d := range shape {
		if d < 1 || d > math.MaxInt32 || size > math.MaxInt64/d {
			return t, fmt.Errorf("shape %v is out of range", shape)
		}
		size *= d
		t.Shape = append(t.Shape, int(d))
	}
	t.Offset, t.Bytes = offsets[0], offsets[1]-offsets[0]
	if width > 0 && t.Bytes != size {
		return t, fmt.Errorf("shape %v of %s needs %d bytes, offsets give %d", shape, t.Type, size, t.Bytes)
	}
	return t, nil
}

// parseInts reads a JSON array of at most 8 integers in [0, 2^63).
func parseInts(dec *json.Decoder) ([]int64, error) {
	if err := delim(dec, '['); err != nil {
		return nil, err
	}
	values := []int64{}
	for dec.More() {
		token, err := dec.Token()
		if err != nil {
			return nil, err
		}
		number, ok := token.(json.Number)
		if !ok || len(values) == 8 {
			return nil, fmt.Errorf("%.80q in a list of at most 8 integers", fmt.Sprint(token))
		}
		v, err := strconv.ParseUint(number.String(), 10, 63)
		if err != nil {
			return nil, err
		}
		values = append(values, int64(v))
	}
	return values, delim(dec, ']')
}
