package gomlx

import "runtime"

// Numerics returns the numerics class of this process: results are bit-exact between processes of one class and
// nothing else. It names the backend, the architecture and the vector kernels in use.
func Numerics() string { return "go/" + runtime.GOARCH + "/" + kernels() }

// SlowKernels reports whether matrix products run without SIMD, which costs about three quarters of the speed.
func SlowKernels() bool { return kernels() == "generic" }
