package kernel

// RMSNorm sets dst = (x*inverse)*w, with inverse = 1/√(mean of x² + ε).
func (s Set) RMSNorm(dst, x, w []float32, inverse float32) {
	x, w = x[:len(dst)], w[:len(dst)]
	rmsNormPortable(dst, x, w, inverse)
}

// RMSNormBackward sets dx = fma(dy*w, inverse, -(x*c)), with c = inverse³·mean of dy·w·x.
func (s Set) RMSNormBackward(dx, dy, x, w []float32, inverse, c float32) {
	dy, x, w = dy[:len(dx)], x[:len(dx)], w[:len(dx)]
	rmsNormBackwardPortable(dx, dy, x, w, inverse, c)
}

// RMSNormGrad sets dw = fma(dy, x*inverse, dw).
func (s Set) RMSNormGrad(dw, dy, x []float32, inverse float32) {
	dy, x = dy[:len(dw)], x[:len(dw)]
	rmsNormGradPortable(dw, dy, x, inverse)
}

// LayerNorm sets dst = fma((x-mean)*inverse, w, b), with inverse = 1/√(variance of x + ε).
func (s Set) LayerNorm(dst, x, w, b []float32, mean, inverse float32) {
	x, w, b = x[:len(dst)], w[:len(dst)], b[:len(dst)]
	layerNormPortable(dst, x, w, b, mean, inverse)
}

// LayerNormSums returns two row sums: u of dy*w, and ux with lane = fma(dy*w, (x-mean)*inverse, lane).
func (s Set) LayerNormSums(dy, w, x []float32, mean, inverse float32) (u, ux float32) {
	w, x = w[:len(dy)], x[:len(dy)]
	return layerNormSumsPortable(dy, w, x, mean, inverse)
}

// LayerNormBackward sets dx = inverse*fma(-n, mux, dy*w-mu) with n = (x-mean)*inverse, where mu and mux are the sums of
// [Set.LayerNormSums] over the length of the row.
func (s Set) LayerNormBackward(dx, dy, w, x []float32, mean, inverse, mu, mux float32) {
	dy, w, x = dy[:len(dx)], w[:len(dx)], x[:len(dx)]
	layerNormBackwardPortable(dx, dy, w, x, mean, inverse, mu, mux)
}

// LayerNormGrad sets dw = fma(dy, (x-mean)*inverse, dw) and db = db+dy.
func (s Set) LayerNormGrad(dw, db, dy, x []float32, mean, inverse float32) {
	db, dy, x = db[:len(dw)], dy[:len(dw)], x[:len(dw)]
	layerNormGradPortable(dw, db, dy, x, mean, inverse)
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
