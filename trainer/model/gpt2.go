package model

import (
	"fmt"

	"github.com/capacloud/capanode/trainer/engine"
)

// Names of a GPT-2's parameters. They are those of the tensors in a Hugging Face checkpoint but for attn.c_attn, which holds
// queries, keys and values side by side: here each is a parameter of its own. Weights are [out, in] as everywhere in the
// engine; the checkpoint's are [in, out].
const (
	gpt2Tokens    = "transformer.wte.weight"
	gpt2Positions = "transformer.wpe.weight"
)

func gpt2Layer(layer int) string { return fmt.Sprintf("transformer.h.%d.", layer) }

func (s Spec) gpt2Params() []engine.Param {
	w := s.Width
	var p params
	p.matrix(gpt2Tokens, s.Vocab, w, initStd)
	p.matrix(gpt2Positions, s.Context, w, initStd)
	p.norm("transformer.ln_f", w)
	if !s.TieEmbeddings {
		p.matrix(headName, s.Vocab, w, initStd)
	}
	for l := range s.Layers {
		at := gpt2Layer(l)
		p.norm(at+"ln_1", w)
		for _, part := range []string{"q", "k", "v"} {
			p.linear(at+"attn.c_attn."+part, w, w, initStd)
		}
		p.linear(at+"attn.c_proj", w, w, s.residualStd())
		p.norm(at+"ln_2", w)
		p.linear(at+"mlp.c_fc", s.FeedForward, w, initStd)
		p.linear(at+"mlp.c_proj", w, s.FeedForward, s.residualStd())
	}
	return p
}

// gpt2Logits is the whole forward pass. Shapes: x, q, k, v [tokens, Width].
func (s Spec) gpt2Logits(g engine.Graph) engine.Value {
	tokens := g.Param(gpt2Tokens)
	x := g.Positions(g.Embedding(tokens), g.Param(gpt2Positions))
	for l := range s.Layers {
		b := block{g, gpt2Layer(l), s.NormEps}
		x = g.Layer(x)
		h := b.norm(x, "ln_1")
		a := g.Attention(b.linear(h, "attn.c_attn.q"), b.linear(h, "attn.c_attn.k"), b.linear(h, "attn.c_attn.v"), s.headWidth(), engine.Causal)
		x = g.Add(x, b.linear(a, "attn.c_proj"))
		x = g.Add(x, b.linear(g.GELUTanh(b.linear(b.norm(x, "ln_2"), "mlp.c_fc")), "mlp.c_proj"))
	}
	x = block{g, "transformer.", s.NormEps}.norm(x, "ln_f")
	if s.TieEmbeddings {
		return g.Linear(x, tokens)
	}
	return g.Linear(x, g.Param(headName))
}
