package kernel

// panel is the number of columns of B that lie side by side in memory.
const panel = 16

// Product says how to compute C = A·B, or C += A·B, for A of shape [M, K], B of [K, N] and C of [M, N]. Strides count
// elements and are not negative. C must not overlap A or B.
type Product struct {
	M, N, K int

	// A[m, k] is A[m*ARow+k*AStep].
	A           []float32
	ARow, AStep int

	// B[k, n] is B[n/16*BPanel+k*BStep+n%16]. Of the last panel all 16 columns may be read, so B must reach that far.
	B             []float32
	BStep, BPanel int

	// C[m, n] is C[m*CRow+n]. Columns from N on are left alone.
	C    []float32
	CRow int

	// Add starts the chains of multiply-adds from C instead of zero.
	Add bool
}

// Multiply computes the product: each element of C is one chain c = fma(A[m, k], B[k, n], c) over ascending k. It panics
// if a slice is too short for the shape.
func (s Set) Multiply(p *Product) {
	if p.M <= 0 || p.N <= 0 {
		return
	}
	if p.K <= 0 {
		if !p.Add {
			for m := range p.M {
				clear(p.C[m*p.CRow : m*p.CRow+p.N])
			}
		}
		return
	}
	if min(p.ARow, p.AStep, p.BStep, p.BPanel, p.CRow) < 0 {
		panic("kernel: negative stride")
	}
	// The last elements that will be touched: a panic here is an index out of range, not a stray access later.
	_ = p.A[(p.M-1)*p.ARow+(p.K-1)*p.AStep]
	_ = p.B[(p.N-1)/panel*p.BPanel+(p.K-1)*p.BStep+panel-1]
	_ = p.C[(p.M-1)*p.CRow+p.N-1]
	switch s.path {
	case AVX512, AVX2:
		s.multiplyTiles(p)
	default:
		multiplyPortable(p)
	}
}

// blockPortable is the number of steps over k for which the portable path keeps a panel of B in the first-level cache.
const blockPortable = 256

func multiplyPortable(p *Product) {
	for n := 0; n < p.N; n += panel {
		b := p.B[n/panel*p.BPanel:]
		width := min(panel, p.N-n)
		for k := 0; k < p.K; k += blockPortable {
			steps := min(blockPortable, p.K-k)
			for m := range p.M {
				c := p.C[m*p.CRow+n:][:width]
				var row [panel]float32
				if p.Add || k > 0 {
					copy(row[:], c)
				}
				multiplyRow(&row, p.A[m*p.ARow+k*p.AStep:], p.AStep, b[k*p.BStep:], p.BStep, steps)
				copy(c, row[:])
			}
		}
	}
}

// multiplyRow carries one row of a panel through some steps over k, four columns at a time.
func multiplyRow(c *[panel]float32, a []float32, aStep int, b []float32, bStep, steps int) {
	for i := 0; i < panel; i += 4 {
		// float32 values, kept in float64 as fma needs them.
		c0, c1, c2, c3 := float64(c[i]), float64(c[i+1]), float64(c[i+2]), float64(c[i+3])
		for k := range steps {
			x, y := a[k*aStep], (*[4]float32)(b[k*bStep+i:])
			f := float64(x)
			s0, s1 := float64(f*float64(y[0]))+c0, float64(f*float64(y[1]))+c1
			s2, s3 := float64(f*float64(y[2]))+c2, float64(f*float64(y[3]))+c3
			if roundsTwice(s0) || roundsTwice(s1) || roundsTwice(s2) || roundsTwice(s3) {
				c0, c1 = float64(fmaOdd(x, y[0], float32(c0))), float64(fmaOdd(x, y[1], float32(c1)))
				c2, c3 = float64(fmaOdd(x, y[2], float32(c2))), float64(fmaOdd(x, y[3], float32(c3)))
				continue
			}
			c0, c1, c2, c3 = float64(float32(s0)), float64(float32(s1)), float64(float32(s2)), float64(float32(s3))
		}
		c[i], c[i+1], c[i+2], c[i+3] = float32(c0), float32(c1), float32(c2), float32(c3)
	}
}
