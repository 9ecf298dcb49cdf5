package engine

import (
	"errors"
	"fmt"
)

// ErrBatch reports a batch whose shape, token IDs or positions the model cannot take.
var ErrBatch = errors.New("batch does not fit the model")

// Shape is the size of a batch, on which the cost of a step depends.
type Shape struct {
	Rows    int // sequences, images or pairs
	Context int // tokens or feature lines a row
	Picks   int // lines a row that Gather keeps
}

// Shape returns the batch's size.
func (b Batch) Shape() Shape { return Shape{b.Rows, b.Context, len(b.Picks) / max(1, b.Rows)} }

// Needs is what the operations of a program read of a batch.
type Needs struct {
	Inputs   bool // token IDs
	Types    int  // lines of the table of token types, 0 when the program has none
	Features int  // continuous inputs a row
	Picks    int  // lines that picks are chosen from, 0 when the program has no picks
	Targets  int  // targets a row
	All      bool // no target may be Ignore
	Lengths  bool // lengths are read where the batch has them
}

// Check returns an error wrapping [ErrBatch] unless the batch has what the program reads at its shape: sizes that fit
// together, inputs within the vocabulary and, when withTargets is set, targets within the classes or [Ignore]. Without
// targets the needs are those of the output alone, and what only the loss reads is not looked at.
func (b Batch) Check(p Program, needs Needs, withTargets bool) error {
	if b.Rows < 1 || b.Context < 1 || b.Context > p.Context {
		return fmt.Errorf("%d rows × %d tokens, the model takes 1 to %d tokens: %w", b.Rows, b.Context, p.Context, ErrBatch)
	}
	size := func(name string, have, perRow int) error {
		want, err := product(b.Rows, max(1, perRow))
		if err != nil || perRow > 0 && int64(have) != want || perRow == 0 && have != 0 {
			return fmt.Errorf("%d %s for %d rows of %d: %w", have, name, b.Rows, perRow, ErrBatch)
		}
		return nil
	}
	if needs.Inputs {
		if err := errors.Join(size("inputs", len(b.Inputs), b.Context), within("input", b.Inputs, p.Vocab, false)); err != nil {
			return err
		}
	}
	if err := size("features", len(b.Features), needs.Features); err != nil && (withTargets || needs.Features > 0) {
		return err
	}
	if err := b.checkTypes(needs.Types); err != nil && (withTargets || needs.Types > 0) {
		return err
	}
	if b.Lengths != nil && len(b.Lengths) != b.Rows {
		return fmt.Errorf("%d lengths for %d rows: %w", len(b.Lengths), b.Rows, ErrBatch)
	}
	for r, n := range b.Lengths {
		if n < 1 || int(n) > b.Context {
			return fmt.Errorf("row %d has length %d, allowed are 1 to %d: %w", r, n, b.Context, ErrBatch)
		}
	}
	if err := b.checkPicks(needs.Picks); err != nil && (withTargets || needs.Picks > 0) {
		return err
	}
	if !withTargets {
		return nil
	}
	if err := size("targets", len(b.Targets), needs.Targets); err != nil {
		return err
	}
	if needs.All && b.TargetCount() != len(b.Targets) {
		return fmt.Errorf("%d of %d targets are left out, the loss takes all: %w", len(b.Targets)-b.TargetCount(), len(b.Targets), ErrBatch)
	}
	return within("target", b.Targets, p.classes(), true)
}

// within checks token IDs against a vocabulary.
func within(name string, ids []int32, vocab int, ignore bool) error {
	for i, id := range ids {
		if (id < 0 || int(id) >= vocab) && !(ignore && id == Ignore) {
			return fmt.Errorf("%s %d is %d, allowed are 0 to %d: %w", name, i, id, vocab-1, ErrBatch)
		}
	}
	return nil
}

// checkTypes wants a type below the given number for each token, or none at all.
func (b Batch) checkTypes(types int) error {
	if b.Types == nil {
		return nil
	}
	if types == 0 || len(b.Types) != b.Rows*b.Context {
		return fmt.Errorf("%d token types for %d rows of %d tokens and a model with %d types: %w", len(b.Types), b.Rows, b.Context, types, ErrBatch)
	}
	return within("token type", b.Types, types, false)
}

// checkPicks wants each row's picks in ascending order: then no line is picked twice.
func (b Batch) checkPicks(lines int) error {
	if lines == 0 {
		if len(b.Picks) != 0 {
			return fmt.Errorf("%d picks for a model without Gather: %w", len(b.Picks), ErrBatch)
		}
		return nil
	}
	if len(b.Picks) == 0 || len(b.Picks)%b.Rows != 0 {
		return fmt.Errorf("%d picks for %d rows: %w", len(b.Picks), b.Rows, ErrBatch)
	}
	each := len(b.Picks) / b.Rows
	for i, pick := range b.Picks {
		if pick < 0 || int(pick) >= lines || i%each > 0 && pick <= b.Picks[i-1] {
			return fmt.Errorf("pick %d is line %d of %d; picks of a row ascend: %w", i, pick, lines, ErrBatch)
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
