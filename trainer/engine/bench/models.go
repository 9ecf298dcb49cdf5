package bench

import (
	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/model"
)

// size is one of the two GPTs that engines have been compared on.
type size struct {
	name                        string
	width, layers, heads, inner int // inner of the Llama's feed-forward; that of GPT-2 is four widths
	context, rows, vocab        int
}

var (
	small = size{name: "small", width: 128, layers: 4, heads: 4, inner: 336, context: 64, rows: 12, vocab: 256}
	large = size{name: "large", width: 384, layers: 6, heads: 6, inner: 1024, context: 256, rows: 8, vocab: 256}
)

// shapes are the architectures that both sizes are measured in.
var shapes = []struct {
	name    string
	program func(s size) (engine.Program, error)
}{{"llama", size.llama}, {"gpt2", size.gpt2}}

// llama returns the model with RMS norm, rotary positions and SwiGLU.
func (s size) llama() (engine.Program, error) { return s.spec().Program() }

func (s size) spec() model.Spec {
	return model.Spec{Family: model.FamilyLlama, Vocab: s.vocab, Width: s.width, Layers: s.layers, Heads: s.heads, KVHeads: s.heads,
		FeedForward: s.inner, Context: s.context, RopeTheta: 10000, NormEps: 1e-5, TieEmbeddings: true}
}

// gpt2 returns the model with layer norm, learned positions, biases and GELU.
func (s size) gpt2() (engine.Program, error) {
	spec := model.Defaults(model.FamilyGPT2)
	spec.Vocab, spec.Width, spec.Layers, spec.Context = s.vocab, s.width, s.layers, s.context
	spec.Heads, spec.KVHeads, spec.FeedForward = s.heads, s.heads, 4*s.width
	return spec.Program()
}
