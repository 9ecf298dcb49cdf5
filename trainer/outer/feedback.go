package outer

import (
	"errors"
	"fmt"

	"github.com/capacloud/capanode/trainer/codec"
)

// ErrFeedback reports a commit without an update that is pending.
var ErrFeedback = errors.New("no update is pending")

// Feedback remembers what a lossy codec has left of a peer's updates, and adds it to the next one (error feedback,
// arXiv 1901.09847). It is transactional: an update leaves the residual only when it entered the shared state.
//
//	pending ← update + decay · residual     Pending: what is encoded and offered to the mates
//	residual ← pending − decoded            Commit: the mates applied what they decoded
//	residual stays                          Abort: the update is dropped whole
//
// With decay 1 nothing is lost: the sum of all that was committed, and the residual, is the sum of the updates offered, but
// for rounding. A decay below 1 forgets old residuals, which may point where the weights have long left. The zero value is of
// no use; a Feedback is not safe for concurrent use.
type Feedback struct {
	decay             float32
	residual, pending []float32
	from, to          int // the part of the vector that is pending; empty when nothing is
}

// NewFeedback returns an empty residual of n elements. The decay is 0 (no feedback) to 1 (nothing forgotten).
func NewFeedback(n int, decay float32) *Feedback {
	return &Feedback{decay: decay, residual: make([]float32, n), pending: make([]float32, n)}
}

// Pending returns the update plus the decayed residual, to be encoded. It takes the place of an update that was pending; the
// residual stays as it is until [Feedback.Commit]. The slice is valid until the next call of a method.
func (f *Feedback) Pending(update []float32) ([]float32, error) {
	if len(update) != len(f.residual) {
		return nil, fmt.Errorf("outer: update of %d elements, residual of %d: %w", len(update), len(f.residual), ErrShape)
	}
	return f.PendingPart(0, update)
}

// PendingPart is Pending for an update of the vector's elements from one on, where weights travel in fragments.
func (f *Feedback) PendingPart(from int, update []float32) ([]float32, error) {
	n := len(update)
	if n == 0 || from < 0 || from+n > len(f.residual) {
		return nil, fmt.Errorf("outer: update of %d elements at %d, residual of %d: %w", n, from, len(f.residual), ErrShape)
	}
	f.from, f.to = from, from+n
	residual, pending := f.residual[f.from:f.to], f.pending[f.from:f.to]
	forBlocks(n, func(i int) {
		lo, hi := i*codec.Block, min((i+1)*codec.Block, n)
		u, r, p := update[lo:hi], residual[lo:hi], pending[lo:hi]
		for j := range p {
			p[j] = u[j] + float32(f.decay*r[j])
		}
	})
	return pending, nil
}

// Commit takes what the mates decoded off the pending update; the rest is the new residual.
func (f *Feedback) Commit(decoded codec.Source) error {
	n := f.to - f.from
	if n == 0 {
		return fmt.Errorf("outer: commit: %w", ErrFeedback)
	}
	if decoded.Len() != n {
		return fmt.Errorf("outer: decoded update of %d elements, %d are pending: %w", decoded.Len(), n, ErrShape)
	}
	residual, pending := f.residual[f.from:f.to], f.pending[f.from:f.to]
	f.from, f.to = 0, 0
	forBlocks(n, func(i int) {
		part := residual[i*codec.Block : min((i+1)*codec.Block, n)]
		copy(part, pending[i*codec.Block:])
		decoded.Add(part, i, -1)
	})
	return nil
}

// SetDecay changes the decay from the next update on.
func (f *Feedback) SetDecay(decay float32) { f.decay = decay }

// Abort drops the pending update, if there is one: the residual is what it was before [Feedback.Pending].
func (f *Feedback) Abort() { f.from, f.to = 0, 0 }

// Residual returns the residual itself, to be stored and restored; it is valid until the next [Feedback.Commit] or
// [Feedback.Reset], and not to be changed while an update is pending.
func (f *Feedback) Residual() []float32 { return f.residual }

// Reset forgets everything: what the residual corrected is not in a state that was taken over from a mate.
func (f *Feedback) Reset() {
	clear(f.residual)
	f.Abort()
}
