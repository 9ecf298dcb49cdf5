package codec

import (
	"bytes"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// The assembly and the portable code must give the same bytes and the same bits, at lengths that leave a rest.
func TestPathsAgree(t *testing.T) {
	if !fast {
		t.Skip("this CPU has no AVX2")
	}
	defer func() { fast = true }()
	rng := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{1, 7, 8, 31, 33, 4095, 4096, 4097, 9001} {
		x := make([]float32, n)
		for i := range x {
			x[i] = float32(rng.NormFloat64() * math.Exp(rng.NormFloat64()))
		}
		for _, c := range []Codec{FP32{}, Int8{}, Int4{}, Top{1}, Top{64}, Top{700}, Top{MaxTop}} {
			var blobs [2][]byte
			var sums [2][]float32
			for p := range 2 {
				fast = p == 1
				blobs[p] = make([]byte, c.Bound(n))
				size, err := c.Encode(blobs[p], x)
				if err != nil {
					t.Fatal(err)
				}
				blobs[p] = blobs[p][:size]
				src, err := c.Open(blobs[p], n)
				if err != nil {
					t.Fatal(err)
				}
				sums[p] = make([]float32, n)
				Decode(sums[p], src)
				for i := range Blocks(n) {
					src.Add(sums[p][i*Block:min((i+1)*Block, n)], i, 0.7)
				}
			}
			if !bytes.Equal(blobs[0], blobs[1]) {
				t.Errorf("%s, %d elements: the blobs differ", c.ID(), n)
			}
			if !slices.Equal(sums[0], sums[1]) {
				t.Errorf("%s, %d elements: the sums differ", c.ID(), n)
			}
			for _, broken := range []float32{float32(math.NaN()), float32(math.Inf(-1))} {
				y := slices.Clone(x)
				y[n/2] = broken
				fast = true
				_, err1 := c.Encode(blobs[0][:cap(blobs[0])], y)
				fast = false
				_, err2 := c.Encode(blobs[0][:cap(blobs[0])], y)
				if err1 == nil || err2 == nil {
					t.Errorf("%s, %d elements: %g encoded: %v, %v", c.ID(), n, broken, err1, err2)
				}
			}
		}
	}
}
