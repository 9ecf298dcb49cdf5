package gomlx

import (
	"fmt"

	"github.com/capacloud/capanode/trainer/engine"
)

// missing refuses an operation that this executor has no lowering for; guard makes it an error.
func (t *tape) missing(operation string) engine.Value {
	panic(fmt.Errorf("%s is not available on this executor: %w", operation, engine.ErrShape))
}

// Positions implements [engine.Graph].
func (t *tape) Positions(_, _ engine.Value) engine.Value { return t.missing("positions") }

// Features implements [engine.Graph].
func (t *tape) Features(int) engine.Value { return t.missing("features") }

// Patches implements [engine.Graph].
func (t *tape) Patches(engine.Image) engine.Value { return t.missing("patches") }

// Bias implements [engine.Graph].
func (t *tape) Bias(_, _ engine.Value) engine.Value { return t.missing("bias") }

// LayerNorm implements [engine.Graph].
func (t *tape) LayerNorm(_, _, _ engine.Value, _ float64) engine.Value {
	return t.missing("layer norm")
}

// GELU implements [engine.Graph].
func (t *tape) GELU(engine.Value) engine.Value { return t.missing("gelu") }

// GELUTanh implements [engine.Graph].
func (t *tape) GELUTanh(engine.Value) engine.Value { return t.missing("gelu") }

// Scale implements [engine.Graph].
func (t *tape) Scale(engine.Value, float64) engine.Value { return t.missing("scale") }

// Pool implements [engine.Graph].
func (t *tape) Pool(engine.Value, engine.Mask) engine.Value { return t.missing("pool") }

// Gather implements [engine.Graph].
func (t *tape) Gather(engine.Value) engine.Value { return t.missing("gather") }

// Scatter implements [engine.Graph].
func (t *tape) Scatter(_, _, _ engine.Value) engine.Value { return t.missing("scatter") }

// Layer implements [engine.Graph].
func (t *tape) Layer(x engine.Value) engine.Value { return x }

// SquaredError implements [engine.Graph].
func (t *tape) SquaredError(_, _ engine.Value) engine.Value { return t.missing("squared error") }

// Contrastive implements [engine.Graph].
func (t *tape) Contrastive(_, _, _ engine.Value) engine.Value { return t.missing("contrastive loss") }
