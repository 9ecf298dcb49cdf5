package bench_test

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/capacloud/capanode/storage/bench"
)

// weights writes a folder with one bfloat16 tensor for each seed, normally distributed.
func weights(t *testing.T, seeds ...uint64) string {
	t.Helper()
	const elements = 400 << 10
	var header, data []byte
	for i, seed := range seeds {
		rng := rand.New(rand.NewPCG(seed, 0))
		header = fmt.Appendf(header, `,"t%d":{"dtype":"BF16","shape":[%d],"data_offsets":[%d,%d]}`, i, elements, 2*elements*i, 2*elements*(i+1))
		for range elements {
			data = binary.LittleEndian.AppendUint16(data, uint16(math.Float32bits(float32(0.02*rng.NormFloat64()))>>16))
		}
	}
	header[0] = '{'
	header = append(header, '}')
	for len(header)%8 != 0 {
		header = append(header, ' ')
	}
	file := append(binary.LittleEndian.AppendUint64(nil, uint64(len(header))), header...)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "model.safetensors"), append(file, data...), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestDelta(t *testing.T) {
	d, err := bench.RunDelta(t.Context(), weights(t, 1, 2, 3), weights(t, 1, 2, 4))
	if err != nil {
		t.Fatal(err)
	}
	if d.Shared < d.Size*2/3-1<<10 || d.Shared > d.Size*2/3+1<<10 {
		t.Errorf("%d of %d bytes shared, two of three tensors are equal", d.Shared, d.Size)
	}
	// The third tensor travels, in two thirds of its size.
	if d.Share < 0.15 || d.Share > 0.3 || d.Encode <= 0 {
		t.Errorf("%+v", d)
	}
	if _, err := bench.RunDelta(t.Context(), t.TempDir(), filepath.Join(t.TempDir(), "nowhere")); err == nil {
		t.Error("measured a folder that is not there")
	}
}
