// Package kernel owns float32 arithmetic on rows and matrices: matrix products, row sums, norms, activations, softmax
// and the AdamW update, with the same bits on every machine. It refuses to own shapes, models, memory and threads: it
// works on the slices that it is given, on the goroutine that calls it, and allocates nothing.
//
// Three code paths compute every function: portable Go, AVX2 with FMA, and AVX-512. They agree bit for bit because the
// order of every rounding is part of the definition:
//
//   - An element of a matrix product is one chain of float32 fused multiply-adds over k in ascending order, starting
//     from +0 or from the old value. Tiles, vector widths and blocks of k cut only across independent elements.
//   - A sum over a row has 16 lanes. Element i belongs to lane i%16, every lane adds its elements in ascending order
//     starting from +0, and the lanes are added by one tree: lane j takes lane j+8, then j+4, j+2, j+1.
//   - In the formulas of the element-wise functions every *, +, -, / and square root is one IEEE rounding to float32,
//     and fma(a, b, c) is one rounding of a·b+c. The exponential and the error function are fixed polynomials.
//
// Denormal numbers are neither flushed nor read as zero, except in results of the exponential below 2⁻¹²⁶, which are
// +0. The sign and the payload of a NaN are not defined, but a NaN appears at the same places on every path.
//
// Lengths are those of the first argument unless said otherwise; the other slices must be at least as long. Outputs may
// be the very slice of an input, but must not overlap one otherwise.
package kernel

//go:generate go run ./gen

// Version names the order of roundings. Two builds with the same version compute the same bits; any change of an order
// or of a polynomial is a new version.
const Version = 1
