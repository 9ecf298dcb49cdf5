package evaluate_test

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/engine/native"
	"github.com/capacloud/capanode/trainer/evaluate"
	"github.com/capacloud/capanode/trainer/model"
)

// corpora is a folder of real texts beside this tree, which not every machine has.
const corpora = "../../../shared/data/text"

// A model that has read plays needs fewer tokens to read economics than one that has read nothing: after a third of the steps it is
// better. docs/fine-tuning.md has the figures of whole runs.
func TestTuningNeedsFewerTokens(t *testing.T) {
	if testing.Short() {
		t.Skip("trains for seconds; the long form runs without -short")
	}
	plays, err := os.ReadFile(filepath.Join(corpora, "tinyshakespeare.txt"))
	if err != nil {
		t.Skipf("the real texts in %s are not here: %v", corpora, err)
	}
	wealth, err := os.ReadFile(filepath.Join(corpora, "wealth_of_nations_books1-4_en.txt"))
	if err != nil {
		t.Skipf("the real texts in %s are not here: %v", corpora, err)
	}
	const held = 20_000
	tuned, fresh := untrained(t), untrained(t)
	learn(t, tuned, plays, 120)
	learn(t, tuned, wealth[held:], 15)
	learn(t, fresh, wealth[held:], 45)
	a, b := lossOn(t, tuned, wealth[:held]), lossOn(t, fresh, wealth[:held])
	t.Logf("held-out nats per byte: %.3f after 15 steps from a model, %.3f after 45 from nothing", a, b)
	if a >= b {
		t.Errorf("%.3f after 15 steps from a model, %.3f after 45 from nothing", a, b)
	}
}

func untrained(t *testing.T) engine.Scoring {
	t.Helper()
	spec, err := model.Preset("llama-tiny")
	if err != nil {
		t.Fatal(err)
	}
	spec.Vocab, spec.Context = 257, 64
	program, err := spec.Program()
	if err != nil {
		t.Fatal(err)
	}
	eng, err := native.New(program, native.Options{Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { eng.Close() })
	return eng.(engine.Scoring)
}

// learn takes steps on windows of a text, always the same ones, with fresh moments.
func learn(t *testing.T, eng engine.Engine, text []byte, steps int) {
	t.Helper()
	s := eng.State()
	clear(s.M)
	clear(s.V)
	s.Steps = 0
	rng := rand.New(rand.NewPCG(2, 3))
	for range steps {
		b := engine.Batch{Rows: 8, Context: 64}
		for range b.Rows {
			at := rng.IntN(len(text) - b.Context - 1)
			for i := range b.Context {
				b.Inputs, b.Targets = append(b.Inputs, int32(text[at+i])), append(b.Targets, int32(text[at+i+1]))
			}
		}
		if _, err := eng.Train(t.Context(), []engine.Batch{b}, engine.Step{LearningRate: 3e-3, Beta1: 0.9, Beta2: 0.95, Epsilon: 1e-8, ClipNorm: 1}); err != nil {
			t.Fatal(err)
		}
	}
}

func lossOn(t *testing.T, eng engine.Scoring, text []byte) float64 {
	t.Helper()
	s, err := evaluate.New(eng, evaluate.Options{Context: 64, Vocab: 257})
	if err != nil {
		t.Fatal(err)
	}
	ids := make([]int32, len(text))
	for i, b := range text {
		ids[i] = int32(b)
	}
	if err := s.Write(t.Context(), ids); err != nil {
		t.Fatal(err)
	}
	f, err := s.Figures(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return f.Loss
}
