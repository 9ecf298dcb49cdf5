package lab

import (
	"fmt"

	"github.com/capacloud/capanode/trainer/engine"
)

// Text is a corpus of bytes: a token is a byte.
type Text struct {
	Train, Validation []byte
}

// Split keeps the last twentieth of a text, at whole lines of no matter, for validation.
func Split(text []byte) Text {
	cut := len(text) - len(text)/20
	return Text{Train: text[:cut], Validation: text[cut:]}
}

// windows returns the number of training windows of a context.
func (t Text) windows(context int) uint64 { return uint64((len(t.Train) - 1) / context) }

func (t Text) check(context int) error {
	if len(t.Train) <= 64*context {
		return fmt.Errorf("lab: %d bytes of text, want more than %d: %w", len(t.Train), 64*context, ErrSetup)
	}
	return nil
}

// window appends a training window to a batch.
func (t Text) window(b *engine.Batch, i uint64) { appendWindow(b, t.Train[int(i)*b.Context:]) }

func appendWindow(b *engine.Batch, text []byte) {
	for i := range b.Context {
		b.Inputs = append(b.Inputs, int32(text[i]))
		b.Targets = append(b.Targets, int32(text[i+1]))
	}
}

// heldOut returns so many validation windows, evenly spaced, in batches of 32.
func (t Text) heldOut(windows, context int) (batches []engine.Batch, err error) {
	spare := len(t.Validation) - 1 - context
	if spare < 0 || windows < 1 {
		return nil, fmt.Errorf("lab: %d held-out bytes, want more than %d: %w", len(t.Validation), context, ErrSetup)
	}
	for w := range windows {
		if w%32 == 0 {
			batches = append(batches, engine.Batch{Context: context})
		}
		b := &batches[len(batches)-1]
		b.Rows++
		appendWindow(b, t.Validation[spare*w/windows:])
	}
	return batches, nil
}
