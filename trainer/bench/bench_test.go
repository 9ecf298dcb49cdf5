package bench_test

import (
	"context"
	"testing"
	"testing/synctest"

	"go.uber.org/goleak"

	"github.com/capacloud/capanode/trainer/bench"
	"github.com/capacloud/capanode/trainer/codec"
	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/engine/native"
	"github.com/capacloud/capanode/trainer/model"
	"github.com/capacloud/capanode/trainer/outer"
	"github.com/capacloud/capanode/trainer/round"
	"github.com/capacloud/capanode/trainer/worker"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// steps is a language of sequences that count up from their window's number.
type steps struct{}

func (steps) Shards() int        { return 6 }
func (steps) Windows(int) uint64 { return 64 }

func (steps) Batch(_ context.Context, windows []round.Window) (engine.Batch, error) {
	b := engine.Batch{Rows: len(windows), Context: 16}
	for _, w := range windows {
		for i := range int32(16) {
			b.Inputs = append(b.Inputs, (int32(w.Index)+i)%32)
			b.Targets = append(b.Targets, (int32(w.Index)+i+1)%32)
		}
	}
	return b, nil
}

func TestAveraging(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		spec := model.Spec{
			Family: model.FamilyLlama, Vocab: 32, Width: 32, Layers: 1, Heads: 2, KVHeads: 2, FeedForward: 64, Context: 16,
			RopeTheta: 10000, NormEps: 1e-5, TieEmbeddings: true,
		}
		validation, err := steps{}.Batch(t.Context(), []round.Window{{Shard: 0, Index: 3}, {Shard: 0, Index: 17}})
		if err != nil {
			t.Fatal(err)
		}
		f, err := bench.Averaging(t.Context(), bench.Options{Megabytes: 2, Repeat: 1, Training: &bench.Training{
			Plan: worker.Plan{
				Rounds: 3, LocalSteps: 6, BatchRows: 8, Context: 16, Seed: 1, Codec: "int8",
				Outer:    outer.Settings{LearningRate: 0.7, Momentum: 0.3},
				Inner:    engine.Step{Beta1: 0.9, Beta2: 0.95, Epsilon: 1e-8, ClipNorm: 1},
				Schedule: worker.Schedule{Peak: 1e-2, Floor: 1e-3, Warmup: 3, Total: 18},
			},
			Engine: func() (engine.Engine, error) {
				program, err := spec.Program()
				if err != nil {
					return nil, err
				}
				return native.New(program, native.Options{Seed: 5, Parallelism: 1})
			},
			Numerics: native.Numerics(), Data: steps{}, Validation: []engine.Batch{validation},
		}})
		if err != nil {
			t.Fatal(err)
		}
		if want := uint64(3 * 3 * 6 * 8 * 16); f.TokensThree != want || f.TokensOne != want {
			t.Errorf("%d and %d tokens, want %d", f.TokensThree, f.TokensOne, want)
		}
		if f.Up <= 0 || f.Down < f.Up {
			t.Errorf("%g bytes up, %g down: each peer fetches two updates for the one that it sends", f.Up, f.Down)
		}
		if !(f.LossOne > 0 && f.LossOne < 3) || !(f.LossThree > 0 && f.LossThree < 3.3) {
			t.Errorf("losses %g with one peer and %g with three", f.LossOne, f.LossThree)
		}
	})
}

// The rates need a real clock.
func TestRates(t *testing.T) {
	f, err := bench.Averaging(t.Context(), bench.Options{Megabytes: 2, Repeat: 2})
	if err != nil {
		t.Fatal(err)
	}
	if f.Averaging <= 0 || f.Sparse <= 0 || f.Copy <= 0 || f.Cores < 1 {
		t.Errorf("%+v", f)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := bench.Averaging(ctx, bench.Options{Megabytes: 2}); err == nil {
		t.Error("a cancelled measurement gave figures")
	}
}

func TestCodecs(t *testing.T) {
	codecs := []codec.Codec{codec.FP32{}, codec.Int8{}, codec.Int4{}, codec.Top{K: 64}}
	figures, core, all, err := bench.Codecs(t.Context(), codecs, bench.Options{Megabytes: 2, Repeat: 2})
	if err != nil {
		t.Fatal(err)
	}
	if len(figures) != len(codecs) || core <= 0 || all <= 0 {
		t.Fatalf("%d codecs, copies at %g and %g MB/s", len(figures), core, all)
	}
	bits, lost := 33.0, -1.0
	for i, f := range figures {
		for _, r := range []bench.Rates{f.Core, f.All} {
			if r.Encode <= 0 || r.Decode <= 0 || r.Add <= 0 {
				t.Errorf("%s: rates %+v", f.Codec.ID(), r)
			}
		}
		if f.Codec != codecs[i] || f.Bits >= bits || f.ErrorNormal <= lost || f.ErrorHeavyTail <= lost {
			t.Errorf("%s: %g bits, relative errors %g and %g: each codec of this list takes less than the one before, and loses more",
				f.Codec.ID(), f.Bits, f.ErrorNormal, f.ErrorHeavyTail)
		}
		bits, lost = f.Bits, f.ErrorNormal
	}
}
