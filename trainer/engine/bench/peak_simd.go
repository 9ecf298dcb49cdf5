//go:build goexperiment.simd && amd64

package bench

import (
	"runtime"
	"simd/archsimd"
)

// rounds of twelve independent multiply-adds: enough to fill the pipelines of any current core, some 20 ms.
const rounds = 2_000_000

// multiplyAdds runs fused multiply-adds from registers, on the calling goroutine, and returns how many scalar ones they
// make. It returns 0 on a CPU without AVX2.
func multiplyAdds() int {
	defer archsimd.ClearAVXUpperBits()
	switch {
	case archsimd.X86.AVX512():
		return multiplyAdds512()
	case archsimd.X86.AVX2():
		return multiplyAdds256()
	}
	return 0
}

func multiplyAdds512() int {
	x, y := archsimd.BroadcastFloat32x16(0.5), archsimd.BroadcastFloat32x16(0.25)
	// Different starts, or the compiler would find the twelve chains equal and compute one.
	a, b, c, d, e, f := archsimd.BroadcastFloat32x16(1), archsimd.BroadcastFloat32x16(2), archsimd.BroadcastFloat32x16(3), archsimd.BroadcastFloat32x16(4), archsimd.BroadcastFloat32x16(5), archsimd.BroadcastFloat32x16(6)
	g, h, i, j, k, l := archsimd.BroadcastFloat32x16(7), archsimd.BroadcastFloat32x16(8), archsimd.BroadcastFloat32x16(9), archsimd.BroadcastFloat32x16(10), archsimd.BroadcastFloat32x16(11), archsimd.BroadcastFloat32x16(12)
	for range rounds {
		a, b, c = a.MulAdd(x, y), b.MulAdd(x, y), c.MulAdd(x, y)
		d, e, f = d.MulAdd(x, y), e.MulAdd(x, y), f.MulAdd(x, y)
		g, h, i = g.MulAdd(x, y), h.MulAdd(x, y), i.MulAdd(x, y)
		j, k, l = j.MulAdd(x, y), k.MulAdd(x, y), l.MulAdd(x, y)
	}
	sum := a.Add(b).Add(c).Add(d).Add(e).Add(f).Add(g).Add(h).Add(i).Add(j).Add(k).Add(l)
	var out [16]float32
	sum.Store(&out)
	runtime.KeepAlive(&out)
	return rounds * 12 * 16
}

func multiplyAdds256() int {
	x, y := archsimd.BroadcastFloat32x8(0.5), archsimd.BroadcastFloat32x8(0.25)
	// Different starts, or the compiler would find the twelve chains equal and compute one.
	a, b, c, d, e, f := archsimd.BroadcastFloat32x8(1), archsimd.BroadcastFloat32x8(2), archsimd.BroadcastFloat32x8(3), archsimd.BroadcastFloat32x8(4), archsimd.BroadcastFloat32x8(5), archsimd.BroadcastFloat32x8(6)
	g, h, i, j, k, l := archsimd.BroadcastFloat32x8(7), archsimd.BroadcastFloat32x8(8), archsimd.BroadcastFloat32x8(9), archsimd.BroadcastFloat32x8(10), archsimd.BroadcastFloat32x8(11), archsimd.BroadcastFloat32x8(12)
	for range rounds {
		a, b, c = a.MulAdd(x, y), b.MulAdd(x, y), c.MulAdd(x, y)
		d, e, f = d.MulAdd(x, y), e.MulAdd(x, y), f.MulAdd(x, y)
		g, h, i = g.MulAdd(x, y), h.MulAdd(x, y), i.MulAdd(x, y)
		j, k, l = j.MulAdd(x, y), k.MulAdd(x, y), l.MulAdd(x, y)
	}
	sum := a.Add(b).Add(c).Add(d).Add(e).Add(f).Add(g).Add(h).Add(i).Add(j).Add(k).Add(l)
	var out [8]float32
	sum.Store(&out)
	runtime.KeepAlive(&out)
	return rounds * 12 * 8
}
