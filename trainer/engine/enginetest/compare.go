package enginetest

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/capacloud/capanode/trainer/engine"
)

// Compare holds two executors to each other: outputs, losses and every gradient of each operation, on random shapes.
func Compare(t *testing.T, one, other Build) {
	for seed := range uint64(10) {
		rng := rand.New(rand.NewPCG(seed, 3))
		all := Operations(rng)
		for _, p := range Programs(rng) {
			all = append(all, operation{p, engine.Shape{Rows: 1 + rng.IntN(4), Context: 1 + rng.IntN(p.Context)}})
		}
		for _, o := range all {
			t.Run(fmt.Sprintf("%s seed %d", o.program.Name, seed), func(t *testing.T) {
				b, err := BatchFor(rng, o.program, o.shape)
				if err != nil {
					t.Fatal(err)
				}
				compare(t, one(t, o.program, seed, 2), other(t, o.program, seed, 2), b)
			})
		}
	}
}

func compare(t *testing.T, one, other engine.Engine, b engine.Batch) {
	t.Helper()
	var logits, moments [2][]float32
	var losses [2]float64
	for i, e := range []engine.Engine{one, other} {
		var err error
		if logits[i], err = e.Logits(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		if losses[i], err = e.Train(t.Context(), []engine.Batch{b}, plainStep); err != nil {
			t.Fatal(err)
		}
		moments[i] = e.State().M
	}
	if off := math.Abs(losses[0] - losses[1]); off > 1e-5*(1+losses[0]) {
		t.Errorf("losses %g and %g", losses[0], losses[1])
	}
	near(t, "logits", logits, 1e-4)
	near(t, "gradients", moments, 1e-4)
}

// near wants two lists equal within that share of their largest element.
func near(t *testing.T, what string, lists [2][]float32, share float64) {
	t.Helper()
	if len(lists[0]) != len(lists[1]) {
		t.Fatalf("%d and %d %s", len(lists[0]), len(lists[1]), what)
	}
	top := 1e-3
	for _, x := range lists[0] {
		top = max(top, math.Abs(float64(x)))
	}
	for i, x := range lists[0] {
		if off := math.Abs(float64(x - lists[1][i])); !(off <= share*top) {
			t.Fatalf("%s differ at %d: %g and %g, the largest is %g", what, i, x, lists[1][i], top)
		}
	}
}
