package lease

import (
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// MaxHolds is how many slots one peer may hold at a time.
const MaxHolds = 3

// Table is the provider's slots. It has no lock: its owner is its only writer. A slot is free, held for a moment, or bound
// to one lease; its epoch counts the grants and never falls.
type Table struct {
	slots []slot
}

type slot struct {
	epoch uint64
	lease ID // zero when not bound
	hold  hold
}

// hold is a promise to keep a slot; it dies at until.
type hold struct {
	peer  peer.ID
	nonce uint64
	terms ID
	until time.Time
}

// NewTable returns a table of n free slots.
func NewTable(n int) *Table { return &Table{slots: make([]slot, n)} }

// Restore sets a slot as the log says: its epoch, and the lease bound to it or the zero ID. Slots beyond the table are
// added, so that a lease survives a provider that comes back with fewer slots; only the first n are ever held anew.
func (t *Table) Restore(i uint32, epoch uint64, bound ID) {
	for int(i) >= len(t.slots) {
		t.slots = append(t.slots, slot{})
	}
	t.slots[i].epoch, t.slots[i].lease = epoch, bound
}

// Hold keeps a free slot among the first n for the requester of the terms, and returns the terms with that slot. The same
// request again returns the same slot and restarts its clock.
func (t *Table) Hold(want Terms, n int, now time.Time) (Terms, error) {
	free, holds := -1, 0
	for i := range t.slots {
		s := &t.slots[i]
		held := s.lease.IsZero() && now.Before(s.hold.until)
		switch {
		case held && s.hold.peer == want.Requester && s.hold.nonce == want.Nonce:
			return t.keep(i, want, now)
		case held && s.hold.peer == want.Requester:
			holds++
		case !held && s.lease.IsZero() && free < 0 && i < n:
			free = i
		}
	}
	if holds >= MaxHolds {
		return Terms{}, fmt.Errorf("lease: %s holds %d slots: %w", want.Requester, holds, ErrHoldLimit)
	}
	if free < 0 {
		return Terms{}, fmt.Errorf("lease: %d slots: %w", n, ErrNoSlot)
	}
	return t.keep(free, want, now)
}

func (t *Table) keep(i int, want Terms, now time.Time) (Terms, error) {
	want.Slot = uint32(i)
	id, err := want.ID()
	if err != nil {
		return Terms{}, err
	}
	t.slots[i].hold = hold{want.Requester, want.Nonce, id, now.Add(HoldTime)}
	return want, nil
}

// Check tells whether the slot of the terms is held for exactly these terms, and returns the epoch of a grant now.
func (t *Table) Check(terms Terms, id ID, now time.Time) (epoch uint64, err error) {
	if int(terms.Slot) >= len(t.slots) {
		return 0, fmt.Errorf("lease: slot %d of %d: %w", terms.Slot, len(t.slots), ErrNotHeld)
	}
	s := &t.slots[terms.Slot]
	if !s.lease.IsZero() {
		return 0, fmt.Errorf("lease: slot %d is leased: %w", terms.Slot, ErrNoSlot)
	}
	if s.hold.terms != id || s.hold.peer != terms.Requester || !now.Before(s.hold.until) {
		return 0, fmt.Errorf("lease: slot %d: %w", terms.Slot, ErrNotHeld)
	}
	return s.epoch + 1, nil
}

// Bind gives the slot to the lease if its epoch is still the one before; it is the compare-and-set of a grant.
func (t *Table) Bind(i uint32, id ID, epoch uint64) error {
	if int(i) >= len(t.slots) || !t.slots[i].lease.IsZero() || t.slots[i].epoch+1 != epoch {
		return fmt.Errorf("lease: bind slot %d at epoch %d: %w", i, epoch, ErrNoSlot)
	}
	t.slots[i] = slot{epoch: epoch, lease: id}
	return nil
}

// Release frees the slot if it is bound to the lease.
func (t *Table) Release(i uint32, id ID) {
	if int(i) < len(t.slots) && t.slots[i].lease == id {
		t.slots[i].lease = ID{}
	}
}

// Unhold drops the hold of a request.
func (t *Table) Unhold(by peer.ID, nonce uint64) {
	for i := range t.slots {
		if h := &t.slots[i].hold; h.peer == by && h.nonce == nonce {
			*h = hold{}
		}
	}
}

// Free is the number of slots among the first n that are neither held nor bound.
func (t *Table) Free(n int, now time.Time) int {
	free := 0
	for i := range min(n, len(t.slots)) {
		if t.slots[i].lease.IsZero() && !now.Before(t.slots[i].hold.until) {
			free++
		}
	}
	return free
}

// Unbound is the number of slots among the first n that are not bound to a lease; some may be held.
func (t *Table) Unbound(n int) int {
	free := 0
	for _, s := range t.slots[:min(n, len(t.slots))] {
		if s.lease.IsZero() {
			free++
		}
	}
	return free
}
