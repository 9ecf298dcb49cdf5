package model

import (
	"fmt"

	"github.com/capacloud/capanode/trainer/engine"
)

// Names of a BERT's parameters in a Hugging Face checkpoint.
const (
	bertEmbeddings = "bert.embeddings."
	bertTokens     = bertEmbeddings + "word_embeddings.weight"
	bertPositions  = bertEmbeddings + "position_embeddings.weight"
	bertTypes      = bertEmbeddings + "token_type_embeddings.weight"
	bertHead       = "cls.predictions."
	bertOutput     = bertHead + "decoder.weight"
	bertOutputBias = bertHead + "bias"
)

func bertLayer(layer int) string { return fmt.Sprintf("bert.encoder.layer.%d.", layer) }

func (s Spec) bertParams() []engine.Param {
	w := s.Width
	var p params
	p.matrix(bertTokens, s.Vocab, w, initStd)
	p.matrix(bertPositions, s.Context, w, initStd)
	p.matrix(bertTypes, s.TokenTypes, w, initStd)
	p.norm(bertEmbeddings+"LayerNorm", w)
	for l := range s.Layers {
		at := bertLayer(l)
		for _, part := range []string{"query", "key", "value"} {
			p.linear(at+"attention.self."+part, w, w, initStd)
		}
		p.linear(at+"attention.output.dense", w, w, initStd)
		p.norm(at+"attention.output.LayerNorm", w)
		p.linear(at+"intermediate.dense", s.FeedForward, w, initStd)
		p.linear(at+"output.dense", w, s.FeedForward, initStd)
		p.norm(at+"output.LayerNorm", w)
	}
	p.linear(bertHead+"transform.dense", w, w, initStd)
	p.norm(bertHead+"transform.LayerNorm", w)
	p.vector(bertOutputBias, s.Vocab, 0)
	if !s.TieEmbeddings {
		p.matrix(bertOutput, s.Vocab, w, initStd)
	}
	return p
}

// bertBody is the forward pass up to the head: [tokens, Width].
func (s Spec) bertBody(g engine.Graph) engine.Value {
	x := g.Types(g.Positions(g.Embedding(g.Param(bertTokens)), g.Param(bertPositions)), g.Param(bertTypes))
	x = block{g, bertEmbeddings, s.NormEps}.norm(x, "LayerNorm")
	for l := range s.Layers {
		b := block{g, bertLayer(l), s.NormEps}
		x = g.Layer(x)
		q, k, v := b.linear(x, "attention.self.query"), b.linear(x, "attention.self.key"), b.linear(x, "attention.self.value")
		a := b.linear(g.Attention(q, k, v, s.headWidth(), engine.Full), "attention.output.dense")
		x = b.norm(g.Add(x, a), "attention.output.LayerNorm")
		f := b.linear(g.GELU(b.linear(x, "intermediate.dense")), "output.dense")
		x = b.norm(g.Add(x, f), "output.LayerNorm")
	}
	return g.Layer(x)
}

// bertPredictions is the head: the logits of the given lines.
func (s Spec) bertPredictions(g engine.Graph, x engine.Value) engine.Value {
	b := block{g, bertHead, s.NormEps}
	x = b.norm(g.GELU(b.linear(x, "transform.dense")), "transform.LayerNorm")
	output := bertTokens
	if !s.TieEmbeddings {
		output = bertOutput
	}
	return g.Bias(g.Linear(x, g.Param(output)), g.Param(bertOutputBias))
}

func (s Spec) bertLogits(g engine.Graph) engine.Value { return s.bertPredictions(g, s.bertBody(g)) }

// bertMasked is the logits of the masked lines alone: the head, a good part of the work with a large vocabulary, is not
// computed for the others.
func (s Spec) bertMasked(g engine.Graph) engine.Value {
	return s.bertPredictions(g, g.Gather(s.bertBody(g)))
}
