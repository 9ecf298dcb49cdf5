//go:build !amd64

package codec

const fast = false
