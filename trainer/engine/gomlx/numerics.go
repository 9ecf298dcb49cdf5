package gomlx

import "runtime"

// Numerics returns the numerics class of this process: results are bit-exact between processes of one class, built from
// one version of this program, and nothing else. It names the backend, the architecture with the level that the compiler
// was allowed to use (from amd64-v3 on it fuses multiply-adds), and the vector kernels in use.
func Numerics() string { return "go/" + runtime.GOARCH + level + "/" + kernels() }

// SlowKernels reports whether matrix products run without SIMD, which costs about three quarters of the speed.
func SlowKernels() bool { return kernels() == "generic" }
