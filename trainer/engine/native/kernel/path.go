package kernel

import (
	"errors"
	"fmt"
	"os"
)

// ErrPath reports an unknown code path, or one that this CPU cannot run.
var ErrPath = errors.New("no such kernel path")

// Variable is the environment variable that forces a code path, by its name, in [Select].
const Variable = "CAPANODE_KERNELS"

// Path is one of the code paths that compute the same bits.
type Path uint8

// The code paths, slowest first.
const (
	Portable Path = iota // plain Go, any architecture
	AVX2                 // amd64 with AVX2 and FMA
	AVX512               // amd64 with AVX-512 F, BW, DQ and VL
)

// paths lists every path, slowest first, whether or not this CPU has it.
var paths = [...]Path{Portable, AVX2, AVX512}

// String returns the path's name as [Variable] takes it: "portable", "avx2" or "avx512".
func (p Path) String() string {
	switch p {
	case Portable:
		return "portable"
	case AVX2:
		return "avx2"
	case AVX512:
		return "avx512"
	}
	return fmt.Sprintf("path(%d)", uint8(p))
}

// Supported reports whether this CPU and operating system run the path.
func (p Path) Supported() bool {
	return p == Portable || p <= AVX512 && supported(p)
}

// Best returns the fastest path that this CPU runs.
func Best() Path {
	for i := len(paths) - 1; i > 0; i-- {
		if paths[i].Supported() {
			return paths[i]
		}
	}
	return Portable
}

// Set is the functions of this package on one code path. Its zero value is the portable path.
type Set struct{ path Path }

// New returns the functions on that path, or an error wrapping [ErrPath] if this CPU does not run it.
func New(path Path) (Set, error) {
	if !path.Supported() {
		return Set{}, fmt.Errorf("%s on this CPU: %w", path, ErrPath)
	}
	return Set{path}, nil
}

// Select returns the functions on the path that the environment's CAPANODE_KERNELS names, or on the [Best] one if it is
// unset or empty. A name that is unknown, or a path that this CPU does not run, is an error wrapping [ErrPath].
func Select() (Set, error) {
	name := os.Getenv(Variable)
	if name == "" {
		return New(Best())
	}
	for _, p := range paths {
		if p.String() == name {
			set, err := New(p)
			if err != nil {
				return set, fmt.Errorf("%s=%s: %w", Variable, name, err)
			}
			return set, nil
		}
	}
	return Set{}, fmt.Errorf("%s=%q, allowed are portable, avx2 and avx512: %w", Variable, name, ErrPath)
}

// Path returns the code path that the functions run on.
func (s Set) Path() Path { return s.path }
