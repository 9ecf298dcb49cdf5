package kernel

import (
	"fmt"
	"math"
	"testing"
	"time"
)

// share measures f, which makes that many multiply-adds, against the core's peak: both are run in turns of about a
// tenth of a millisecond, and the fastest turn of each counts, so that other work on the machine disturbs neither.
func share(b *testing.B, s Set, multiplyAdds int, f func()) {
	const rounds = 50_000
	fastest, peak := time.Duration(math.MaxInt64), time.Duration(math.MaxInt64)
	start := time.Now()
	f()
	calls := max(1, int(100*time.Microsecond/max(1, time.Since(start))))
	n := 0
	for i := 0; b.Loop(); i++ {
		start := time.Now()
		for range calls {
			f()
		}
		fastest = min(fastest, time.Since(start)/time.Duration(calls))
		if i%4 == 0 {
			start = time.Now()
			n = s.multiplyAdds(rounds)
			peak = min(peak, time.Since(start))
		}
	}
	rate := float64(multiplyAdds) / fastest.Seconds()
	b.ReportMetric(2*rate/1e9, "GFLOP/s")
	if n > 0 {
		b.ReportMetric(100*rate/(float64(n)/peak.Seconds()), "%peak")
	}
	b.ReportMetric(0, "ns/op")
}

// shape is a product by the way a layer uses it.
type shape struct {
	name    string
	m, n, k int
	use     string // forward, backward, weights
}

var shapes = []shape{
	{"512", 512, 512, 512, "forward"},
	{"1024", 1024, 1024, 1024, "forward"},
	{"tokens", 64, 128, 128, "forward"},
	{"tokens", 64, 384, 1536, "forward"},
	{"tokens", 64, 1024, 1024, "forward"},
	{"tokens", 64, 4096, 4096, "forward"},
	{"tokens", 64, 1536, 384, "backward"},
	{"weights", 64, 192, 768, "weights"},
	{"weights", 64, 192, 4096, "weights"},
	{"attention", 256, 256, 64, "forward"},
	{"attention", 256, 64, 256, "forward"},
	{"attention", 64, 64, 32, "forward"},
	{"attention", 64, 32, 64, "forward"},
}

// product lays a shape out: packed weights, or gradients and inputs with padded rows.
func (h shape) product() *Product {
	if h.use == "weights" {
		const width = 4096 + 16 // of the layers' rows, an odd number of cache lines
		return &Product{M: h.m, N: h.n, K: h.k, A: ones(h.k * width), ARow: 1, AStep: width, B: ones(h.k * width), BStep: width, BPanel: 16,
			C: ones(h.m * h.n), CRow: h.n, Add: true}
	}
	row := h.k
	if row%32 == 0 {
		row += 16
	}
	return &Product{M: h.m, N: h.n, K: h.k, A: ones(h.m * row), ARow: row, AStep: 1, B: ones(PackedSize(h.n, h.k)), BStep: 16, BPanel: 16 * h.k,
		C: ones(h.m * h.n), CRow: h.n}
}

// BenchmarkMultiply reports the share of the core's peak, measured at the same time.
func BenchmarkMultiply(b *testing.B) {
	for _, s := range append([]Set{{}}, assembly(b)...) {
		for _, h := range shapes {
			b.Run(fmt.Sprintf("%v/%s-%dx%dx%d-%s", s.Path(), h.name, h.m, h.n, h.k, h.use), func(b *testing.B) {
				p := h.product()
				share(b, s, h.m*h.n*h.k, func() { s.Multiply(p) })
			})
		}
	}
}

func ones(n int) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = 1 / float32(i%7+1)
	}
	return x
}

// BenchmarkRows reports the bytes read and written, and the elements of a row that are done.
func BenchmarkRows(b *testing.B) {
	const n = 4096
	for _, s := range append([]Set{{}}, assembly(b)...) {
		for _, f := range functions {
			if f.name == "Rotary" {
				continue
			}
			b.Run(fmt.Sprintf("%v/%s", s.Path(), f.name), func(b *testing.B) {
				var rows [][]float32
				for range f.rows {
					rows = append(rows, ones(n))
				}
				k := []float32{0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5}
				b.SetBytes(int64(4 * n * (f.rows + len(f.reads))))
				for b.Loop() {
					f.run(s, rows, k)
				}
				b.ReportMetric(float64(n*b.N)/b.Elapsed().Seconds()/1e9, "Gelement/s")
			})
		}
	}
}

func BenchmarkPack(b *testing.B) {
	const out, in = 1024, 1024
	w, dst := ones(out*in), make([]float32, PackedSize(out, in))
	for _, s := range append([]Set{{}}, assembly(b)...) {
		for name, pack := range map[string]func(dst, w []float32, out, in int){"PackTransposed": s.PackTransposed, "Pack": s.Pack} {
			b.Run(fmt.Sprintf("%v/%s", s.Path(), name), func(b *testing.B) {
				b.SetBytes(8 * out * in)
				for b.Loop() {
					pack(dst, w, out, in)
				}
			})
		}
	}
}
