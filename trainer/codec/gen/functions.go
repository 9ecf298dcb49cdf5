package main

import (
	"math"

	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// thresholds4 repeats those of the portable path; the tests compare the paths' bits.
var thresholds4 = [7]uint32{17, 36, 57, 80, 108, 145, 208}

func (g *generator) squares() {
	g.Begin("squares", "adds the squares of n elements, a multiple of 8, to eight chains.", "(chains *float64, x *float32, n int)")
	chains, x, n := g.Word("chains"), g.Word("x"), g.Word("n")
	var acc [2]reg.VecVirtual
	for i := range acc {
		acc[i] = g.YMM()
		g.VMOVUPD(mem(chains, 32*i), acc[i])
	}
	g.loop(n, 8, func() {
		for i := range acc {
			v := g.YMM()
			g.VCVTPS2PD(mem(x, 16*i), v)
			g.VMULPD(v, v, v)
			g.VADDPD(v, acc[i], acc[i])
		}
		g.advance(x, 32)
	})
	for i := range acc {
		g.VMOVUPD(acc[i], mem(chains, 32*i))
	}
	g.End()
}

// fixed loads 8 elements, scales them and rounds them to integers, which it stores.
func (g *generator) fixed(x, fixed reg.Register, part int, factor reg.VecVirtual) reg.VecVirtual {
	q := g.YMM()
	g.VMULPS(mem(x, 32*part), factor, q)
	g.VCVTPS2DQ(q, q)
	g.VMOVDQU(q, mem(fixed, 32*part))
	return q
}

// bytes narrows four vectors of small integers to one of bytes, with saturation, in order.
func (g *generator) bytes(v [4]reg.VecVirtual) reg.VecVirtual {
	order := g.YMM()
	g.VMOVDQU(g.table("order", []uint64{0 | 4<<32, 1 | 5<<32, 2 | 6<<32, 3 | 7<<32}), order)
	g.VPACKSSDW(v[1], v[0], v[0])
	g.VPACKSSDW(v[3], v[2], v[2])
	g.VPACKUSWB(v[2], v[0], v[0])
	out := g.YMM()
	g.VPERMD(v[0], order, out)
	return out
}

func (g *generator) quantise8() {
	g.Begin("quantise8", "is quantise8 for n elements, a multiple of 32.", "(codes *byte, fixed *int32, x *float32, n int, factor float32)")
	codes, fixed, x, n := g.Word("codes"), g.Word("fixed"), g.Word("x"), g.Word("n")
	factor, offset := g.scalar("factor"), g.lanes(128<<19+1<<18)
	g.loop(n, 32, func() {
		var v [4]reg.VecVirtual
		for i := range v {
			v[i] = g.YMM()
			g.VPADDD(offset, g.fixed(x, fixed, i, factor), v[i])
			g.VPSRAD(operand.U8(19), v[i], v[i])
		}
		g.VMOVDQU(g.bytes(v), mem(codes, 0))
		g.advance(codes, 32)
		g.advance(x, 128)
		g.advance(fixed, 128)
	})
	g.End()
}

func (g *generator) quantise4() {
	g.Begin("quantise4", "is quantise4 for n elements, a multiple of 32.", "(packed, codes *byte, fixed *int32, x *float32, n int, factor float32)")
	packed, codes, fixed, x, n := g.Word("packed"), g.Word("codes"), g.Word("fixed"), g.Word("x"), g.Word("n")
	factor, pairs := g.scalar("factor"), g.lanes(0x10011001)
	var limits [7]reg.VecVirtual
	for i := range limits {
		limits[i] = g.lanes(thresholds4[i]<<18 - 1)
	}
	g.loop(n, 32, func() {
		var v [4]reg.VecVirtual
		for i := range v {
			q := g.fixed(x, fixed, i, factor)
			size, over := g.YMM(), g.YMM()
			v[i] = g.YMM()
			g.VPABSD(q, size)
			g.VPSRLD(operand.U8(31), q, v[i])
			g.VPSLLD(operand.U8(3), v[i], v[i])
			for _, limit := range limits {
				g.VPCMPGTD(limit, size, over)
				g.VPSUBD(over, v[i], v[i])
			}
		}
		c := g.bytes(v)
		g.VMOVDQU(c, mem(codes, 0))
		g.VPMADDUBSW(pairs, c, c)
		g.VPACKUSWB(c, c, c)
		g.VPERMQ(operand.U8(0x08), c, c)
		g.VMOVDQU(c.AsX(), mem(packed, 0))
		g.advance(packed, 16)
		g.advance(codes, 32)
		g.advance(x, 128)
		g.advance(fixed, 128)
	})
	g.End()
}

// copyFinite makes two functions that differ in their types alone.
func (g *generator) copyFinite() {
	for _, f := range [][2]string{{"storeFinite", "(dst *byte, src *float32, n int) uint32"}, {"loadFinite", "(dst *float32, src *byte, n int) uint32"}} {
		g.Begin(f[0], "copies n float32, a multiple of 8, and returns 0 if all are finite.", f[1])
		dst, src, n := g.Word("dst"), g.Word("src"), g.Word("n")
		exponent, broken := g.lanes(0x7f800000), g.YMM()
		g.VPXOR(broken, broken, broken)
		g.loop(n, 8, func() {
			v := g.YMM()
			g.VMOVDQU(mem(src, 0), v)
			g.VMOVDQU(v, mem(dst, 0))
			g.VPAND(exponent, v, v)
			g.VPCMPEQD(exponent, v, v)
			g.VPOR(v, broken, broken)
			g.advance(src, 32)
			g.advance(dst, 32)
		})
		bits := g.GP32()
		g.VMOVMSKPS(broken, bits)
		g.Store(bits, g.ReturnIndex(0))
		g.End()
	}
}

func (g *generator) addRaw() {
	g.Begin("addRaw", "adds f·x to acc for n elements, a multiple of 8.", "(acc *float32, x *byte, n int, f float32)")
	acc, x, n, f := g.Word("acc"), g.Word("x"), g.Word("n"), g.scalar("f")
	g.loop(n, 8, func() {
		v := g.YMM()
		g.VMULPS(mem(x, 0), f, v)
		g.VADDPS(mem(acc, 0), v, v)
		g.VMOVUPS(v, mem(acc, 0))
		g.advance(acc, 32)
		g.advance(x, 32)
	})
	g.End()
}

// unpack4 makes two functions: one that stores what the nibbles stand for, and one that adds it.
func (g *generator) unpack4() {
	for _, add := range []bool{false, true} {
		name, doc := "load4", "sets n elements, a multiple of 8, to what their nibbles stand for."
		if add {
			name, doc = "add4", "adds to n elements, a multiple of 8, what the nibbles stand for."
		}
		g.Begin(name, doc, "(dst *float32, packed *byte, n int, value *float32)")
		dst, packed, n, value := g.Word("dst"), g.Word("packed"), g.Word("n"), g.Word("value")
		low, high, shifts := g.YMM(), g.YMM(), g.YMM()
		g.VMOVUPS(mem(value, 0), low)
		g.VMOVUPS(mem(value, 32), high)
		g.VMOVDQU(g.table("shifts", []uint64{0 | 4<<32, 8 | 12<<32, 16 | 20<<32, 24 | 28<<32}), shifts)
		g.loop(n, 8, func() {
			k, a, b := g.YMM(), g.YMM(), g.YMM()
			g.VPBROADCASTD(mem(packed, 0), k)
			g.VPSRLVD(shifts, k, k)
			g.VPERMPS(low, k, a)
			g.VPERMPS(high, k, b)
			g.VPSLLD(operand.U8(28), k, k)
			g.VBLENDVPS(k, b, a, a)
			if add {
				g.VADDPS(mem(dst, 0), a, a)
			}
			g.VMOVUPS(a, mem(dst, 0))
			g.advance(packed, 4)
			g.advance(dst, 32)
		})
		g.End()
	}
}

// above writes the indices of large elements without a branch: for each of the 256 sets among eight lanes a table holds the
// members' numbers, and the next eight elements overwrite what the last ones left behind their own.
func (g *generator) above() {
	sets := make([]uint64, 256)
	for s := range sets {
		shift := 0
		for lane := range 8 {
			if s>>lane&1 == 1 {
				sets[s] |= uint64(lane) << shift
				shift += 8
			}
		}
	}
	g.Begin("above", "writes which of n elements, a multiple of 8, have a magnitude with bits greater than limit, and returns how "+
		"many; out has room for n+8.", "(out *uint16, x *float32, n int, limit uint32) int")
	out, x, n := g.Word("out"), g.Word("x"), g.Word("n")
	limit, narrow := g.YMM(), g.XMM()
	g.VMOVD(g.Load(g.Param("limit"), g.GP32()), narrow)
	g.VPBROADCASTD(narrow, limit)
	table := g.GP64()
	g.LEAQ(g.table("members", sets), table)
	base, step, magnitude := g.XMM(), g.XMM(), g.lanes(math.MaxInt32)
	g.VPXOR(base, base, base)
	g.VPBROADCASTD(g.ConstData("eights", operand.U32(0x00080008)), step)
	count := g.GP64()
	g.XORQ(count, count)
	g.loop(n, 8, func() {
		v, which, members, set := g.YMM(), g.YMM(), g.XMM(), g.GP32()
		g.VPAND(mem(x, 0), magnitude, v)
		g.VPCMPGTD(limit, v, which)
		g.VMOVMSKPS(which, set)
		g.VPMOVZXBW(operand.Mem{Base: table, Index: set.As64(), Scale: 8}, members)
		g.VPADDW(base, members, members)
		g.VMOVDQU(members, operand.Mem{Base: out, Index: count, Scale: 2})
		g.VPADDW(step, base, base)
		g.POPCNTL(set, set)
		g.ADDQ(set.As64(), count)
		g.advance(x, 32)
	})
	g.Store(count, g.ReturnIndex(0))
	g.End()
}
