package hf

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

	"github.com/capacloud/capanode/trainer/engine"
)

const (
	// maxHeader is the largest safetensors header, in bytes, that any implementation accepts.
	maxHeader = 100_000_000
	metadata  = "__metadata__"
	floatType = "F32"
	chunk     = 64 << 10 // bytes converted at once
)

// TensorInfo is one tensor of a safetensors file of 32-bit floats.
type TensorInfo struct {
	Name   string
	Shape  []int
	Offset int64 // of the first byte, from the start of the file
	Bytes  int64
}

// WriteSafetensors streams tensors, in the order of params, as a safetensors file of 32-bit floats with the metadata
// format "pt", without which transformers refuses files. The header is padded with spaces so that the data is aligned to
// 8 bytes. Equal input gives equal bytes.
func WriteSafetensors(w io.Writer, params []engine.Param, weights []float32) error {
	var h bytes.Buffer
	h.Write(make([]byte, 8))
	fmt.Fprintf(&h, `{"%s":{"format":"pt"}`, metadata)
	offset := int64(0)
	for _, p := range params {
		name, err := json.Marshal(p.Name)
		if err != nil {
			return fmt.Errorf("hf: tensor name %q: %w", p.Name, err)
		}
		shape, err := json.Marshal(p.Shape)
		if err != nil {
			return fmt.Errorf("hf: tensor shape %v: %w", p.Shape, err)
		}
		end := offset + 4*int64(p.Size())
		fmt.Fprintf(&h, `,%s:{"dtype":"%s","shape":%s,"data_offsets":[%d,%d]}`, name, floatType, shape, offset, end)
		offset = end
	}
	h.WriteByte('}')
	for h.Len()%8 != 0 {
		h.WriteByte(' ')
	}
	head := h.Bytes()
	binary.LittleEndian.PutUint64(head, uint64(len(head)-8))
	if _, err := w.Write(head); err != nil {
		return fmt.Errorf("hf: write safetensors header: %w", err)
	}
	for _, p := range params {
		if err := writeFloats(w, weights[p.Offset:p.Offset+p.Size()]); err != nil {
			return fmt.Errorf("hf: write tensor %s: %w", p.Name, err)
		}
	}
	return nil
}

func writeFloats(w io.Writer, values []float32) error {
	var buf [chunk]byte
	for part := range slices.Chunk(values, chunk/4) {
		for i, v := range part {
			binary.LittleEndian.PutUint32(buf[4*i:], math.Float32bits(v))
		}
		if _, err := w.Write(buf[:4*len(part)]); err != nil {
			return err
		}
	}
	return nil
}

func readFloats(r io.Reader, values []float32) error {
	var buf [chunk]byte
	for part := range slices.Chunk(values, chunk/4) {
		if _, err := io.ReadFull(r, buf[:4*len(part)]); err != nil {
			return err
		}
		for i := range part {
			part[i] = math.Float32frombits(binary.LittleEndian.Uint32(buf[4*i:]))
		}
	}
	return nil
}

// ReadHeader reads and checks the header of a safetensors file of size bytes: at most 100 MB and inside the file, valid
// JSON without duplicate keys, shapes that do not overflow, tensors that fill the data section from its first byte to its
// last without gap or overlap. The tensors come in file order. Every element type but F32 is [ErrUnsupported].
func ReadHeader(r io.ReaderAt, size int64) ([]TensorInfo, error) {
	var prefix [8]byte
	if _, err := r.ReadAt(prefix[:], 0); err != nil {
		return nil, fmt.Errorf("safetensors: no header length: %w: %w", ErrFormat, err)
	}
	n := binary.LittleEndian.Uint64(prefix[:])
	if n > maxHeader || int64(n) > size-8 {
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
	slices.SortFunc(tensors, func(a, b TensorInfo) int { return cmp.Compare(a.Offset, b.Offset) })
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
func parseHeader(raw []byte) ([]TensorInfo, error) {
	if !utf8.Valid(raw) || len(raw) == 0 || raw[0] != '{' {
		return nil, fmt.Errorf("header is no JSON object in UTF-8: %w", ErrFormat)
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var tensors []TensorInfo
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
	if errors.Is(err, ErrUnsupported) {
		return nil, err
	}
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

func parseTensor(dec *json.Decoder, name string) (TensorInfo, error) {
	t := TensorInfo{Name: name}
	var dtype string
	var shape, offsets []int64
	err := eachKey(dec, func(key string) (err error) {
		switch key {
		case "dtype":
			var token json.Token
			token, err = dec.Token()
			dtype, _ = token.(string)
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
	if dtype != floatType {
		return t, fmt.Errorf("elements of type %.20q, this program reads %s: convert the model: %w", dtype, floatType, ErrUnsupported)
	}
	if shape == nil || len(offsets) != 2 || offsets[0] > offsets[1] {
		return t, fmt.Errorf("shape %v, offsets %v", shape, offsets)
	}
	t.Offset, t.Bytes = offsets[0], 4
	for _, d := range shape {
		if d < 1 || d > math.MaxInt32 || t.Bytes > math.MaxInt64/d {
			return t, fmt.Errorf("shape %v is out of range", shape)
		}
		t.Bytes *= d
		t.Shape = append(t.Shape, int(d))
	}
	if t.Bytes != offsets[1]-offsets[0] {
		return t, fmt.Errorf("shape %v needs %d bytes, offsets give %d", shape, t.Bytes, offsets[1]-offsets[0])
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
