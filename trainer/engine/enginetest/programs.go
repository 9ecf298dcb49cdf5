package enginetest

import (
	"fmt"
	"math/rand/v2"

	"github.com/capacloud/capanode/trainer/engine"
)

// operation is one case of the suite: a program around one operation, and the batch shape that it runs on.
type operation struct {
	program engine.Program
	shape   engine.Shape
}

// builder collects the parameters of a program.
type builder struct{ params []engine.Param }

// param adds a parameter with random initial values and returns its name.
func (b *builder) param(name string, shape ...int) string {
	b.params = append(b.params, engine.Param{Name: name, Shape: shape, Init: engine.Init{Std: 0.5}, Decay: len(shape) > 1})
	return name
}

// Operations returns a program for each operation that language models in Llama's shape do without, of random sizes.
func Operations(rng *rand.Rand) []operation {
	s := newSizes(rng)
	rows, context := 1+rng.IntN(4), 1+rng.IntN(s.context)
	tokens := engine.Shape{Rows: rows, Context: context}
	var all []operation
	onTokens := func(name string, params func(b *builder), op func(g engine.Graph, x engine.Value) engine.Value) {
		b := &builder{}
		params(b)
		all = append(all, operation{wrap(name, s, b.params, op), tokens})
	}
	none := func(*builder) {}
	onTokens("bias", func(b *builder) { b.param("bias", s.width) }, func(g engine.Graph, x engine.Value) engine.Value {
		return g.Bias(x, g.Param("bias"))
	})
	onTokens("positions", func(b *builder) { b.param("table", s.context+2, s.width) }, func(g engine.Graph, x engine.Value) engine.Value {
		return g.Positions(x, g.Param("table"))
	})
	onTokens("layer norm", func(b *builder) { b.param("weight", s.width); b.param("shift", s.width) }, func(g engine.Graph, x engine.Value) engine.Value {
		return g.LayerNorm(x, g.Param("weight"), g.Param("shift"), 1e-5)
	})
	onTokens("types", func(b *builder) { b.param("types", 1+rng.IntN(3), s.width) }, func(g engine.Graph, x engine.Value) engine.Value {
		return g.Types(g.GELU(g.Types(x, g.Param("types"))), g.Param("types"))
	})
	onTokens("gelu", none, func(g engine.Graph, x engine.Value) engine.Value { return g.GELU(x) })
	onTokens("gelu of tanh", none, func(g engine.Graph, x engine.Value) engine.Value { return g.GELUTanh(x) })
	onTokens("scale", none, func(g engine.Graph, x engine.Value) engine.Value { return g.Scale(x, -1.5) })
	onTokens("layer", func(b *builder) { b.param("a", s.width, s.width) }, func(g engine.Graph, x engine.Value) engine.Value {
		return g.GELU(g.Layer(g.Add(g.Linear(g.Layer(x), g.Param("a")), x)))
	})
	onTokens("low rank", func(b *builder) {
		b.param("frozen", s.width, s.width)
		b.param("down", 2, s.width)
		b.param("up", s.width, 2)
	}, func(g engine.Graph, x engine.Value) engine.Value {
		return engine.LowRank(g, x, g.Param("frozen"), g.Param("down"), g.Param("up"), 0.7)
	})
	for _, kind := range []struct {
		name string
		mask engine.Mask
	}{{"full", engine.Full}, {"padded", engine.Padded}} {
		name, mask := kind.name, kind.mask
		onTokens(name+" attention", func(b *builder) {
			b.param("q", s.width, s.width)
			b.param("k", s.keyHeads*s.head, s.width)
			b.param("v", s.keyHeads*s.head, s.width)
		}, func(g engine.Graph, x engine.Value) engine.Value {
			return g.Attention(g.Linear(x, g.Param("q")), g.Linear(x, g.Param("k")), g.Linear(x, g.Param("v")), s.head, mask)
		})
		all = append(all, pooled(name+" pool", s, tokens, mask))
	}
	all = append(all, smoothed(s, tokens, []float64{0, 0.1, 0.9}[rng.IntN(3)]), gathered(rng, s, rows, context))
	return append(all, features(s, tokens), patches(rng, s, rows), masked(rng, s, rows, context), pairs(rng, s, rows))
}

// classifier returns a program over that many classes.
func classifier(name string, s sizes, b *builder, classes int, logits func(g engine.Graph) engine.Value) engine.Program {
	return engine.Program{
		Name: name, Params: b.params, Vocab: s.vocab, Classes: classes, Context: s.context, Logits: logits,
		Loss: func(g engine.Graph) engine.Value { return g.CrossEntropy(logits(g)) },
	}
}

// pooled classifies rows by the mean of their lines.
func pooled(name string, s sizes, shape engine.Shape, mask engine.Mask) operation {
	b := &builder{}
	b.param("embed", s.vocab, s.width)
	b.param("out", 5, s.width)
	return operation{classifier(name, s, b, 5, func(g engine.Graph) engine.Value {
		return g.Linear(g.Pool(g.Embedding(g.Param("embed")), mask), g.Param("out"))
	}), shape}
}

// features classifies each line of continuous inputs.
func features(s sizes, shape engine.Shape) operation {
	b := &builder{}
	b.param("in", s.width, 7)
	b.param("out", 3, s.width)
	return operation{classifier("features", s, b, 3, func(g engine.Graph) engine.Value {
		return g.Linear(g.Linear(g.Features(7), g.Param("in")), g.Param("out"))
	}), shape}
}

// patches classifies images through a patch embedding.
func patches(rng *rand.Rand, s sizes, rows int) operation {
	m := engine.Image{Channels: 1 + rng.IntN(3), Patch: 1 + rng.IntN(3)}
	m.Height, m.Width = m.Patch*(1+rng.IntN(3)), m.Patch*(1+rng.IntN(3))
	b := &builder{}
	b.param("kernel", s.width, m.Channels, m.Patch, m.Patch)
	b.param("out", 3, s.width)
	return operation{classifier(fmt.Sprintf("patches %v", m), s, b, 3, func(g engine.Graph) engine.Value {
		return g.Linear(g.Pool(g.Linear(g.Patches(m), g.Param("kernel")), engine.Full), g.Param("out"))
	}), engine.Shape{Rows: rows, Context: 1}}
}

// masked rebuilds all lines of its inputs from those that are picked: a masked autoencoder in small.
func masked(rng *rand.Rand, s sizes, rows, context int) operation {
	b := &builder{}
	b.param("in", s.width, 7)
	b.param("fill", s.width)
	b.param("out", 7, s.width)
	rebuilt := func(g engine.Graph) engine.Value {
		x := g.Linear(g.Features(7), g.Param("in"))
		return g.Linear(g.Scatter(g.GELU(g.Gather(x)), g.Param("fill"), x), g.Param("out"))
	}
	return operation{engine.Program{
		Name: "gather, scatter and squared error", Params: b.params, Vocab: s.vocab, Context: s.context, Logits: rebuilt,
		Loss: func(g engine.Graph) engine.Value { return g.SquaredError(rebuilt(g), g.Features(7)) },
	}, engine.Shape{Rows: rows, Context: context, Picks: 1 + rng.IntN(context)}}
}

// smoothed trains on smoothed targets.
func smoothed(s sizes, tokens engine.Shape, smoothing float64) operation {
	p := wrap("smoothed cross-entropy", s, nil, func(_ engine.Graph, x engine.Value) engine.Value { return x })
	logits := p.Logits
	p.Loss = func(g engine.Graph) engine.Value { return g.SmoothCrossEntropy(logits(g), smoothing) }
	return operation{p, tokens}
}

// gathered has an output for every line and a loss over those that are picked: a masked language model in small.
func gathered(rng *rand.Rand, s sizes, rows, context int) operation {
	p := wrap("loss over picks", s, nil, nil)
	head := func(g engine.Graph, x engine.Value) engine.Value { return g.Linear(g.GELU(x), g.Param("out")) }
	p.Logits = func(g engine.Graph) engine.Value { return head(g, g.Embedding(g.Param("embed"))) }
	p.Loss = func(g engine.Graph) engine.Value {
		return g.CrossEntropy(head(g, g.Gather(g.Embedding(g.Param("embed")))))
	}
	return operation{p, engine.Shape{Rows: rows, Context: context, Picks: 1 + rng.IntN(context)}}
}

// pairs aligns tokens with images.
func pairs(rng *rand.Rand, s sizes, rows int) operation {
	m := engine.Image{Channels: 1, Height: 4, Width: 2, Patch: 2}
	b := &builder{}
	b.param("embed", s.vocab, s.width)
	b.param("kernel", s.width, 1, 2, 2)
	b.param("scale", 1)
	text := func(g engine.Graph) engine.Value { return g.Pool(g.Embedding(g.Param("embed")), engine.Padded) }
	return operation{engine.Program{
		Name: "contrastive", Params: b.params, Vocab: s.vocab, Context: s.context, Logits: text,
		Loss: func(g engine.Graph) engine.Value {
			image := g.Pool(g.Linear(g.Patches(m), g.Param("kernel")), engine.Full)
			return g.Contrastive(text(g), image, g.Param("scale"))
		},
	}, engine.Shape{Rows: rows, Context: 1 + rng.IntN(s.context)}}
}

// BatchFor returns a random batch with all that a program reads at that shape.
func BatchFor(rng *rand.Rand, p engine.Program, s engine.Shape) (engine.Batch, error) {
	plan, err := engine.NewPlan(p, s)
	if err != nil {
		return engine.Batch{}, err
	}
	b := engine.Batch{Rows: s.Rows, Context: s.Context}
	if plan.Needs.Inputs {
		for range s.Rows * s.Context {
			b.Inputs = append(b.Inputs, int32(rng.IntN(p.Vocab)))
		}
	}
	for range s.Rows * plan.Needs.Features {
		b.Features = append(b.Features, float32(rng.NormFloat64()))
	}
	if plan.Needs.Types > 0 && rng.IntN(4) > 0 {
		for range s.Rows * s.Context {
			b.Types = append(b.Types, int32(rng.IntN(plan.Needs.Types)))
		}
	}
	if plan.Needs.Lengths && rng.IntN(4) > 0 {
		for range s.Rows {
			b.Lengths = append(b.Lengths, int32(1+rng.IntN(s.Context)))
		}
	}
	if plan.Needs.Picks > 0 {
		for range s.Rows {
			left := s.Picks
			for line := range plan.Needs.Picks {
				if rng.IntN(plan.Needs.Picks-line) < left { // each subset is as likely as any other
					b.Picks = append(b.Picks, int32(line))
					left--
				}
			}
		}
	}
	classes := p.Vocab
	if p.Classes > 0 {
		classes = p.Classes
	}
	for i := range s.Rows * plan.Needs.Targets {
		target := int32(rng.IntN(classes))
		if i > 0 && !plan.Needs.All && rng.IntN(8) == 0 {
			target = engine.Ignore
		}
		b.Targets = append(b.Targets, target)
	}
	return b, nil
}
