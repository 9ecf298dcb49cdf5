package kernel

import "math"

// Add sets dst = a+b.
func (s Set) Add(dst, a, b []float32) {
	a, b = a[:len(dst)], b[:len(dst)]
	switch s.path {
	case AVX512:
		addAVX512(dst, a, b)
	case AVX2:
		addAVX2(dst, a, b)
	default:
		addPortable(dst, a, b)
	}
}

// AddScaled sets dst = fma(x, scale, dst).
func (s Set) AddScaled(dst, x []float32, scale float32) {
	x = x[:len(dst)]
	switch s.path {
	case AVX512:
		addScaledAVX512(dst, x, scale)
	case AVX2:
		addScaledAVX2(dst, x, scale)
	default:
		addScaledPortable(dst, x, scale)
	}
}

// Scale sets dst = x*scale.
func (s Set) Scale(dst, x []float32, scale float32) {
	x = x[:len(dst)]
	switch s.path {
	case AVX512:
		scaleAVX512(dst, x, scale)
	case AVX2:
		scaleAVX2(dst, x, scale)
	default:
		scalePortable(dst, x, scale)
	}
}

// Mul sets dst = a*b.
func (s Set) Mul(dst, a, b []float32) {
	a, b = a[:len(dst)], b[:len(dst)]
	switch s.path {
	case AVX512:
		mulAVX512(dst, a, b)
	case AVX2:
		mulAVX2(dst, a, b)
	default:
		mulPortable(dst, a, b)
	}
}

// Sum returns the row sum of x.
func (s Set) Sum(x []float32) float32 {
	switch s.path {
	case AVX512:
		return sumAVX512(x)
	case AVX2:
		return sumAVX2(x)
	}
	return sumPortable(x)
}

// Dot returns the row sum of a·b: lane = fma(a, b, lane).
func (s Set) Dot(a, b []float32) float32 {
	b = b[:len(a)]
	switch s.path {
	case AVX512:
		return dotAVX512(a, b)
	case AVX2:
		return dotAVX2(a, b)
	}
	return dotPortable(a, b)
}

// DotMul returns the row sum of a·b·c: lane = fma(a*b, c, lane).
func (s Set) DotMul(a, b, c []float32) float32 {
	b, c = b[:len(a)], c[:len(a)]
	switch s.path {
	case AVX512:
		return dotMulAVX512(a, b, c)
	case AVX2:
		return dotMulAVX2(a, b, c)
	}
	return dotMulPortable(a, b, c)
}

// Max returns the largest element of x, -Inf if there is none, and NaN if one is. It compares in the lanes and the tree
// of a row sum, starting from -Inf, with max(a, b) = a > b ? a : b where b is what the lane holds, which decides between
// +0 and -0.
func (s Set) Max(x []float32) float32 {
	switch s.path {
	case AVX512:
		return maxAVX512(x)
	case AVX2:
		return maxAVX2(x)
	}
	return maxPortable(x)
}

// SumSquaredDiff returns the row sum of (x-mean)²: d = x-mean, lane = fma(d, d, lane).
func (s Set) SumSquaredDiff(x []float32, mean float32) float32 {
	switch s.path {
	case AVX512:
		return sumSquaredDiffAVX512(x, mean)
	case AVX2:
		return sumSquaredDiffAVX2(x, mean)
	}
	return sumSquaredDiffPortable(x, mean)
}

// SumSquares64 returns the sum of the squares of x in float64: 16 lanes and a tree as in a row sum, each square exact.
func (s Set) SumSquares64(x []float32) float64 {
	switch s.path {
	case AVX512:
		return sumSquares64AVX512(x)
	case AVX2:
		return sumSquares64AVX2(x)
	}
	return sumSquares64Portable(x)
}

// lanes are the 16 partial sums of a row: element i is added to lane i%16.
type lanes [16]float32

// total adds the lanes up in the one fixed order.
func (l *lanes) total() float32 {
	for half := len(l) / 2; half > 0; half /= 2 {
		for j := range half {
			l[j] += l[j+half]
		}
	}
	return l[0]
}

func addPortable(dst, a, b []float32) {
	for i := range dst {
		dst[i] = a[i] + b[i]
	}
}

func addScaledPortable(dst, x []float32, scale float32) {
	for i := range dst {
		dst[i] = fma(x[i], scale, dst[i])
	}
}

func scalePortable(dst, x []float32, scale float32) {
	for i := range dst {
		dst[i] = x[i] * scale
	}
}

func mulPortable(dst, a, b []float32) {
	for i := range dst {
		dst[i] = a[i] * b[i]
	}
}

func sumPortable(x []float32) float32 {
	var l lanes
	for i, v := range x {
		l[i%16] += v
	}
	return l.total()
}

func dotPortable(a, b []float32) float32 {
	var l lanes
	for i := range a {
		l[i%16] = fma(a[i], b[i], l[i%16])
	}
	return l.total()
}

func dotMulPortable(a, b, c []float32) float32 {
	var l lanes
	for i := range a {
		l[i%16] = fma(float32(a[i]*b[i]), c[i], l[i%16])
	}
	return l.total()
}

func maxPortable(x []float32) float32 {
	var l lanes
	for i := range l {
		l[i] = float32(math.Inf(-1))
	}
	for i, v := range x {
		if v != v {
			return v
		}
		if v > l[i%16] {
			l[i%16] = v
		}
	}
	for half := len(l) / 2; half > 0; half /= 2 {
		for j := range half {
			if l[j+half] > l[j] {
				l[j] = l[j+half]
			}
		}
	}
	return l[0]
}

func sumSquaredDiffPortable(x []float32, mean float32) float32 {
	var l lanes
	for i, v := range x {
		d := v - mean
		l[i%16] = fma(d, d, l[i%16])
	}
	return l.total()
}

func sumSquares64Portable(x []float32) float64 {
	var l [16]float64
	for i, v := range x {
		l[i%16] += float64(float64(v) * float64(v))
	}
	for half := len(l) / 2; half > 0; half /= 2 {
		for j := range half {
			l[j] += l[j+half]
		}
	}
	return l[0]
}
