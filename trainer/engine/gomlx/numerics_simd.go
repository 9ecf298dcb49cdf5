//go:build goexperiment.simd && amd64

package gomlx

import "simd/archsimd"

// kernels names the vector kernels that the backend picks on this CPU, by the backend's own rule.
func kernels() string {
	switch {
	case archsimd.X86.AVX512():
		return "avx512"
	case archsimd.X86.AVX2():
		return "avx2"
	}
	return "generic"
}
