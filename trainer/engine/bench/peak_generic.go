//go:build !(goexperiment.simd && amd64)

package bench

// multiplyAdds cannot reach the hardware's peak from portable Go, so it says nothing.
func multiplyAdds() int { return 0 }
