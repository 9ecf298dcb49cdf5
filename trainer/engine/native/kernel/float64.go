package kernel

import "math"

// The functions of this file return the same bits on every architecture, which those of package math do not promise:
// conversions forbid fused multiply-adds, and no hardware function is used. They are for tables and single values.

const (
	ln2Hi64 = 6.93147180369123816490e-01 // the first 33 bits of ln 2, so that products with an exponent are exact
	ln2Lo64 = 1.90821492927058770002e-10
)

// Exp64 returns eˣ within 2 units in the last place.
func Exp64(x float64) float64 {
	switch {
	case x != x || math.IsInf(x, 1):
		return x
	case x > 709.782712893384:
		return math.Inf(1)
	case x < -745.2:
		return 0
	}
	return expSplit(x, 0)
}

// expSplit returns e^(x+low) for a low far below x.
func expSplit(x, low float64) float64 {
	n := math.RoundToEven(float64(x * math.Log2E))
	high := x - float64(n*ln2Hi64) // exact
	low -= float64(n * ln2Lo64)
	r := high + low
	rest := (high - r) + low
	// Taylor's series of (eʳ-1-r)/r² for |r| ≤ ln 2/2.
	const terms = 14
	p := 0.0
	for k := terms; k >= 2; k-- {
		p = float64(p*r) + inverseFactorials[k]
	}
	y := 1 + (r + (rest + float64(float64(r*r)*p)))
	return math.Ldexp(y, int(n))
}

// inverseFactorials are 1/k!, rounded.
var inverseFactorials = [...]float64{1, 1, 1. / 2, 1. / 6, 1. / 24, 1. / 120, 1. / 720, 1. / 5040, 1. / 40320, 1. / 362880, 1. / 3628800,
	1. / 39916800, 1. / 479001600, 1. / 6227020800, 1. / 87178291200, 1. / 1307674368000, 1. / 20922789888000,
	1. / 355687428096000, 1. / 6402373705728000, 1. / 121645100408832000}

// Log64 returns the natural logarithm of x within 2 units in the last place, -Inf for 0 and NaN below.
func Log64(x float64) float64 {
	switch {
	case x != x || math.IsInf(x, 1):
		return x
	case x < 0:
		return math.NaN()
	case x == 0:
		return math.Inf(-1)
	}
	high, low := logSplit(x)
	return high + low
}

// logSplit returns ln x as the unevaluated sum of two numbers, some 68 bits together.
func logSplit(x float64) (high, low float64) {
	m, e := math.Frexp(x)
	if m < math.Sqrt2/2 {
		m, e = 2*m, e-1
	}
	// With f = m-1 (exact) and s = f/(2+f), ln m = 2·artanh s = 2·s + ⅔·s³ + ….
	f, d := m-1, m+1
	s := f / d
	// The rest of the division: m+1 may have lost a bit, and d·s is exact as a sum of two.
	p, q := twoProduct(d, s)
	lost := (m - (d - 1)) + 0
	rest := ((f - p) - q - float64(s*lost)) / d
	z := float64(s * s)
	series := 0.0
	for k := 25; k >= 3; k -= 2 {
		series = float64(series*z) + 2/float64(k)
	}
	series = float64(float64(series*z) * s)
	n := float64(e)
	a, b := twoSum(float64(n*ln2Hi64), 2*s)
	high, c := twoSum(a, series)
	low = c + (b + (2*rest + float64(n*ln2Lo64)))
	return twoSum(high, low)
}

// Pow64 returns x to the power y, for x > 0, within 2 units in the last place while the result is normal.
func Pow64(x, y float64) float64 {
	high, low := logSplit(x)
	p, q := twoProduct(high, y)
	q += float64(low * y)
	if !(math.Abs(p) < 700) || !(x > 0) {
		return Exp64(float64(Log64(x) * y))
	}
	return expSplit(p, q)
}

// twoSum returns a+b and its rounding error, exactly.
func twoSum(a, b float64) (sum, err float64) {
	sum = a + b
	v := sum - a
	return sum, (a - (sum - v)) + (b - v)
}

// twoProduct returns a·b and its rounding error, exactly (Dekker, 1971).
func twoProduct(a, b float64) (product, err float64) {
	product = float64(a * b)
	ah, al := split(a)
	bh, bl := split(b)
	err = float64(al*bl) - (((product - float64(ah*bh)) - float64(al*bh)) - float64(ah*bl))
	return product, err
}

// split cuts x into two halves of 26 bits.
func split(x float64) (high, low float64) {
	t := float64(x * (1<<27 + 1))
	high = t - (t - x)
	return high, x - high
}

// π/2 in parts: the first three have 33 bits, so that products with an integer below 2²⁰ are exact.
const (
	halfPi1 = 1.57079632673412561417e+00
	halfPi2 = 6.07710050630396597660e-11
	halfPi3 = 2.02226624871116645580e-21
	halfPi4 = 8.47842766036889956997e-32
)

// SinCos64 returns the sine and the cosine of x, in radians, within 2 units in the last place for |x| ≤ 10⁶. It returns
// NaN for numbers beyond 1.6·10⁶ and for NaN.
func SinCos64(x float64) (sin, cos float64) {
	if !(math.Abs(x) <= 1.6e6) {
		return math.NaN(), math.NaN()
	}
	n := math.RoundToEven(float64(x * (2 / math.Pi)))
	high, a := twoSum(x-float64(n*halfPi1), -float64(n*halfPi2))
	r, b := twoSum(high, -float64(n*halfPi3))
	r, rest := twoSum(r, a+(b-float64(n*halfPi4)))
	z := float64(r * r)
	s, c := 0.0, 0.0
	for k := 19; k >= 3; k -= 2 {
		s = float64(s*z) + sign(k/2)*inverseFactorials[k]
	}
	for k := 18; k >= 4; k -= 2 {
		c = float64(c*z) + sign(k/2)*inverseFactorials[k]
	}
	// sin(r+rest) ≈ sin r + rest·cos r, cos(r+rest) ≈ cos r - rest·sin r.
	sin = r + (float64(float64(s*z)*r) + float64(rest*(1-z/2)))
	half := z / 2
	w := 1 - half
	cos = w + (((1 - w) - half) + (float64(float64(c*z)*z) - float64(r*rest)))
	switch int64(n) & 3 {
	case 1:
		sin, cos = cos, -sin
	case 2:
		sin, cos = -sin, -cos
	case 3:
		sin, cos = -cos, sin
	}
	return sin, cos
}

// sign is -1 for an odd k, else 1.
func sign(k int) float64 { return float64(1 - 2*(k&1)) }
