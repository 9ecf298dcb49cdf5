package bench

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/engine/enginetest"
	"github.com/capacloud/capanode/trainer/engine/native"
)

func TestRunGivesEveryFigureOrNamesIt(t *testing.T) {
	t.Setenv("CAPANODE_PYTHON", "no such interpreter")
	r, err := Run(t.Context(), Options{PerModel: time.Millisecond, Parallelism: 2, Small: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", r)
	for _, name := range Wanted() {
		v, ok := r.Figures[name]
		if ok == slices.Contains(r.Missing, name) {
			t.Errorf("%s: measured %v, and named as missing %v", name, ok, !ok)
		}
		if ok && v <= 0 && name != "allocations_per_step" {
			t.Errorf("%s is %g", name, v)
		}
	}
	for _, share := range []string{"matmul_share_of_peak", "flops_share_of_peak"} {
		if r.Figures[share] > 1.05 {
			t.Errorf("%s is %g, above the peak", share, r.Figures[share])
		}
	}
}

func TestRunStopsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Run(ctx, Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want context.Canceled", err)
	}
}

// Both shapes are models that compute what their operations mean.
func TestModelsAgreeWithTheOracle(t *testing.T) {
	tiny := size{name: "tiny", width: 12, layers: 2, heads: 2, inner: 20, context: 7, vocab: 11}
	for _, shape := range shapes {
		p, err := shape.program(tiny)
		if err != nil {
			t.Fatal(err)
		}
		for i := range p.Params {
			p.Params[i].Init = engine.Init{Std: 0.3}
		}
		enginetest.CheckProgram(t, func(t *testing.T, p engine.Program, seed uint64, parallelism int) engine.Engine {
			e, err := native.New(p, native.Options{Seed: seed, Parallelism: parallelism})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { e.Close() })
			return e
		}, p, enginetest.RandomBatch(rand.New(rand.NewPCG(1, 1)), 2, 7, 11))
	}
}
