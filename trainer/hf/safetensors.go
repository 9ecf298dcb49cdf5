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
	// Float16 is IEEE's half precision, rounded to the nearest, ties to even. Numbers above 65504 do not fit.
	Float16
)

// typeNames is how a [Type] is spelled.
type typeNames struct {
	name   string // in config.json
	tensor string // in safetensors
	width  int    // bytes of one number
}

// types lists what is known of each [Type].
var types = [...]typeNames{Float32: {"float32", "F32", 4}, BFloat16: {"bfloat16", "BF16", 2}, Float16: {"float16", "F16", 2}}

// String returns the type's name in config.json.
func (t Type) String() string { return types[t].name }

// ParseType returns the type with a name of config.json, or with the short name fp32, bf16 or fp16.
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
	case "fp16":
		return Float16, nil
	}
	return 0, fmt.Errorf("hf: weights of type %.20q, this program knows float32, bfloat16 and float16: %w", name, ErrUnsupported)
}

// toBFloat16 rounds to the nearest, ties to even. A finite number above the largest becomes an infinity.
func toBFloat16(v float32) uint16 {
	bits := math.Float32bits(v)
	return uint16((bits + 0x7fff + bits>>16&1) >> 16)
}

// toFloat16 rounds to the nearest, ties to even. A finite number above the largest becomes an infinity.
func toFloat16(v float32) uint16 {
	bits := math.Float32bits(v)
	sign, size := uint16(bits>>16&0x8000), bits&0x7fffffff
	switch {
	case size > 0x7f800000: // NaN
		return sign | 0x7e00
	case size >= 0x38800000: // normal, or too large
		return sign | uint16(min((size-0x38000000+0xfff+size>>13&1)>>13, 0x7c00))
	case size < 0x33000000:
		return sign
	}
	shift := 126 - size>>23 // below the normal numbers: a multiple of 2⁻²⁴
	whole := size&0x7fffff | 0x800000
	return sign | uint16((whole+1<<(shift-1)-1+whole>>shift&1)>>shift)
}

// fromFloat16 is exact.
func fromFloat16(h uint16) float32 {
	sign, exponent, rest := uint32(h&0x8000)<<16, uint32(h>>10&31), uint32(h&0x3ff)
	switch exponent {
	case 0:
		v := float32(rest) * 0x1p-24
		return math.Float32frombits(math.Float32bits(v) | sign)
	case 31:
		return math.Float32frombits(sign | 0x7f800000 | rest<<13)
	}
	return math.Float32frombits(sign | (exponent+112)<<23 | rest<<13)
}

// WriteSafetensors streams tensors, in the order of params, as a safetensors file with the metadata format "pt", without which
// transformers refuses files. The header is padded with spaces so that the data is aligned to 8 bytes. Equal input gives equal
// bytes.
func WriteSafetensors(w io.Writer, params []engine.Param, weights []float32, as Type) error {
	var all []stored
	for _, p := range params {
		all = append(all, stored{name: p.Name, shape: p.Shape, parts: []engine.Param{p}})
	}
	return writeTensors(w, all, weights, as)
}

func writeTensors(w io.Writer, tensors []stored, weights []float32, as Type) error {
	var h bytes.Buffer
	h.Write(make([]byte, 8))
	fmt.Fprintf(&h, `{"%s":{"format":"pt"}`, metadata)
	offset := int64(0)
	for _, t := range tensors {
		name, err := json.Marshal(t.name)
		if err != nil {
			return fmt.Errorf("hf: tensor name %q: %w", t.name, err)
		}
		shape, err := json.Marshal(t.shape)
		if err != nil {
			return fmt.Errorf("hf: tensor shape %v: %w", t.shape, err)
		}
		end := offset + int64(types[as].width)*int64(t.size())
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
	for _, t := range tensors {
		if err := t.write(w, weights, as); err != nil {
			return fmt.Errorf("hf: write tensor %s: %w", t.name, err)
		}
	}
	return nil
}

func writeFloats(w io.Writer, values []float32, as Type) error {
	var buf [chunk]byte
	width := types[as].width
	for part := range slices.Chunk(values, chunk/width) {
		switch as {
		case BFloat16:
			for i, v := range part {
				binary.LittleEndian.PutUint16(buf[2*i:], toBFloat16(v))
			}
		case Float16:
			for i, v := range part {
				binary.LittleEndian.PutUint16(buf[2*i:], toFloat16(v))
			}
		default:
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
		switch as {
		case BFloat16:
			for i := range part {
				part[i] = math.Float32frombits(uint32(binary.LittleEndian.Uint16(buf[2*i:])) << 16)
			}
		case Float16:
			for i := range part {
				part[i] = fromFloat16(binary.LittleEndian.Uint16(buf[2*i:]))
			}
		default:
			for i := range part {
				part[i] = math.Float32frombits(binary.LittleEndian.Uint32(buf[4*i:]))
			}
		}
	}
	return nil
}
