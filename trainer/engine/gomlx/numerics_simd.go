//go:build goexperiment.simd && amd64

package gomlx

import (
	"simd/archsimd"

	"github.com/gomlx/compute/support/envutil"
)

// kernels names the vector kernels that the backend picked on this CPU, by the backend's own rule, which people can
// override through the environment.
func kernels() string {
	allowed := func(variable string) bool {
		yes, err := envutil.ReadBool(variable, true)
		return yes && err == nil
	}
	switch {
	case !allowed("GOMLX_DOT_MATMUL"):
		return "generic"
	case archsimd.X86.AVX512() && allowed(envutil.SIMD_AVX512_Env):
		return "avx512"
	case archsimd.X86.AVX2() && allowed(envutil.SIMD_AVX2_Env):
		return "avx2"
	}
	return "generic"
}
