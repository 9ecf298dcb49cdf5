package kernel

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"hash"
	"math"
	"math/rand/v2"
	"testing"
)

// golden is the hash of what every function makes of fixed inputs. A change of a rounding changes it, and then [Version]
// must change too: machines of different versions do not compute the same bits.
const golden = "18fef3907f5e99f4957dabe9d6de3b9cd91cb71caa1941af40ca87d0725b9837"

// exactly returns numbers in [-4, 4) that are made without rounding, so that every machine starts from the same bits.
func exactly(r *rand.Rand) float32 { return float32(int32(r.Uint32())>>8) / (1 << 21) }

func TestGolden(t *testing.T) {
	for _, path := range paths {
		t.Run(path.String(), func(t *testing.T) {
			s, err := New(path)
			if err != nil {
				t.Skip(err)
			}
			if got := results(t, s); got != golden {
				t.Errorf("the hash of all results is %s, not %s; if the roundings were meant to change, change Version too", got, golden)
			}
		})
	}
}

// results returns the hash of what every function on that path makes of the fixed inputs.
func results(t *testing.T, s Set) string {
	t.Helper()
	h := sha256.New()
	r := rand.New(rand.NewPCG(2026, 1))
	for _, f := range functions {
		for _, n := range []int{1, 16, 37, 500} {
			rows, k := inputs(f, n, func() float32 { return exactly(r) })
			out, sums := f.call(t, s, rows, k, 0)
			for _, row := range append(out, sums) {
				write(h, row)
			}
		}
	}
	for range 40 {
		p := goldenProduct(r)
		s.Multiply(p)
		write(h, p.C)
	}
	for range 500 {
		x, y := float64(exactly(r)), math.Abs(float64(exactly(r)))+1
		sin, cos := SinCos64(x * 1e5)
		for _, v := range []float64{Exp64(x), Log64(y), Pow64(y, x), sin, cos} {
			_ = binary.Write(h, binary.LittleEndian, v)
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}

func write(h hash.Hash, row []float32) {
	for _, x := range row {
		u := math.Float32bits(x)
		if x != x {
			u = 0x7fc00000
		}
		_ = binary.Write(h, binary.LittleEndian, u)
	}
}

func goldenProduct(r *rand.Rand) *Product {
	m, n, k := 1+r.IntN(40), 1+r.IntN(70), 1+r.IntN(300)
	row := func(n int) []float32 {
		x := make([]float32, n)
		for i := range x {
			x[i] = exactly(r)
		}
		return x
	}
	return &Product{M: m, N: n, K: k, A: row(m * k), ARow: k, AStep: 1, B: row(PackedSize(n, k)), BStep: 16, BPanel: 16 * k,
		C: row(m * n), CRow: n, Add: r.IntN(2) == 0}
}

func TestNothingAllocates(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for _, s := range append(assembly(t), Set{}) {
		for _, f := range functions {
			rows, k := inputs(f, 50, r.Float32)
			if f.name == "Rotary" || f.run(s, rows, k) != nil {
				continue // the test itself allocates
			}
			if n := testing.AllocsPerRun(2, func() { f.run(s, rows, k) }); n > 0 {
				t.Errorf("%v: %s allocates %v times", s.Path(), f.name, n)
			}
		}
		p := goldenProduct(r)
		p.N = min(p.N, 9) // a panel that is not full
		if n := testing.AllocsPerRun(2, func() { s.Multiply(p) }); n > 0 {
			t.Errorf("%v: Multiply allocates %v times", s.Path(), n)
		}
		w, dst := make([]float32, 37*21), make([]float32, PackedSize(37, 21))
		if n := testing.AllocsPerRun(2, func() { s.Pack(dst, w, 37, 21); s.PackTransposed(dst, w, 37, 21) }); n > 0 {
			t.Errorf("%v: the packs allocate %v times", s.Path(), n)
		}
	}
}
