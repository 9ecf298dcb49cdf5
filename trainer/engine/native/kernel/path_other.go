//go:build !amd64

package kernel

func supported(Path) bool { return false }
