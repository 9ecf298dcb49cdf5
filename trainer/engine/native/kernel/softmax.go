package kernel

// ExpSum sets x = exp(x-top) and returns the row sum of the results. The exponential is within 2 units in the last
// place: +Inf above 88.72, +0 below -87.33 (results below 2⁻¹²⁶ are flushed), NaN for NaN.
func (s Set) ExpSum(x []float32, top float32) float32 {
	switch s.path {
	case AVX512:
		return expSumAVX512(x, top)
	case AVX2:
		return expSumAVX2(x, top)
	}
	return expSumPortable(x, top)
}

// ExpScale sets x = exp(x-top)*inverse, with the exponential of [Set.ExpSum].
func (s Set) ExpScale(x []float32, top, inverse float32) {
	switch s.path {
	case AVX512:
		expScaleAVX512(x, top, inverse)
	case AVX2:
		expScaleAVX2(x, top, inverse)
	default:
		expScalePortable(x, top, inverse)
	}
}

// SoftmaxBackward sets d = p*(d-delta): the gradient before a softmax from that behind it, d, the probabilities p and
// delta = Σ p·d.
func (s Set) SoftmaxBackward(d, p []float32, delta float32) {
	p = p[:len(d)]
	switch s.path {
	case AVX512:
		softmaxBackwardAVX512(d, p, delta)
	case AVX2:
		softmaxBackwardAVX2(d, p, delta)
	default:
		softmaxBackwardPortable(d, p, delta)
	}
}

func expSumPortable(x []float32, top float32) float32 {
	var l lanes
	for i, v := range x {
		x[i] = exp(v - top)
		l[i%16] += x[i]
	}
	return l.total()
}

func expScalePortable(x []float32, top, inverse float32) {
	for i, v := range x {
		x[i] = exp(v-top) * inverse
	}
}

func softmaxBackwardPortable(d, p []float32, delta float32) {
	for i := range d {
		d[i] = p[i] * (d[i] - delta)
	}
}
