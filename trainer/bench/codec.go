package bench

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"

	"github.com/capacloud/capanode/trainer/codec"
)

// Rates are in 10^6 bytes of float32 per second.
type Rates struct {
	Encode float64
	Decode float64 // to a dense vector
	Add    float64 // to a sum, as the mean of a round does
}

// CodecFigures are what one codec gave.
type CodecFigures struct {
	Codec                       codec.Codec
	Bits                        float64 // per parameter, of normally distributed data
	Core, All                   Rates   // on one core, on all cores
	ErrorNormal, ErrorHeavyTail float64 // norm of what is lost over the norm of the vector; normal and Laplace distribution
}

// Codecs measures the codecs on one vector, and how fast as many bytes are copied, which no dense codec beats: on one core
// and on all cores.
func Codecs(ctx context.Context, codecs []codec.Codec, o Options) (figures []CodecFigures, core, all float64, err error) {
	o = o.defaults()
	n := o.Megabytes * 1e6 / 4
	b := codecBench{o, normal(n), laplace(n), make([]float32, n)}
	duplicate := b.blocks(func(_, lo, hi int) { copy(b.scratch[lo:hi], b.x[lo:hi]) })
	if all, err = fastest(ctx, o, duplicate); err != nil {
		return nil, 0, 0, err
	}
	if err := onOneCore(func() error { core, err = fastest(ctx, o, duplicate); return err }); err != nil {
		return nil, 0, 0, err
	}
	for _, c := range codecs {
		f, err := b.measure(ctx, c)
		if err != nil {
			return nil, 0, 0, fmt.Errorf("bench: %s: %w", c.ID(), err)
		}
		figures = append(figures, f)
	}
	return figures, core, all, nil
}

// codecBench is what all codecs are measured with.
type codecBench struct {
	Options
	x, heavy, scratch []float32
}

// blocks returns a function that calls f for every block, with the range of its elements.
func (b codecBench) blocks(f func(i, lo, hi int)) func() error {
	return func() error {
		codec.ForEach(codec.Blocks(len(b.x)), func(i int) { f(i, i*codec.Block, min((i+1)*codec.Block, len(b.x))) })
		return nil
	}
}

func onOneCore(f func() error) error {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	return f()
}

func (b codecBench) measure(ctx context.Context, c codec.Codec) (f CodecFigures, err error) {
	f.Codec = c
	blob := make([]byte, c.Bound(len(b.x)))
	size, err := c.Encode(blob, b.heavy)
	if err != nil {
		return f, err
	}
	if f.ErrorHeavyTail, err = loss(c, blob[:size], b.heavy, b.scratch); err != nil {
		return f, err
	}
	if size, err = c.Encode(blob, b.x); err != nil {
		return f, err
	}
	if f.ErrorNormal, err = loss(c, blob[:size], b.x, b.scratch); err != nil {
		return f, err
	}
	f.Bits = 8 * float64(size) / float64(len(b.x))
	src, err := c.Open(blob[:size], len(b.x))
	if err != nil {
		return f, err
	}
	if f.All, err = b.rates(ctx, c, src); err != nil {
		return f, err
	}
	err = onOneCore(func() error { f.Core, err = b.rates(ctx, c, src); return err })
	return f, err
}

func (b codecBench) rates(ctx context.Context, c codec.Codec, src codec.Source) (r Rates, err error) {
	blob := make([]byte, c.Bound(len(b.x)))
	if r.Encode, err = fastest(ctx, b.Options, func() error { _, err := c.Encode(blob, b.x); return err }); err != nil {
		return r, err
	}
	if r.Decode, err = fastest(ctx, b.Options, func() error { codec.Decode(b.scratch, src); return nil }); err != nil {
		return r, err
	}
	r.Add, err = fastest(ctx, b.Options, b.blocks(func(i, lo, hi int) { src.Add(b.scratch[lo:hi], i, 0.5) }))
	return r, err
}

// loss returns the relative error of a blob; y is scratch.
func loss(c codec.Codec, blob []byte, x, y []float32) (float64, error) {
	src, err := c.Open(blob, len(x))
	if err != nil {
		return 0, err
	}
	codec.Decode(y, src)
	var lost, power float64
	for i, v := range x {
		d := float64(v) - float64(y[i])
		lost += d * d
		power += float64(v) * float64(v)
	}
	return math.Sqrt(lost / power), nil
}

// normal returns n numbers as an update might have: normally distributed, of standard deviation 0.01.
func normal(n int) []float32 {
	rng := rand.New(rand.NewPCG(1, 1))
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(rng.NormFloat64() * 0.01)
	}
	return x
}

// laplace returns n numbers of the same standard deviation with heavier tails.
func laplace(n int) []float32 {
	rng := rand.New(rand.NewPCG(2, 2))
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(math.Copysign(rng.ExpFloat64()*0.01/math.Sqrt2, rng.Float64()-0.5))
	}
	return x
}
