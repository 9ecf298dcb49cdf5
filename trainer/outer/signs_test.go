package outer_test

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/capacloud/capanode/trainer/codec"
	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/outer"
)

var update = flag.Bool("update", false, "rewrite golden files")

// model returns the layout of a matrix that decays, of odd sizes, and a vector that does not.
func model(t interface{ Fatal(...any) }, rows, columns, width int) ([]engine.Param, int) {
	params, n, err := engine.Layout([]engine.Param{{Name: "matrix", Shape: []int{rows, columns}, Decay: true}, {Name: "norm", Shape: []int{width}}})
	if err != nil {
		t.Fatal(err)
	}
	return params, n
}

// components is the definition in float64: the cosine components of one parameter's 64×64 tiles, or their inverse.
func components(p engine.Param, x []float64, inverse bool) {
	columns := p.Shape[len(p.Shape)-1]
	rows := p.Size() / columns
	basis := func(k, i, n int) float64 {
		scale := math.Sqrt(2 / float64(n))
		if k == 0 {
			scale = math.Sqrt(1 / float64(n))
		}
		return scale * math.Cos(math.Pi*float64((2*i+1)*k)/float64(2*n))
	}
	given := slices.Clone(x)
	for r0 := 0; r0 < rows; r0 += 64 {
		for c0 := 0; c0 < columns; c0 += 64 {
			h, w := min(64, rows-r0), min(64, columns-c0)
			at := func(r, c int) int { return p.Offset + (r0+r)*columns + c0 + c }
			for k := range h {
				for l := range w {
					sum := 0.0
					for r := range h {
						for c := range w {
							if inverse {
								sum += given[at(r, c)] * basis(r, k, h) * basis(c, l, w)
							} else {
								sum += given[at(r, c)] * basis(k, r, h) * basis(l, c, w)
							}
						}
					}
					x[at(k, l)] = sum
				}
			}
		}
	}
}

// Gradients become components of the clipped mean gradient, and weights move by η against the sign of the mean, after decay, as
// the definition in float64 says; where that is next to zero, rounding may decide.
func TestSignsAreTheDefinition(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		params, n := model(t, rapid.IntRange(1, 12).Draw(t, "rows"), rapid.IntRange(1, 70).Draw(t, "columns"), rapid.IntRange(1, 20).Draw(t, "width"))
		seed, targets := rapid.Uint64().Draw(t, "seed"), rapid.Int64Range(1, 100).Draw(t, "targets")
		clip := rapid.SampledFrom([]float64{0, 0.5, 1e6}).Draw(t, "clip")
		s := outer.NewSigns(params)
		gradient := normal(seed, n, 1)
		want, sum := make([]float64, n), 0.0
		for i, v := range gradient {
			want[i] = float64(v) / float64(targets)
			sum += want[i] * want[i]
		}
		if norm := math.Sqrt(sum); clip > 0 && norm > clip {
			for i := range want {
				want[i] *= clip / norm
			}
		}
		for _, p := range params {
			components(p, want, false)
		}
		if err := s.Components(gradient, targets, clip); err != nil {
			t.Fatal(err)
		}
		for i, v := range gradient {
			if math.Abs(float64(v)-want[i]) > 5e-5 {
				t.Fatalf("component %d is %g, want %g", i, v, want[i])
			}
		}
		mean, weights := normal(seed+1, n, 1), normal(seed+2, n, 1)
		before, direction := slices.Clone(weights), make([]float64, n)
		for i, v := range mean {
			direction[i] = float64(v)
		}
		for _, p := range params {
			components(p, direction, true)
		}
		const rate, decay = 0.01, 0.1
		if err := s.Step(weights, mean, rate, decay); err != nil {
			t.Fatal(err)
		}
		for _, p := range params {
			keep := 1.0
			if p.Decay {
				keep = 1 - rate*decay
			}
			for i := p.Offset; i < p.Offset+p.Size(); i++ {
				to := float64(before[i])*keep - math.Copysign(rate, direction[i])
				if math.Abs(direction[i]) > 1e-4 && math.Abs(float64(weights[i])-to) > 1e-6 {
					t.Fatalf("%s, element %d: %g with the sign of %g gives %g, want %g", p.Name, i, before[i], direction[i], weights[i], to)
				}
			}
		}
	})
}

// Where nobody says anything the weights only decay.
func TestSignOfZero(t *testing.T) {
	params, n := model(t, 3, 5, 2)
	weights := make(vector, n)
	for i := range weights {
		weights[i] = 1
	}
	if err := outer.NewSigns(params).Step(weights, make([]float32, n), 0.5, 0.5); err != nil {
		t.Fatal(err)
	}
	if weights[0] != 0.75 || weights[n-1] != 1 {
		t.Errorf("weights %v, want 0.75 where they decay, else 1", weights)
	}
}

func TestSignsRefuse(t *testing.T) {
	params, n := model(t, 3, 5, 2)
	s, fits := outer.NewSigns(params), make([]float32, n)
	for name, err := range map[string]error{
		"short gradient": s.Components(fits[1:], 1, 0), "no targets": s.Components(fits, 0, 0),
		"short mean": s.Step(fits, fits[1:], 1, 0), "short weights": s.Step(fits[1:], fits, 1, 0),
	} {
		if !errors.Is(err, outer.ErrShape) {
			t.Errorf("%s: %v, want ErrShape", name, err)
		}
	}
	bad := slices.Clone(fits)
	bad[3] = float32(math.NaN())
	if err := s.Components(bad, 1, 1); !errors.Is(err, engine.ErrNumerics) {
		t.Errorf("not a number: %v, want ErrNumerics", err)
	}
}

// Three peers' rounds of gradients have recorded bits, on any number of cores.
func TestGoldenSigns(t *testing.T) {
	path := filepath.Join("testdata", "signs.txt")
	for _, cores := range []int{1, 3} {
		old := runtime.GOMAXPROCS(cores)
		got := signRounds(t)
		runtime.GOMAXPROCS(old)
		if *update {
			if err := os.MkdirAll("testdata", 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%d cores: the weights have the hash %s recorded is %s", cores, got, want)
		}
	}
}

// signRounds returns the hash of weights and residuals after four rounds.
func signRounds(t *testing.T) string {
	params, n := model(t, 150, 80, 96)
	s, weights, mean := outer.NewSigns(params), make([]float32, n), make([]float32, n)
	feedback := []*outer.Feedback{outer.NewFeedback(n, 0.9), outer.NewFeedback(n, 0.9), outer.NewFeedback(n, 0.9)}
	for round := range 4 {
		var updates []outer.Update
		for p, f := range feedback {
			gradient := make([]float32, n)
			for i := range gradient {
				gradient[i] = float32((i+round+1)*(i+7*p)%1013)/512 - 1
			}
			if err := s.Components(gradient, int64(p+1), 1); err != nil {
				t.Fatal(err)
			}
			pending, err := f.Pending(gradient)
			if err != nil {
				t.Fatal(err)
			}
			updates = append(updates, outer.Update{Delta: through(t, codec.Top{K: 256}, pending), Tokens: uint64(p + 1)})
		}
		if err := outer.Mean(mean, updates); err != nil {
			t.Fatal(err)
		}
		if err := s.Step(weights, mean, 0.01, 0.1); err != nil {
			t.Fatal(err)
		}
		for p, f := range feedback {
			if err := f.Commit(updates[p].Delta); err != nil {
				t.Fatal(err)
			}
		}
	}
	h := sha256.New()
	for _, x := range [][]float32{weights, feedback[0].Residual(), feedback[2].Residual()} {
		_ = binary.Write(h, binary.LittleEndian, x) // a hash takes every write
	}
	return hex.EncodeToString(h.Sum(nil)) + "\n"
}

// A step of gradients on all cores: there and back, and the signs.
func BenchmarkSigns(b *testing.B) {
	params, n := model(b, 1024, 1024, 1024)
	s, gradient, weights := outer.NewSigns(params), []float32(normal(1, n, 1)), make([]float32, n)
	b.SetBytes(int64(4 * n))
	for b.Loop() {
		if err := s.Components(gradient, 1, 1); err != nil {
			b.Fatal(err)
		}
		if err := s.Step(weights, gradient, 0.01, 0.1); err != nil {
			b.Fatal(err)
		}
	}
}
