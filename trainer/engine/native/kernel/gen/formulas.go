package main

import (
	"math"

	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// The constants repeat those of the portable path; the tests compare the paths' bits.
const (
	expLog2e = 1.4426950408889634
	expMagic = 12582912
	ln2High  = 0.693147182464599609375
	ln2Low   = -1.904654323148236017e-9
	expMax   = 88.72283172607422
	expMin   = -87.336540222167969

	erfcP         = math.Sqrt2 / 4
	normalDensity = 0.3989422804014327
	geluLinear    = 1.5957691216057308
	geluCubic     = 0.07135481627362045
	geluSquare    = 3 * geluCubic
)

var (
	expC  = []float32{0.00139261835877, 0.00836317905272, 0.0416665546172, 0.166665769897, 0.5, 1, 1}
	erfcC = []float32{-0.0523615222839 / 2, 0.254043094467 / 2, -0.429297367693 / 2, 0.218876868158 / 2, 0.00860290638739 / 2,
		0.190395680507 / 2, 0.245502014024 / 2, 0.282143823955 / 2, 0.282094490186 / 2}
)

// polynomial evaluates coefficients, highest first, at r by a chain of multiply-adds.
func (g *generator) polynomial(c []float32, r vector) vector {
	p := g.load(g.constant(c[0]))
	for _, x := range c[1:] {
		g.step(p, r, g.constant(x))
	}
	return p
}

func (g *generator) exp(x vector) vector {
	t := g.load(g.constant(expMagic))
	g.fmaInto(t, g.constant(expLog2e), x)
	n := g.sub(t, g.constant(expMagic))
	r := g.copy(x)
	g.fnmaInto(r, g.constant(ln2High), n)
	g.fnmaInto(r, g.constant(ln2Low), n)
	p := g.polynomial(expC, r)
	g.addExponent(p, t)
	y := g.keep(g.compare(notLess, x, g.constant(expMin)), p)
	beyond := g.compare(notLessEqual, x, g.constant(expMax))
	return g.choose(beyond, g.add(x, g.constant(float32(math.Inf(1)))), y)
}

func (g *generator) sigmoid(x vector) vector {
	one := g.load(g.constant(1))
	return g.div(one, g.add(g.exp(g.negate(x)), g.constant(1)))
}

func (g *generator) normal(x vector) (phi, u vector) {
	u = g.exp(g.mul(g.mul(x, x), g.constant(-0.5)))
	one := g.load(g.constant(1))
	d := g.copy(one)
	g.fmaInto(d, g.constant(erfcP), g.and(x, g.constantBits(1<<31-1)))
	t := g.div(one, d)
	h := g.mul(g.mul(g.polynomial(erfcC, t), t), u)
	return g.choose(g.compare(less, x, g.constant(0)), h, g.sub(one, h)), u
}

func (g *generator) rows() {
	g.elementwise()
	g.sums()
	g.softmax()
	g.norms()
	g.activations()
	g.optimiser()
}

func (g *generator) elementwise() {
	g.row(rowSpec{name: "add", doc: "sets dst = a+b.", signature: "(dst, a, b []float32)", slices: []string{"dst", "a", "b"},
		body: func(r *row) { r.put("dst", r.add(r.get("a"), r.get("b"))) }})
	g.row(rowSpec{name: "addScaled", doc: "sets dst = fma(x, scale, dst).", signature: "(dst, x []float32, scale float32)",
		slices: []string{"dst", "x"}, scalars: []string{"scale"},
		body: func(r *row) {
			d := r.get("dst")
			r.fmaInto(d, r.get("x"), r.scalar("scale"))
			r.put("dst", d)
		}})
	g.row(rowSpec{name: "scale", doc: "sets dst = x*scale.", signature: "(dst, x []float32, scale float32)",
		slices: []string{"dst", "x"}, scalars: []string{"scale"},
		body: func(r *row) { r.put("dst", r.mul(r.get("x"), r.scalar("scale"))) }})
	g.row(rowSpec{name: "mul", doc: "sets dst = a*b.", signature: "(dst, a, b []float32)", slices: []string{"dst", "a", "b"},
		body: func(r *row) { r.put("dst", r.mul(r.get("a"), r.get("b"))) }})
}

func (g *generator) sums() {
	g.row(rowSpec{name: "sum", doc: "returns the row sum of x.", signature: "(x []float32) float32", slices: []string{"x"},
		lanes: 1, results: []string{""},
		body: func(r *row) { r.sum(0, r.get("x")) }})
	g.row(rowSpec{name: "dot", doc: "returns the row sum of a·b.", signature: "(a, b []float32) float32", slices: []string{"a", "b"},
		lanes: 1, results: []string{""},
		body: func(r *row) { r.fmaInto(r.lane[0], r.get("a"), r.get("b")) }})
	g.row(rowSpec{name: "dotMul", doc: "returns the row sum of a·b·c.", signature: "(a, b, c []float32) float32",
		slices: []string{"a", "b", "c"}, lanes: 1, results: []string{""},
		body: func(r *row) { r.fmaInto(r.lane[0], r.mul(r.get("a"), r.get("b")), r.get("c")) }})
	g.row(rowSpec{name: "sumSquaredDiff", doc: "returns the row sum of (x-mean)².", signature: "(x []float32, mean float32) float32",
		slices: []string{"x"}, scalars: []string{"mean"}, lanes: 1, results: []string{""},
		body: func(r *row) {
			d := r.sub(r.get("x"), r.scalar("mean"))
			r.fmaInto(r.lane[0], d, d)
		}})
	g.max()
}

func (g *generator) softmax() {
	g.row(rowSpec{name: "expSum", doc: "sets x = exp(x-top) and returns the row sum.", signature: "(x []float32, top float32) float32",
		slices: []string{"x"}, scalars: []string{"top"}, lanes: 1, results: []string{""},
		body: func(r *row) {
			e := r.exp(r.sub(r.get("x"), r.scalar("top")))
			r.put("x", e)
			r.sum(0, e)
		}})
	g.row(rowSpec{name: "expScale", doc: "sets x = exp(x-top)*inverse.", signature: "(x []float32, top, inverse float32)",
		slices: []string{"x"}, scalars: []string{"top", "inverse"},
		body: func(r *row) {
			r.put("x", r.mul(r.exp(r.sub(r.get("x"), r.scalar("top"))), r.scalar("inverse")))
		}})
	g.row(rowSpec{name: "softmaxBackward", doc: "sets d = p*(d-delta).", signature: "(d, p []float32, delta float32)",
		slices: []string{"d", "p"}, scalars: []string{"delta"},
		body: func(r *row) { r.put("d", r.mul(r.get("p"), r.sub(r.get("d"), r.scalar("delta")))) }})
}

func (g *generator) norms() {
	g.row(rowSpec{name: "rmsNorm", doc: "sets dst = (x*inverse)*w.", signature: "(dst, x, w []float32, inverse float32)",
		slices: []string{"dst", "x", "w"}, scalars: []string{"inverse"},
		body: func(r *row) { r.put("dst", r.mul(r.mul(r.get("x"), r.scalar("inverse")), r.get("w"))) }})
	g.row(rowSpec{name: "rmsNormBackward", doc: "sets dx = fma(dy*w, inverse, -(x*c)).",
		signature: "(dx, dy, x, w []float32, inverse, c float32)", slices: []string{"dx", "dy", "x", "w"}, scalars: []string{"inverse", "c"},
		body: func(r *row) {
			r.put("dx", r.fms(r.mul(r.get("dy"), r.get("w")), r.scalar("inverse"), r.mul(r.get("x"), r.scalar("c"))))
		}})
	g.row(rowSpec{name: "rmsNormGrad", doc: "sets dw = fma(dy, x*inverse, dw).", signature: "(dw, dy, x []float32, inverse float32)",
		slices: []string{"dw", "dy", "x"}, scalars: []string{"inverse"},
		body: func(r *row) {
			d := r.get("dw")
			r.fmaInto(d, r.get("dy"), r.mul(r.get("x"), r.scalar("inverse")))
			r.put("dw", d)
		}})
	normed := func(r *row) vector { return r.mul(r.sub(r.get("x"), r.scalar("mean")), r.scalar("inverse")) }
	g.row(rowSpec{name: "layerNorm", doc: "sets dst = fma((x-mean)*inverse, w, b).",
		signature: "(dst, x, w, b []float32, mean, inverse float32)", slices: []string{"dst", "x", "w", "b"}, scalars: []string{"mean", "inverse"},
		body: func(r *row) {
			d := r.get("b")
			r.fmaInto(d, r.get("w"), normed(r))
			r.put("dst", d)
		}})
	g.row(rowSpec{name: "layerNormSums", doc: "returns the row sums of dy*w and of dy*w*(x-mean)*inverse.",
		signature: "(dy, w, x []float32, mean, inverse float32) (u, ux float32)", slices: []string{"dy", "w", "x"},
		scalars: []string{"mean", "inverse"}, lanes: 2, results: []string{"u", "ux"},
		body: func(r *row) {
			d := r.mul(r.get("dy"), r.get("w"))
			r.sum(0, d)
			r.fmaInto(r.lane[1], d, normed(r))
		}})
	g.row(rowSpec{name: "layerNormBackward", doc: "sets dx = inverse*fma(-n, mux, dy*w-mu) with n = (x-mean)*inverse.",
		signature: "(dx, dy, w, x []float32, mean, inverse, mu, mux float32)", slices: []string{"dx", "dy", "w", "x"},
		scalars: []string{"mean", "inverse", "mu", "mux"},
		body: func(r *row) {
			d := r.sub(r.mul(r.get("dy"), r.get("w")), r.scalar("mu"))
			r.fnmaInto(d, normed(r), r.scalar("mux"))
			r.put("dx", r.mul(r.scalar("inverse"), d))
		}})
	g.row(rowSpec{name: "layerNormGrad", doc: "sets dw = fma(dy, (x-mean)*inverse, dw) and db = db+dy.",
		signature: "(dw, db, dy, x []float32, mean, inverse float32)", slices: []string{"dw", "db", "dy", "x"}, scalars: []string{"mean", "inverse"},
		body: func(r *row) {
			dy, d := r.get("dy"), r.get("dw")
			r.fmaInto(d, dy, normed(r))
			b := r.add(r.get("db"), dy)
			r.put("dw", d)
			r.put("db", b)
		}})
}

func (g *generator) activations() {
	g.row(rowSpec{name: "rotary", doc: "turns pairs of lower and upper elements.",
		signature: "(low, high, x, y, cos, sin []float32)", slices: []string{"low", "high", "x", "y", "cos", "sin"},
		body: func(r *row) {
			a, b, c, s := r.get("x"), r.get("y"), r.get("cos"), r.get("sin")
			low := r.fms(a, c, r.mul(b, s))
			high := r.mul(a, s)
			r.fmaInto(high, b, c)
			r.put("low", low)
			r.put("high", high)
		}})
	g.row(rowSpec{name: "swiglu", doc: "sets dst = (gate*sigmoid(gate))*up.", signature: "(dst, gate, up []float32)",
		slices: []string{"dst", "gate", "up"},
		body: func(r *row) {
			x := r.get("gate")
			r.put("dst", r.mul(r.mul(x, r.sigmoid(x)), r.get("up")))
		}})
	g.row(rowSpec{name: "swigluBackward", doc: "computes the gradients of SwiGLU.", signature: "(dgate, dup, gate, up, dy []float32)",
		slices: []string{"dgate", "dup", "gate", "up", "dy"},
		body: func(r *row) {
			x := r.get("gate")
			s := r.sigmoid(x)
			silu := r.mul(x, s)
			inner := r.copy(silu)
			r.fnmaInto(inner, silu, s)
			dy := r.get("dy")
			gate := r.mul(r.mul(dy, r.get("up")), r.add(s, inner))
			r.put("dup", r.mul(dy, silu))
			r.put("dgate", gate)
		}})
	g.row(rowSpec{name: "gelu", doc: "sets dst = x*Φ(x).", signature: "(dst, x []float32)", slices: []string{"dst", "x"},
		body: func(r *row) {
			x := r.get("x")
			phi, _ := r.normal(x)
			r.put("dst", r.mul(x, phi))
		}})
	g.row(rowSpec{name: "geluBackward", doc: "sets dx = dy*(Φ(x)+x*φ(x)).", signature: "(dx, x, dy []float32)", slices: []string{"dx", "x", "dy"},
		body: func(r *row) {
			x := r.get("x")
			phi, u := r.normal(x)
			r.fmaInto(phi, r.mul(u, r.constant(normalDensity)), x)
			r.put("dx", r.mul(phi, r.get("dy")))
		}})
	scaled := func(r *row, x, v vector) vector {
		d := r.load(r.constant(geluLinear))
		r.fmaInto(d, r.constant(geluCubic), v)
		return r.sigmoid(r.mul(x, d))
	}
	g.row(rowSpec{name: "geluTanh", doc: "sets dst = x*s.", signature: "(dst, x []float32)", slices: []string{"dst", "x"},
		body: func(r *row) {
			x := r.get("x")
			r.put("dst", r.mul(x, scaled(r, x, r.mul(x, x))))
		}})
	g.row(rowSpec{name: "geluTanhBackward", doc: "computes the gradient of geluTanh.", signature: "(dx, x, dy []float32)",
		slices: []string{"dx", "x", "dy"},
		body: func(r *row) {
			x := r.get("x")
			v := r.mul(x, x)
			s := scaled(r, x, v)
			y := r.mul(x, s)
			d := r.load(r.constant(geluLinear))
			r.fmaInto(d, r.constant(geluSquare), v)
			r.fmaInto(s, r.sub(y, r.mul(y, s)), d)
			r.put("dx", r.mul(s, r.get("dy")))
		}})
}

func (g *generator) optimiser() {
	scalars := []string{"scale", "beta1", "rest1", "beta2", "rest2", "rate", "unbias2", "epsilon", "keep"}
	g.row(rowSpec{name: "adamw", doc: "updates weights and moments.",
		signature: "(w, m, v, g []float32, scale, beta1, rest1, beta2, rest2, rate, unbias2, epsilon, keep float32)",
		slices:    []string{"w", "m", "v", "g"}, scalars: scalars, serial: !g.wide,
		body: func(r *row) {
			k := r.scalar
			x := r.mul(r.get("g"), k("scale"))
			m := r.add(r.mul(r.get("m"), k("beta1")), r.mul(x, k("rest1")))
			v := r.add(r.mul(r.get("v"), k("beta2")), r.mul(r.mul(x, x), k("rest2")))
			r.put("m", m)
			r.put("v", v)
			move := r.div(r.mul(m, k("rate")), r.add(r.sqrt(r.mul(v, k("unbias2"))), k("epsilon")))
			r.put("w", r.sub(r.mul(r.get("w"), k("keep")), move))
		}})
}

// functions64 are the float64 ones: every vector of 8 or 4 lanes, so that 16 lanes take 2 or 4.
func (g *generator) functions64() {
	g.Begin("sumSquares64", "returns the sum of squares of x in float64.", "(x []float32) float64")
	n, base, i := g.GP64(), g.GP64(), g.GP64()
	g.Load(g.Param("x").Len(), n)
	g.Load(g.Param("x").Base(), base)
	g.parts = 2 * g.halves()
	lanes := g.zero()
	g.XORQ(i, i)
	g.SUBQ(operand.Imm(16), n)
	g.JLT(operand.LabelRef("rest"))
	g.Label("loop")
	for p, lane := range lanes {
		d := g.register()
		g.VCVTPS2PD(operand.Mem{Base: base, Index: i, Scale: 4, Disp: p * 64 / g.parts}, d)
		g.VFMADD231PD(d, d, lane)
	}
	g.ADDQ(operand.Imm(16), i)
	g.SUBQ(operand.Imm(16), n)
	g.JGE(operand.LabelRef("loop"))
	g.Label("rest")
	g.ADDQ(operand.Imm(16), n)
	g.JZ(operand.LabelRef("done"))
	g.parts = g.halves()
	r := &row{generator: g, index: i, bases: map[string]reg.Register{"x": base}}
	r.mask = g.first(n, 0)
	for half, x := range r.get("x") {
		for part := range 2 {
			// A lane is never -0, so the +0 of a missing element changes nothing.
			d := g.register()
			g.VCVTPS2PD(g.part(x, part), d)
			g.VFMADD231PD(d, d, lanes[2*half+part])
		}
	}
	g.Label("done")
	for ; len(lanes) > 1; lanes = lanes[:len(lanes)/2] {
		for j := range len(lanes) / 2 {
			g.VADDPD(lanes[j+len(lanes)/2], lanes[j], lanes[j])
		}
	}
	if g.wide {
		upper := g.YMM()
		g.VEXTRACTF64X4(operand.U8(1), lanes[0], upper)
		g.VADDPD(upper, lanes[0].AsY(), lanes[0].AsY())
	}
	x, other := lanes[0].AsX(), g.XMM()
	g.VEXTRACTF128(operand.U8(1), lanes[0].AsY(), other)
	g.VADDPD(other, x, x)
	g.VUNPCKHPD(x, x, other)
	g.VADDPD(other, x, x)
	g.Store(x, g.ReturnIndex(0))
	g.End()
}

// part returns the lower or upper half of a vector.
func (g *generator) part(x reg.VecVirtual, upper int) reg.Register {
	switch {
	case upper == 0 && g.wide:
		return x.AsY()
	case upper == 0:
		return x.AsX()
	case g.wide:
		d := g.YMM()
		g.VEXTRACTF32X8(operand.U8(1), x, d)
		return d
	}
	d := g.XMM()
	g.VEXTRACTF128(operand.U8(1), x, d)
	return d
}
