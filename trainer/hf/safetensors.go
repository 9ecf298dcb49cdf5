package hf

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"

	"github.com/capacloud/capanode/trainer/engine"
)

const (
	metadata = "__metadata__"
	chunk    = 64 << 10 // bytes converted at once
)

// Type is how the weights of a folder are stored.
type Type uint8

const (
	// Float32 keeps every bit.
	Float32 Type = iota
	// BFloat16 keeps the upper half of each float, rounded to the nearest, ties to even.
	BFloat16
)

// types lists what is known of each [Type].
var types = [...]struct {
	name   string // in config.json
	tensor string // in safetensors
	width  int    // bytes of one number
}{Float32: {"float32", "F32", 4}, BFloat16: {"bfloat16", "BF16", 2}}

// String returns the type's name in config.json.
func (t Type) String() string { return types[t].name }

// ParseType returns the type with a name of config.json, or with the short name bf16 or fp32.
func ParseType(name string) (Type, error) {
	for t := range types {
		if name == types[t].name {
			return Type(t), nil
		}
	}
	switch name {
	case "fp32":
		return Float32, nil
	case "bf16":
		return BFloat16, nil
	}
	return 0, fmt.Errorf("hf: weights of type %.20q, this program knows float32 and bfloat16: %w", name, ErrUnsupported)
}

// toBFloat16 rounds to the nearest, ties to even. A finite number above the largest becomes an infinity.
func toBFloat16(v float32) uint16 {
	bits := math.Float32bits(v)
	return uint16((bits + 0x7fff + bits>>16&1) >> 16)
}

// WriteSafetensors streams tensors, in the order of params, as a safetensors file with the metadata format "pt", without which
// transformers refuses files. The header is padded with spaces so that the data is aligned to 8 bytes. Equal input gives equal
// bytes.
func WriteSafetensors(w io.Writer, params []engine.Param, weights []float32, as Type) error {
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
		end := offset + int64(types[as].width)*int64(p.Size())
		fmt.Fprintf(&h, `,%s:{"dtype":"%s","shape":%s,"data_offsets":[%d,%d]}`, name, types[as].tensor, shape, offset, end)
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
		if err := writeFloats(w, weights[p.Offset:p.Offset+p.Size()], as); err != nil {
			return fmt.Errorf("hf: write tensor %s: %w", p.Name, err)
		}
	}
	return nil
}

func writeFloats(w io.Writer, values []float32, as Type) error {
	var buf [chunk]byte
	width := types[as].width
	for part := range slices.Chunk(values, chunk/width) {
		if as == BFloat16 {
			for i, v := range part {
				binary.LittleEndian.PutUint16(buf[2*i:], toBFloat16(v))
			}
		} else {
			for i, v := range part {
				binary.LittleEndian.PutUint32(buf[4*i:], math.Float32bits(v))
			}
		}
		if _, err := w.Write(buf[:width*len(part)]); err != nil {
			return err
		}
	}
	return nil
}

func readFloats(r io.Reader, values []float32, as Type) error {
	var buf [chunk]byte
	width := types[as].width
	for part := range slices.Chunk(values, chunk/width) {
		if _, err := io.ReadFull(r, buf[:width*len(part)]); err != nil {
			return err
		}
		if as == BFloat16 {
			for i := range part {
				part[i] = math.Float32frombits(uint32(binary.LittleEndian.Uint16(buf[2*i:])) << 16)
			}
		} else {
			for i := range part {
				part[i] = math.Float32frombits(binary.LittleEndian.Uint32(buf[4*i:]))
			}
		}
	}
	return nil
}
