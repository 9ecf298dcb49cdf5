// Package lease owns the agreement between a requester and a provider about one slot: its terms, its three signatures,
// its life as a pure state machine, the table of slots, and the messages that the two ends exchange. Everything here takes
// values and returns values; it refuses to know a socket, a disk or a clock.
package lease

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/market/credit"
	"github.com/capacloud/capanode/market/offer"
	"github.com/capacloud/capanode/p2p/wire"
)

// Version is the version of the terms record.
const Version = 1

// Limits of the terms.
const (
	// MinTickSeconds and MaxTickSeconds bound the time between two meter ticks.
	MinTickSeconds, MaxTickSeconds = 1, 300
	// MaxBudget is the largest budget cap in micro-credits: a trillion credits.
	MaxBudget = credit.Max
)

// ID names a lease: the SHA-256 of its final terms.
type ID [sha256.Size]byte

// String is the ID in hexadecimal.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// Short is the first 12 hexadecimal digits, for people.
func (id ID) Short() string { return hex.EncodeToString(id[:6]) }

// IsZero tells whether the ID names no lease.
func (id ID) IsZero() bool { return id == ID{} }

// MarshalText implements [encoding.TextMarshaler], so that JSON shows the hexadecimal form.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// MarshalBinary implements [encoding.BinaryMarshaler].
func (id ID) MarshalBinary() ([]byte, error) { return id[:], nil }

// UnmarshalBinary implements [encoding.BinaryUnmarshaler]: exactly 32 bytes.
func (id *ID) UnmarshalBinary(b []byte) error {
	if len(b) != len(id) {
		return fmt.Errorf("lease: id of %d bytes, want %d: %w", len(b), len(id), ErrMalformed)
	}
	copy(id[:], b)
	return nil
}

// Terms is what both sides sign. The tariff has two parts: a reserve price for each hour that the slot is held and a work
// rate for each verified work unit.
type Terms struct {
	Version     uint64       `cbor:"v"`
	Run         wire.Link    `cbor:"run"`       // CID of the job record; opaque here
	Requester   peer.ID      `cbor:"requester"` // who pays
	Provider    peer.ID      `cbor:"provider"`  // who works
	Nonce       uint64       `cbor:"nonce"`     // chosen at random by the requester
	Slot        uint32       `cbor:"slot"`      // chosen by the provider in its quote
	Price       credit.Micro `cbor:"price"`     // micro-credits per hour held
	WorkRate    credit.Micro `cbor:"rate"`      // micro-credits per million work units
	MaxSeconds  uint32       `cbor:"max"`       // longest time held, in seconds from the first signature on
	Budget      credit.Micro `cbor:"budget"`    // the requester signs no receipt above this
	TickSeconds uint32       `cbor:"tick"`      // time between two meter ticks
	StartByMs   int64        `cbor:"start"`     // Unix milliseconds; a lease not active by then is void
}

// Validate checks every field against its limits.
func (t Terms) Validate() error {
	for _, f := range []struct {
		name            string
		value, min, max uint64
	}{
		{"v", t.Version, Version, Version},
		{"slot", uint64(t.Slot), 0, offer.MaxSlots - 1},
		{"price", uint64(t.Price), 0, uint64(offer.MaxPrice)},
		{"rate", uint64(t.WorkRate), 0, uint64(offer.MaxPrice)},
		{"max", uint64(t.MaxSeconds), 1, offer.MaxLeaseSeconds},
		{"budget", uint64(t.Budget), 0, uint64(MaxBudget)},
		{"tick", uint64(t.TickSeconds), MinTickSeconds, MaxTickSeconds},
	} {
		if f.value < f.min || f.value > f.max {
			return fmt.Errorf("lease: %s is %d, allowed %d to %d: %w", f.name, f.value, f.min, f.max, ErrMalformed)
		}
	}
	switch {
	case !t.Run.Defined():
		return fmt.Errorf("lease: terms name no run: %w", ErrMalformed)
	case t.Requester == "" || t.Provider == "":
		return fmt.Errorf("lease: terms lack a party: %w", ErrMalformed)
	case t.Requester == t.Provider:
		return fmt.Errorf("lease: %s cannot lease from itself: %w", t.Provider, ErrMalformed)
	case t.StartByMs < 0 || t.StartByMs > 1<<50:
		return fmt.Errorf("lease: start is %d ms: %w", t.StartByMs, ErrMalformed)
	}
	return nil
}

// ID is the name of the lease on these terms.
func (t Terms) ID() (ID, error) {
	b, err := wire.Marshal(t)
	if err != nil {
		return ID{}, fmt.Errorf("lease: terms: %w", err)
	}
	return sha256.Sum256(b), nil
}
