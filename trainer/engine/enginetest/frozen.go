package enginetest

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/capacloud/capanode/trainer/engine"
)

// FrozenSuite holds an executor to what frozen parameters mean: the others get the gradients that they get when nothing is
// frozen, up to tolerance relative to the largest, and those that are frozen stay as they are.
func FrozenSuite(t *testing.T, build Build, tolerance float64) {
	for seed := range uint64(3) {
		rng := rand.New(rand.NewPCG(seed, 3))
		var all []operation
		for _, p := range Programs(rng) {
			all = append(all, operation{p, engine.Shape{Rows: 1 + rng.IntN(3), Context: 1 + rng.IntN(p.Context)}})
		}
		for _, o := range append(all, Operations(rng)...) {
			t.Run(fmt.Sprintf("%s seed %d", o.program.Name, seed), func(t *testing.T) {
				b, err := BatchFor(rng, o.program, o.shape)
				if err != nil {
					t.Fatal(err)
				}
				for range 3 {
					checkFrozen(t, build, o.program, b, rng, tolerance)
				}
			})
		}
	}
}

func checkFrozen(t *testing.T, build Build, p engine.Program, b engine.Batch, rng *rand.Rand, tolerance float64) {
	t.Helper()
	whole := build(t, p, 7, 2)
	part := p
	part.Params = slices.Clone(p.Params)
	for i := range part.Params {
		part.Params[i].Frozen = rng.IntN(2) == 0
	}
	part.Params[rng.IntN(len(part.Params))].Frozen = false
	e := build(t, part, 7, 2)
	fixed := slices.Clone(e.State().Fixed)
	for range 2 { // twice with the same weights: what is laid out once must still be there
		want, err := whole.Evaluate(t.Context(), b)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := e.Evaluate(t.Context(), b); err != nil || math.Abs(got-want) > tolerance*math.Abs(want) {
			t.Fatalf("loss %v, %v; %v with nothing frozen", got, err, want)
		}
	}
	for _, x := range []engine.Engine{whole, e} {
		if _, err := x.Train(t.Context(), []engine.Batch{b}, plainStep); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(e.State().Fixed, fixed) {
		t.Fatal("frozen weights have moved")
	}
	want, got := whole.State(), e.State()
	if len(got.Params)+len(got.Frozen) != len(want.Params) || len(got.M) != len(got.Weights) {
		t.Fatalf("%d trained and %d frozen parameters of %d, %d moments for %d weights", len(got.Params), len(got.Frozen), len(want.Params), len(got.M), len(got.Weights))
	}
	largest := 0.0
	for _, m := range want.M {
		largest = max(largest, math.Abs(float64(m)))
	}
	for _, q := range got.Params {
		i := slices.IndexFunc(want.Params, func(w engine.Param) bool { return w.Name == q.Name })
		at := want.Params[i].Offset
		for k := range q.Size() {
			if off := math.Abs(float64(got.M[q.Offset+k]) - float64(want.M[at+k])); !(off <= tolerance*largest) {
				t.Fatalf("gradient of %s[%d] is %v, %v with nothing frozen", q.Name, k, got.M[q.Offset+k], want.M[at+k])
			}
		}
	}
}
