package kernel

// RMSNorm sets dst = (x*inverse)*w, with inverse = 1/√(mean of x² + ε).
func (s Set) RMSNorm(dst, x, w []float32, inverse float32) {
	x, w = x[:len(dst)], w[:len(dst)]
	switch s.path {
	case AVX512:
		rmsNormAVX512(dst, x, w, inverse)
	case AVX2:
		rmsNormAVX2(dst, x, w, inverse)
	default:
		rmsNormPortable(dst, x, w, inverse)
	}
}

// RMSNormBackward sets dx = fma(dy*w, inverse, -(x*c)), with c = inverse³·mean of dy·w·x.
func (s Set) RMSNormBackward(dx, dy, x, w []float32, inverse, c float32) {
	dy, x, w = dy[:len(dx)], x[:len(dx)], w[:len(dx)]
	switch s.path {
	case AVX512:
		rmsNormBackwardAVX512(dx, dy, x, w, inverse, c)
	case AVX2:
		rmsNormBackwardAVX2(dx, dy, x, w, inverse, c)
	default:
		rmsNormBackwardPortable(dx, dy, x, w, inverse, c)
	}
}

// RMSNormGrad sets dw = fma(dy, x*inverse, dw).
func (s Set) RMSNormGrad(dw, dy, x []float32, inverse float32) {
	dy, x = dy[:len(dw)], x[:len(dw)]
	switch s.path {
	case AVX512:
		rmsNormGradAVX512(dw, dy, x, inverse)
	case AVX2:
		rmsNormGradAVX2(dw, dy, x, inverse)
	default:
		rmsNormGradPortable(dw, dy, x, inverse)
	}
}

// LayerNorm sets dst = fma((x-mean)*inverse, w, b), with inverse = 1/√(variance of x + ε).
func (s Set) LayerNorm(dst, x, w, b []float32, mean, inverse float32) {
	x, w, b = x[:len(dst)], w[:len(dst)], b[:len(dst)]
	switch s.path {
	case AVX512:
		layerNormAVX512(dst, x, w, b, mean, inverse)
	case AVX2:
		layerNormAVX2(dst, x, w, b, mean, inverse)
	default:
		layerNormPortable(dst, x, w, b, mean, inverse)
	}
}

// LayerNormSums returns two row sums: u of dy*w, and ux with lane = fma(dy*w, (x-mean)*inverse, lane).
func (s Set) LayerNormSums(dy, w, x []float32, mean, inverse float32) (u, ux float32) {
	w, x = w[:len(dy)], x[:len(dy)]
	switch s.path {
	case AVX512:
		return layerNormSumsAVX512(dy, w, x, mean, inverse)
	case AVX2:
		return layerNormSumsAVX2(dy, w, x, mean, inverse)
	}
	return layerNormSumsPortable(dy, w, x, mean, inverse)
}

// LayerNormBackward sets dx = inverse*fma(-n, mux, dy*w-mu) with n = (x-mean)*inverse, where mu and mux are the sums of
// [Set.LayerNormSums] over the length of the row.
func (s Set) LayerNormBackward(dx, dy, w, x []float32, mean, inverse, mu, mux float32) {
	dy, w, x = dy[:len(dx)], w[:len(dx)], x[:len(dx)]
	switch s.path {
	case AVX512:
		layerNormBackwardAVX512(dx, dy, w, x, mean, inverse, mu, mux)
	case AVX2:
		layerNormBackwardAVX2(dx, dy, w, x, mean, inverse, mu, mux)
	default:
		layerNormBackwardPortable(dx, dy, w, x, mean, inverse, mu, mux)
	}
}

// LayerNormGrad sets dw = fma(dy, (x-mean)*inverse, dw) and db = db+dy.
func (s Set) LayerNormGrad(dw, db, dy, x []float32, mean, inverse float32) {
	db, dy, x = db[:len(dw)], dy[:len(dw)], x[:len(dw)]
	switch s.path {
	case AVX512:
		layerNormGradAVX512(dw, db, dy, x, mean, inverse)
	case AVX2:
		layerNormGradAVX2(dw, db, dy, x, mean, inverse)
	default:
		layerNormGradPortable(dw, db, dy, x, mean, inverse)
	}
}

func rmsNormPortable(dst, x, w []float32, inverse float32) {
	for i := range dst {
		dst[i] = float32(x[i]*inverse) * w[i]
	}
}

func rmsNormBackwardPortable(dx, dy, x, w []float32, inverse, c float32) {
	for i := range dx {
		dx[i] = fma(float32(dy[i]*w[i]), inverse, -float32(x[i]*c))
	}
}

func rmsNormGradPortable(dw, dy, x []float32, inverse float32) {
	for i := range dw {
		dw[i] = fma(dy[i], float32(x[i]*inverse), dw[i])
	}
}

func layerNormPortable(dst, x, w, b []float32, mean, inverse float32) {
	for i := range dst {
		dst[i] = fma(float32((x[i]-mean)*inverse), w[i], b[i])
	}
}

func layerNormSumsPortable(dy, w, x []float32, mean, inverse float32) (u, ux float32) {
	var a, b lanes
	for i := range dy {
		d := float32(dy[i] * w[i])
		a[i%16] += d
		b[i%16] = fma(d, float32((x[i]-mean)*inverse), b[i%16])
	}
	return a.total(), b.total()
}

func layerNormBackwardPortable(dx, dy, w, x []float32, mean, inverse, mu, mux float32) {
	for i := range dx {
		n := float32((x[i] - mean) * inverse)
		dx[i] = inverse * fma(-n, mux, float32(dy[i]*w[i])-mu)
	}
}

func layerNormGradPortable(dw, db, dy, x []float32, mean, inverse float32) {
	for i := range dw {
		d := dy[i]
		dw[i] = fma(d, float32((x[i]-mean)*inverse), dw[i])
		db[i] += d
	}
}
