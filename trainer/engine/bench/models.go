package bench

import (
	"fmt"

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
	p := engine.Program{Name: "gpt2 " + s.name, Vocab: s.vocab, Context: s.context}
	matrix := func(name string, out, in int) {
		p.Params = append(p.Params,
			engine.Param{Name: name + ".weight", Shape: []int{out, in}, Init: engine.Init{Std: 0.02}, Decay: true},
			engine.Param{Name: name + ".bias", Shape: []int{out}})
	}
	norm := func(name string) {
		p.Params = append(p.Params,
			engine.Param{Name: name + ".weight", Shape: []int{s.width}, Init: engine.Init{Fill: 1}},
			engine.Param{Name: name + ".bias", Shape: []int{s.width}})
	}
	p.Params = append(p.Params,
		engine.Param{Name: "wte", Shape: []int{s.vocab, s.width}, Init: engine.Init{Std: 0.02}, Decay: true},
		engine.Param{Name: "wpe", Shape: []int{s.context, s.width}, Init: engine.Init{Std: 0.02}, Decay: true})
	norm("ln_f")
	parts := []string{"q", "k", "v", "o"}
	for l := range s.layers {
		at := fmt.Sprintf("h.%d.", l)
		norm(at + "ln_1")
		norm(at + "ln_2")
		for _, part := range parts {
			matrix(at+part, s.width, s.width)
		}
		matrix(at+"fc", 4*s.width, s.width)
		matrix(at+"proj", s.width, 4*s.width)
	}
	p.Logits = s.gpt2Logits
	p.Loss = func(g engine.Graph) engine.Value { return g.CrossEntropy(s.gpt2Logits(g)) }
	return p, nil
}

func (s size) gpt2Logits(g engine.Graph) engine.Value {
	x := g.Positions(g.Embedding(g.Param("wte")), g.Param("wpe"))
	for l := range s.layers {
		at := fmt.Sprintf("h.%d.", l)
		linear := func(x engine.Value, name string) engine.Value {
			return g.Bias(g.Linear(x, g.Param(at+name+".weight")), g.Param(at+name+".bias"))
		}
		norm := func(x engine.Value, name string) engine.Value {
			return g.LayerNorm(x, g.Param(at+name+".weight"), g.Param(at+name+".bias"), 1e-5)
		}
		h := norm(g.Layer(x), "ln_1")
		a := g.Attention(linear(h, "q"), linear(h, "k"), linear(h, "v"), s.width/s.heads, engine.Causal)
		x = g.Add(x, linear(a, "o"))
		x = g.Add(x, linear(g.GELUTanh(linear(norm(x, "ln_2"), "fc")), "proj"))
	}
	x = g.LayerNorm(x, g.Param("ln_f.weight"), g.Param("ln_f.bias"), 1e-5)
	return g.Linear(x, g.Param("wte"))
}
