package model

import (
	"fmt"

	"github.com/capacloud/capanode/trainer/engine"
)

// Names of a Llama's tensors in a Hugging Face checkpoint.
const (
	embedName = "model.embed_tokens.weight"
	normName  = "model.norm.weight"
	headName  = "lm_head.weight"
)

func layerName(layer int, part string) string {
	return fmt.Sprintf("model.layers.%d.%s.weight", layer, part)
}

func (s Spec) llamaParams() []engine.Param {
	w, kv, ff := s.Width, s.keyWidth(), s.FeedForward
	matrix := func(name string, out, in int, std float64) engine.Param {
		return engine.Param{Name: name, Shape: []int{out, in}, Init: engine.Init{Std: std}, Decay: true}
	}
	norm := func(name string) engine.Param {
		return engine.Param{Name: name, Shape: []int{w}, Init: engine.Init{Fill: 1}}
	}
	params := []engine.Param{matrix(embedName, s.Vocab, w, initStd), norm(normName)}
	if !s.TieEmbeddings {
		params = append(params, matrix(headName, s.Vocab, w, initStd))
	}
	for l := range s.Layers {
		params = append(params,
			norm(layerName(l, "input_layernorm")),
			matrix(layerName(l, "self_attn.q_proj"), w, w, initStd),
			matrix(layerName(l, "self_attn.k_proj"), kv, w, initStd),
			matrix(layerName(l, "self_attn.v_proj"), kv, w, initStd),
			matrix(layerName(l, "self_attn.o_proj"), w, w, s.residualStd()),
			norm(layerName(l, "post_attention_layernorm")),
			matrix(layerName(l, "mlp.gate_proj"), ff, w, initStd),
			matrix(layerName(l, "mlp.up_proj"), ff, w, initStd),
			matrix(layerName(l, "mlp.down_proj"), w, ff, s.residualStd()),
		)
	}
	return params
}

// llamaLogits is the whole forward pass. Shapes: x [tokens, Width], q [tokens, Width], k and v [tokens, KVHeads·head].
func (s Spec) llamaLogits(g engine.Graph) engine.Value {
	head := s.headWidth()
	embed := g.Param(embedName)
	x := g.Embedding(embed)
	for l := range s.Layers {
		weight := func(part string) engine.Value { return g.Param(layerName(l, part)) }

		x = g.Layer(x)
		h := g.RMSNorm(x, weight("input_layernorm"), s.NormEps)
		q := g.Rotary(g.Linear(h, weight("self_attn.q_proj")), head, s.RopeTheta)
		k := g.Rotary(g.Linear(h, weight("self_attn.k_proj")), head, s.RopeTheta)
		v := g.Linear(h, weight("self_attn.v_proj"))
		x = g.Add(x, g.Linear(g.Attention(q, k, v, head, engine.Causal), weight("self_attn.o_proj")))

		h = g.RMSNorm(x, weight("post_attention_layernorm"), s.NormEps)
		gated := g.SwiGLU(g.Linear(h, weight("mlp.gate_proj")), g.Linear(h, weight("mlp.up_proj")))
		x = g.Add(x, g.Linear(gated, weight("mlp.down_proj")))
	}
	x = g.RMSNorm(x, g.Param(normName), s.NormEps)
	if s.TieEmbeddings {
		return g.Linear(x, embed)
	}
	return g.Linear(x, g.Param(headName))
}
