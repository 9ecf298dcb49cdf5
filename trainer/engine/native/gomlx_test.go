package native

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/engine/enginetest"
	"github.com/capacloud/capanode/trainer/engine/gomlx"
	"github.com/capacloud/capanode/trainer/model"
)

func buildGoMLX(t *testing.T, p engine.Program, seed uint64, parallelism int) engine.Engine {
	t.Helper()
	e, err := gomlx.New(p, gomlx.Options{Seed: seed, Parallelism: parallelism})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

func TestAgreesWithGoMLX(t *testing.T) { enginetest.Compare(t, build, buildGoMLX) }

// From the same weights both executors learn the same: two hundred steps, each loss within a thousandth.
func TestLossCurveOfGoMLX(t *testing.T) {
	p := llama(t, nil)
	a, b := build(t, p, 5, 2), buildGoMLX(t, p, 5, 2)
	rng := rand.New(rand.NewPCG(8, 8))
	var first, last, worst float64
	for i := range 200 {
		batches := []engine.Batch{counted(rng, 8, p.Context, p.Vocab)}
		x, err := a.Train(t.Context(), batches, step)
		if err != nil {
			t.Fatal(err)
		}
		y, err := b.Train(t.Context(), batches, step)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			first = x
		}
		last, worst = x, max(worst, math.Abs(x-y))
	}
	t.Logf("loss from %.4f to %.4f, the largest difference %.2g", first, last, worst)
	if !(worst <= 1e-3) || last > first/2 {
		t.Errorf("loss from %.4f to %.4f, the largest difference %g, at most 1e-3", first, last, worst)
	}
}

// A thousand steps of real training with more threads than cores: short for the race detector's eyes.
func TestThousandSteps(t *testing.T) {
	p := llama(t, func(s *model.Spec) { s.Vocab, s.Width, s.Layers, s.FeedForward, s.Context = 7, 8, 1, 5, 6 })
	e := make1(t, p, Options{Parallelism: 3})
	rng := rand.New(rand.NewPCG(9, 9))
	for i := range 1000 {
		if _, err := e.Train(t.Context(), []engine.Batch{counted(rng, 6, p.Context, p.Vocab)}, step); err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
	}
}
