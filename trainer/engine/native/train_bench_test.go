package native

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/engine/enginetest"
	"github.com/capacloud/capanode/trainer/model"
)

// BenchmarkTrain trains the two GPTs that engines are compared on, in Llama shape.
func BenchmarkTrain(b *testing.B) {
	for _, c := range []struct {
		name string
		rows int
		spec model.Spec
	}{
		{"0.8M", 12, model.Spec{Family: model.FamilyLlama, Vocab: 256, Width: 128, Layers: 4, Heads: 4, KVHeads: 4, FeedForward: 336, Context: 64, RopeTheta: 10000, NormEps: 1e-5, TieEmbeddings: true}},
		{"10.7M", 8, model.Spec{Family: model.FamilyLlama, Vocab: 256, Width: 384, Layers: 6, Heads: 6, KVHeads: 6, FeedForward: 1024, Context: 256, RopeTheta: 10000, NormEps: 1e-5, TieEmbeddings: true}},
	} {
		for _, threads := range []int{1, 2} {
			b.Run(fmt.Sprintf("%s/threads=%d", c.name, threads), func(b *testing.B) {
				p, err := c.spec.Program()
				if err != nil {
					b.Fatal(err)
				}
				e, err := New(p, Options{Seed: 1, Parallelism: threads})
				if err != nil {
					b.Fatal(err)
				}
				defer e.Close()
				batches := []engine.Batch{enginetest.RandomBatch(rand.New(rand.NewPCG(1, 1)), c.rows, c.spec.Context, c.spec.Vocab)}
				step := engine.Step{LearningRate: 1e-3, Beta1: 0.9, Beta2: 0.95, Epsilon: 1e-8, WeightDecay: 0.1, ClipNorm: 1}
				b.ReportAllocs()
				for b.Loop() {
					if _, err := e.Train(b.Context(), batches, step); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(b.N*c.rows*c.spec.Context)/b.Elapsed().Seconds(), "tokens/s")
			})
		}
	}
}
