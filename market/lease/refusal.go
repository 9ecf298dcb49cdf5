package lease

import (
	"errors"
	"fmt"
)

// Refusal is a typed "no" that travels over the wire by its code. Compare with [errors.Is] against the Err values.
type Refusal struct {
	Code   string // stable word on the wire
	Reason string // what it means and what to do, for people
}

// Error is the reason.
func (r *Refusal) Error() string { return r.Reason }

// The rules that a lease can break, one named error each.
var (
	ErrMalformed   = &Refusal{"malformed", "message breaks the lease protocol"}
	ErrWrongPeer   = &Refusal{"wrong-peer", "signer or sender is not the party that the terms name"}
	ErrNoSlot      = &Refusal{"no-slot", "no free slot; try another offer"}
	ErrPaused      = &Refusal{"paused", "provider takes no new leases now; try another offer"}
	ErrPrice       = &Refusal{"price", "bid is below the provider's price; raise it or try another offer"}
	ErrTooLong     = &Refusal{"too-long", "lease is longer than the provider allows; ask for less time"}
	ErrStartBy     = &Refusal{"start-by", "start-by time has passed; ask again"}
	ErrSameRun     = &Refusal{"same-run", "provider works for this run already; try another offer"}
	ErrHoldLimit   = &Refusal{"hold-limit", "too many holds by one peer; accept or release some first"}
	ErrNotHeld     = &Refusal{"not-held", "slot is not held for these terms, or the hold has expired; ask for a new quote"}
	ErrUnknown     = &Refusal{"unknown-lease", "no such lease here"}
	ErrTransition  = &Refusal{"transition", "lease is in a phase that does not allow this"}
	ErrInternal    = &Refusal{"internal", "other side failed to record the change; try again"}
	ErrUnavailable = &Refusal{"unavailable", "other side did not answer in time"}
)

// refusals are the codes that may arrive from a peer.
var refusals = []*Refusal{
	ErrMalformed, ErrWrongPeer, ErrNoSlot, ErrPaused, ErrPrice, ErrTooLong, ErrStartBy, ErrSameRun, ErrHoldLimit, ErrNotHeld, ErrUnknown,
	ErrTransition, ErrInternal, ErrUnavailable,
}

// CodeOf is the wire code of an error: that of the refusal it wraps, else "internal".
func CodeOf(err error) string {
	var r *Refusal
	if errors.As(err, &r) {
		return r.Code
	}
	return ErrInternal.Code
}

// FromCode is the error for a code that a peer sent, nil for the empty code. Detail is the peer's own words.
func FromCode(code, detail string) error {
	if code == "" {
		return nil
	}
	for _, r := range refusals {
		if r.Code == code {
			return fmt.Errorf("%w (peer says %q)", r, detail)
		}
	}
	return fmt.Errorf("refused with unknown code %q (peer says %q)", code, detail)
}
