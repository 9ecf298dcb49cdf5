package gomlx

import (
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

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

func TestAcceleratorFrozen(t *testing.T) {
	enginetest.FrozenSuite(t, buildOn(goDriver, Device{}), 1e-5)
}

func TestAcceleratorOperations(t *testing.T) {
	enginetest.OperationSuite(t, buildOn(goDriver, Device{}))
}

func TestDeviceThatDoesNotStartIsHung(t *testing.T) {
	block := make(chan struct{})
	defer close(block)
	_, err := newAccelerator(enginetest.Programs(rand.New(rand.NewPCG(1, 1)))[0], Options{Watchdog: time.Millisecond}, func(Options) (driver, error) {
		<-block
		return driver{}, nil
	})
	if !errors.Is(err, engine.ErrHung) {
		t.Errorf("error %v, want ErrHung", err)
	}
}

func TestDeviceWithoutMemory(t *testing.T) {
	p := enginetest.Programs(rand.New(rand.NewPCG(1, 1)))[0]
	_, err := newAccelerator(p, Options{Watchdog: time.Minute}, func(Options) (driver, error) {
		return driver{}, errors.New("PJRT error (code=8): RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 bytes")
	})
	if !errors.Is(err, engine.ErrMemory) {
		t.Errorf("error %v, want ErrMemory", err)
	}
	if _, err := newAccelerator(p, Options{Watchdog: time.Minute, MemoryLimit: 8}, goDriver); !errors.Is(err, engine.ErrMemory) {
		t.Errorf("parameters above the limit: error %v, want ErrMemory", err)
	}
}

// What the caller writes between calls reaches the device, and what the device computed reaches the caller.
func TestStateTravelsBothWays(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 4))
	p := enginetest.Programs(rng)[3]
	batch := []engine.Batch{enginetest.RandomBatch(rng, 3, p.Context, p.Vocab)}
	build := buildOn(goDriver, Device{})
	straight, stopped := build(t, p, 1, 1), build(t, p, 1, 1)
	for range 4 {
		if _, err := straight.Train(t.Context(), batch, halfStep); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 4 {
		if _, err := stopped.Train(t.Context(), batch, halfStep); err != nil {
			t.Fatal(err)
		}
		other := build(t, p, 2, 1) // another replica goes on from the state
		from, to := stopped.State(), other.State()
		copy(to.Weights, from.Weights)
		copy(to.M, from.M)
		copy(to.V, from.V)
		if to.Steps = from.Steps; to.Steps != uint64(i+1) {
			t.Errorf("%d steps counted after %d", to.Steps, i+1)
		}
		stopped = other
	}
	if enginetest.Hash(straight.State()) != enginetest.Hash(stopped.State()) {
		t.Error("a state that was copied at each step differs from one that stayed")
	}
}

func TestPluginsThatCannotBe(t *testing.T) {
	p := enginetest.Programs(rand.New(rand.NewPCG(1, 1)))[0]
	text := filepath.Join(t.TempDir(), "cuda.so")
	if err := os.WriteFile(text, []byte("no library"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"relative.so", "/nowhere/cuda.so", "/a,b/cuda.so", t.TempDir(), text} {
		if _, err := New(p, Options{Device: Device{Plugin: path}}); !errors.Is(err, engine.ErrPlugin) {
			t.Errorf("%s: error %v, want ErrPlugin", path, err)
		}
	}
	if _, err := New(p, Options{Device: Device{Precision: BF16}}); !errors.Is(err, engine.ErrPlugin) {
		t.Errorf("bf16 on processors: error %v, want ErrPlugin", err)
	}
}

func TestNumericsOfDevices(t *testing.T) {
	for want, d := range map[string]Device{
		"xla-cuda/sm90/bf16":    {Plugin: "/x/xla_cuda_plugin.so", Capability: "9.0", Precision: BF16},
		"xla-cpu/unknown/fp32":  {Plugin: "/x/other.so"},
		"xla-cuda/unknown/fp32": {Plugin: "/x/cuda.so", Precision: FP32},
		Numerics():              {},
	} {
		if got := d.Numerics(); got != want {
			t.Errorf("%+v computes %q, want %q", d, got, want)
		}
	}
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

// checkHalf compares the losses of some steps with those of the Go backend, whose own bf16 products are off by far: bf16
// has eight bits of mantissa.
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
