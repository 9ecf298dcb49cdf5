package engine

// Value names one tensor inside a [Graph] under construction. The zero Value is no tensor.
type Value int

// Graph is what a model family is written over: a small set of fused operations. All values are matrices
// [tokens, width], where tokens = Rows × Context of the batch and token t of row r is line r·Context + t; only the
// result of CrossEntropy is a scalar.
//
// An implementation never fails inside a method. It remembers the first error and returns the zero Value from then on;
// whoever builds the graph asks for that error at the end. [NewPlan] is the implementation that checks shapes, so
// executors see only programs that passed it.
type Graph interface {
	// Param returns the parameter with that name, in the shape of its [Param].
	Param(name string) Value
	// Embedding returns line Inputs[i] of table [vocab, width] for each token i.
	Embedding(table Value) Value
	// Linear returns x·Wᵀ for weight [out, in]: [tokens, in] → [tokens, out].
	Linear(x, weight Value) Value
	// RMSNorm returns weight ⊙ x / √(mean(x²) + eps), the mean over the width (Zhang and Sennrich, 2019).
	RMSNorm(x, weight Value, eps float64) Value
	// Rotary turns each head's pairs (i, i + head/2) by the angle position·theta^(−2i/head): the rotate-half
	// convention of Hugging Face's Llama. head is the width of one head, an even number that divides the width of x.
	Rotary(x Value, head int, theta float64) Value
	// Attention is causal softmax(q·kᵀ/√head)·v for each head of that width. Keys and values may have fewer heads
	// than queries; query head h then reads key head h / (queryHeads/keyHeads).
	Attention(q, k, v Value, head int) Value
	// SwiGLU returns silu(gate) ⊙ up, with silu(x) = x / (1 + e^−x).
	SwiGLU(gate, up Value) Value
	// Add returns a + b.
	Add(a, b Value) Value
	// CrossEntropy returns the sum, over the tokens whose target is not [Ignore], of −log softmax(logits)[target], in
	// nats.
	CrossEntropy(logits Value) Value
}

// Program is one model: its parameters and how its outputs follow from them. It holds no state and may be shared.
type Program struct {
	Name    string  // for people: the preset or the shape
	Params  []Param // names, shapes and initial values; offsets are given by [Layout]
	Vocab   int     // token IDs are 0 … Vocab−1
	Context int     // longest sequence in tokens

	Logits func(g Graph) Value // [tokens, Vocab]
	Loss   func(g Graph) Value // a scalar: the summed loss of the batch
}

// FLOPsPerToken returns the exact number of floating-point operations that training spends on the matrix products of
// one token in sequences of the given length: a multiply-add counts as two, backward as twice forward, attention as if
// it were not causal (the usual 6·N + 12·layers·width·context). Recomputation and everything element-wise is excluded.
func (p Program) FLOPsPerToken(context int) (int64, error) {
	plan, err := NewPlan(p, 1, context)
	if err != nil {
		return 0, err
	}
	return 3 * (plan.ForwardFLOPs / int64(context)), nil // every count is a multiple of the tokens
}
