package engine

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
)

// Plan is what a program costs at one batch shape, known before anything is allocated.
type Plan struct {
	Needs           Needs
	Parameters      int64    // elements of all parameters
	Trained         int64    // of these, elements that training changes
	ForwardFLOPs    int64    // of the matrix products of one forward pass over the batch
	FrozenFLOPs     int64    // of these, of products with frozen weights, whose gradient nobody computes
	ActivationBytes int64    // float32 results of all operations, kept for the backward pass
	Tensors         []Tensor // parameters and results, the largest first
}

// Tensor is one entry of a [Plan].
type Tensor struct {
	Name  string
	Bytes int64
}

// Sort orders the plan's tensors by size, the largest first, and returns the plan.
func (p Plan) Sort() Plan {
	slices.SortStableFunc(p.Tensors, func(a, b Tensor) int { return cmp.Compare(b.Bytes, a.Bytes) })
	return p
}

// CheckMemory returns an error wrapping [ErrMemory], naming the largest tensors, when bytes exceed a limit above 0.
func (p Plan) CheckMemory(bytes, limit int64) error {
	if limit <= 0 || bytes <= limit {
		return nil
	}
	var largest []string
	for _, t := range p.Tensors[:min(3, len(p.Tensors))] {
		largest = append(largest, fmt.Sprintf("%s %.1f MB", t.Name, float64(t.Bytes)/1e6))
	}
	return fmt.Errorf("needs %.1f MB, the limit is %.1f MB; largest are %s: %w",
		float64(bytes)/1e6, float64(limit)/1e6, strings.Join(largest, ", "), ErrMemory)
}

// NewPlan walks the loss of a program at the given batch shape. It checks every shape on the way; errors wrap
// [ErrShape].
func NewPlan(p Program, batch Shape) (Plan, error) {
	return newPlan(p, batch, func(t *tracer) {
		if s, ok := t.shape(p.Loss(t)); t.err == nil && !(ok && s.scalar) {
			t.fail("the loss is no scalar of the graph")
		}
	})
}

// NewOutputPlan is [NewPlan] for the logits alone, which may read less of a batch than the loss.
func NewOutputPlan(p Program, batch Shape) (Plan, error) {
	return newPlan(p, batch, func(t *tracer) { t.matrix("the output", p.Logits(t)) })
}

func newPlan(p Program, batch Shape, walk func(*tracer)) (Plan, error) {
	params, total, err := Layout(p.Params)
	if err != nil {
		return Plan{}, err
	}
	if p.Vocab < 1 || p.Vocab > math.MaxInt32 || p.classes() > math.MaxInt32 || batch.Context < 1 || batch.Context > p.Context {
		return Plan{}, fmt.Errorf("vocabulary %d, %d tokens of context for a model of %d: %w",
			p.Vocab, batch.Context, p.Context, ErrShape)
	}
	tokens, err := product(batch.Rows, batch.Context)
	if err != nil {
		return Plan{}, fmt.Errorf("%d rows × %d tokens: %w", batch.Rows, batch.Context, err)
	}
	t := &tracer{params: map[string]Param{}, batch: batch, tokens: int(tokens), program: p}
	t.plan.Parameters = int64(total)
	for _, q := range params {
		t.params[q.Name] = q
		if !q.Frozen {
			t.plan.Trained += int64(q.Size())
		}
		t.plan.Tensors = append(t.plan.Tensors, Tensor{q.Name, 4 * int64(q.Size())})
	}
	walk(t)
	if t.err != nil {
		return Plan{}, t.err
	}
	return t.plan.Sort(), nil
}
