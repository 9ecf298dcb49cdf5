package kernel

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
)

// assembly returns the assembly paths that this CPU runs, and says which it does not.
func assembly(t testing.TB) []Set {
	t.Helper()
	var all []Set
	for _, p := range paths[1:] {
		s, err := New(p)
		if err != nil {
			t.Logf("not tested: %v", err)
			continue
		}
		all = append(all, s)
	}
	return all
}

// function describes one function over rows for all tests.
type function struct {
	name    string
	rows    int   // slices, all of one length
	writes  []int // those that it writes
	reads   []int // those of them that it also reads
	scalars int
	run     func(s Set, r [][]float32, k []float32) (sums []float32)
	// exact is the formula for one element of each row, in float64: it changes e and returns terms of the sums.
	exact func(e, k []float64) (terms []float64)
	// bound is the error allowed for each unit of the sum of the magnitudes of terms, or of max(1, result).
	bound float64
}

func phi64(x float64) float64 { return math.Erfc(-x/math.Sqrt2) / 2 }

func sigmoid64(x float64) float64 { return 1 / (1 + math.Exp(-x)) }

var functions = []function{
	{name: "Add", rows: 3, writes: []int{0}, run: func(s Set, r [][]float32, k []float32) []float32 { s.Add(r[0], r[1], r[2]); return nil },
		exact: func(e, k []float64) []float64 { e[0] = e[1] + e[2]; return nil }},
	{name: "AddScaled", rows: 2, writes: []int{0}, reads: []int{0}, scalars: 1,
		run:   func(s Set, r [][]float32, k []float32) []float32 { s.AddScaled(r[0], r[1], k[0]); return nil },
		exact: func(e, k []float64) []float64 { e[0] += e[1] * k[0]; return nil }},
	{name: "Scale", rows: 2, writes: []int{0}, scalars: 1, run: func(s Set, r [][]float32, k []float32) []float32 { s.Scale(r[0], r[1], k[0]); return nil },
		exact: func(e, k []float64) []float64 { e[0] = e[1] * k[0]; return nil }},
	{name: "Mul", rows: 3, writes: []int{0}, run: func(s Set, r [][]float32, k []float32) []float32 { s.Mul(r[0], r[1], r[2]); return nil },
		exact: func(e, k []float64) []float64 { e[0] = e[1] * e[2]; return nil }},
	{name: "Sum", rows: 1, run: func(s Set, r [][]float32, k []float32) []float32 { return []float32{s.Sum(r[0])} },
		exact: func(e, k []float64) []float64 { return []float64{e[0]} }},
	{name: "Dot", rows: 2, run: func(s Set, r [][]float32, k []float32) []float32 { return []float32{s.Dot(r[0], r[1])} },
		exact: func(e, k []float64) []float64 { return []float64{e[0] * e[1]} }},
	{name: "DotMul", rows: 3, run: func(s Set, r [][]float32, k []float32) []float32 { return []float32{s.DotMul(r[0], r[1], r[2])} },
		exact: func(e, k []float64) []float64 { return []float64{e[0] * e[1] * e[2]} }},
	{name: "SumSquaredDiff", rows: 1, scalars: 1, run: func(s Set, r [][]float32, k []float32) []float32 { return []float32{s.SumSquaredDiff(r[0], k[0])} },
		exact: func(e, k []float64) []float64 { return []float64{(e[0] - k[0]) * (e[0] - k[0])} }},
	{name: "Max", rows: 1, run: func(s Set, r [][]float32, k []float32) []float32 { return []float32{s.Max(r[0])} }},
	{name: "SumSquares64", rows: 1, run: func(s Set, r [][]float32, k []float32) []float32 {
		u := math.Float64bits(s.SumSquares64(r[0]))
		if math.IsNaN(math.Float64frombits(u)) {
			return []float32{float32(math.NaN())}
		}
		return []float32{math.Float32frombits(uint32(u >> 32)), math.Float32frombits(uint32(u))}
	}},
	{name: "ExpSum", rows: 1, writes: []int{0}, reads: []int{0}, scalars: 1,
		run:   func(s Set, r [][]float32, k []float32) []float32 { return []float32{s.ExpSum(r[0], k[0])} },
		exact: func(e, k []float64) []float64 { e[0] = math.Exp(e[0] - k[0]); return []float64{e[0]} }},
	{name: "ExpScale", rows: 1, writes: []int{0}, reads: []int{0}, scalars: 2,
		run:   func(s Set, r [][]float32, k []float32) []float32 { s.ExpScale(r[0], k[0], k[1]); return nil },
		exact: func(e, k []float64) []float64 { e[0] = math.Exp(e[0]-k[0]) * k[1]; return nil }},
	{name: "SoftmaxBackward", rows: 2, writes: []int{0}, reads: []int{0}, scalars: 1,
		run:   func(s Set, r [][]float32, k []float32) []float32 { s.SoftmaxBackward(r[0], r[1], k[0]); return nil },
		exact: func(e, k []float64) []float64 { e[0] = e[1] * (e[0] - k[0]); return nil }},
	{name: "RMSNorm", rows: 3, writes: []int{0}, scalars: 1, run: func(s Set, r [][]float32, k []float32) []float32 { s.RMSNorm(r[0], r[1], r[2], k[0]); return nil },
		exact: func(e, k []float64) []float64 { e[0] = e[1] * k[0] * e[2]; return nil }},
	{name: "RMSNormBackward", rows: 4, writes: []int{0}, scalars: 2,
		run: func(s Set, r [][]float32, k []float32) []float32 {
			s.RMSNormBackward(r[0], r[1], r[2], r[3], k[0], k[1])
			return nil
		},
		exact: func(e, k []float64) []float64 { e[0] = e[1]*e[3]*k[0] - e[2]*k[1]; return nil }},
	{name: "RMSNormGrad", rows: 3, writes: []int{0}, reads: []int{0}, scalars: 1,
		run:   func(s Set, r [][]float32, k []float32) []float32 { s.RMSNormGrad(r[0], r[1], r[2], k[0]); return nil },
		exact: func(e, k []float64) []float64 { e[0] += e[1] * e[2] * k[0]; return nil }},
	{name: "LayerNorm", rows: 4, writes: []int{0}, scalars: 2,
		run: func(s Set, r [][]float32, k []float32) []float32 {
			s.LayerNorm(r[0], r[1], r[2], r[3], k[0], k[1])
			return nil
		},
		exact: func(e, k []float64) []float64 { e[0] = (e[1]-k[0])*k[1]*e[2] + e[3]; return nil }},
	{name: "LayerNormSums", rows: 3, scalars: 2,
		run: func(s Set, r [][]float32, k []float32) []float32 {
			u, ux := s.LayerNormSums(r[0], r[1], r[2], k[0], k[1])
			return []float32{u, ux}
		},
		exact: func(e, k []float64) []float64 { return []float64{e[0] * e[1], e[0] * e[1] * (e[2] - k[0]) * k[1]} }},
	{name: "LayerNormBackward", rows: 4, writes: []int{0}, scalars: 4,
		run: func(s Set, r [][]float32, k []float32) []float32 {
			s.LayerNormBackward(r[0], r[1], r[2], r[3], k[0], k[1], k[2], k[3])
			return nil
		},
		exact: func(e, k []float64) []float64 { e[0] = k[1] * (e[1]*e[2] - k[2] - (e[3]-k[0])*k[1]*k[3]); return nil }},
	{name: "LayerNormGrad", rows: 4, writes: []int{0, 1}, reads: []int{0, 1}, scalars: 2,
		run: func(s Set, r [][]float32, k []float32) []float32 {
			s.LayerNormGrad(r[0], r[1], r[2], r[3], k[0], k[1])
			return nil
		},
		exact: func(e, k []float64) []float64 { e[0] += e[2] * (e[3] - k[0]) * k[1]; e[1] += e[2]; return nil }},
	{name: "SwiGLU", rows: 3, writes: []int{0}, run: func(s Set, r [][]float32, k []float32) []float32 { s.SwiGLU(r[0], r[1], r[2]); return nil },
		exact: func(e, k []float64) []float64 { e[0] = e[1] * sigmoid64(e[1]) * e[2]; return nil }},
	{name: "SwiGLUBackward", rows: 5, writes: []int{0, 1},
		run: func(s Set, r [][]float32, k []float32) []float32 {
			s.SwiGLUBackward(r[0], r[1], r[2], r[3], r[4])
			return nil
		},
		exact: func(e, k []float64) []float64 {
			p := sigmoid64(e[2])
			e[0], e[1] = e[4]*e[3]*(p+e[2]*p*(1-p)), e[4]*e[2]*p
			return nil
		}},
	{name: "GELU", rows: 2, writes: []int{0}, run: func(s Set, r [][]float32, k []float32) []float32 { s.GELU(r[0], r[1]); return nil },
		exact: func(e, k []float64) []float64 { e[0] = e[1] * phi64(e[1]); return nil }},
	{name: "GELUBackward", rows: 3, writes: []int{0}, run: func(s Set, r [][]float32, k []float32) []float32 { s.GELUBackward(r[0], r[1], r[2]); return nil },
		exact: func(e, k []float64) []float64 {
			e[0] = e[2] * (phi64(e[1]) + e[1]*math.Exp(-e[1]*e[1]/2)/math.Sqrt(2*math.Pi))
			return nil
		}},
	{name: "GELUTanh", rows: 2, writes: []int{0}, run: func(s Set, r [][]float32, k []float32) []float32 { s.GELUTanh(r[0], r[1]); return nil },
		exact: func(e, k []float64) []float64 { e[0] = geluTanh64(e[1]); return nil }},
	{name: "GELUTanhBackward", rows: 3, writes: []int{0}, run: func(s Set, r [][]float32, k []float32) []float32 { s.GELUTanhBackward(r[0], r[1], r[2]); return nil },
		exact: func(e, k []float64) []float64 {
			x, c := e[1], math.Sqrt(2/math.Pi)
			u := math.Tanh(c * (x + 0.044715*x*x*x))
			e[0] = e[2] * (0.5*(1+u) + 0.5*x*(1-u*u)*c*(1+3*0.044715*x*x))
			return nil
		}},
	{name: "AdamW", rows: 4, writes: []int{0, 1, 2}, reads: []int{0, 1, 2}, scalars: 9, bound: 1e-4,
		run: func(s Set, r [][]float32, k []float32) []float32 {
			s.AdamW(r[0], r[1], r[2], r[3], Coefficients{k[0], k[1], k[2], k[3], k[4], k[5], k[6], k[7]}, k[8])
			return nil
		},
		exact: func(e, k []float64) []float64 {
			g := e[3] * k[0]
			e[1] = k[1]*e[1] + k[2]*g
			e[2] = k[3]*e[2] + k[4]*g*g
			e[0] = e[0]*k[8] - k[5]*e[1]/(math.Sqrt(e[2]*k[6])+k[7])
			return nil
		}},
	{name: "Rotary", rows: 6, writes: []int{0, 1}, run: func(s Set, r [][]float32, k []float32) []float32 {
		dst, x := make([]float32, 2*len(r[0])), append(append([]float32{}, r[2]...), r[3]...)
		s.Rotary(dst, x, r[4], r[5])
		s.Rotary(x, x, r[4], r[5])
		copy(r[0], dst)
		copy(r[1], x[len(r[0]):])
		return nil
	},
		exact: func(e, k []float64) []float64 {
			e[0], e[1] = e[2]*e[4]-e[3]*e[5], e[3]*e[4]+e[2]*e[5]
			return nil
		}},
}

func geluTanh64(x float64) float64 {
	return 0.5 * x * (1 + math.Tanh(math.Sqrt(2/math.Pi)*(x+0.044715*x*x*x)))
}

// lengths are all those to 70, and some larger. The short form is for emulators of CPUs.
func lengths(r *rand.Rand) []int {
	var all []int
	for n := range 71 {
		all = append(all, n)
	}
	for i := range 30 {
		if i < 2 || !testing.Short() {
			all = append(all, 71+r.IntN(3000))
		}
	}
	return all
}

const guard = float32(-77.125)

// guarded returns a slice of n elements, filled, inside memory that holds the guard value.
func guarded(n, offset int, fill func() float32) (all, row []float32) {
	all = make([]float32, n+offset+40)
	for i := range all {
		all[i] = guard
	}
	row = all[offset : offset+n : offset+n]
	for i := range row {
		row[i] = fill()
	}
	return all, row
}

// call runs a function on copies of the rows at odd places, and returns what it left in memory and the sums.
func (f function) call(t *testing.T, s Set, rows [][]float32, k []float32, offset int) (out [][]float32, sums []float32) {
	t.Helper()
	var memory [][]float32
	for i, r := range rows {
		j := 0
		all, row := guarded(len(r), 8+(offset+i*5)%23, func() float32 { j++; return r[j-1] })
		memory, out = append(memory, all), append(out, row)
	}
	sums = f.run(s, out, k)
	for i, all := range memory {
		at := 8 + (offset+i*5)%23
		for j, x := range all {
			if (j < at || j >= at+len(rows[i])) && x != guard {
				t.Fatalf("%s on %v, length %d: row %d is written at %d", f.name, s.Path(), len(rows[i]), i, j-at)
			}
		}
		written := false
		for _, w := range f.writes {
			written = written || w == i
		}
		if !written {
			for j, x := range rows[i] {
				if !same(x, out[i][j]) {
					t.Fatalf("%s on %v changed its input %d", f.name, s.Path(), i)
				}
			}
		}
	}
	return out, sums
}

func TestPathsAgree(t *testing.T) {
	sets := assembly(t)
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	for _, f := range functions {
		for round, n := range lengths(r) {
			fill := func() float32 { return anyFloat(r) }
			if round%2 == 0 {
				fill = func() float32 { return float32(r.NormFloat64() * 3) }
			}
			rounds := 3
			if testing.Short() {
				rounds = 1
			}
			for range rounds {
				rows, k := inputs(f, n, fill)
				offset := r.IntN(16)
				want, wantSums := f.call(t, Set{}, rows, k, offset)
				for _, s := range sets {
					got, sums := f.call(t, s, rows, k, offset)
					for i := range sums {
						if !same(sums[i], wantSums[i]) {
							t.Fatalf("%s on %v, length %d: sum %d is %b, portable %b", f.name, s.Path(), n, i, sums[i], wantSums[i])
						}
					}
					for _, w := range f.writes {
						for j := range got[w] {
							if !same(got[w][j], want[w][j]) {
								t.Fatalf("%s on %v, length %d: row %d at %d is %b, portable %b\ninputs %v %v", f.name, s.Path(), n, w, j, got[w][j], want[w][j], at(rows, j), k)
							}
						}
					}
				}
			}
		}
	}
}

func inputs(f function, n int, fill func() float32) (rows [][]float32, k []float32) {
	for range f.rows {
		_, row := guarded(n, 0, fill)
		rows = append(rows, row)
	}
	for range f.scalars {
		k = append(k, fill())
	}
	return rows, k
}

func at(rows [][]float32, j int) (e []float32) {
	for _, r := range rows {
		e = append(e, r[j])
	}
	return e
}

func TestFunctionsAreTheirFormulas(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	for _, f := range functions {
		if f.exact == nil {
			continue
		}
		bound := f.bound
		if bound == 0 {
			bound = 3e-6
		}
		for _, n := range []int{1, 5, 16, 33, 400} {
			rows, k := inputs(f, n, func() float32 { return float32(r.NormFloat64()) })
			if f.name == "AdamW" {
				for i := range rows[2] {
					rows[2][i] = float32(math.Abs(float64(rows[2][i])))
				}
				k = []float32{0.5, 0.9, 0.1, 0.95, 0.05, 0.01, 1.5, 1e-8, 0.99}
			}
			got, sums := f.call(t, Set{}, rows, k, 0)
			var k64, want, size []float64
			for _, x := range k {
				k64 = append(k64, float64(x))
			}
			for j := range n {
				var e []float64
				for _, x := range at(rows, j) {
					e = append(e, float64(x))
				}
				terms := f.exact(e, k64)
				for _, w := range f.writes {
					if d := math.Abs(float64(got[w][j]) - e[w]); !(d <= bound*max(1, math.Abs(e[w]))) {
						t.Fatalf("%s, seed %d: row %d is %v for %v %v, want %v", f.name, seed, w, got[w][j], at(rows, j), k, e[w])
					}
				}
				want, size = append(want, make([]float64, len(terms)-min(len(want), len(terms)))...), append(size, make([]float64, len(terms)-min(len(size), len(terms)))...)
				for i, x := range terms {
					want[i] += x
					size[i] += math.Abs(x)
				}
			}
			for i := range want {
				if d := math.Abs(float64(sums[i]) - want[i]); !(d <= bound*max(1, size[i])) {
					t.Fatalf("%s, seed %d: sum %d is %v, want %v", f.name, seed, i, sums[i], want[i])
				}
			}
		}
	}
}

// TestOutputsMayBeInputs calls each function with an output in the place of each input.
func TestOutputsMayBeInputs(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for _, s := range append(assembly(t), Set{}) {
		for _, f := range functions {
			if len(f.reads) > 0 || len(f.writes) == 0 || f.name == "Rotary" {
				continue
			}
			for _, n := range []int{7, 16, 53} {
				for a := len(f.writes); a < f.rows; a++ {
					rows, k := inputs(f, n, func() float32 { return float32(r.NormFloat64()) })
					want, _ := f.call(t, Set{}, rows, k, 0)
					rows[0] = rows[a]
					if len(f.writes) == 2 {
						rows[1] = rows[len(f.writes)+(a-1)%(f.rows-2)]
					}
					f.run(s, rows, k)
					for _, w := range f.writes {
						for j := range n {
							if !same(rows[w][j], want[w][j]) {
								t.Fatalf("%s on %v with outputs over inputs: row %d at %d is %v, want %v", f.name, s.Path(), w, j, rows[w][j], want[w][j])
							}
						}
					}
				}
			}
		}
	}
}

func TestMaxAndSumsOfFewElements(t *testing.T) {
	nan, inf, minus := float32(math.NaN()), float32(math.Inf(1)), float32(math.Copysign(0, -1))
	for _, s := range append(assembly(t), Set{}) {
		for _, c := range []struct {
			x    []float32
			want float32
		}{{nil, -inf}, {[]float32{-3}, -3}, {[]float32{1, nan, 2}, nan}, {[]float32{nan}, nan}, {[]float32{-inf, -inf}, -inf}, {[]float32{-1, inf}, inf}} {
			if got := s.Max(c.x); !same(got, c.want) {
				t.Errorf("%v: Max(%v) = %v, want %v", s.Path(), c.x, got, c.want)
			}
		}
		for n := 1; n < 70; n++ {
			for at := range n {
				x := make([]float32, n)
				x[at] = nan
				if got := s.Max(x); got == got {
					t.Fatalf("%v: the maximum hides a NaN at %d of %d", s.Path(), at, n)
				}
			}
		}
		if got := s.Sum(nil); !same(got, 0) {
			t.Errorf("%v: Sum() = %v", s.Path(), got)
		}
		if got := s.Sum([]float32{minus}); !same(got, 0) {
			t.Errorf("%v: Sum(-0) = %v", s.Path(), got)
		}
		// An underflowing product leaves -0 in a lane, which missing elements must not turn into +0.
		if got := s.Dot([]float32{1e-30}, []float32{-1e-30}); !same(got, (Set{}).Dot([]float32{1e-30}, []float32{-1e-30})) {
			t.Errorf("%v: Dot = %v", s.Path(), got)
		}
		if got := s.SumSquares64([]float32{3, 4}); got != 25 {
			t.Errorf("%v: SumSquares64 = %v", s.Path(), got)
		}
	}
}

func TestSelect(t *testing.T) {
	t.Setenv(Variable, "")
	if s, err := Select(); err != nil || s.Path() != Best() {
		t.Fatalf("Select() = %v, %v", s.Path(), err)
	}
	for _, p := range paths {
		t.Setenv(Variable, p.String())
		s, err := Select()
		if p.Supported() && (err != nil || s.Path() != p) {
			t.Errorf("%v: got %v, %v", p, s.Path(), err)
		}
		if !p.Supported() && !errors.Is(err, ErrPath) {
			t.Errorf("%v: got %v, want ErrPath", p, err)
		}
	}
	t.Setenv(Variable, "sse")
	if _, err := Select(); !errors.Is(err, ErrPath) {
		t.Errorf("got %v, want ErrPath", err)
	}
	if _, err := New(Path(9)); !errors.Is(err, ErrPath) {
		t.Errorf("got %v, want ErrPath", err)
	}
	if got := fmt.Sprint(Portable, AVX2, AVX512, Path(9)); got != "portable avx2 avx512 path(9)" {
		t.Error(got)
	}
}
