package kernel

// Coefficients are the scalars of one AdamW step (Loshchilov and Hutter, 2019).
type Coefficients struct {
	Scale                      float32 // multiplies the raw gradient: 1/tokens and clipping
	Beta1, Rest1, Beta2, Rest2 float32 // the decay rates of the moments, and 1 minus them
	Rate                       float32 // learning rate over the first bias correction
	Unbias2                    float32 // the second bias correction, inverted
	Epsilon                    float32
}

// AdamW updates weights w and moments m and v by the gradient g, which is left alone. keep is 1 minus the learning rate
// times the weight decay. Every operation rounds on its own, none is fused:
//
//	g = g*Scale
//	m = Beta1*m + Rest1*g; v = Beta2*v + Rest2*(g*g)
//	w = w*keep - (Rate*m)/(√(v*Unbias2)+Epsilon)
func (s Set) AdamW(w, m, v, g []float32, k Coefficients, keep float32) {
	m, v, g = m[:len(w)], v[:len(w)], g[:len(w)]
	switch s.path {
	case AVX512:
		adamwAVX512(w, m, v, g, k.Scale, k.Beta1, k.Rest1, k.Beta2, k.Rest2, k.Rate, k.Unbias2, k.Epsilon, keep)
	case AVX2:
		adamwAVX2(w, m, v, g, k.Scale, k.Beta1, k.Rest1, k.Beta2, k.Rest2, k.Rate, k.Unbias2, k.Epsilon, keep)
	default:
		adamwPortable(w, m, v, g, k, keep)
	}
}

func adamwPortable(w, m, v, g []float32, k Coefficients, keep float32) {
	for i, x := range g {
		x = float32(x * k.Scale)
		m1 := float32(k.Beta1*m[i]) + float32(k.Rest1*x)
		v1 := float32(k.Beta2*v[i]) + float32(k.Rest2*float32(x*x))
		move := float32(k.Rate*m1) / (sqrt(float32(v1*k.Unbias2)) + k.Epsilon)
		m[i], v[i] = m1, v1
		w[i] = float32(w[i]*keep) - move
	}
}
