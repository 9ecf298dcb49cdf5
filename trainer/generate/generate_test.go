package generate

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/engine/native"
	"github.com/capacloud/capanode/trainer/model"
)

// successor predicts, at every position, the input there plus one.
type successor struct{ vocab int }

func (s successor) Logits(_ context.Context, b engine.Batch) ([]float32, error) {
	out := make([]float32, len(b.Inputs)*s.vocab)
	for i, id := range b.Inputs {
		out[i*s.vocab+(int(id)+1)%s.vocab] = 5
	}
	return out, nil
}

func collect(t *testing.T, m Model, prompt []int32, opts Options) []int32 {
	t.Helper()
	var out []int32
	err := Generate(t.Context(), m, prompt, opts, func(token int32) error {
		out = append(out, token)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestGreedyFollowsTheModelBeyondTheContext(t *testing.T) {
	opts := Options{Vocab: 7, Context: 4, Max: 10}
	want := []int32{6, 0, 1, 2, 3, 4, 5, 6, 0, 1}
	for _, prompt := range [][]int32{{5}, {2, 5}, {1, 1, 1, 1, 1, 5}} {
		if got := collect(t, successor{7}, prompt, opts); !slices.Equal(got, want) {
			t.Errorf("prompt %v gave %v, want %v", prompt, got, want)
		}
	}
	opts.Stop = []int32{3}
	if got := collect(t, successor{7}, []int32{5}, opts); !slices.Equal(got, want[:4]) {
		t.Errorf("with a stop token %v, want %v", got, want[:4])
	}
}

func TestSampleFollowsTheDistribution(t *testing.T) {
	logits := []float32{float32(math.Log(0.1)), float32(math.Log(0.6)), float32(math.Log(0.3))}
	for name, c := range map[string]struct {
		opts Options
		want [3]float64
	}{
		"plain":       {Options{Temperature: 1}, [3]float64{0.1, 0.6, 0.3}},
		"top-k":       {Options{Temperature: 1, TopK: 2}, [3]float64{0, 2.0 / 3, 1.0 / 3}},
		"top-p":       {Options{Temperature: 1, TopP: 0.85}, [3]float64{0, 2.0 / 3, 1.0 / 3}},
		"tiny top-p":  {Options{Temperature: 1, TopP: 1e-9}, [3]float64{0, 1, 0}},
		"temperature": {Options{Temperature: 0.5}, [3]float64{0.01 / 0.46, 0.36 / 0.46, 0.09 / 0.46}},
		"cold":        {Options{}, [3]float64{0, 1, 0}},
	} {
		const n = 20000
		rng := rand.New(rand.NewPCG(1, 1))
		var got [3]float64
		for range n {
			token, err := Sample(logits, c.opts, rng)
			if err != nil {
				t.Fatal(err)
			}
			got[token] += 1.0 / n
		}
		for i, want := range c.want {
			if math.Abs(got[i]-want) > 0.015 || want == 0 && got[i] != 0 {
				t.Errorf("%s: token %d came up in %.3f of draws, want %.3f", name, i, got[i], want)
			}
		}
	}
}

func TestRefusals(t *testing.T) {
	good := Options{Vocab: 7, Context: 4, Max: 2}
	for name, change := range map[string]func(o *Options){
		"vocabulary":      func(o *Options) { o.Vocab = 0 },
		"context":         func(o *Options) { o.Context = -1 },
		"max":             func(o *Options) { o.Max = -1 },
		"temperature":     func(o *Options) { o.Temperature = math.NaN() },
		"top-k":           func(o *Options) { o.TopK = -1 },
		"top-p":           func(o *Options) { o.TopP = 1.5 },
		"model of others": func(o *Options) { o.Vocab = 8 },
	} {
		opts := good
		change(&opts)
		if err := Generate(t.Context(), successor{7}, []int32{1}, opts, nil); !errors.Is(err, ErrOptions) {
			t.Errorf("%s: error %v, want ErrOptions", name, err)
		}
	}
	if err := Generate(t.Context(), successor{7}, nil, good, nil); !errors.Is(err, ErrOptions) {
		t.Errorf("empty prompt: error %v, want ErrOptions", err)
	}
	full := errors.New("disk full")
	if err := Generate(t.Context(), successor{7}, []int32{1}, good, func(int32) error { return full }); !errors.Is(err, full) {
		t.Errorf("error %v, want that of emit", err)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Generate(cancelled, successor{7}, []int32{1}, good, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want context.Canceled", err)
	}
	if _, err := Sample([]float32{0, float32(math.NaN())}, good, nil); !errors.Is(err, engine.ErrNumerics) {
		t.Errorf("error %v, want ErrNumerics", err)
	}
}

func TestEngineGeneratesTheSameTwice(t *testing.T) {
	spec, err := model.Preset("llama-tiny")
	if err != nil {
		t.Fatal(err)
	}
	spec.Context = 16
	p, err := spec.Program()
	if err != nil {
		t.Fatal(err)
	}
	opts := Options{Vocab: spec.Vocab, Context: spec.Context, Max: 20, Temperature: 1, TopK: 50, Seed: 3}
	var first []int32
	for _, parallelism := range []int{1, 2} {
		e, err := native.New(p, native.Options{Seed: 1, Parallelism: parallelism})
		if err != nil {
			t.Fatal(err)
		}
		got := collect(t, e, []int32{10, 20, 30}, opts)
		if len(got) != opts.Max || first != nil && !slices.Equal(got, first) {
			t.Errorf("parallelism %d gave %v, before %v", parallelism, got, first)
		}
		first = got
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
	}
	plain, err := native.New(p, native.Options{Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	opts.Max = spec.Context - 3 // the window forgets a token at a time, the decoder half of them
	if got := collect(t, struct{ Model }{plain}, []int32{10, 20, 30}, opts); !slices.Equal(got, first[:opts.Max]) {
		t.Errorf("without a decoder %v, with one %v", got, first)
	}
	opts.Seed = 4
	e, err := native.New(p, native.Options{Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if got := collect(t, e, []int32{10, 20, 30}, opts); slices.Equal(got, first) {
		t.Error("another seed gave the same text")
	}
}
