package cosine

import (
	"math"
	"sync"
)

// A vector of n elements in as many lanes is n lines in memory. Below, x_i is a line, and what is done to it is done in each lane.

// forward replaces x by its orthonormal DCT-II: X_k = s_k Σ x_i cos(π(2i+1)k/2n), s_0 = √(1/n), s_k = √(2/n).
func forward(x, room []float32, n, lanes int) {
	halve(x, room, n, lanes)
	normalise(x, n, lanes)
}

// backward undoes forward.
func backward(x, room []float32, n, lanes int) {
	normalise(x, n, lanes)
	double(x, room, n, lanes)
}

func normalise(x []float32, n, lanes int) {
	first, rest := float32(math.Sqrt(1/float64(n))), float32(math.Sqrt(2/float64(n)))
	for i := range x[:lanes] {
		x[i] *= first
	}
	for i := range x[lanes:] {
		x[lanes+i] *= rest
	}
}

// halve computes X_k = Σ x_i cos(π(2i+1)k/2n) by halving (Lee, IEEE Trans. ASSP 1984) as long as n is even.
func halve(x, room []float32, n, lanes int) {
	if n == 1 {
		return
	}
	if n%2 != 0 {
		direct(x, room, n, lanes, 1)
		return
	}
	half, c := n/2, constants().secants[n/2]
	line := func(of []float32, i int) []float32 { return of[i*lanes:][:lanes] }
	for i := range half {
		a, b, sum, difference := line(x, i), line(x, n-1-i), line(room, i), line(room, half+i)
		for j := range a {
			sum[j], difference[j] = a[j]+b[j], float32((a[j]-b[j])*c[i])
		}
	}
	upper, lower := room[:half*lanes], room[half*lanes:n*lanes]
	halve(upper, x[:half*lanes], half, lanes)
	halve(lower, x[:half*lanes], half, lanes)
	for k := range half - 1 {
		copy(line(x, 2*k), line(upper, k))
		odd, a, b := line(x, 2*k+1), line(lower, k), line(lower, k+1)
		for j := range odd {
			odd[j] = a[j] + b[j]
		}
	}
	copy(line(x, n-2), line(upper, half-1))
	copy(line(x, n-1), line(lower, half-1))
}

// double computes x_i = Σ X_k cos(π(2i+1)k/2n).
func double(x, room []float32, n, lanes int) {
	if n == 1 {
		return
	}
	if n%2 != 0 {
		direct(x, room, 1, lanes, n)
		return
	}
	half, c := n/2, constants().secants[n/2]
	line := func(of []float32, i int) []float32 { return of[i*lanes:][:lanes] }
	upper, lower := room[:half*lanes], room[half*lanes:n*lanes]
	copy(line(upper, 0), line(x, 0))
	copy(line(lower, 0), line(x, 1))
	for i := 1; i < half; i++ {
		copy(line(upper, i), line(x, 2*i))
		sum, a, b := line(lower, i), line(x, 2*i-1), line(x, 2*i+1)
		for j := range sum {
			sum[j] = a[j] + b[j]
		}
	}
	double(upper, x[:half*lanes], half, lanes)
	double(lower, x[:half*lanes], half, lanes)
	for i := range half {
		first, last, a, b := line(x, i), line(x, n-1-i), line(upper, i), line(lower, i)
		for j := range a {
			odd := float32(b[j] * c[i])
			first[j], last[j] = a[j]+odd, a[j]-odd
		}
	}
}

// direct replaces an odd number of lines by the sums of its elements times cosines. The steps say how far apart those of two sums
// are in the table, and those of two elements of one sum: n and 1 forward, 1 and n backward.
func direct(x, room []float32, sumStep, lanes, elementStep int) {
	n := max(sumStep, elementStep)
	basis := constants().cosines[n/2]
	room = room[:n*lanes]
	clear(room)
	for i := range n {
		sum := room[i*lanes:][:lanes]
		for k := range n {
			c, line := basis[i*sumStep+k*elementStep], x[k*lanes:][:lanes]
			for j, v := range line {
				sum[j] += float32(c * v)
			}
		}
	}
	copy(x, room)
}

// tables hold the constants of all sizes up to [Side].
type tables struct {
	secants [Side/2 + 1][]float32 // at n/2 for even n: 1/(2cos(π(2i+1)/2n)) for i below n/2
	cosines [Side / 2][]float32   // at (n−1)/2 for odd n: cos(π(2i+1)k/2n), row k, column i
}

var constants = sync.OnceValue(func() *tables {
	t := new(tables)
	for n := 2; n <= Side; n += 2 {
		for i := range n / 2 {
			t.secants[n/2] = append(t.secants[n/2], float32(0.5/cosinePi(2*i+1, 2*n)))
		}
	}
	for n := 3; n < Side; n += 2 {
		for k := range n {
			for i := range n {
				t.cosines[n/2] = append(t.cosines[n/2], float32(cosinePi((2*i+1)*k, 2*n)))
			}
		}
	}
	return t
})

// cosinePi returns cos(πp/q) for p ≥ 0, q > 0, with the same bits on every machine: package math leaves it to the compiler whether
// a product and a sum are rounded once or twice.
func cosinePi(p, q int) float64 {
	p %= 2 * q
	if p > q {
		p = 2*q - p
	}
	if 2*p > q {
		return -cosinePi(q-p, q)
	}
	x := float64(math.Pi*float64(p)) / float64(q)
	square, sum := float64(x*x), 1.0
	for k := 24; k > 0; k -= 2 { // cos x = 1 − x²/(1·2) · (1 − x²/(3·4) · (1 − …))
		sum = 1 - float64(square*sum)/float64((k-1)*k)
	}
	return sum
}
