package native

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/engine/enginetest"
	"github.com/capacloud/capanode/trainer/engine/native/kernel"
	"github.com/capacloud/capanode/trainer/model"
)

var golden = flag.Bool("update", false, "record the golden weights of this numerics class")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// build makes an executor that is closed with the test.
func build(t *testing.T, p engine.Program, seed uint64, parallelism int) engine.Engine {
	t.Helper()
	return make1(t, p, Options{Seed: seed, Parallelism: parallelism})
}

func make1(t testing.TB, p engine.Program, o Options) *executor {
	t.Helper()
	e, err := New(p, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e.(*executor)
}

// llama is a model with all that makes shapes awkward: grouped queries, widths that no vector divides, two layers.
func llama(t testing.TB, change func(s *model.Spec)) engine.Program {
	t.Helper()
	s := model.Spec{Family: model.FamilyLlama, Vocab: 37, Width: 40, Layers: 3, Heads: 4, KVHeads: 2, FeedForward: 51,
		Context: 33, RopeTheta: 500, NormEps: 1e-5, TieEmbeddings: true}
	if change != nil {
		change(&s)
	}
	p, err := s.Program()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

var step = engine.Step{LearningRate: 3e-3, Beta1: 0.9, Beta2: 0.95, Epsilon: 1e-8, WeightDecay: 0.1, ClipNorm: 1}

func TestSuite(t *testing.T) { enginetest.Suite(t, build) }

func TestOperations(t *testing.T) { enginetest.OperationSuite(t, build) }

func TestOperationsRecomputed(t *testing.T) {
	enginetest.OperationSuite(t, func(t *testing.T, p engine.Program, seed uint64, parallelism int) engine.Engine {
		return make1(t, p, Options{Seed: seed, Parallelism: parallelism, Recompute: true})
	})
}

// run trains for that many steps on text whose next byte can be learnt, and returns the hash of the state and the losses.
func run(t *testing.T, p engine.Program, o Options, steps int) (hash string, losses []float64) {
	t.Helper()
	e := make1(t, p, o)
	rng := rand.New(rand.NewPCG(7, 7))
	for range steps {
		loss, err := e.Train(t.Context(), []engine.Batch{counted(rng, 3, p.Context, p.Vocab), counted(rng, 1, p.Context-2, p.Vocab)}, step)
		if err != nil {
			t.Fatal(err)
		}
		losses = append(losses, loss)
	}
	hash = enginetest.Hash(e.state)
	t.Logf("%d steps on the %v path, %d threads: %s", steps, e.crew.workers[0].Path(), len(e.crew.workers), hash)
	return hash, losses
}

// counted is rows that count up by a step of their own.
func counted(rng *rand.Rand, rows, context, vocab int) engine.Batch {
	b := engine.Batch{Rows: rows, Context: context}
	for range rows {
		at, by := rng.IntN(vocab), 1+rng.IntN(3)
		for i := range context {
			b.Inputs = append(b.Inputs, int32((at+i*by)%vocab))
			b.Targets = append(b.Targets, int32((at+(i+1)*by)%vocab))
		}
	}
	return b
}

// Two hundred steps end in the same bits on all code paths, for any number of threads, with recomputation, and today as
// when they were recorded. A subtest's name tells its path, for machines and emulators that must not skip one.
func TestTwoHundredStepsHaveOneHash(t *testing.T) {
	p := llama(t, func(s *model.Spec) { s.Vocab, s.Width, s.Layers, s.FeedForward, s.Context = 20, 24, 2, 33, 12 })
	file := filepath.Join("testdata", strings.ReplaceAll(Numerics(), "/", "-")+".sha256")
	recorded, err := os.ReadFile(file)
	if err != nil && !*golden {
		t.Fatal(err)
	}
	want := strings.TrimSpace(string(recorded))
	if *golden {
		want = ""
	}
	for _, path := range []kernel.Path{kernel.Portable, kernel.AVX2, kernel.AVX512} {
		for _, o := range []Options{{Parallelism: 1}, {Parallelism: 2}, {Parallelism: 5, Recompute: true}} {
			t.Run(fmt.Sprintf("%v/threads=%d", path, o.Parallelism), func(t *testing.T) {
				if !path.Supported() {
					t.Skipf("this processor has no %v", path)
				}
				if path == kernel.Portable && (testing.Short() || o.Parallelism == 1) {
					t.Skip("the slowest")
				}
				t.Setenv(kernel.Variable, path.String())
				o.Seed = 1
				hash, losses := run(t, p, o, 200)
				if want == "" {
					want = hash
				}
				if hash != want {
					t.Errorf("%v with %+v ends in %s, recorded for %s is %s: a change of rounding is a new version", path, o, hash, Numerics(), want)
				}
				if last := losses[199]; !(last < losses[0]/3) {
					t.Errorf("%v: loss went from %.3f to %.3f", path, losses[0], last)
				}
			})
		}
	}
	if *golden && want != "" {
		if err := errors.Join(os.MkdirAll("testdata", 0o755), os.WriteFile(file, []byte(want+"\n"), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestMicroBatchesChangeNoBit(t *testing.T) {
	p := llama(t, func(s *model.Spec) { s.TieEmbeddings = false })
	rng := rand.New(rand.NewPCG(1, 2))
	whole := enginetest.RandomBatch(rng, 6, p.Context, p.Vocab)
	var parts []engine.Batch
	for row := range whole.Rows {
		low, high := row*p.Context, (row+1)*p.Context
		parts = append(parts, engine.Batch{Rows: 1, Context: p.Context, Inputs: whole.Inputs[low:high], Targets: whole.Targets[low:high]})
	}
	a, b := make1(t, p, Options{Seed: 1}), make1(t, p, Options{Seed: 1})
	for range 5 {
		if _, err := a.Train(t.Context(), []engine.Batch{whole}, step); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Train(t.Context(), parts, step); err != nil {
			t.Fatal(err)
		}
	}
	if x, y := enginetest.Hash(a.state), enginetest.Hash(b.state); x != y {
		t.Errorf("one batch ends in %s, its rows one by one in %s", x, y)
	}
}

// A gradient leaves the state alone, and stepping with it by hand gives the bits of Train.
func TestGradientIsWhatTrainStepsWith(t *testing.T) {
	p := llama(t, nil)
	rng := rand.New(rand.NewPCG(3, 4))
	a, b := make1(t, p, Options{Seed: 1}), make1(t, p, Options{Seed: 1})
	var _ engine.Differentiating = a
	for range 3 {
		batch := []engine.Batch{enginetest.RandomBatch(rng, 4, p.Context, p.Vocab)}
		loss, err := a.Train(t.Context(), batch, step)
		if err != nil {
			t.Fatal(err)
		}
		before := enginetest.Hash(b.state)
		g, err := b.Gradient(t.Context(), batch)
		if err != nil || g.Loss != loss {
			t.Fatalf("gradient with loss %g (%v), trained with loss %g", g.Loss, err, loss)
		}
		if enginetest.Hash(b.state) != before {
			t.Fatal("the gradient changed the state")
		}
		if _, err := b.state.Update(g.Sum, g.Targets, step, 2); err != nil {
			t.Fatal(err)
		}
	}
	if x, y := enginetest.Hash(a.state), enginetest.Hash(b.state); x != y {
		t.Errorf("trained to %s, stepped to %s", x, y)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Gradient(t.Context(), []engine.Batch{enginetest.RandomBatch(rng, 1, 4, p.Vocab)}); err == nil {
		t.Error("a closed engine gave a gradient")
	}
}

func TestStepsAllocateNothing(t *testing.T) {
	p := llama(t, nil)
	e := make1(t, p, Options{Parallelism: 2})
	batches := []engine.Batch{enginetest.RandomBatch(rand.New(rand.NewPCG(1, 1)), 6, p.Context, p.Vocab)}
	train := func() {
		if _, err := e.Train(t.Context(), batches, step); err != nil {
			t.Fatal(err)
		}
	}
	for range 20 { // the runtime keeps the goroutines of ended workers
		train()
	}
	if n := testing.AllocsPerRun(100, train); n != 0 {
		t.Errorf("%g allocations a step, want none", n)
	}
}

func TestMemoryIsKnownBeforehand(t *testing.T) {
	p := llama(t, nil)
	shape := engine.Shape{Rows: 8, Context: p.Context}
	for _, o := range []Options{{Parallelism: 2}, {Parallelism: 3, Recompute: true}} {
		want, err := Memory(p, shape, o)
		if err != nil {
			t.Fatal(err)
		}
		e := make1(t, p, o)
		b := enginetest.RandomBatch(rand.New(rand.NewPCG(1, 1)), shape.Rows, shape.Context, p.Vocab)
		if _, err := e.Train(t.Context(), []engine.Batch{b}, step); err != nil {
			t.Fatal(err)
		}
		got := 4 * int64(len(e.state.Weights)+len(e.state.M)+len(e.state.V)+len(e.grads)+len(e.arena))
		for _, list := range [][]*pack{e.weights.forward, e.weights.backward} {
			for _, p := range list {
				got += 4 * int64(len(p.panels))
			}
		}
		for _, g := range e.graphs {
			got += 8*int64(len(g.batch.losses)) + 4*3*int64(p.Context*5) // angles of half a head
		}
		for _, w := range e.crew.workers {
			got += 4 * int64(len(w.scratch))
		}
		if got != want {
			t.Errorf("%+v: %d bytes in use, %d were announced", o, got, want)
		}

		o.MemoryLimit = want
		if _, err := make1(t, p, o).Train(t.Context(), []engine.Batch{b}, step); err != nil {
			t.Errorf("exactly enough memory: %v", err)
		}
		o.MemoryLimit--
		_, err = make1(t, p, o).Train(t.Context(), []engine.Batch{b}, step)
		if !errors.Is(err, engine.ErrMemory) || !strings.Contains(err.Error(), "attention") {
			t.Errorf("a byte too little: error %v, want ErrMemory that names the largest tensors", err)
		}
	}
	if _, err := New(p, Options{MemoryLimit: 1000}); !errors.Is(err, engine.ErrMemory) || !strings.Contains(err.Error(), "mlp") {
		t.Errorf("parameters above the limit: error %v, want ErrMemory that names the largest", err)
	}
	deep := llama(t, func(s *model.Spec) { s.Layers = 12 })
	with, err1 := Memory(deep, shape, Options{Parallelism: 2})
	without, err2 := Memory(deep, shape, Options{Parallelism: 2, Recompute: true})
	if err1 != nil || err2 != nil || without > with*2/3 {
		t.Errorf("%d bytes with recomputation, %d without (%v, %v)", without, with, err2, err1)
	}
}

func TestDecodingHasTheBitsOfLogits(t *testing.T) {
	p := llama(t, nil)
	for i := range p.Params {
		if std := &p.Params[i].Init.Std; *std > 0 {
			*std = 0.3
		}
	}
	e := make1(t, p, Options{Seed: 3})
	rng := rand.New(rand.NewPCG(4, 4))
	tokens := enginetest.RandomBatch(rng, 1, p.Context, p.Vocab).Inputs
	all, err := e.Logits(t.Context(), engine.Batch{Rows: 1, Context: p.Context, Inputs: tokens})
	if err != nil {
		t.Fatal(err)
	}
	d, err := e.Decoder()
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		for d.Len() < p.Context {
			n := min(1+rng.IntN(5), p.Context-d.Len())
			got, err := d.Next(t.Context(), tokens[d.Len():d.Len()+n])
			if err != nil {
				t.Fatal(err)
			}
			if want := all[(d.Len()-1)*p.Vocab : d.Len()*p.Vocab]; !slices.Equal(got, want) {
				t.Fatalf("after %d tokens the logits are %v, of the whole text %v", d.Len(), got[:4], want[:4])
			}
		}
		if _, err := d.Next(t.Context(), tokens[:1]); !errors.Is(err, engine.ErrBatch) {
			t.Errorf("beyond the context: error %v, want ErrBatch", err)
		}
		d.Reset()
	}
	if _, err := d.Next(t.Context(), []int32{int32(p.Vocab)}); !errors.Is(err, engine.ErrBatch) {
		t.Errorf("token above the vocabulary: error %v, want ErrBatch", err)
	}
	ahead := p
	ahead.Logits = func(g engine.Graph) engine.Value {
		x := g.Embedding(g.Param("model.embed_tokens.weight"))
		return g.Attention(x, x, x, 10, engine.Full)
	}
	if _, err := make1(t, ahead, Options{}).Decoder(); !errors.Is(err, engine.ErrShape) {
		t.Errorf("a model that looks ahead: error %v, want ErrShape", err)
	}
}

func TestSmallestSizes(t *testing.T) {
	p := llama(t, func(s *model.Spec) { s.Vocab, s.Context, s.TieEmbeddings = 2, 1, false })
	e := make1(t, p, Options{})
	if loss, err := e.Train(t.Context(), []engine.Batch{{Rows: 1, Context: 1, Inputs: []int32{1}, Targets: []int32{0}}}, step); err != nil || math.Abs(loss-math.Ln2) > 0.1 {
		t.Errorf("one token: loss %g, error %v", loss, err)
	}
	one := engine.Program{Name: "one word", Vocab: 1, Context: 4, Params: []engine.Param{{Name: "w", Shape: []int{1, 1}, Init: engine.Init{Fill: 1}}}}
	one.Logits = func(g engine.Graph) engine.Value { return g.Linear(g.Embedding(g.Param("w")), g.Param("w")) }
	one.Loss = func(g engine.Graph) engine.Value { return g.CrossEntropy(one.Logits(g)) }
	e = make1(t, one, Options{})
	if loss, err := e.Train(t.Context(), []engine.Batch{{Rows: 2, Context: 1, Inputs: []int32{0, 0}, Targets: []int32{0, 0}}}, step); err != nil || loss != 0 {
		t.Errorf("a vocabulary of one: loss %g, error %v", loss, err)
	}
	if _, err := e.Train(t.Context(), nil, step); !errors.Is(err, engine.ErrBatch) {
		t.Errorf("no batch: error %v, want ErrBatch", err)
	}
}

func TestCloseAndCancel(t *testing.T) {
	p := llama(t, nil)
	e := make1(t, p, Options{})
	b := enginetest.RandomBatch(rand.New(rand.NewPCG(1, 1)), 1, 4, p.Vocab)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := e.Evaluate(ctx, b); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: error %v", err)
	}
	if _, err := e.Evaluate(t.Context(), b); err != nil {
		t.Errorf("after a cancelled call: %v", err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Train(t.Context(), []engine.Batch{b}, step); err == nil {
		t.Error("a closed engine trained")
	}
	t.Setenv(kernel.Variable, "sse9")
	if _, err := New(p, Options{}); !errors.Is(err, kernel.ErrPath) {
		t.Errorf("unknown kernels: error %v, want ErrPath", err)
	}
	if got, want := Numerics(), fmt.Sprintf("native/%d", kernel.Version); got != want {
		t.Errorf("numerics %q, want %q", got, want)
	}
}

// Frozen parameters change no bit of the gradients of the others.
func TestFrozen(t *testing.T) { enginetest.FrozenSuite(t, build, 0) }

func TestFrozenRecomputed(t *testing.T) {
	enginetest.FrozenSuite(t, func(t *testing.T, p engine.Program, seed uint64, parallelism int) engine.Engine {
		return make1(t, p, Options{Seed: seed, Parallelism: parallelism, Recompute: true})
	}, 0)
}
