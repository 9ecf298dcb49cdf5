package engine

import (
	"errors"
	"fmt"
)

// ErrBatch reports a batch whose shape or token IDs the model cannot take.
var ErrBatch = errors.New("batch does not fit the model")

// Check returns an error wrapping [ErrBatch] unless the batch has matching sizes, a context within the model's, inputs
// within the vocabulary and, when withTargets is set, targets within the vocabulary or [Ignore].
func (b Batch) Check(vocab, context int, withTargets bool) error {
	if b.Rows < 1 || b.Context < 1 || b.Context > context {
		return fmt.Errorf("%d rows × %d tokens, the model takes 1 to %d tokens: %w", b.Rows, b.Context, context, ErrBatch)
	}
	tokens, err := product(b.Rows, b.Context)
	if err != nil {
		return fmt.Errorf("%d rows × %d tokens: %w", b.Rows, b.Context, ErrBatch)
	}
	if int64(len(b.Inputs)) != tokens {
		return fmt.Errorf("%d inputs for %d rows × %d tokens: %w", len(b.Inputs), b.Rows, b.Context, ErrBatch)
	}
	for i, id := range b.Inputs {
		if id < 0 || int(id) >= vocab {
			return fmt.Errorf("input %d is token %d, the vocabulary is 0 to %d: %w", i, id, vocab-1, ErrBatch)
		}
	}
	if !withTargets {
		return nil
	}
	if len(b.Targets) != len(b.Inputs) {
		return fmt.Errorf("%d targets for %d inputs: %w", len(b.Targets), len(b.Inputs), ErrBatch)
	}
	for i, id := range b.Targets {
		if id != Ignore && (id < 0 || int(id) >= vocab) {
			return fmt.Errorf("target %d is token %d, the vocabulary is 0 to %d: %w", i, id, vocab-1, ErrBatch)
		}
	}
	return nil
}

// TargetCount returns the number of targets that enter the loss.
func (b Batch) TargetCount() int {
	n := 0
	for _, id := range b.Targets {
		if id != Ignore {
			n++
		}
	}
	return n
}
