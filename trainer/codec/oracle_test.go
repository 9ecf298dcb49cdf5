package codec_test

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
	"sort"
	"testing"

	"github.com/capacloud/capanode/trainer/codec"
)

// laplace returns numbers of a distribution with heavier tails than the normal one's, of standard deviation std.
func laplace(seed uint64, n int, std float64) []float32 {
	rng := rand.New(rand.NewPCG(seed, 2))
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(math.Copysign(rng.ExpFloat64()*std/math.Sqrt2, rng.Float64()-0.5))
	}
	return x
}

// relative returns the Euclidean norm of x − y over that of x.
func relative(x, y []float32) float64 {
	var errs, power float64
	for i := range x {
		errs += math.Pow(float64(x[i]-y[i]), 2)
		power += math.Pow(float64(x[i]), 2)
	}
	return math.Sqrt(errs / power)
}

// bucketMeans is what int8, int4 and top have in common, written for reading, in float64: an element is its scale times the
// mean of its bucket, which is the sum of the bucket's elements in the group over the sum of their scales. Scale 0 is "not
// sent".
func bucketMeans(x []float32, group int, bucket func(i int) int, scale func(i int) float64) []float64 {
	out := make([]float64, len(x))
	for lo := 0; lo < len(x); lo += group {
		sums, scales := map[int]float64{}, map[int]float64{}
		hi := min(lo+group, len(x))
		for i := lo; i < hi; i++ {
			if s := scale(i); s > 0 {
				sums[bucket(i)] += float64(x[i])
				scales[bucket(i)] += s
			}
		}
		for i := lo; i < hi; i++ {
			if s := scale(i); s > 0 {
				out[i] = s * sums[bucket(i)] / scales[bucket(i)]
			}
		}
	}
	return out
}

func blockOf(x []float32, i int) []float32 {
	return x[i/codec.Block*codec.Block : min((i/codec.Block+1)*codec.Block, len(x))]
}

// sigmas returns each element's block's root mean square.
func sigmas(x []float32) []float64 {
	out := make([]float64, len(x))
	for i := range x {
		if i%codec.Block > 0 {
			out[i] = out[i-1]
			continue
		}
		var sum float64
		for _, v := range blockOf(x, i) {
			sum += float64(v) * float64(v)
		}
		out[i] = math.Sqrt(sum / float64(len(blockOf(x, i))))
	}
	return out
}

func oracleInt8(x []float32) []float64 {
	sigma := sigmas(x)
	scale := func(i int) float64 { return float64(float32(6 * sigma[i] / 256)) }
	return bucketMeans(x, 64*codec.Block, func(i int) int {
		q := math.RoundToEven(float64(x[i] * (1 << 19 / float32(scale(i)))))
		return min(max(int(math.Floor(q/(1<<19)+128.5)), 0), 255)
	}, scale)
}

func oracleInt4(x []float32) []float64 {
	sigma := sigmas(x)
	scale := func(i int) float64 { return float64(float32(sigma[i])) }
	return bucketMeans(x, 64*codec.Block, func(i int) int {
		q, bucket := math.RoundToEven(float64(x[i]*(1<<24/float32(scale(i))))), 0
		for _, t := range []float64{17, 36, 57, 80, 108, 145, 208} {
			if math.Abs(q)/(1<<24) >= t/64 {
				bucket++
			}
		}
		if q < 0 {
			bucket += 8
		}
		return bucket
	}, scale)
}

func oracleTop(k int) func(x []float32) []float64 {
	return func(x []float32) []float64 {
		scale, large := make([]float64, len(x)), make([]bool, len(x))
		for lo := 0; lo < len(x); lo += codec.Block {
			block := blockOf(x, lo)
			var order []int
			for j, v := range block {
				if v != 0 {
					order = append(order, j)
				}
			}
			slices.SortStableFunc(order, func(a, b int) int {
				return cmp.Compare(math.Abs(float64(block[b])), math.Abs(float64(block[a])))
			})
			held := order[:min(len(order), int(math.Ceil(float64(k*len(block))/codec.Block)))]
			sort.Ints(held)
			mean, least := 0.0, math.Inf(1)
			for _, j := range held {
				mean += math.Abs(float64(block[j])) / float64(len(held))
				least = min(least, math.Abs(float64(block[j])))
			}
			for _, j := range held {
				scale[lo+j] = math.Exp2(math.Floor(8*math.Log2(mean)) / 8)
				large[lo+j] = math.Abs(float64(block[j])) >= least+1.5*(mean-least)
			}
		}
		return bucketMeans(x, 128*codec.Block, func(i int) int {
			bucket := 0
			if large[i] {
				bucket = 1
			}
			if x[i] < 0 {
				bucket += 2
			}
			return bucket
		}, func(i int) float64 { return scale[i] })
	}
}

func TestOracles(t *testing.T) {
	for _, o := range []struct {
		codec  codec.Codec
		oracle func([]float32) []float64
	}{
		{codec.Int8{}, oracleInt8}, {codec.Int4{}, oracleInt4}, {codec.Top{K: 1}, oracleTop(1)}, {codec.Top{K: 64}, oracleTop(64)},
		{codec.Top{K: 512}, oracleTop(512)}, {codec.Top{K: 2048}, oracleTop(2048)},
	} {
		for _, n := range []int{1, 7, 4096, 4097, 10000, 700_000} {
			if testing.Short() && n > 10000 {
				break
			}
			x := normal(uint64(n), n, 0.01)
			if n > 100 {
				x[3], x[50] = 5, -3 // outliers
				clear(x[60:80])
			}
			if n > 20_000 {
				for i := range x[8192:20480] {
					x[8192+i] *= 1e-4 // other blocks, other scales
				}
				clear(x[12288:16384])
				clear(x[16384 : 20480-20]) // fewer elements than k
				x[20479] = x[20478]        // equal magnitudes
			}
			got, want := decode(t, o.codec, encode(t, o.codec, x), n), o.oracle(x)
			sigma := sigmas(x)
			for i := range got {
				if math.Abs(float64(got[i])-want[i]) > 4e-6*math.Abs(want[i])+1e-7*sigma[i] {
					t.Fatalf("%s: n=%d: element %d of %g: got %g, want %g", o.codec.ID(), n, i, x[i], got[i], want[i])
				}
			}
		}
	}
}

// Of equal magnitudes the first are held.
func TestTopTies(t *testing.T) {
	x := make([]float32, codec.Block+100)
	for i := range x {
		x[i] = float32(1 - i%2*2)
	}
	x[17], x[99] = 0, 3
	y := decode(t, codec.Top{K: 64}, encode(t, codec.Top{K: 64}, x), len(x))
	var held []int
	for i, v := range y {
		if v != 0 {
			held = append(held, i)
		}
	}
	var want []int
	for i := range 64 {
		if i != 17 {
			want = append(want, i)
		}
	}
	want = append(want, 99, codec.Block, codec.Block+1) // 100 elements hold ⌈64 · 100 / 4096⌉ = 2
	if !slices.Equal(held, want) {
		t.Errorf("held %v, want %v", held, want)
	}
}

// What the documentation promises: bits for each parameter, headers and scales included.
func TestBits(t *testing.T) {
	const n = 1_000_000
	if testing.Short() {
		t.Skip("nothing here is concurrent, and it is a lot of data")
	}
	for name, x := range map[string][]float32{"normal": normal(1, n, 0.001), "Laplace": laplace(1, n, 0.001)} {
		for _, c := range []struct {
			codec codec.Codec
			most  float64
		}{
			{codec.Int8{}, 8.05}, {codec.Int4{}, 4.02}, {codec.Top{K: 32}, 0.084}, {codec.Top{K: 64}, 0.150}, {codec.Top{K: 128}, 0.268}, {codec.Top{K: 256}, 0.469},
			{codec.Top{K: 512}, 0.804}, {codec.Top{K: 1024}, 1.324}, {codec.Top{K: 2048}, 2.002},
		} {
			if bits := 8 * float64(len(encode(t, c.codec, x))) / n; bits > c.most {
				t.Errorf("%s, %s: %.5f bits, want at most %g", name, c.codec.ID(), bits, c.most)
			}
		}
	}
}

// e3m0 is the other 4-bit code that was considered: a sign and a power of two from 2^-7 to 1 times the largest magnitude of
// 256 elements. Nearest values; the scale is not even rounded.
func e3m0(x []float32) []float32 {
	y := make([]float32, len(x))
	for lo := 0; lo < len(x); lo += 256 {
		part := x[lo:min(lo+256, len(x))]
		var most float64
		for _, v := range part {
			most = max(most, math.Abs(float64(v)))
		}
		for i, v := range part {
			best := math.Inf(1)
			for e := range 8 {
				w := math.Copysign(most*math.Exp2(float64(-e)), float64(v))
				if d := math.Abs(float64(v) - w); d < best {
					best, y[lo+i] = d, float32(w)
				}
			}
		}
	}
	return y
}

// The choice of int4's code: what it errs on normal and on heavy-tailed data, and that E3M0 errs more on both.
func TestInt4Error(t *testing.T) {
	const n = 100_000
	for _, c := range []struct {
		name string
		x    []float32
		most float64
	}{{"normal", normal(3, n, 0.02), 0.107}, {"Laplace", laplace(3, n, 0.02), 0.128}} {
		ours, theirs := relative(c.x, decode(t, codec.Int4{}, encode(t, codec.Int4{}, c.x), n)), relative(c.x, e3m0(c.x))
		t.Logf("%s: int4 %.4f, E3M0 %.4f", c.name, ours, theirs)
		if ours > c.most || ours > theirs {
			t.Errorf("%s: relative error %.4f, want at most %g, E3M0 has %.4f", c.name, ours, c.most, theirs)
		}
	}
}

// Encoding and adding reuse their buffers, however long the vector is.
func TestAllocations(t *testing.T) {
	if testing.Short() {
		t.Skip("the race detector, whose runs are short, makes pools forget")
	}
	x := normal(1, 1<<20, 1)
	for _, c := range codecs {
		blob := make([]byte, c.Bound(len(x)))
		size := 0
		if n := testing.AllocsPerRun(5, func() { size, _ = c.Encode(blob, x) }); n > 4 {
			t.Errorf("%s: encoding allocates %g times", c.ID(), n)
		}
		src, err := c.Open(blob[:size], len(x))
		if err != nil {
			t.Fatal(err)
		}
		if n := testing.AllocsPerRun(5, func() {
			for i := range codec.Blocks(len(x)) {
				src.Block(x[i*codec.Block:], i)
				src.Add(x[i*codec.Block:][:codec.Block], i, 0.5)
			}
		}); n > 0 {
			t.Errorf("%s: decoding and adding allocates %g times", c.ID(), n)
		}
	}
}
