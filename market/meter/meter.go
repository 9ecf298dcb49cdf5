// Package meter owns how work becomes money: the provider's tick, the requester's receipt, the tariff that both compute,
// and the pure rules by which each side judges the other's record. It refuses to know what a work unit is, how records
// travel and where they are kept.
package meter

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"math/bits"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/capacloud/capanode/market/credit"
	"github.com/capacloud/capanode/market/lease"
	"github.com/capacloud/capanode/p2p/signed"
	"github.com/capacloud/capanode/p2p/wire"
)

const (
	// Protocol carries ticks to the requester and receipts back.
	Protocol protocol.ID = "/capanode/meter/1.0.0"
	// TickDomain binds tick signatures to ticks.
	TickDomain signed.Domain = "capanode-tick/1"
	// ReceiptDomain binds receipt signatures to receipts.
	ReceiptDomain signed.Domain = "capanode-receipt/1"
	// MaxEnvelope is the largest tick or receipt envelope in bytes.
	MaxEnvelope = 1024
	// MaxMessage is the largest message of the protocol in bytes.
	MaxMessage = 2048
	// MaxState is the longest state commitment in bytes.
	MaxState = 64
)

// The rules of metering, one named error each.
var (
	ErrMalformed = &lease.Refusal{Code: "meter-malformed", Reason: "not a valid signed tick or receipt"}
	ErrNotMeter  = &lease.Refusal{Code: "not-metered", Reason: "lease is not active, so nothing is metered"}
	ErrConflict  = &lease.Refusal{Code: "tick-conflict", Reason: "tick repeats a number with other counters"}
	ErrRegress   = &lease.Refusal{Code: "regress", Reason: "cumulative counters went backwards"}
	ErrTooFast   = &lease.Refusal{Code: "too-fast", Reason: "more slot time claimed than has passed on the requester's clock"}
	ErrPace      = &lease.Refusal{Code: "pace", Reason: "ticks come faster than the lease's interval; wait for the next"}
	ErrWork      = &lease.Refusal{Code: "work", Reason: "requester could not verify the work"}
	ErrBudget    = &lease.Refusal{Code: "budget", Reason: "budget is exhausted; close the lease"}
	ErrTariff    = &lease.Refusal{Code: "tariff", Reason: "amount does not follow from the counters and the tariff"}
	ErrChain     = &lease.Refusal{Code: "chain", Reason: "receipt does not continue the chain of receipts"}
)

var refusals = []*lease.Refusal{ErrMalformed, ErrNotMeter, ErrConflict, ErrRegress, ErrTooFast, ErrPace, ErrWork, ErrBudget, ErrTariff, ErrChain}

// Counters are cumulative since the lease became active.
type Counters struct {
	SlotMs uint64 `cbor:"ms"`     // milliseconds that the slot was held
	Tokens uint64 `cbor:"tokens"` // tokens processed; for people, not for money
	Units  uint64 `cbor:"units"`  // work units
	Rounds uint64 `cbor:"rounds"` // rounds taken part in; for people, not for money
}

// covers tells whether no counter of c is below the one of d.
func (c Counters) covers(d Counters) bool {
	return c.SlotMs >= d.SlotMs && c.Tokens >= d.Tokens && c.Units >= d.Units && c.Rounds >= d.Rounds
}

// Tick is the provider's claim. Nonces of a lease grow; a repeated nonce repeats the counters.
type Tick struct {
	Lease lease.ID `cbor:"lease"`
	Nonce uint64   `cbor:"nonce"`
	Counters
	State []byte `cbor:"state,omitempty"` // commitment to the state that the work led to
}

// Receipt is the requester's cumulative promise to pay. Only the newest one of a lease matters. Its units may be below
// those of the tick, when the requester has not yet seen all the work; a later receipt catches up.
type Receipt struct {
	Lease lease.ID `cbor:"lease"`
	Nonce uint64   `cbor:"nonce"` // of the tick it answers
	Counters
	Amount    credit.Micro `cbor:"amount"`         // micro-credits in all
	PrevNonce uint64       `cbor:"pnonce"`         // of the previous receipt, 0 for the first
	Prev      []byte       `cbor:"prev,omitempty"` // SHA-256 of the previous receipt's signed bytes
	State     []byte       `cbor:"state,omitempty"`
}

// Signed is a receipt with its envelope and the hash of its signed bytes.
type Signed struct {
	Receipt
	Hash     [sha256.Size]byte
	Envelope []byte
}

// Amount is the price of the counters under the terms, in micro-credits:
//
//	⌊price × ms / 3 600 000⌋ + ⌊rate × units / 1 000 000⌋
//
// Both parts are rounded down once, from cumulative counters, so that rounding never adds up and both ends agree to the
// last micro-credit. Amounts above [credit.Max] are [ErrTariff].
func Amount(t lease.Terms, c Counters) (credit.Micro, error) {
	reserve, ok1 := mulDiv(uint64(t.Price), c.SlotMs, 3_600_000)
	work, ok2 := mulDiv(uint64(t.WorkRate), c.Units, 1_000_000)
	if !ok1 || !ok2 || reserve > uint64(credit.Max) || work > uint64(credit.Max)-reserve {
		return 0, fmt.Errorf("meter: %d ms and %d units: amount overflows: %w", c.SlotMs, c.Units, ErrTariff)
	}
	return credit.Micro(reserve + work), nil
}

// mulDiv is ⌊a × b / c⌋ without overflow in between; false when the result needs more than 64 bits.
func mulDiv(a, b, c uint64) (uint64, bool) {
	hi, lo := bits.Mul64(a, b)
	if hi >= c {
		return 0, false
	}
	q, _ := bits.Div64(hi, lo, c)
	return q, true
}

// SealTick signs a tick.
func SealTick(key crypto.PrivKey, t Tick) ([]byte, error) { return seal(key, TickDomain, t) }

// SealReceipt signs a receipt.
func SealReceipt(key crypto.PrivKey, r Receipt) (Signed, error) {
	env, err := seal(key, ReceiptDomain, r)
	if err != nil {
		return Signed{}, err
	}
	data, err := wire.Marshal(r)
	if err != nil {
		return Signed{}, fmt.Errorf("meter: %w", err)
	}
	return Signed{Receipt: r, Hash: sha256.Sum256(data), Envelope: env}, nil
}

func seal(key crypto.PrivKey, domain signed.Domain, v any) ([]byte, error) {
	b, err := wire.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("meter: seal %s: %w", domain, err)
	}
	env, err := signed.Seal(key, domain, b)
	if err != nil {
		return nil, fmt.Errorf("meter: seal %s: %w", domain, err)
	}
	return env, nil
}

// OpenTick verifies a tick envelope signed by the peer.
func OpenTick(env []byte, by peer.ID) (Tick, error) {
	var t Tick
	if _, err := open(TickDomain, env, by, &t); err != nil {
		return Tick{}, err
	}
	if t.Nonce == 0 || len(t.State) > MaxState {
		return Tick{}, fmt.Errorf("meter: tick %d with %d bytes of state: %w", t.Nonce, len(t.State), ErrMalformed)
	}
	return t, nil
}

// OpenReceipt verifies a receipt envelope signed by the peer.
func OpenReceipt(env []byte, by peer.ID) (Signed, error) {
	s := Signed{Envelope: env}
	data, err := open(ReceiptDomain, env, by, &s.Receipt)
	if err != nil {
		return Signed{}, err
	}
	if s.Nonce == 0 || s.PrevNonce >= s.Nonce || len(s.State) > MaxState || s.PrevNonce > 0 != (len(s.Prev) == sha256.Size) {
		return Signed{}, fmt.Errorf("meter: receipt %d after %d: %w", s.Nonce, s.PrevNonce, ErrMalformed)
	}
	s.Hash = sha256.Sum256(data)
	return s, nil
}

func open(domain signed.Domain, env []byte, by peer.ID, v any) ([]byte, error) {
	if len(env) > MaxEnvelope {
		return nil, fmt.Errorf("meter: %s of %d bytes: %w", domain, len(env), ErrMalformed)
	}
	signer, data, err := signed.Open(domain, env)
	if err != nil {
		return nil, fmt.Errorf("meter: %w: %w", ErrMalformed, err)
	}
	if signer != by {
		return nil, fmt.Errorf("meter: %s signed by %s instead of %s: %w", domain, signer, by, lease.ErrWrongPeer)
	}
	if err := wire.Unmarshal(data, v); err != nil {
		return nil, fmt.Errorf("meter: %w: %w", ErrMalformed, err)
	}
	return data, nil
}

// Message asks for a receipt.
type Message struct {
	Tick []byte `cbor:"tick"` // envelope
}

// Reply answers a [Message]: the newest receipt, or a refusal.
type Reply struct {
	Code    string `cbor:"code,omitempty"`
	Detail  string `cbor:"detail,omitempty"`
	Receipt []byte `cbor:"receipt,omitempty"` // envelope
}

// Refuse is the reply that carries an error.
func Refuse(err error) Reply {
	r := lease.Refuse(err)
	return Reply{Code: r.Code, Detail: r.Detail}
}

// Err is the refusal in the reply, nil on success.
func (r Reply) Err() error {
	for _, known := range refusals {
		if known.Code == r.Code {
			return fmt.Errorf("meter: %w (peer says %q)", known, r.Detail)
		}
	}
	return lease.FromCode(r.Code, r.Detail)
}

// ErrNoReceipt reports that the requester could not be reached, so that the work since the last receipt is unpaid. The
// next tick covers it.
var ErrNoReceipt = errors.New("no receipt")
