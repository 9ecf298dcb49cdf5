//go:build !(goexperiment.simd && amd64)

package gomlx

func kernels() string { return "generic" }
