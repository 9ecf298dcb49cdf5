package gomlx_test

import (
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/engine/enginetest"
	"github.com/capacloud/capanode/trainer/engine/gomlx"
	"github.com/capacloud/capanode/trainer/model"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func build(t *testing.T, p engine.Program, seed uint64, parallelism int) engine.Engine {
	t.Helper()
	e, err := gomlx.New(p, gomlx.Options{Seed: seed, Parallelism: parallelism})
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

func TestSuite(t *testing.T) { enginetest.Suite(t, build) }

func TestOperations(t *testing.T) { enginetest.OperationSuite(t, build) }

func TestFrozen(t *testing.T) { enginetest.FrozenSuite(t, build, 1e-5) }

func tiny(t *testing.T, change func(s *model.Spec)) engine.Program {
	t.Helper()
	s := model.Spec{Family: model.FamilyLlama, Vocab: 17, Width: 24, Layers: 2, Heads: 6, KVHeads: 2, FeedForward: 33,
		Context: 12, RopeTheta: 500, NormEps: 1e-5}
	if change != nil {
		change(&s)
	}
	p, err := s.Program()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestLlamaAgreesWithOracle(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for _, tied := range []bool{false, true} {
		p := tiny(t, func(s *model.Spec) { s.TieEmbeddings = tied })
		for i := range p.Params { // larger weights than fresh ones, so that every path matters
			if std := &p.Params[i].Init.Std; *std > 0 {
				*std = 0.3
			}
		}
		enginetest.CheckProgram(t, build, p, enginetest.RandomBatch(rng, 3, 11, p.Vocab))
	}
}

var step = engine.Step{LearningRate: 3e-3, Beta1: 0.9, Beta2: 0.95, Epsilon: 1e-8, WeightDecay: 0.1, ClipNorm: 1}

// The Go backend's own scheduling hangs within ten such steps on two cores.
func TestHundredsOfStepsDoNotHang(t *testing.T) {
	p := tiny(t, func(s *model.Spec) { s.Width, s.Heads, s.KVHeads, s.Context = 12, 2, 1, 64 })
	e := build(t, p, 3, 2)
	rng := rand.New(rand.NewPCG(2, 2))
	for i := range 300 {
		if _, err := e.Train(t.Context(), []engine.Batch{enginetest.RandomBatch(rng, 8, 64, p.Vocab)}, step); err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
	}
	if got := e.State().Steps; got != 300 {
		t.Errorf("%d steps counted, want 300", got)
	}
}

func TestLossFalls(t *testing.T) {
	text := strings.Repeat("for i := range n { sum += a[i] }\n", 40)
	p := tiny(t, func(s *model.Spec) { s.Vocab, s.Context = 128, 32 })
	e := build(t, p, 5, 2)
	rng := rand.New(rand.NewPCG(4, 4))
	var first, last float64
	for i := range 60 {
		b := engine.Batch{Rows: 8, Context: 32}
		for range b.Rows {
			at := rng.IntN(len(text) - b.Context - 1)
			for j := range b.Context {
				b.Inputs = append(b.Inputs, int32(text[at+j]))
				b.Targets = append(b.Targets, int32(text[at+j+1]))
			}
		}
		loss, err := e.Train(t.Context(), []engine.Batch{b}, step)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			first = loss
		}
		last = loss
	}
	if last > first/2 {
		t.Errorf("loss went from %.3f to %.3f in 60 steps, want at most half", first, last)
	}
}

func TestMemoryLimit(t *testing.T) {
	p := tiny(t, func(s *model.Spec) { s.Width, s.FeedForward, s.Context = 240, 960, 4096 })
	if _, err := gomlx.New(p, gomlx.Options{MemoryLimit: 1 << 20}); !errors.Is(err, engine.ErrMemory) ||
		!strings.Contains(err.Error(), "mlp") {
		t.Errorf("parameters above the limit: %v, want ErrMemory that names the largest tensors", err)
	}
	e, err := gomlx.New(p, gomlx.Options{MemoryLimit: 100 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	rng := rand.New(rand.NewPCG(6, 6))
	if _, err := e.Train(t.Context(), []engine.Batch{enginetest.RandomBatch(rng, 4, 4096, p.Vocab)}, step); !errors.Is(err, engine.ErrMemory) ||
		!strings.Contains(err.Error(), "attention") {
		t.Errorf("batch above the limit: %v, want ErrMemory that names the attention scores", err)
	}
}

func TestClosedEngineRefuses(t *testing.T) {
	p := tiny(t, nil)
	e := build(t, p, 1, 1)
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	b := enginetest.RandomBatch(rand.New(rand.NewPCG(1, 1)), 1, 4, p.Vocab)
	if _, err := e.Train(t.Context(), []engine.Batch{b}, step); err == nil {
		t.Error("a closed engine trained")
	}
	if _, err := e.Logits(t.Context(), b); err == nil {
		t.Error("a closed engine gave logits")
	}
}

func TestNumericsNamesTheClass(t *testing.T) {
	if n := gomlx.Numerics(); !strings.HasPrefix(n, "go/") || strings.Count(n, "/") != 2 {
		t.Errorf("numerics class %q, want go/architecture/kernels", n)
	}
}
