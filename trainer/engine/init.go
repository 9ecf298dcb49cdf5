package engine

import (
	"crypto/sha256"
	"encoding/binary"
	"math/rand/v2"
	"runtime"
)

// NewState allocates the state of a program and gives every parameter its initial value. Each parameter draws from its
// own stream, derived from the seed and its name, so the values do not depend on the order or number of the others, and
// they are the same on every machine: the generator uses integers only, see normal.
func NewState(params []Param, seed uint64) (*State, error) {
	trained, frozen, err := Split(params)
	if err != nil {
		return nil, err
	}
	total := Elements(trained)
	s := &State{
		Params:  trained,
		Weights: make([]float32, total),
		M:       make([]float32, total),
		V:       make([]float32, total),
		Frozen:  frozen,
		Fixed:   make([]float32, Elements(frozen)),
	}
	for _, part := range []struct {
		params []Param
		flat   []float32
	}{{trained, s.Weights}, {frozen, s.Fixed}} {
		parallel(runtime.GOMAXPROCS(0), len(part.params), func(i int) {
			p := part.params[i]
			fill(part.flat[p.Offset:p.Offset+p.Size()], p, seed)
		})
	}
	return s, nil
}

func fill(w []float32, p Param, seed uint64) {
	if p.Init.Std == 0 {
		for i := range w {
			w[i] = p.Init.Fill
		}
		return
	}
	h := sha256.New()
	h.Write([]byte("capanode/init/1\x00"))
	h.Write(binary.BigEndian.AppendUint64(nil, seed))
	h.Write([]byte(p.Name))
	sum := h.Sum(nil)
	rng := rand.NewPCG(binary.BigEndian.Uint64(sum), binary.BigEndian.Uint64(sum[8:]))
	for i := range w {
		w[i] = float32(normal(rng) * p.Init.Std)
	}
}

// normal draws from the sum of twelve uniform numbers less its mean (Irwin–Hall): variance one, tails cut at six
// deviations. Unlike the inverse or ziggurat methods it needs no logarithm, whose last bit differs between machines.
func normal(rng *rand.PCG) float64 {
	const half = 1<<32 - 1 // twice the mean of one 32-bit draw
	sum := int64(0)
	for range 6 {
		u := rng.Uint64()
		sum += int64(u>>32) + int64(u&(1<<32-1))
	}
	return float64(sum-6*half) / (1 << 32)
}
