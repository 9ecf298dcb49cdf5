package enginetest

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/capacloud/capanode/trainer/engine"
)

// Build makes an executor for a program, computing on that many goroutines.
type Build func(t *testing.T, p engine.Program, seed uint64, parallelism int) engine.Engine

// Suite holds an executor to the meaning of the operations and to the contract of [engine.Engine].
func Suite(t *testing.T, build Build) {
	t.Run("operations", func(t *testing.T) { testOperations(t, build) })
	t.Run("gradient", func(t *testing.T) { testGradient(t, build) })
	t.Run("accumulation", func(t *testing.T) { testAccumulation(t, build) })
	t.Run("determinism", func(t *testing.T) { testDeterminism(t, build) })
	t.Run("errors", func(t *testing.T) { testErrors(t, build) })
}

// width of the programs' residual stream: odd sizes find mistakes that powers of two hide.
type sizes struct{ vocab, width, head, keyHeads, heads, inner, context int }

func newSizes(rng *rand.Rand) sizes {
	s := sizes{
		vocab: 2 + rng.IntN(30), head: 2 * (1 + rng.IntN(5)), keyHeads: 1 + rng.IntN(3),
		inner: 1 + rng.IntN(40), context: 1 + rng.IntN(20),
	}
	s.heads = s.keyHeads * (1 + rng.IntN(3))
	s.width = s.heads * s.head
	return s
}

// wrap makes a program of one operation between an embedding and an output layer.
func wrap(name string, s sizes, params []engine.Param, op func(g engine.Graph, x engine.Value) engine.Value) engine.Program {
	std := engine.Init{Std: 0.5}
	params = append(params,
		engine.Param{Name: "embed", Shape: []int{s.vocab, s.width}, Init: std},
		engine.Param{Name: "out", Shape: []int{s.vocab, s.width}, Init: std, Decay: true})
	logits := func(g engine.Graph) engine.Value {
		return g.Linear(op(g, g.Embedding(g.Param("embed"))), g.Param("out"))
	}
	return engine.Program{
		Name: name, Params: params, Vocab: s.vocab, Context: s.context, Logits: logits,
		Loss: func(g engine.Graph) engine.Value { return g.CrossEntropy(logits(g)) },
	}
}

// Programs returns one program per operation, each small, of the sizes that the random source picks.
func Programs(rng *rand.Rand) []engine.Program {
	s := newSizes(rng)
	matrix := func(name string, out, in int) engine.Param {
		return engine.Param{Name: name, Shape: []int{out, in}, Init: engine.Init{Std: 0.5}}
	}
	norm := engine.Param{Name: "norm", Shape: []int{s.width}, Init: engine.Init{Std: 1}}
	kv := s.keyHeads * s.head
	eps := 1e-5

	programs := []engine.Program{
		wrap("embedding and linear", s, nil, func(_ engine.Graph, x engine.Value) engine.Value { return x }),
		wrap("norm", s, []engine.Param{norm}, func(g engine.Graph, x engine.Value) engine.Value {
			return g.RMSNorm(x, g.Param("norm"), eps)
		}),
		wrap("rotary", s, nil, func(g engine.Graph, x engine.Value) engine.Value { return g.Rotary(x, s.head, 100) }),
		wrap("attention", s, []engine.Param{matrix("q", s.width, s.width), matrix("k", kv, s.width), matrix("v", kv, s.width)},
			func(g engine.Graph, x engine.Value) engine.Value {
				return g.Attention(g.Linear(x, g.Param("q")), g.Linear(x, g.Param("k")), g.Linear(x, g.Param("v")), s.head, engine.Causal)
			}),
		wrap("swiglu", s, []engine.Param{matrix("gate", s.inner, s.width), matrix("up", s.inner, s.width), matrix("down", s.width, s.inner)},
			func(g engine.Graph, x engine.Value) engine.Value {
				return g.Linear(g.SwiGLU(g.Linear(x, g.Param("gate")), g.Linear(x, g.Param("up"))), g.Param("down"))
			}),
		wrap("add", s, []engine.Param{matrix("a", s.width, s.width)}, func(g engine.Graph, x engine.Value) engine.Value {
			return g.Add(g.Linear(x, g.Param("a")), g.Add(x, x))
		}),
	}
	tied := wrap("tied", s, []engine.Param{norm}, nil)
	tied.Params = tied.Params[:2] // without the output layer
	tied.Logits = func(g engine.Graph) engine.Value {
		embed := g.Param("embed")
		return g.Linear(g.RMSNorm(g.Embedding(embed), g.Param("norm"), eps), embed)
	}
	tied.Loss = func(g engine.Graph) engine.Value { return g.CrossEntropy(tied.Logits(g)) }
	return append(programs, tied)
}

// RandomBatch returns a batch with about one target in eight ignored, and never all.
func RandomBatch(rng *rand.Rand, rows, context, vocab int) engine.Batch {
	b := engine.Batch{Rows: rows, Context: context}
	for range rows * context {
		b.Inputs = append(b.Inputs, int32(rng.IntN(vocab)))
		target := int32(rng.IntN(vocab))
		if rng.IntN(8) == 0 {
			target = engine.Ignore
		}
		b.Targets = append(b.Targets, target)
	}
	b.Targets[0] = 0
	return b
}

// plainStep makes the first moment after one step equal to the mean gradient.
var plainStep = engine.Step{LearningRate: 1e-3, Beta2: 0.99, Epsilon: 1e-8}

// testGradient holds executors that give gradients to what they promise: the state stays as it is, and stepping with the gradient
// by hand leads to where Train leads, over one micro-batch and over several. An executor on a device rounds its own step otherwise.
func testGradient(t *testing.T, build Build) {
	rng := rand.New(rand.NewPCG(3, 9))
	p := Programs(rng)[3] // attention
	trained, stepped := build(t, p, 5, 2), build(t, p, 5, 2)
	d, ok := stepped.(engine.Differentiating)
	if !ok {
		t.Skip("this executor gives no gradients")
	}
	step := engine.Step{LearningRate: 1e-3, Beta1: 0.9, Beta2: 0.95, Epsilon: 1e-8, WeightDecay: 0.1, ClipNorm: 1}
	for i := range 3 {
		var batches []engine.Batch
		for range 1 + i {
			batches = append(batches, RandomBatch(rng, 2, p.Context, p.Vocab))
		}
		loss, err := trained.Train(t.Context(), batches, step)
		if err != nil {
			t.Fatal(err)
		}
		before := Hash(stepped.State())
		g, err := d.Gradient(t.Context(), batches)
		if err != nil || math.Abs(g.Loss-loss) > 1e-5*loss {
			t.Fatalf("gradient with loss %g (%v), trained with loss %g", g.Loss, err, loss)
		}
		sum, targets := append([]float32(nil), g.Sum...), g.Targets
		s := stepped.State()
		if Hash(s) != before {
			t.Fatal("the gradient changed the state")
		}
		if _, err := s.Update(sum, targets, step, 1); err != nil {
			t.Fatal(err)
		}
		for j, w := range trained.State().Weights {
			if math.Abs(float64(w-s.Weights[j])) > 1e-5 {
				t.Fatalf("step %d, weight %d: trained to %g, stepped to %g", i, j, w, s.Weights[j])
			}
		}
	}
	if _, err := d.Gradient(t.Context(), nil); err == nil {
		t.Error("no batches gave a gradient")
	}
	if err := stepped.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Gradient(t.Context(), []engine.Batch{RandomBatch(rng, 1, 1, p.Vocab)}); err == nil {
		t.Error("a closed engine gave a gradient")
	}
}

func testOperations(t *testing.T, build Build) {
	for seed := range uint64(6) {
		rng := rand.New(rand.NewPCG(seed, 1))
		for _, p := range Programs(rng) {
			t.Run(fmt.Sprintf("%s seed %d", p.Name, seed), func(t *testing.T) {
				CheckProgram(t, build, p, RandomBatch(rng, 1+rng.IntN(4), 1+rng.IntN(p.Context), p.Vocab))
			})
		}
	}
}

// OperationSuite holds an executor to the operations beyond those of a Llama, on random shapes.
func OperationSuite(t *testing.T, build Build) {
	for seed := range uint64(12) {
		rng := rand.New(rand.NewPCG(seed, 2))
		for _, o := range Operations(rng) {
			t.Run(fmt.Sprintf("%s seed %d", o.program.Name, seed), func(t *testing.T) {
				b, err := BatchFor(rng, o.program, o.shape)
				if err != nil {
					t.Fatal(err)
				}
				CheckProgram(t, build, o.program, b)
			})
		}
	}
}

// CheckProgram compares an executor with the oracle on one batch: logits, loss, and the gradient at a sample of the
// weights against central differences of the oracle's loss.
func CheckProgram(t *testing.T, build Build, p engine.Program, b engine.Batch) {
	t.Helper()
	ctx := t.Context()
	e := build(t, p, 7, 2)
	state := e.State()
	weights := make([]float64, len(state.Weights))
	for i, w := range state.Weights {
		weights[i] = float64(w)
	}
	wantLogits, wantLoss, err := Forward(p, weights, b)
	if err != nil {
		t.Fatal(err)
	}
	targets := float64(b.TargetCount())

	logits, err := e.Logits(ctx, b)
	if err != nil {
		t.Fatal(err)
	}
	if len(logits) != len(wantLogits) {
		t.Fatalf("%d logits, want %d", len(logits), len(wantLogits))
	}
	for i, want := range wantLogits {
		if off := math.Abs(float64(logits[i]) - want); !(off <= 1e-4*(1+math.Abs(want))) {
			t.Fatalf("logit %d is %g, want %g", i, logits[i], want)
		}
	}
	loss, err := e.Evaluate(ctx, b)
	if err != nil {
		t.Fatal(err)
	}
	if math.Abs(loss-wantLoss/targets) > 1e-5*(1+loss) {
		t.Fatalf("loss %g, want %g", loss, wantLoss/targets)
	}
	if _, err := e.Train(ctx, []engine.Batch{b}, plainStep); err != nil {
		t.Fatal(err)
	}
	state = e.State()
	for _, q := range state.Params {
		for _, i := range sample(q) {
			const h = 1e-4
			at := weights[i]
			weights[i] = at + h
			_, up, _ := Forward(p, weights, b)
			weights[i] = at - h
			_, down, _ := Forward(p, weights, b)
			weights[i] = at
			want := (up - down) / (2 * h) / targets
			if got := float64(state.M[i]); !(math.Abs(got-want) <= 1e-5+1e-3*math.Abs(want)) {
				t.Errorf("gradient of %s[%d] is %g, want %g", q.Name, i-q.Offset, got, want)
			}
		}
	}
}

// sample picks up to six elements of a parameter, first and last among them.
func sample(q engine.Param) []int {
	var at []int
	for i := range min(6, q.Size()) {
		at = append(at, q.Offset+i*(q.Size()-1)/max(1, min(6, q.Size())-1))
	}
	return at
}

// testAccumulation checks that cutting a batch into micro-batches changes nothing but rounding.
func testAccumulation(t *testing.T, build Build) {
	rng := rand.New(rand.NewPCG(3, 3))
	p := Programs(rng)[3]
	whole := RandomBatch(rng, 6, p.Context, p.Vocab)
	var parts []engine.Batch
	for _, cut := range [][2]int{{0, 1}, {1, 4}, {4, 6}} {
		from, to := cut[0]*p.Context, cut[1]*p.Context
		parts = append(parts, engine.Batch{Rows: cut[1] - cut[0], Context: p.Context,
			Inputs: whole.Inputs[from:to], Targets: whole.Targets[from:to]})
	}
	a, b := build(t, p, 1, 2), build(t, p, 1, 2)
	lossA, err := a.Train(t.Context(), []engine.Batch{whole}, plainStep)
	if err != nil {
		t.Fatal(err)
	}
	lossB, err := b.Train(t.Context(), parts, plainStep)
	if err != nil {
		t.Fatal(err)
	}
	if math.Abs(lossA-lossB) > 1e-5 {
		t.Errorf("loss %g of the whole, %g of the parts", lossA, lossB)
	}
	for i, want := range a.State().M {
		if got := b.State().M[i]; math.Abs(float64(got-want)) > 1e-5*(1+math.Abs(float64(want))) {
			t.Fatalf("gradient %d is %g of the whole, %g of the parts", i, want, got)
		}
	}
}

// Hash returns the SHA-256 of a state's weights and moments.
func Hash(s *engine.State) string {
	h := sha256.New()
	for _, view := range [][]float32{s.Weights, s.M, s.V} {
		for _, x := range view {
			h.Write(binary.LittleEndian.AppendUint32(nil, math.Float32bits(x)))
		}
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

func testDeterminism(t *testing.T, build Build) {
	var first string
	for _, parallelism := range []int{1, 1, 2, 3} {
		rng := rand.New(rand.NewPCG(9, 9))
		p := Programs(rng)[3]
		p.Context = 64
		e := build(t, p, 42, parallelism)
		for range 3 {
			batches := []engine.Batch{RandomBatch(rng, 12, 64, p.Vocab), RandomBatch(rng, 5, 60, p.Vocab)}
			step := engine.Step{LearningRate: 1e-2, Beta1: 0.9, Beta2: 0.99, Epsilon: 1e-8, WeightDecay: 0.1, ClipNorm: 0.5}
			if _, err := e.Train(t.Context(), batches, step); err != nil {
				t.Fatal(err)
			}
		}
		hash := Hash(e.State())
		if first == "" {
			first = hash
		}
		if hash != first {
			t.Errorf("parallelism %d gave %s, the first run %s", parallelism, hash, first)
		}
	}
}

func testErrors(t *testing.T, build Build) {
	rng := rand.New(rand.NewPCG(5, 5))
	p := Programs(rng)[0]
	p.Context = 8
	e := build(t, p, 1, 2)
	good := RandomBatch(rng, 2, 8, p.Vocab)
	before := Hash(e.State())
	train := func(b engine.Batch) error {
		_, err := e.Train(t.Context(), []engine.Batch{good, b}, plainStep)
		return err
	}
	change := func(f func(b *engine.Batch)) engine.Batch {
		b := good
		b.Inputs, b.Targets = append([]int32(nil), good.Inputs...), append([]int32(nil), good.Targets...)
		f(&b)
		return b
	}
	bad := map[string]engine.Batch{
		"input above the vocabulary": change(func(b *engine.Batch) { b.Inputs[3] = int32(p.Vocab) }),
		"negative input":             change(func(b *engine.Batch) { b.Inputs[3] = -1 }),
		"target above":               change(func(b *engine.Batch) { b.Targets[3] = int32(p.Vocab) }),
		"negative target":            change(func(b *engine.Batch) { b.Targets[3] = -2 }),
		"missing input":              change(func(b *engine.Batch) { b.Inputs = b.Inputs[1:] }),
		"missing target":             change(func(b *engine.Batch) { b.Targets = b.Targets[1:] }),
		"no rows":                    {Context: 8},
		"negative rows":              {Rows: -1, Context: -8},
		"context too long":           RandomBatch(rng, 1, 9, p.Vocab),
		"overflowing shape":          {Rows: math.MaxInt / 4, Context: 8},
	}
	for name, b := range bad {
		if err := train(b); !errors.Is(err, engine.ErrBatch) {
			t.Errorf("%s: error %v, want ErrBatch", name, err)
		}
	}
	if err := train(good); err != nil {
		t.Errorf("after the errors: %v", err)
	}
	if Hash(e.State()) == before {
		t.Error("a good batch did not train")
	}

	before = Hash(e.State())
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := e.Train(cancelled, []engine.Batch{good}, plainStep); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: error %v", err)
	}
	if _, err := e.Train(t.Context(), []engine.Batch{good}, engine.Step{LearningRate: math.NaN()}); !errors.Is(err, engine.ErrStep) {
		t.Errorf("learning rate NaN: error %v, want ErrStep", err)
	}
	if Hash(e.State()) != before {
		t.Error("a step that failed changed the state")
	}
	e.State().Weights[0] = float32(math.NaN())
	e.State().Weights[1] = 1e30
	before = Hash(e.State())
	all := change(func(b *engine.Batch) { b.Inputs[0], b.Targets[0] = 0, 0 })
	if _, err := e.Train(t.Context(), []engine.Batch{all}, plainStep); !errors.Is(err, engine.ErrNumerics) {
		t.Errorf("weight NaN: error %v, want ErrNumerics", err)
	}
	if Hash(e.State()) != before {
		t.Error("ErrNumerics changed the state")
	}
}
