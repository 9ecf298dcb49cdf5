package kernel

import "math"

// fma returns a·b+c rounded once to float32.
func fma(a, b, c float32) float32 {
	s := float64(float64(a)*float64(b)) + float64(c)
	if roundsTwice(s) {
		return fmaOdd(a, b, c)
	}
	return float32(s)
}

// roundsTwice reports whether rounding s, the sum of an exact product and a float32 in float64, to float32 may differ
// from rounding the exact sum. It does not unless s is a tie between two neighbouring float32, or so small that the
// result is denormal, where ties lie at other bits.
func roundsTwice(s float64) bool {
	u := math.Float64bits(s)
	return u&(1<<29-1) == 1<<28 || u<<1 < 897<<53
}

// fmaOdd is fma in the general case. It rounds the exact sum to float64 towards the odd last bit, which leaves a second
// rounding to float32 nothing to spoil (Boldo and Melquiond, 2008).
func fmaOdd(a, b, c float32) float32 {
	p, q := float64(float64(a)*float64(b)), float64(c)
	s := p + q
	// The error of s, exactly (Knuth's TwoSum).
	v := s - p
	e := (p - (s - v)) + (q - v)
	if e == 0 || e != e {
		return float32(s) // exact, or not finite
	}
	u := math.Float64bits(s)
	if u&1 == 0 {
		if (e > 0) == (s > 0) {
			u++
		} else {
			u--
		}
	}
	return float32(math.Float64frombits(u))
}
