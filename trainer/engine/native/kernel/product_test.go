package kernel

import (
	"math/rand/v2"
	"testing"
)

// naive computes a product as its definition reads.
func naive(p Product, c []float32) {
	for m := range p.M {
		for n := range p.N {
			x := float32(0)
			if p.Add {
				x = c[m*p.CRow+n]
			}
			for k := range p.K {
				x = fma(p.A[m*p.ARow+k*p.AStep], p.B[n/16*p.BPanel+k*p.BStep+n%16], x)
			}
			c[m*p.CRow+n] = x
		}
	}
}

// randomProduct returns a product with its slices cut to the last element that may be touched.
func randomProduct(r *rand.Rand) Product {
	sizes := []int{0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 47, 48, 49, 64, 65, 81}
	p := Product{M: sizes[r.IntN(len(sizes))], N: sizes[r.IntN(len(sizes))], K: sizes[r.IntN(len(sizes))], Add: r.IntN(2) == 0}
	switch r.IntN(12) {
	case 0:
		p.K = 200 + r.IntN(400)
	case 1:
		p.M = 230 + r.IntN(100)
	}
	if r.IntN(2) == 0 {
		p.ARow, p.AStep = p.K+r.IntN(5), 1
	} else {
		p.ARow, p.AStep = 1, p.M+r.IntN(5)
	}
	panels := (p.N + 15) / 16
	if r.IntN(2) == 0 {
		p.BStep, p.BPanel = 16, 16*p.K
	} else {
		p.BStep, p.BPanel = 16*panels+r.IntN(5), 16
	}
	p.CRow = p.N + r.IntN(4)
	fill := func() float32 { return float32(r.NormFloat64()) }
	if r.IntN(4) == 0 {
		fill = func() float32 { return anyFloat(r) }
	}
	if p.M > 0 && p.N > 0 {
		_, p.C = guarded((p.M-1)*p.CRow+p.N, 8, fill)
		if p.K > 0 {
			_, p.A = guarded((p.M-1)*p.ARow+(p.K-1)*p.AStep+1, 8, fill)
			_, p.B = guarded((panels-1)*p.BPanel+(p.K-1)*p.BStep+16, 8, fill)
		}
	}
	return p
}

func TestMultiplyIsOneChainPerElement(t *testing.T) {
	sets := append(assembly(t), Set{})
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 1))
	rounds := 600
	if testing.Short() {
		rounds = 100
	}
	for range rounds {
		p := randomProduct(r)
		i := 0
		copied := func() float32 { i++; return p.C[i-1] }
		_, want := guarded(len(p.C), 0, copied)
		naive(p, want)
		for _, s := range sets {
			i = 0
			q := p
			all, c := guarded(len(p.C), 8, copied)
			q.C = c
			s.Multiply(&q)
			for i, x := range all {
				switch j := i - 8; {
				case (j < 0 || j >= len(c)) && x != guard:
					t.Fatalf("%v, seed %d: %d×%d×%d writes C at %d", s.Path(), seed, p.M, p.N, p.K, j)
				case j >= 0 && j < len(c) && !same(x, want[j]):
					t.Fatalf("%v, seed %d: %d×%d×%d, C[%d, %d] is %v, want %v", s.Path(), seed, p.M, p.N, p.K, j/p.CRow, j%p.CRow, x, want[j])
				}
			}
		}
	}
}

func TestPacks(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	for _, s := range append(assembly(t), Set{}) {
		for range 100 {
			out, in := r.IntN(70), r.IntN(70)
			_, w := guarded(out*in, 8, r.Float32)
			size := PackedSize(out, in)
			all, dst := guarded(size, 8, func() float32 { return 5 })
			s.PackTransposed(dst, w, out, in)
			for i := range (out + 15) / 16 * 16 * in {
				o, k := i/(16*in)*16+i%16, i/16%in
				want := float32(0)
				if o < out {
					want = w[o*in+k]
				}
				if dst[i] != want {
					t.Fatalf("%v: PackTransposed of %d×%d at %d: %v, want %v", s.Path(), out, in, i, dst[i], want)
				}
			}
			s.Pack(dst, w, out, in)
			for i := range (in + 15) / 16 * 16 * out {
				k, o := i/(16*out)*16+i%16, i/16%out
				want := float32(0)
				if k < in {
					want = w[o*in+k]
				}
				if dst[i] != want {
					t.Fatalf("%v: Pack of %d×%d at %d: %v, want %v", s.Path(), out, in, i, dst[i], want)
				}
			}
			for i, x := range all {
				if (i < 8 || i >= 8+size) && x != guard {
					t.Fatalf("%v: a pack of %d×%d writes at %d", s.Path(), out, in, i-8)
				}
			}
		}
	}
}

func TestTranspose(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 10))
	for _, s := range append(assembly(t), Set{}) {
		for range 200 {
			rows, cols := r.IntN(90), r.IntN(90)
			srcRow, dstRow := cols+r.IntN(4), rows+r.IntN(4)
			_, src := guarded(max(0, (rows-1)*srcRow+cols), 8, r.Float32)
			all, dst := guarded(max(0, (cols-1)*dstRow+rows), 8, func() float32 { return guard })
			s.Transpose(dst, dstRow, src, srcRow, rows, cols)
			written := 0
			for _, x := range all {
				if x != guard {
					written++
				}
			}
			if written != rows*cols {
				t.Fatalf("%v: %d of %d×%d written", s.Path(), written, rows, cols)
			}
			for i := range rows {
				for j := range cols {
					if dst[j*dstRow+i] != src[i*srcRow+j] {
						t.Fatalf("%v: %d×%d at %d, %d", s.Path(), rows, cols, i, j)
					}
				}
			}
		}
	}
}

// TestPackedProducts multiplies by both packs as a linear layer does.
func TestPackedProducts(t *testing.T) {
	r := rand.New(rand.NewPCG(11, 12))
	for _, s := range append(assembly(t), Set{}) {
		tokens, in, out := 9, 21, 37
		fill := func(n int) []float32 {
			x := make([]float32, n)
			for i := range x {
				x[i] = float32(r.IntN(9) - 4) // small integers: sums are exact in any order
			}
			return x
		}
		x, w, dy := fill(tokens*in), fill(out*in), fill(tokens*out)
		packed := make([]float32, PackedSize(out, in))
		y, dx := make([]float32, tokens*out), make([]float32, tokens*in)
		s.PackTransposed(packed, w, out, in)
		s.Multiply(&Product{M: tokens, N: out, K: in, A: x, ARow: in, AStep: 1, B: packed, BStep: 16, BPanel: 16 * in, C: y, CRow: out})
		s.Pack(packed, w, out, in)
		s.Multiply(&Product{M: tokens, N: in, K: out, A: dy, ARow: out, AStep: 1, B: packed, BStep: 16, BPanel: 16 * out, C: dx, CRow: in})
		ld := 48 // padded rows: the last panel reads past the last column
		xp := make([]float32, tokens*ld)
		for i := range tokens {
			copy(xp[i*ld:], x[i*in:i*in+in])
		}
		dw := make([]float32, out*in)
		s.Multiply(&Product{M: out, N: in, K: tokens, A: dy, ARow: 1, AStep: out, B: xp, BStep: ld, BPanel: 16, C: dw, CRow: in, Add: true})
		for i := range tokens {
			for o := range out {
				want := float32(0)
				for k := range in {
					want += x[i*in+k] * w[o*in+k]
				}
				if y[i*out+o] != want {
					t.Fatalf("%v: y[%d, %d] = %v, want %v", s.Path(), i, o, y[i*out+o], want)
				}
			}
			for k := range in {
				want := float32(0)
				for o := range out {
					want += dy[i*out+o] * w[o*in+k]
				}
				if dx[i*in+k] != want {
					t.Fatalf("%v: dx[%d, %d] = %v, want %v", s.Path(), i, k, dx[i*in+k], want)
				}
			}
		}
		for o := range out {
			for k := range in {
				want := float32(0)
				for i := range tokens {
					want += dy[i*out+o] * x[i*in+k]
				}
				if dw[o*in+k] != want {
					t.Fatalf("%v: dw[%d, %d] = %v, want %v", s.Path(), o, k, dw[o*in+k], want)
				}
			}
		}
	}
}

func TestNegativeStridesPanic(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("a negative stride was accepted")
		}
	}()
	x := make([]float32, 64)
	(Set{}).Multiply(&Product{M: 2, N: 2, K: 2, A: x, ARow: -1, AStep: 2, B: x, BStep: 16, BPanel: 16, C: x, CRow: 2})
}
