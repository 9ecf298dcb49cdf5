package kernel

import (
	"math"
	"math/big"
	"math/rand/v2"
	"testing"
)

const bits = 300

func bigLog(x float64) *big.Float { // ln x by the arithmetic of atanh and ln 2, 300 bits
	m, e := math.Frexp(x)
	atanh := func(num, den *big.Float) *big.Float {
		s := new(big.Float).SetPrec(bits).Quo(num, den)
		z := new(big.Float).SetPrec(bits).Mul(s, s)
		sum, term := new(big.Float).SetPrec(bits), s
		for k := 1; k < 400; k += 2 {
			sum.Add(sum, new(big.Float).SetPrec(bits).Quo(term, big.NewFloat(float64(k))))
			term = new(big.Float).SetPrec(bits).Mul(term, z)
		}
		return sum.Mul(sum, big.NewFloat(2))
	}
	f := func(v float64) *big.Float { return new(big.Float).SetPrec(bits).SetFloat64(v) }
	ln2 := atanh(f(1), f(3))
	r := atanh(f(0).Sub(f(m), f(1)), f(0).Add(f(m), f(1)))
	return r.Add(r, ln2.Mul(ln2, f(float64(e))))
}

func bigExp(x *big.Float) *big.Float { // Taylor of x/2⁶⁴, squared 64 times
	r := new(big.Float).SetPrec(bits).SetMantExp(x, -64)
	sum, term := new(big.Float).SetPrec(bits).SetInt64(1), new(big.Float).SetPrec(bits).SetInt64(1)
	for k := 1; k < 12; k++ {
		term.Mul(term, r).Quo(term, big.NewFloat(float64(k)))
		sum.Add(sum, term)
	}
	for range 64 {
		sum.Mul(sum, sum)
	}
	return sum
}

var bigPi, _, _ = big.ParseFloat("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899862803482534211706798214808651", 10, bits, big.ToNearestEven)

func bigSinCos(x float64) (sin, cos *big.Float) { // the angle reduced by 2π, then Taylor
	f := func(v float64) *big.Float { return new(big.Float).SetPrec(bits).SetFloat64(v) }
	turn := f(0).Mul(bigPi, f(2))
	n := f(math.Round(x / (2 * math.Pi)))
	r := f(0).Sub(f(x), n.Mul(n, turn))
	sin, cos = f(0), f(0)
	term := f(1)
	for k := range 80 {
		switch k % 4 {
		case 0:
			cos.Add(cos, term)
		case 1:
			sin.Add(sin, term)
		case 2:
			cos.Sub(cos, term)
		case 3:
			sin.Sub(sin, term)
		}
		term.Mul(term, r).Quo(term, f(float64(k+1)))
	}
	return sin, cos
}

// ulps is how far got is from want, in units of got's last place.
func ulps(got float64, want *big.Float) float64 {
	d := new(big.Float).SetPrec(bits).Sub(new(big.Float).SetFloat64(got), want)
	v, _ := d.Float64()
	w, _ := want.Float64()
	return math.Abs(v) / (math.Nextafter(math.Abs(w), math.Inf(1)) - math.Abs(w))
}

func TestFloat64Functions(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	worst := map[string]float64{}
	note := func(name string, x, y float64, got float64, want *big.Float) {
		if u := ulps(got, want); !(u <= 2) {
			t.Fatalf("%s(%v, %v) = %v, off by %.2f units in the last place", name, x, y, got, u)
		} else if u > worst[name] {
			worst[name] = u
		}
	}
	for i := range 3000 {
		x := math.Exp(r.Float64()*80 - 40)
		if i%3 == 0 {
			x = 1 + r.NormFloat64()*1e-3
		}
		note("Log64", x, 0, Log64(x), bigLog(x))
		y := r.Float64()*1400 - 700
		if i%2 == 0 {
			y = r.NormFloat64()
		}
		note("Exp64", y, 0, Exp64(y), bigExp(new(big.Float).SetFloat64(y)))
		theta := []float64{1e4, 5e5, 1e6, 1e12, 1 + r.Float64()*1e5}[i%5]
		e := -r.Float64()
		power := bigLog(theta)
		note("Pow64", theta, e, Pow64(theta, e), bigExp(power.Mul(power, new(big.Float).SetFloat64(e))))
		angle := []float64{r.Float64() * 7, r.Float64() * 1e6, float64(r.IntN(1e6)), -r.Float64() * 100, math.Round(r.Float64()*6e5) * math.Pi / 2}[i%5]
		sin, cos := SinCos64(angle)
		bs, bc := bigSinCos(angle)
		note("sin", angle, 0, sin, bs)
		note("cos", angle, 0, cos, bc)
	}
	t.Log(worst)
}

func TestFloat64Specials(t *testing.T) {
	inf, nan := math.Inf(1), math.NaN()
	for _, c := range []struct{ got, want float64 }{
		{Exp64(inf), inf}, {Exp64(-inf), 0}, {Exp64(nan), nan}, {Exp64(710), inf}, {Exp64(-746), 0}, {Exp64(0), 1},
		{Exp64(-745), 5e-324}, {Log64(0), -inf}, {Log64(-1), nan}, {Log64(inf), inf}, {Log64(1), 0}, {Log64(5e-324), -744.4400719213812},
		{Pow64(1e4, 0), 1}, {Pow64(2, 10), 1024}, {Pow64(10, 400), inf}, {Pow64(10, -400), 0},
	} {
		if c.got != c.want && !(c.got != c.got && c.want != c.want) {
			t.Errorf("got %v, want %v", c.got, c.want)
		}
	}
	if s, c := SinCos64(0); s != 0 || c != 1 {
		t.Errorf("SinCos64(0) = %v, %v", s, c)
	}
	if s, _ := SinCos64(inf); s == s {
		t.Errorf("SinCos64(Inf) = %v", s)
	}
}
