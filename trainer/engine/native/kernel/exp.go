package kernel

import "math"

// The exponential is 2ⁿ·p(r) for x = n·ln 2 + r with n the nearest integer and |r| ≤ ln 2/2:
//
//	t = fma(x, 1/ln 2, 1.5·2²³); n = t - 1.5·2²³     (t's low bits are n, rounded to even)
//	r = fma(n, -ln2High, x); r = fma(n, -ln2Low, r)
//	p = c₄; p = fma(p, r, cᵢ) for i = 3 … 0; p = fma(p, r, 1); p = fma(p, r, 1)
//
// and the product with 2ⁿ adds n to the exponent's bits, which is exact. The polynomial interpolates (eʳ-1-r)/r² at
// Chebyshev points; its own relative error is below 1.1e-8. The result is below 1.1 units in the last place off.
const (
	expLog2e = 1.4426950408889634
	expMagic = 12582912 // 1.5·2²³: adding it to |x| < 2²² leaves the nearest integer in the low bits
	ln2High  = float32(0.693147182464599609375)
	ln2Low   = -1.904654323148236017e-9 // ln 2 - ln2High

	expC0 = 0.5
	expC1 = 0.166665769897
	expC2 = 0.0416665546172
	expC3 = 0.00836317905272
	expC4 = 0.00139261835877

	expMax = 88.72283172607422   // the largest float32 whose exponential is finite
	expMin = -87.336540222167969 // the smallest float32 whose exponential is a normal number
)

// exp returns eˣ within 2 units in the last place: +Inf above expMax, +0 below expMin, NaN for NaN.
func exp(x float32) float32 {
	if !(x <= expMax) {
		return x + float32(math.Inf(1))
	}
	if x < expMin {
		return 0
	}
	t := fma(x, expLog2e, expMagic)
	n := t - expMagic
	r := fma(n, -ln2High, x)
	r = fma(n, -ln2Low, r)
	p := float32(expC4)
	p = fma(p, r, expC3)
	p = fma(p, r, expC2)
	p = fma(p, r, expC1)
	p = fma(p, r, expC0)
	p = fma(p, r, 1)
	p = fma(p, r, 1)
	return math.Float32frombits(math.Float32bits(p) + math.Float32bits(t)<<23)
}

// Half the complementary error function is ½·erfc(z) = e^(-z²)·t·q(t) for z ≥ 0 with t = 1/(1+z/2), where the
// polynomial q interpolates at Chebyshev points. It is off by at most 1.3e-8 before rounding.
const (
	erfcP  = math.Sqrt2 / 4 // of x = z·√2
	erfcC0 = 0.282094490186 / 2
	erfcC1 = 0.282143823955 / 2
	erfcC2 = 0.245502014024 / 2
	erfcC3 = 0.190395680507 / 2
	erfcC4 = 0.00860290638739 / 2
	erfcC5 = 0.218876868158 / 2
	erfcC6 = -0.429297367693 / 2
	erfcC7 = 0.254043094467 / 2
	erfcC8 = -0.0523615222839 / 2
)

// normal returns Φ(x) = ½·(1+erf(x/√2)), and u = e^(-x²/2):
//
//	u = exp((x*x)*-½); t = 1/fma(|x|, ½·√½, 1)
//	q = c₈; q = fma(q, t, cᵢ) for i = 7 … 0; h = (q*t)*u
//	Φ = x < 0 ? h : 1-h
func normal(x float32) (phi, u float32) {
	u = exp(float32(x*x) * -0.5)
	t := 1 / fma(float32(math.Abs(float64(x))), erfcP, 1)
	q := float32(erfcC8)
	q = fma(q, t, erfcC7)
	q = fma(q, t, erfcC6)
	q = fma(q, t, erfcC5)
	q = fma(q, t, erfcC4)
	q = fma(q, t, erfcC3)
	q = fma(q, t, erfcC2)
	q = fma(q, t, erfcC1)
	q = fma(q, t, erfcC0)
	h := float32(float32(q*t) * u)
	if x < 0 {
		return h, u
	}
	return 1 - h, u
}

// sigmoid returns 1/(1+exp(-x)).
func sigmoid(x float32) float32 {
	return 1 / (1 + exp(-x))
}
