package model

import (
	"fmt"
	"math"

	"github.com/capacloud/capanode/trainer/engine"
)

// Program validates the Spec and returns the model as a program, whose loss is the plain cross-entropy: the one that is
// reported and compared.
func (s Spec) Program() (engine.Program, error) { return s.Training(Objective{}) }

// Objective is how the loss that a model is trained on differs from the plain cross-entropy. The zero value does not.
type Objective struct {
	Smoothing float64 // share of each target that is spread over all tokens (Szegedy et al., 2016)
}

// MaxSmoothing is the largest share of a target that an [Objective] may spread.
const MaxSmoothing = 0.5

// Training returns the model as a program with the loss that it is trained on.
func (s Spec) Training(o Objective) (engine.Program, error) {
	if err := s.Validate(); err != nil {
		return engine.Program{}, err
	}
	if !(o.Smoothing >= 0 && o.Smoothing <= MaxSmoothing) {
		return engine.Program{}, &FieldError{"label_smoothing", fmt.Sprint(o.Smoothing), fmt.Sprintf("0 to %v", MaxSmoothing)}
	}
	p := engine.Program{
		Name: fmt.Sprintf("%s %d×%d, %d/%d heads, feed-forward %d, vocabulary %d, context %d",
			s.Family, s.Layers, s.Width, s.Heads, s.KVHeads, s.FeedForward, s.Vocab, s.Context),
		Vocab: s.Vocab, Context: s.Context,
	}
	var loss func(g engine.Graph) engine.Value
	switch s.Family {
	case FamilyLlama:
		p.Params, p.Logits = s.llamaParams(), s.llamaLogits
		loss = p.Logits
	case FamilyGPT2:
		p.Params, p.Logits = s.gpt2Params(), s.gpt2Logits
		loss = p.Logits
	case FamilyBERT:
		p.Params, p.Logits, p.Picks = s.bertParams(), s.bertLogits, Masked
		loss = s.bertMasked
	}
	p.Loss = func(g engine.Graph) engine.Value {
		if o.Smoothing == 0 {
			return g.CrossEntropy(loss(g))
		}
		return g.SmoothCrossEntropy(loss(g), o.Smoothing)
	}
	return p, nil
}

// maskedShare is the share of tokens that a masked language model predicts (Devlin et al., 2018).
const maskedShare = 0.15

// Masked returns how many tokens of a sequence are predicted by a masked language model: 15 %, at least one.
func Masked(context int) int { return max(1, int(math.Round(maskedShare*float64(context)))) }

// params collects the parameters of a family.
type params []engine.Param

// matrix adds a weight [out, in].
func (p *params) matrix(name string, out, in int, std float64) {
	*p = append(*p, engine.Param{Name: name, Shape: []int{out, in}, Init: engine.Init{Std: std}, Decay: true})
}

// linear adds a weight [out, in] and its bias.
func (p *params) linear(name string, out, in int, std float64) {
	p.matrix(name+".weight", out, in, std)
	p.vector(name+".bias", out, 0)
}

// norm adds the weight and the bias of a layer norm.
func (p *params) norm(name string, width int) {
	p.vector(name+".weight", width, 1)
	p.vector(name+".bias", width, 0)
}

// vector adds a parameter of one dimension, which does not decay.
func (p *params) vector(name string, width int, fill float32) {
	*p = append(*p, engine.Param{Name: name, Shape: []int{width}, Init: engine.Init{Fill: fill}})
}

// block writes the layers of a family over the parameters that begin with a prefix.
type block struct {
	engine.Graph
	prefix string
	eps    float64
}

// linear returns x·Wᵀ + bias.
func (b block) linear(x engine.Value, name string) engine.Value {
	return b.Bias(b.Linear(x, b.Param(b.prefix+name+".weight")), b.Param(b.prefix+name+".bias"))
}

// norm returns the layer norm of x.
func (b block) norm(x engine.Value, name string) engine.Value {
	return b.LayerNorm(x, b.Param(b.prefix+name+".weight"), b.Param(b.prefix+name+".bias"), b.eps)
}
