package engine

// Value names one tensor inside a [Graph] under construction. The zero Value is no tensor.
type Value int

// Mask says which keys a query of [Graph.Attention] sees, and which lines [Graph.Pool] averages.
type Mask int

// The masks.
const (
	Full   Mask = iota // every line of the same row
	Causal             // the line itself and those before it
	Padded             // the first Lengths[row] lines of the row; all when the batch has no lengths
)

// Image is the shape of one picture and the side of its square patches, both in pixels.
type Image struct{ Channels, Height, Width, Patch int }

// Patches returns the number of patches of a picture and the elements of one.
func (i Image) Patches() (count, elements int) {
	return (i.Height / i.Patch) * (i.Width / i.Patch), i.Channels * i.Patch * i.Patch
}

// Graph is what a model family is written over: a small set of fused operations. A value is a matrix [Rows·n, width]: n
// lines for each row of the batch, where n is the batch's Context for tokens and features, the number of patches for
// images, the number of picks after Gather, and 1 after Pool. Losses are scalars.
//
// An implementation never fails inside a method. It remembers the first error and returns the zero Value from then on;
// whoever builds the graph asks for that error at the end. [NewPlan] is the implementation that checks shapes, so
// executors see only programs that passed it.
type Graph interface {
	// Param returns the parameter with that name, in the shape of its [Param].
	Param(name string) Value

	// Embedding returns line Inputs[i] of table [vocab, width] for each token i.
	Embedding(table Value) Value
	// Positions returns x with line p of table [≥ n, width] added to line p of each row: a learned position embedding.
	Positions(x, table Value) Value
	// Types returns x with line Types[i] of table [types, width] added to line i; line 0 everywhere when the batch has no
	// types. It tells apart the parts of a text, as BERT's token types do.
	Types(x, table Value) Value
	// Features returns the batch's continuous inputs [Rows·Context, width]. No gradient flows into them.
	Features(width int) Value
	// Patches returns the batch's images, Features as [Rows, Channels, Height, Width], unfolded into one line for each
	// patch, left to right and top to bottom: [Rows·count, Channels·Patch²], the elements in the order of a
	// convolution's weight. A Linear with such a weight makes it a patch embedding. No gradient flows into them.
	Patches(image Image) Value

	// Linear returns x·Wᵀ for weight [out, in]. A weight of more dimensions counts as [out, product of the others].
	Linear(x, weight Value) Value
	// Bias returns x with bias [width] added to each line.
	Bias(x, bias Value) Value
	// RMSNorm returns weight ⊙ x / √(mean(x²) + eps), the mean over the width (Zhang and Sennrich, 2019).
	RMSNorm(x, weight Value, eps float64) Value
	// LayerNorm returns weight ⊙ (x − mean(x)) / √(var(x) + eps) + bias, the variance that of the population (Ba,
	// Kiros and Hinton, 2016).
	LayerNorm(x, weight, bias Value, eps float64) Value
	// Rotary turns each head's pairs (i, i + head/2) by the angle position·theta^(−2i/head): the rotate-half
	// convention of Hugging Face's Llama. head is the width of one head, an even number that divides the width of x.
	Rotary(x Value, head int, theta float64) Value
	// Attention is softmax(q·kᵀ/√head)·v for each head of that width and each row, over the keys that mask leaves.
	// Keys and values may have fewer heads than queries; query head h then reads key head h / (queryHeads/keyHeads).
	Attention(q, k, v Value, head int, mask Mask) Value
	// SwiGLU returns silu(gate) ⊙ up, with silu(x) = x / (1 + e^−x).
	SwiGLU(gate, up Value) Value
	// GELU returns x·Φ(x) = x·(1 + erf(x/√2))/2 (Hendrycks and Gimpel, 2016).
	GELU(x Value) Value
	// GELUTanh returns the approximation that GPT-2 uses: x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))/2.
	GELUTanh(x Value) Value
	// Add returns a + b.
	Add(a, b Value) Value
	// Scale returns factor·x.
	Scale(x Value, factor float64) Value

	// Pool returns the mean over each row's lines: [Rows, width]. Mask is Full or Padded.
	Pool(x Value, mask Mask) Value
	// Gather returns the lines that Picks names within each row: [Rows·picks, width].
	Gather(x Value) Value
	// Scatter undoes Gather: as many lines as like has, with line i of x at the i-th pick of its row, and fill [width]
	// everywhere else.
	Scatter(x, fill, like Value) Value
	// Layer returns x and marks it as the input of the next layer. Executors that recompute keep these values for the
	// backward pass and compute what lies between them again.
	Layer(x Value) Value

	// CrossEntropy returns the sum, over the lines whose target is not [Ignore], of −log softmax(logits)[target], in
	// nats.
	CrossEntropy(logits Value) Value
	// SmoothCrossEntropy is CrossEntropy against the target's class with weight 1 − smoothing and all classes, that one
	// included, with smoothing/width each (Szegedy et al., 2016). Smoothing is 0 to below 1.
	SmoothCrossEntropy(logits Value, smoothing float64) Value
	// SquaredError returns the sum, over the lines whose target is not [Ignore], of the mean over the width of
	// (x − want)². No gradient flows into want.
	SquaredError(x, want Value) Value
	// Contrastive returns the symmetric loss of pairs (Radford et al., 2021): with a and b [Rows, width] scaled to
	// length one and s = e^scale·a·bᵀ, the sum over rows i of (−log softmax over row i of s, at i, −log softmax over
	// column i, at i)/2. scale is a parameter of one element. Every row counts, so no target may be [Ignore].
	Contrastive(a, b, scale Value) Value
}

// LowRank returns x·Wᵀ + scale·(x·downᵀ)·upᵀ for weight [out, in], down [rank, in] and up [out, rank]: a linear layer
// with a low-rank change (Hu et al., 2021).
func LowRank(g Graph, x, weight, down, up Value, scale float64) Value {
	return g.Add(g.Linear(x, weight), g.Scale(g.Linear(g.Linear(x, down), up), scale))
}

// Program is one model: its parameters and how its outputs follow from them. It holds no state and may be shared.
type Program struct {
	Name    string  // for people: the preset or the shape
	Params  []Param // names, shapes and initial values; offsets are given by [Layout]
	Vocab   int     // token IDs are 0 … Vocab−1
	Classes int     // targets are 0 … Classes−1; 0 means Vocab
	Context int     // longest sequence in tokens

	// Picks is how many lines Gather keeps of each row of that many tokens; nil for a program without Gather.
	Picks func(context int) int

	Logits func(g Graph) Value // the output that people see: [lines, Vocab] of a language model
	Loss   func(g Graph) Value // a scalar: the summed loss of the batch
}

// Shape returns the size of the batches that the program is trained on.
func (p Program) Shape(rows, context int) Shape {
	s := Shape{Rows: rows, Context: context}
	if p.Picks != nil {
		s.Picks = p.Picks(context)
	}
	return s
}

// classes returns the number of different targets.
func (p Program) classes() int {
	if p.Classes > 0 {
		return p.Classes
	}
	return p.Vocab
}

// FLOPsPerToken returns the exact number of floating-point operations that training spends on the matrix products of
// one token in sequences of the given length: a multiply-add counts as two, backward as twice forward (once for frozen
// weights, which need no gradient of their own), attention as if
// it were not causal (the usual 6·N + 12·layers·width·context). Recomputation and everything element-wise is excluded.
func (p Program) FLOPsPerToken(context int) (int64, error) {
	plan, err := NewPlan(p, p.Shape(1, context))
	if err != nil {
		return 0, err
	}
	return (3*plan.ForwardFLOPs - plan.FrozenFLOPs) / int64(context), nil
}
