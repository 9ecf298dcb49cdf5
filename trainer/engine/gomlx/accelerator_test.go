package gomlx

import (
	"math"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/engine/enginetest"
)

// goDriver stands in for a device: the plain style on the Go backend.
func goDriver(Options) (driver, error) {
	b, err := newBackend()
	return driver{Backend: b, style: style{plain: true}}, err
}

func buildOn(open func(Options) (driver, error), d Device) enginetest.Build {
	return func(t *testing.T, p engine.Program, seed uint64, parallelism int) engine.Engine {
		t.Helper()
		opts, err := Options{Seed: seed, Parallelism: parallelism, Device: d}.withDefaults()
		if err != nil {
			t.Fatal(err)
		}
		e, err := newAccelerator(p, opts, open)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := e.Close(); err != nil {
				t.Error(err)
			}
		})
		return e
	}
}

func TestAcceleratorSuite(t *testing.T) { enginetest.Suite(t, buildOn(goDriver, Device{})) }

func TestAcceleratorOperations(t *testing.T) {
	enginetest.OperationSuite(t, buildOn(goDriver, Device{}))
}

// TestPluginSuite runs where CAPANODE_TEST_PLUGIN names a PJRT plugin.
func TestPluginSuite(t *testing.T) {
	plugin := os.Getenv("CAPANODE_TEST_PLUGIN")
	if plugin == "" {
		t.Skip("CAPANODE_TEST_PLUGIN names no PJRT plugin")
	}
	enginetest.Suite(t, buildOn(openXLA, Device{Plugin: plugin}))
}

// TestPluginHalf trains a small model in bf16 where CAPANODE_TEST_PLUGIN names a PJRT plugin.
func TestPluginHalf(t *testing.T) {
	plugin := os.Getenv("CAPANODE_TEST_PLUGIN")
	if plugin == "" {
		t.Skip("CAPANODE_TEST_PLUGIN names no PJRT plugin")
	}
	checkHalf(t, buildOn(openXLA, Device{Plugin: plugin, Precision: BF16}))
}

// checkHalf compares the losses of some steps with those of the Go backend: bf16 has eight bits of mantissa.
func checkHalf(t *testing.T, build enginetest.Build) {
	for seed := range uint64(2) {
		rng := rand.New(rand.NewPCG(seed, 8))
		for _, p := range enginetest.Programs(rng) {
			e, want := build(t, p, 1, 1), buildOn(goDriver, Device{})(t, p, 1, 1)
			for i := range 4 {
				batches := []engine.Batch{enginetest.RandomBatch(rng, 3, p.Context, p.Vocab), enginetest.RandomBatch(rng, 2, p.Context, p.Vocab)}
				got, err := e.Train(t.Context(), batches, halfStep)
				if err != nil {
					t.Fatalf("%s: %v", p.Name, err)
				}
				loss, err := want.Train(t.Context(), batches, halfStep)
				if err != nil {
					t.Fatalf("%s: %v", p.Name, err)
				}
				if math.Abs(got-loss) > 0.03*(1+loss) {
					t.Errorf("%s: step %d has loss %g, in float32 %g", p.Name, i, got, loss)
				}
			}
		}
	}
}

var halfStep = engine.Step{LearningRate: 1e-2, Beta1: 0.9, Beta2: 0.99, Epsilon: 1e-8, WeightDecay: 0.1, ClipNorm: 1}
