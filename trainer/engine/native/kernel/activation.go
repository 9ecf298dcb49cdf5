package kernel

import "math"

// Rotary turns one head x of length 2·h, h = len(cos), by the angles whose cosines and sines are given, in the
// rotate-half layout: dst[i] = fma(x[i], cos[i], -(x[i+h]*sin[i])), dst[i+h] = fma(x[i+h], cos[i], x[i]*sin[i]). dst may
// be x.
func (s Set) Rotary(dst, x, cos, sin []float32) {
	h := len(cos)
	dst, x, sin = dst[:2*h], x[:2*h], sin[:h]
	switch s.path {
	case AVX512:
		rotaryAVX512(dst[:h], dst[h:], x[:h], x[h:], cos, sin)
	case AVX2:
		rotaryAVX2(dst[:h], dst[h:], x[:h], x[h:], cos, sin)
	default:
		rotaryPortable(dst, x, cos, sin)
	}
}

// SwiGLU sets dst = (g*s)*up with g = gate and s = 1/(1+exp(-g)).
func (s Set) SwiGLU(dst, gate, up []float32) {
	gate, up = gate[:len(dst)], up[:len(dst)]
	switch s.path {
	case AVX512:
		swigluAVX512(dst, gate, up)
	case AVX2:
		swigluAVX2(dst, gate, up)
	default:
		swigluPortable(dst, gate, up)
	}
}

// SwiGLUBackward computes the gradients of [Set.SwiGLU] from that of its output, dy: with s as there and silu = g*s,
// dup = dy*silu and dgate = (dy*up)*(s+fma(-silu, s, silu)). The outputs may be any of the inputs.
func (s Set) SwiGLUBackward(dgate, dup, gate, up, dy []float32) {
	n := len(dgate)
	dup, gate, up, dy = dup[:n], gate[:n], up[:n], dy[:n]
	switch s.path {
	case AVX512:
		swigluBackwardAVX512(dgate, dup, gate, up, dy)
	case AVX2:
		swigluBackwardAVX2(dgate, dup, gate, up, dy)
	default:
		swigluBackwardPortable(dgate, dup, gate, up, dy)
	}
}

// GELU sets dst = x*Φ(x) with the normal distribution Φ(x) = ½·(1+erf(x/√2)), computed as
//
//	u = exp((x*x)*-½); t = 1/fma(|x|, ½·√½, 1); h = (q(t)*t)*u; Φ = x < 0 ? h : 1-h
//
// with a fixed polynomial q, so that erf is within 3·10⁻⁷. It is NaN for -Inf.
func (s Set) GELU(dst, x []float32) {
	x = x[:len(dst)]
	switch s.path {
	case AVX512:
		geluAVX512(dst, x)
	case AVX2:
		geluAVX2(dst, x)
	default:
		geluPortable(dst, x)
	}
}

// GELUBackward sets dx = dy*fma(x, u*(1/√2π), Φ), with u and Φ of [Set.GELU].
func (s Set) GELUBackward(dx, x, dy []float32) {
	x, dy = x[:len(dx)], dy[:len(dx)]
	switch s.path {
	case AVX512:
		geluBackwardAVX512(dx, x, dy)
	case AVX2:
		geluBackwardAVX2(dx, x, dy)
	default:
		geluBackwardPortable(dx, x, dy)
	}
}

// GELUTanh sets dst = x*s, GPT-2's approximation ½·x·(1+tanh(√(2/π)·(x+0.044715·x³))) written with
//
//	v = x*x; z = x*fma(v, 2·√(2/π)·0.044715, 2·√(2/π)); s = 1/(1+exp(-z)) = ½·(1+tanh(z/2))
func (s Set) GELUTanh(dst, x []float32) {
	x = x[:len(dst)]
	switch s.path {
	case AVX512:
		geluTanhAVX512(dst, x)
	case AVX2:
		geluTanhAVX2(dst, x)
	default:
		geluTanhPortable(dst, x)
	}
}

// GELUTanhBackward sets dx = dy*fma(y-y*s, d, s), with v and s of [Set.GELUTanh], y = x*s and
// d = fma(v, 6·√(2/π)·0.044715, 2·√(2/π)). It is NaN where |x| is above 10¹⁹.
func (s Set) GELUTanhBackward(dx, x, dy []float32) {
	x, dy = x[:len(dx)], dy[:len(dx)]
	switch s.path {
	case AVX512:
		geluTanhBackwardAVX512(dx, x, dy)
	case AVX2:
		geluTanhBackwardAVX2(dx, x, dy)
	default:
		geluTanhBackwardPortable(dx, x, dy)
	}
}

const (
	normalDensity = 0.3989422804014327  // 1/√2π
	geluLinear    = 1.5957691216057308  // 2·√(2/π)
	geluCubic     = 0.07135481627362045 // 2·√(2/π)·0.044715
	geluSquare    = 3 * geluCubic       // of the derivative
)

func rotaryPortable(dst, x, cos, sin []float32) {
	h := len(cos)
	for i, c := range cos {
		a, b := x[i], x[i+h]
		dst[i] = fma(a, c, -float32(b*sin[i]))
		dst[i+h] = fma(b, c, float32(a*sin[i]))
	}
}

func swigluPortable(dst, gate, up []float32) {
	for i := range dst {
		dst[i] = float32(gate[i]*sigmoid(gate[i])) * up[i]
	}
}

func swigluBackwardPortable(dgate, dup, gate, up, dy []float32) {
	for i := range dgate {
		g, u, d := gate[i], up[i], dy[i]
		s := sigmoid(g)
		silu := float32(g * s)
		dup[i] = d * silu
		dgate[i] = float32(d*u) * (s + fma(-silu, s, silu))
	}
}

func geluPortable(dst, x []float32) {
	for i, v := range x {
		phi, _ := normal(v)
		dst[i] = v * phi
	}
}

func geluBackwardPortable(dx, x, dy []float32) {
	for i, v := range x {
		phi, u := normal(v)
		dx[i] = dy[i] * fma(v, float32(u*normalDensity), phi)
	}
}

func geluTanhPortable(dst, x []float32) {
	for i, v := range x {
		dst[i] = v * sigmoid(v*fma(float32(v*v), geluCubic, geluLinear))
	}
}

func geluTanhBackwardPortable(dx, x, dy []float32) {
	for i, a := range x {
		v := float32(a * a)
		s := sigmoid(a * fma(v, geluCubic, geluLinear))
		y := float32(a * s)
		d := fma(v, geluSquare, geluLinear)
		dx[i] = dy[i] * fma(y-float32(y*s), d, s)
	}
}

// sqrt returns the square root rounded once to float32.
func sqrt(x float32) float32 { return float32(math.Sqrt(float64(x))) }
