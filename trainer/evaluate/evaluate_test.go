package evaluate_test

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"

	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/engine/native"
	"github.com/capacloud/capanode/trainer/evaluate"
	"github.com/capacloud/capanode/trainer/model"
	"github.com/capacloud/capanode/trainer/tokenizer"
)

// counter is a model that can be computed by hand: after token i it gives token i+1 half of the probability and shares the
// rest among the others.
type counter struct {
	engine.Engine
	vocab int32
	seen  int // batches
}

func (c *counter) Score(_ context.Context, b engine.Batch) (engine.Scores, error) {
	c.seen++
	s := engine.Scores{Losses: make([]float64, len(b.Targets)), Hits: make([]bool, len(b.Targets))}
	for i, target := range b.Targets {
		if target == engine.Ignore {
			continue
		}
		s.Losses[i] = math.Log(2 * float64(c.vocab-1))
		if s.Hits[i] = target == b.Inputs[i]+1; s.Hits[i] {
			s.Losses[i] = math.Ln2
		}
	}
	return s, nil
}

// By hand: of the targets 1 2 3 | 5 2, the first, second, third and fourth follow their predecessors 0 1 2 4, and 2 does not follow 5.
func TestFiguresByHand(t *testing.T) {
	s, err := evaluate.New(&counter{vocab: 9}, evaluate.Options{Context: 3, Vocab: 9, Sizes: []int{1, 1, 4, 1, 1, 2}})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	for _, sequence := range [][]int32{{0, 1, 2, 3}, {4, 5, 2}} {
		if err := errors.Join(s.Write(ctx, sequence), s.End(ctx)); err != nil {
			t.Fatal(err)
		}
	}
	got, err := s.Figures(ctx)
	if err != nil {
		t.Fatal(err)
	}
	sum := 4*math.Ln2 + math.Log(16)
	want := evaluate.Figures{Tokens: 5, Bytes: 1 + 4 + 1 + 2 + 4, Loss: sum / 5, Perplexity: math.Exp(sum / 5), BitsPerByte: sum / math.Ln2 / 12, Accuracy: 0.8}
	if got.Tokens != want.Tokens || got.Bytes != want.Bytes || got.Accuracy != want.Accuracy {
		t.Errorf("got %+v, want %+v", got, want)
	}
	for _, pair := range [][2]float64{{got.Loss, want.Loss}, {got.Perplexity, want.Perplexity}, {got.BitsPerByte, want.BitsPerByte}} {
		if math.Abs(pair[0]-pair[1]) > 1e-12*pair[1] {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
}

func TestOptionsAndEmptyTexts(t *testing.T) {
	for _, o := range []evaluate.Options{{}, {Context: 4}, {Context: 4, Vocab: 9, Stride: 5}, {Context: 4, Vocab: 9, Stride: -1}} {
		if _, err := evaluate.New(&counter{vocab: 9}, o); !errors.Is(err, evaluate.ErrOptions) {
			t.Errorf("%+v: %v", o, err)
		}
	}
	s, err := evaluate.New(&counter{vocab: 9}, evaluate.Options{Context: 4, Vocab: 9})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Write(t.Context(), []int32{1}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Figures(t.Context()); !errors.Is(err, evaluate.ErrNothing) {
		t.Errorf("one token: %v", err)
	}
}

// Every target of every sequence is scored once, whatever the stride, the context and how the sequence arrives.
func TestEachTokenOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := evaluate.Options{Context: rapid.IntRange(1, 12).Draw(t, "context"), Vocab: 100}
		o.Stride = rapid.IntRange(1, o.Context).Draw(t, "stride")
		o.Most = uint64(rapid.SampledFrom([]int{0, 0, 7}).Draw(t, "most"))
		s, err := evaluate.New(&counter{vocab: 100}, o)
		if err != nil {
			t.Fatal(err)
		}
		var want, hits uint64
		for range rapid.IntRange(1, 5).Draw(t, "sequences") {
			ids := rapid.SliceOfN(rapid.Int32Range(0, 9), 0, 40).Draw(t, "ids")
			for i := 1; i < len(ids) && (o.Most == 0 || want < o.Most); i++ {
				want++
				if ids[i] == ids[i-1]+1 {
					hits++
				}
			}
			for len(ids) > 0 {
				n := rapid.IntRange(1, len(ids)).Draw(t, "piece")
				if err := s.Write(context.Background(), ids[:n]); err != nil {
					t.Fatal(err)
				}
				ids = ids[n:]
			}
			if err := s.End(context.Background()); err != nil {
				t.Fatal(err)
			}
		}
		got, err := s.Figures(context.Background())
		if want == 0 && errors.Is(err, evaluate.ErrNothing) {
			return
		}
		if err != nil || got.Tokens != want || got.Accuracy != float64(hits)/float64(want) {
			t.Fatalf("%+v: %d tokens and %d hits wanted, got %+v, %v", o, want, hits, got, err)
		}
	})
}

// A real model: the figures are those that follow from its logits in float64, whatever the number of threads.
func TestAgainstLogits(t *testing.T) {
	spec, err := model.Preset("llama-tiny")
	if err != nil {
		t.Fatal(err)
	}
	spec.Vocab, spec.Context = 257, 24
	program, err := spec.Program()
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	ids := make([]int32, 400)
	for i := range ids {
		ids[i] = int32(rng.IntN(257))
	}
	const stride = 17
	var first evaluate.Figures
	for _, threads := range []int{1, 2} {
		eng, err := native.New(program, native.Options{Seed: 3, Parallelism: threads})
		if err != nil {
			t.Fatal(err)
		}
		defer eng.Close()
		for i, w := range eng.State().Weights {
			eng.State().Weights[i] = 8 * w // so that predictions differ
		}
		s, err := evaluate.New(eng.(engine.Scoring), evaluate.Options{Context: 24, Stride: stride, Vocab: 257, Sizes: evaluate.Sizes(tokenizer.Byte{})})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Write(t.Context(), ids); err != nil {
			t.Fatal(err)
		}
		got, err := s.Figures(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if threads > 1 {
			if got != first {
				t.Errorf("%d threads: %+v, one thread: %+v", threads, got, first)
			}
			continue
		}
		first = got
		loss, hits := fromLogits(t, eng, ids, 24, stride)
		if n := float64(len(ids) - 1); math.Abs(got.Loss-loss/n) > 1e-5 || got.Accuracy != float64(hits)/n || got.Bytes != uint64(len(ids)-1) {
			t.Errorf("got %+v, the logits say %v and %d hits", got, loss/n, hits)
		}
	}
}

// fromLogits is the slow way: window by window, in float64.
func fromLogits(t *testing.T, eng engine.Engine, ids []int32, context, stride int) (loss float64, hits int) {
	t.Helper()
	scored := 1 // tokens of the sequence
	for at := 0; scored < len(ids); at += stride {
		n := min(context, len(ids)-1-at)
		logits, err := eng.Logits(t.Context(), engine.Batch{Rows: 1, Context: n, Inputs: ids[at : at+n]})
		if err != nil {
			t.Fatal(err)
		}
		for i := range n {
			if at+i+1 < scored {
				continue
			}
			line, top, sum := logits[i*257:(i+1)*257], 0, 0.0
			for k, v := range line {
				sum += math.Exp(float64(v))
				if v > line[top] {
					top = k
				}
			}
			loss += math.Log(sum) - float64(line[ids[at+i+1]])
			if top == int(ids[at+i+1]) {
				hits++
			}
			scored++
		}
	}
	return loss, hits
}
