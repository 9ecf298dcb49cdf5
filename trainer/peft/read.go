package peft

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"

	"github.com/capacloud/capanode/trainer/hf"
)

// readFloats reads little-endian floats that are finite.
func readFloats(r io.Reader, values []float32) error {
	var buf [64 << 10]byte
	for part := range slices.Chunk(values, len(buf)/4) {
		if _, err := io.ReadFull(r, buf[:4*len(part)]); err != nil {
			return err
		}
		for i := range part {
			part[i] = math.Float32frombits(binary.LittleEndian.Uint32(buf[4*i:]))
			if !(math.Abs(float64(part[i])) <= math.MaxFloat32) {
				return hf.ErrNotFinite
			}
		}
	}
	return nil
}

// readJSON reads a file of at most maxJSON bytes.
func readJSON(src hf.Source, name string, v any) error {
	f, err := src.Open(name)
	if err != nil {
		return fmt.Errorf("peft: %w", err)
	}
	defer f.Close()
	if f.Size() > maxJSON {
		return fmt.Errorf("peft: %s is larger than %d bytes: %w", name, maxJSON, hf.ErrFormat)
	}
	raw := make([]byte, f.Size())
	if n, err := f.ReadAt(raw, 0); n < len(raw) {
		return fmt.Errorf("peft: read %s: %w", name, err)
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("peft: %s: %w: %w", name, hf.ErrFormat, err)
	}
	return nil
}
