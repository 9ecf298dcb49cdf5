package kernel

// PackedSize returns how many floats either pack of a [rows, cols] matrix needs: as [Set.PackTransposed] when the
// rows become the columns of B, or as [Set.Pack] when they stay the steps over k.
func PackedSize(rows, cols int) int {
	return max((rows+panel-1)/panel*panel*cols, (cols+panel-1)/panel*panel*rows)
}

// PackTransposed lays the matrix w of shape [out, in] out as the panels of its transpose, B of shape [in, out]:
// dst[o/16*16*in+i*16+o%16] = w[o*in+i], so that BStep is 16 and BPanel is 16*in. Missing columns of the last panel are
// zero.
func (s Set) PackTransposed(dst, w []float32, out, in int) {
	if in <= 0 {
		return
	}
	for o := 0; o < out; o += panel {
		d := dst[o*in:][:panel*in]
		rows := min(panel, out-o)
		if rows < panel {
			clear(d)
		}
		s.Transpose(d, panel, w[o*in:], in, rows, in)
	}
}

// Pack lays the matrix w of shape [out, in] out as the panels of B of the same shape: dst[i/16*16*out+o*16+i%16] =
// w[o*in+i], so that BStep is 16 and BPanel is 16*out. Missing columns of the last panel are zero.
func (s Set) Pack(dst, w []float32, out, in int) {
	// A few rows at a time read memory in order and write it in pieces of some length.
	const rows = 8
	for o0 := 0; o0 < out; o0 += rows {
		o1 := min(o0+rows, out)
		for i := 0; i < in; i += panel {
			for o := o0; o < o1; o++ {
				d := dst[i*out+o*panel:][:panel]
				if in-i >= panel {
					*(*[panel]float32)(d) = *(*[panel]float32)(w[o*in+i:])
				} else {
					clear(d[copy(d, w[o*in+i:o*in+in]):])
				}
			}
		}
	}
}

// Transpose writes the transpose of src, a matrix of that many rows and columns: dst[c*dstRow+r] = src[r*srcRow+c].
// dst must not overlap src.
func (s Set) Transpose(dst []float32, dstRow int, src []float32, srcRow, rows, cols int) {
	if rows <= 0 || cols <= 0 {
		return
	}
	_ = dst[(cols-1)*dstRow+rows-1]
	_ = src[(rows-1)*srcRow+cols-1]
	if s.path == Portable || rows < 8 || cols < 8 {
		transposePortable(dst, dstRow, src, srcRow, rows, cols)
		return
	}
	wholeRows, wholeCols := rows&^7, cols&^7
	for c := 0; c < wholeCols; c += transposeColumns {
		for r := 0; r < wholeRows; r += 8 {
			transpose8AVX2(&dst[c*dstRow+r], dstRow, &src[r*srcRow+c], srcRow, min(transposeColumns, wholeCols-c))
		}
	}
	if wholeCols < cols {
		transposePortable(dst[wholeCols*dstRow:], dstRow, src[wholeCols:], srcRow, wholeRows, cols-wholeCols)
	}
	if wholeRows < rows {
		transposePortable(dst[wholeRows:], dstRow, src[wholeRows*srcRow:], srcRow, rows-wholeRows, cols)
	}
}

// transposeColumns is how many columns the assembly transposes at a time, so that the lines of dst that one stripe of 8
// rows writes in part are still in the cache for the next stripe.
const transposeColumns = 64

// square is the side of the squares in which the portable path transposes: both sides of one stay in the first-level cache.
const square = 16

func transposePortable(dst []float32, dstRow int, src []float32, srcRow, rows, cols int) {
	for r0 := 0; r0 < rows; r0 += square {
		r1 := min(r0+square, rows)
		for c0 := 0; c0 < cols; c0 += square {
			c1 := min(c0+square, cols)
			for r := r0; r < r1; r++ {
				for c, x := range src[r*srcRow+c0 : r*srcRow+c1] {
					dst[(c0+c)*dstRow+r] = x
				}
			}
		}
	}
}
