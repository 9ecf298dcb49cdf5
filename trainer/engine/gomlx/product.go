package gomlx

import (
	"fmt"
	"time"

	"github.com/gomlx/compute"
	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	ml "github.com/gomlx/gomlx/core/graph"
)

// ProductSpeed multiplies two n×n float32 matrices again and again for about the given time, on the calling goroutine
// alone, and returns floating-point operations per second (2·n³ each) of the fastest run.
func ProductSpeed(n int, limit time.Duration) (flops float64, err error) {
	if n < 1 || n > 1<<14 {
		return 0, fmt.Errorf("gomlx: product of %d×%d matrices, allowed are 1 to %d", n, n, 1<<14)
	}
	b, err := newBackend()
	if err != nil {
		return 0, err
	}
	defer b.Finalize()
	err = guard("multiply", func() error {
		g := ml.NewGraph(b, "")
		s := shapes.Make(dtypes.Float32, n, n)
		var exec compute.Executable
		out := ml.DotGeneral(ml.Parameter(g, "a", s), []int{1}, nil, ml.Parameter(g, "b", s), []int{0}, nil)
		if err := finish(g, &exec, out); err != nil {
			return err
		}
		a, flat, err := b.NewSharedBuffer(0, s)
		if err != nil {
			return err
		}
		for i := range flat.([]float32) {
			flat.([]float32)[i] = float32(i%7) / 8
		}
		best := time.Duration(1<<63 - 1)
		for start := time.Now(); time.Since(start) < limit || best == 1<<63-1; {
			from := time.Now()
			results, err := exec.Execute([]compute.Buffer{a, a}, nil, 0)
			if err != nil {
				return err
			}
			best = min(best, time.Since(from))
			if err := results[0].Finalize(); err != nil {
				return err
			}
		}
		flops = 2 * float64(n) * float64(n) * float64(n) / best.Seconds()
		return nil
	})
	return flops, err
}
