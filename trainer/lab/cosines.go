package lab

import (
	"math"
	"sync"
)

// cosine replaces x by its orthonormal DCT-II; room has its length.
func cosine(x, room []float32) {
	forward(x, room)
	normalise(x)
}

// cosineInverse undoes cosine.
func cosineInverse(x, room []float32) {
	normalise(x)
	backward(x, room)
}

func normalise(x []float32) {
	first, rest := float32(math.Sqrt(1/float64(len(x)))), float32(math.Sqrt(2/float64(len(x))))
	x[0] *= first
	for i := 1; i < len(x); i++ {
		x[i] *= rest
	}
}

// forward computes X_k = Σ x_i cos(π(2i+1)k/2n) by halving (Lee, IEEE Trans. ASSP 1984) as long as n is even.
func forward(x, room []float32) {
	n, half := len(x), len(x)/2
	if n == 1 {
		return
	}
	if n%2 != 0 {
		direct(x, room, n, 1)
		return
	}
	c := secants(n)
	for i := range half {
		a, b := x[i], x[n-1-i]
		room[i], room[half+i] = a+b, float32((a-b)*c[i])
	}
	forward(room[:half], x[:half])
	forward(room[half:], x[:half])
	for k := range half - 1 {
		x[2*k], x[2*k+1] = room[k], room[half+k]+room[half+k+1]
	}
	x[n-2], x[n-1] = room[half-1], room[n-1]
}

// backward computes x_i = Σ X_k cos(π(2i+1)k/2n).
func backward(x, room []float32) {
	n, half := len(x), len(x)/2
	if n == 1 {
		return
	}
	if n%2 != 0 {
		direct(x, room, 1, n)
		return
	}
	room[0], room[half] = x[0], x[1]
	for i := 1; i < half; i++ {
		room[i], room[half+i] = x[2*i], x[2*i-1]+x[2*i+1]
	}
	backward(room[:half], x[:half])
	backward(room[half:], x[:half])
	c := secants(n)
	for i := range half {
		a, b := room[i], float32(room[half+i]*c[i])
		x[i], x[n-1-i] = a+b, a-b
	}
}

// direct replaces x by the sums of its elements times cosines. The steps say how far apart those of two sums are, and those of
// two elements of one sum: n and 1 forward, 1 and n backward.
func direct(x, room []float32, sumStep, elementStep int) {
	basis := cosines(len(x))
	for i := range x {
		room[i] = 0
		for j, v := range x {
			room[i] += float32(basis[i*sumStep+j*elementStep] * v)
		}
	}
	copy(x, room)
}

var tables sync.Map // [2]int{kind, n} → []float32

func table(kind, n int, fill func([]float32) []float32) []float32 {
	key := [2]int{kind, n}
	if t, ok := tables.Load(key); ok {
		return t.([]float32)
	}
	t := fill(nil)
	tables.Store(key, t)
	return t
}

// secants returns 1/(2cos(π(2i+1)/2n)) for i below n/2.
func secants(n int) []float32 {
	return table(0, n, func(t []float32) []float32 {
		for i := range n / 2 {
			t = append(t, float32(0.5/math.Cos(math.Pi*(2*float64(i)+1)/(2*float64(n)))))
		}
		return t
	})
}

// cosines returns cos(π(2i+1)k/2n), row k, column i.
func cosines(n int) []float32 {
	return table(1, n, func(t []float32) []float32 {
		for k := range n {
			for i := range n {
				t = append(t, float32(math.Cos(math.Pi*float64((2*i+1)*k)/float64(2*n))))
			}
		}
		return t
	})
}
