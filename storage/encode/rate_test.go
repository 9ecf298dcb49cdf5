package encode_test

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/capacloud/capanode/storage/encode"
	"github.com/capacloud/capanode/storage/unixfs"
)

// BenchmarkBlock compares what a block of bfloat16 weights costs to encode and to decode with hashing it.
func BenchmarkBlock(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 1))
	var block []byte
	for len(block) < encode.MaxBlock {
		block = binary.LittleEndian.AppendUint16(block, uint16(math.Float32bits(float32(0.02*rng.NormFloat64()))>>16))
	}
	e, d := encode.NewEncoder(), encode.NewDecoder()
	how, packed := e.Encode(encode.Planes2, block)
	packed = append([]byte(nil), packed...)
	back := make([]byte, len(block))
	for name, do := range map[string]func() error{
		"encode": func() error { e.Encode(encode.Planes2, block); return nil },
		"decode": func() error { return d.Decode(how, packed, back) },
		"hash":   func() error { unixfs.Sum(block); return nil },
		"copy":   func() error { copy(back, block); return nil },
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(block)))
			for b.Loop() {
				if err := do(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
