package outer_test

import (
	"errors"
	"math"
	"math/rand/v2"
	"runtime"
	"testing"

	"pgregory.net/rapid"

	"github.com/capacloud/capanode/trainer/codec"
	"github.com/capacloud/capanode/trainer/outer"
)

// vector is a source without a codec.
type vector []float32

func (v vector) Len() int { return len(v) }
func (v vector) Block(dst []float32, i int) int {
	return copy(dst, v[i*codec.Block:min((i+1)*codec.Block, len(v))])
}

func (v vector) Add(acc []float32, i int, f float32) {
	for j := range acc {
		acc[j] += float32(f * v[i*codec.Block+j])
	}
}

func normal(seed uint64, n int, std float64) vector {
	rng := rand.New(rand.NewPCG(seed, 1))
	x := make(vector, n)
	for i := range x {
		x[i] = float32(rng.NormFloat64() * std)
	}
	return x
}

func TestMeanIsWeightedByTokens(t *testing.T) {
	got := make([]float32, 2)
	err := outer.Mean(got, []outer.Update{{vector{1, -2}, 100}, {vector{4, 7}, 300}})
	if err != nil {
		t.Fatal(err)
	}
	if got[0] != 3.25 || got[1] != 4.75 {
		t.Errorf("got %v, want [3.25 4.75]", got)
	}
}

// Equal updates come out as they went in, whatever their number and weights: nothing is lost and nothing is added.
func TestMeanConserves(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 3*codec.Block).Draw(t, "n")
		x := normal(rapid.Uint64().Draw(t, "seed"), n, 1)
		var updates []outer.Update
		for range rapid.IntRange(1, 8).Draw(t, "peers") {
			updates = append(updates, outer.Update{Delta: x, Tokens: rapid.Uint64Range(1, 1<<40).Draw(t, "tokens")})
		}
		got := make([]float32, n)
		if err := outer.Mean(got, updates); err != nil {
			t.Fatal(err)
		}
		for i := range got {
			if math.Abs(float64(got[i]-x[i])) > 1e-6*math.Abs(float64(x[i])) {
				t.Fatalf("element %d: got %g, want %g", i, got[i], x[i])
			}
		}
	})
}

func TestClipToMedian(t *testing.T) {
	a, b := normal(1, 5000, 1), normal(2, 5000, 1)
	loud := normal(3, 5000, 1000)
	mean := make([]float32, 5000)
	if err := outer.Mean(mean, []outer.Update{{a, 1}, {b, 1}, {loud, 1}}); err != nil {
		t.Fatal(err)
	}
	if norm := outer.Norm(vector(mean)); norm > outer.Norm(a) {
		t.Errorf("one peer moved the mean by %g, its mates by %g", norm, outer.Norm(a))
	}
	// Two peers have no median.
	f := outer.Factors([]outer.Update{{a, 1}, {loud, 3}})
	if f[0] != 0.25 || f[1] != 0.75 {
		t.Errorf("factors of two peers: %v", f)
	}
}

// A sparse update's norm is that of what it decodes to, to the bit.
func TestNormOfSparse(t *testing.T) {
	x := normal(1, 9000, 1)
	src := through(t, codec.Top{K: 64}, x)
	codec.Decode(x, src)
	if got, want := outer.Norm(src), outer.Norm(x); got != want {
		t.Errorf("norm %g, decoded %g", got, want)
	}
}

func TestZeroUpdates(t *testing.T) {
	zero := make(vector, 10)
	mean := normal(1, 10, 1)
	if err := outer.Mean(mean, []outer.Update{{zero, 1}, {zero, 1}, {normal(2, 10, 1), 1}}); err != nil {
		t.Fatal(err)
	}
	if outer.Norm(mean) != 0 {
		t.Errorf("median norm is zero, the mean is %v", mean)
	}
}

func TestMeanRefuses(t *testing.T) {
	mean := make([]float32, 3)
	for name, updates := range map[string][]outer.Update{
		"nothing": nil, "length": {{make(vector, 2), 1}}, "tokens": {{make(vector, 3), 0}},
	} {
		if err := outer.Mean(mean, updates); !errors.Is(err, outer.ErrShape) {
			t.Errorf("%s: %v, want ErrShape", name, err)
		}
	}
	if err := (outer.Settings{}).Step(mean, mean[:2], mean); !errors.Is(err, outer.ErrShape) {
		t.Errorf("step: %v, want ErrShape", err)
	}
}

// The oracle computes Nesterov's step in float64 and must agree to rounding; plain SGD is the case without momentum.
func TestStepIsNesterov(t *testing.T) {
	for _, s := range []outer.Settings{{0.7, 0.9}, {1, 0}} {
		n := 10_000
		w, b := normal(1, n, 1), make(vector, n)
		ow, ob := make([]float64, n), make([]float64, n)
		for i := range w {
			ow[i] = float64(w[i])
		}
		for step := range uint64(5) {
			mean := normal(10+step, n, 0.1)
			if err := s.Step(w, b, mean); err != nil {
				t.Fatal(err)
			}
			for i := range ow {
				g := -float64(mean[i])
				ob[i] = float64(s.Momentum)*ob[i] + g
				ow[i] -= float64(s.LearningRate) * (g + float64(s.Momentum)*ob[i])
			}
		}
		for i := range w {
			if math.Abs(float64(w[i])-ow[i]) > 1e-5 || math.Abs(float64(b[i])-ob[i]) > 1e-5 {
				t.Fatalf("%+v: element %d: got %g, %g, want %g, %g", s, i, w[i], b[i], ow[i], ob[i])
			}
		}
	}
}

// Bits must not depend on the number of cores.
func TestThreadsDoNotMatter(t *testing.T) {
	n := 600_000
	updates := []outer.Update{{normal(1, n, 1), 5}, {normal(2, n, 2), 6}, {normal(3, n, 3), 7}}
	results := map[string]bool{}
	for _, procs := range []int{1, 2, 5} {
		old := runtime.GOMAXPROCS(procs)
		mean, w, b := make([]float32, n), normal(4, n, 1), make([]float32, n)
		if err := outer.Mean(mean, updates); err != nil {
			t.Fatal(err)
		}
		if err := (outer.Settings{LearningRate: 0.7, Momentum: 0.5}).Step(w, b, mean); err != nil {
			t.Fatal(err)
		}
		blob := make([]byte, codec.FP32{}.Bound(n))
		if _, err := (codec.FP32{}).Encode(blob, w); err != nil {
			t.Fatal(err)
		}
		results[string(blob)] = true
		runtime.GOMAXPROCS(old)
	}
	if len(results) != 1 {
		t.Errorf("%d different results", len(results))
	}
}

// Two peers' updates on all cores.
func BenchmarkMean(b *testing.B) {
	n := 1 << 22
	mean, x := make([]float32, n), normal(1, n, 0.01)
	for _, c := range []codec.Codec{codec.FP32{}, codec.Int8{}, codec.Int4{}, codec.Top{K: 64}, codec.Top{K: 512}} {
		b.Run(c.ID(), func(b *testing.B) {
			src := through(b, c, x)
			b.SetBytes(int64(4 * n))
			for b.Loop() {
				if err := outer.Mean(mean, []outer.Update{{src, 1}, {src, 1}}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
