package kernel

import (
	"math"
	"math/big"
	"math/rand/v2"
	"testing"
)

// fmaBig is a·b+c rounded once, by exact arithmetic.
func fmaBig(a, b, c float32) float32 {
	for _, x := range []float32{a, b, c} {
		if x-x != 0 {
			return float32(float64(a)*float64(b) + float64(c)) // not finite: no rounding
		}
	}
	x, y, z := new(big.Float).SetPrec(2000), new(big.Float).SetFloat64(float64(b)), new(big.Float).SetFloat64(float64(c))
	x.SetFloat64(float64(a)).Mul(x, y).Add(x, z)
	if x.Sign() == 0 {
		return float32(float64(a)*float64(b) + float64(c)) // exact, with the sign of zero
	}
	v, _ := x.Float32()
	return v
}

func anyFloat(r *rand.Rand) float32 {
	switch r.IntN(6) {
	case 0:
		return math.Float32frombits(r.Uint32())
	case 1:
		return specials[r.IntN(len(specials))]
	case 2: // few bits, so that sums tie
		return float32(math.Ldexp(float64(r.IntN(65)-32), r.IntN(40)-20))
	case 3:
		return float32(math.Ldexp(1+float64(r.IntN(8))/(1<<23), r.IntN(60)-30))
	}
	return float32(r.NormFloat64())
}

var specials = []float32{0, float32(math.Copysign(0, -1)), 1, -1, math.SmallestNonzeroFloat32, -math.SmallestNonzeroFloat32, 0x1p-126, 0x1.fffffcp-127,
	math.MaxFloat32, -math.MaxFloat32, float32(math.Inf(1)), float32(math.Inf(-1)), float32(math.NaN()), 1e30, -1e30, 1e-30, 88.72283, 88.72284, -87.33654, -87.33655}

func TestFMARoundsOnce(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	check := func(a, b, c float32) {
		if got, want := fma(a, b, c), fmaBig(a, b, c); !same(got, want) {
			t.Fatalf("fma(%b, %b, %b) = %b, want %b", a, b, c, got, want)
		}
	}
	for range 300_000 {
		check(anyFloat(r), anyFloat(r), anyFloat(r))
	}
	for range 300_000 {
		// Near ties: c is a product's neighbour, or is half a unit in the last place of it.
		a, b := float32(r.NormFloat64()), float32(r.NormFloat64())
		p := float64(a) * float64(b)
		c := float32(math.Ldexp(p, r.IntN(100)-50))
		check(a, b, c)
		check(a, b, -float32(p))
		// c + a·b where a·b is half a unit in c's last place and a bit more or less.
		c = float32(r.NormFloat64())
		half := float64(math.Nextafter32(c, 10)-c) / 2
		a = float32(math.Ldexp(1, r.IntN(20)))
		check(a, float32(half/float64(a)), c)
		check(a, math.Nextafter32(float32(half/float64(a)), 0), c)
		check(a, math.Nextafter32(float32(half/float64(a)), 1), c)
		check(1+0x1p-23, float32(half), c)
		// Denormal results.
		check(float32(r.NormFloat64()*1e-20), float32(r.NormFloat64()*1e-20), math.Float32frombits(r.Uint32()&0x80ffffff))
	}
}

// same reports equal bits, or two NaN.
func same(a, b float32) bool {
	return math.Float32bits(a) == math.Float32bits(b) || a != a && b != b
}

func TestExpError(t *testing.T) {
	worst := 0.0
	for x := float32(expMin); x <= expMax; x = math.Nextafter32(x, 100) {
		if x > -1e-3 && x < 1e-3 {
			x += 1e-5
		}
		for range 997 {
			x = math.Nextafter32(x, 100)
		}
		if x > expMax {
			break
		}
		got, want := float64(exp(x)), math.Exp(float64(x))
		unit := float64(math.Nextafter32(float32(want), math.MaxFloat32)) - float64(float32(want))
		worst = max(worst, math.Abs(got-want)/unit)
	}
	t.Logf("worst error of exp: %.3f units in the last place", worst)
	if !(worst <= 2) {
		t.Fail()
	}
	inf := float32(math.Inf(1))
	for _, c := range []struct{ x, want float32 }{{inf, inf}, {-inf, 0}, {89, inf}, {expMax, 3.4027982e+38}, {-88, 0}, {0, 1}, {math.Nextafter32(expMax, 89), inf}, {math.Nextafter32(expMin, -89), 0}, {float32(math.NaN()), float32(math.NaN())}} {
		if got := exp(c.x); !same(got, c.want) && math.Abs(float64(got/c.want-1)) > 2e-7 {
			t.Errorf("exp(%v) = %v, want %v", c.x, got, c.want)
		}
	}
	if exp(expMin) < 0x1p-126 {
		t.Errorf("exp(expMin) = %v is not normal", exp(expMin))
	}
}

func TestNormalError(t *testing.T) {
	var erf, tail float64
	for x := float32(-12); x < 12; x += 1e-4 {
		phi, u := normal(x)
		want := math.Erfc(-float64(x)/math.Sqrt2) / 2
		erf = max(erf, math.Abs(2*float64(phi)-2*want))
		if x > -12 {
			tail = max(tail, math.Abs(float64(phi)/want-1))
		}
		if w := math.Exp(-float64(x) * float64(x) / 2); math.Abs(float64(u)-w) > 3e-7 {
			t.Fatalf("density at %v: %v, want %v", x, u, w)
		}
	}
	t.Logf("worst error of erf: %.3g, relative error of the distribution down to -12: %.3g", erf, tail)
	if !(erf <= 3e-7) || !(tail < 1e-5) {
		t.Fail()
	}
}
