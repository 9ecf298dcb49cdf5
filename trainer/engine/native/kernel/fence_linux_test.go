package kernel

import (
	"math/rand/v2"
	"runtime/debug"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// fenced returns memory for at most 4096 floats between two pages that must not be touched.
func fenced(t *testing.T) []float32 {
	t.Helper()
	page := unix.Getpagesize()
	size := (4*4096 + page - 1) / page * page
	all, err := unix.Mmap(-1, 0, size+2*page, unix.PROT_NONE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(all) })
	inner := all[page : page+size]
	if err := unix.Mprotect(inner, unix.PROT_READ|unix.PROT_WRITE); err != nil {
		t.Skip(err)
	}
	return unsafe.Slice((*float32)(unsafe.Pointer(&inner[0])), size/4)
}

// TestNothingOutsideIsTouched places rows against forbidden pages, before and behind, so that a stray read faults.
func TestNothingOutsideIsTouched(t *testing.T) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	var memory [6][]float32
	for i := range memory {
		memory[i] = fenced(t)
	}
	place := func(i, n int, end bool) []float32 {
		if end {
			return memory[i][len(memory[i])-n:]
		}
		return memory[i][:n:n]
	}
	r := rand.New(rand.NewPCG(1, 2))
	for _, s := range append(assembly(t), Set{}) {
		for _, end := range []bool{false, true} {
			for _, f := range functions {
				for n := 1; n < 70; n++ {
					_, k := inputs(f, 0, r.Float32)
					var rows [][]float32
					for i := range f.rows {
						rows = append(rows, place(i, n, end))
					}
					func() {
						defer func() {
							if e := recover(); e != nil {
								t.Fatalf("%s on %v, length %d: %v", f.name, s.Path(), n, e)
							}
						}()
						f.run(s, rows, k)
					}()
				}
			}
			for range 200 {
				p := randomProduct(r)
				if max(len(p.A), len(p.B), len(p.C)) > 4096 {
					continue
				}
				p.A, p.B, p.C = place(0, len(p.A), end), place(1, len(p.B), end), place(2, len(p.C), end)
				s.Multiply(&p)
				rows, cols := 1+r.IntN(40), 1+r.IntN(40)
				s.Transpose(place(0, rows*cols, end), rows, place(1, rows*cols, end), cols, rows, cols)
			}
		}
	}
}
