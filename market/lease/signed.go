package lease

import (
	"fmt"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/p2p/signed"
	"github.com/capacloud/capanode/p2p/wire"
)

// Domains of the signed lease records.
const (
	AcceptDomain signed.Domain = "capanode-lease-accept/1"
	GrantDomain  signed.Domain = "capanode-lease-grant/1"
	AckDomain    signed.Domain = "capanode-lease-ack/1"
	CloseDomain  signed.Domain = "capanode-lease-close/1"
)

// MaxEnvelope is the largest envelope of a lease record in bytes.
const MaxEnvelope = 4096

// AcceptRecord is the requester's signature under the terms.
type AcceptRecord struct {
	Terms Terms `cbor:"terms"`
	AtMs  int64 `cbor:"at"`
}

// GrantRecord is the provider's signature: the slot belongs to the lease for the interval. One key that signs two grants
// of one slot with equal epochs or overlapping intervals proves its own fraud.
type GrantRecord struct {
	Lease   ID     `cbor:"lease"`
	Slot    uint32 `cbor:"slot"`
	Epoch   uint64 `cbor:"epoch"`
	FromMs  int64  `cbor:"from"`
	UntilMs int64  `cbor:"until"`
}

// AckRecord is the requester's second signature: it has the grant.
type AckRecord struct {
	Lease ID     `cbor:"lease"`
	Epoch uint64 `cbor:"epoch"`
	AtMs  int64  `cbor:"at"`
}

// CloseRecord ends a lease. It names the newest tick and receipt that its signer knows.
type CloseRecord struct {
	Lease   ID     `cbor:"lease"`
	Reason  Reason `cbor:"reason"`
	Tick    uint64 `cbor:"tick"`
	Receipt uint64 `cbor:"receipt"`
	AtMs    int64  `cbor:"at"`
}

// Seal encodes and signs one lease record.
func Seal(key crypto.PrivKey, domain signed.Domain, record any) ([]byte, error) {
	b, err := wire.Marshal(record)
	if err != nil {
		return nil, fmt.Errorf("lease: seal %s: %w", domain, err)
	}
	env, err := signed.Seal(key, domain, b)
	if err != nil {
		return nil, fmt.Errorf("lease: seal %s: %w", domain, err)
	}
	return env, nil
}

// open verifies an envelope that must be signed by one peer.
func open(domain signed.Domain, env []byte, by peer.ID, record any) error {
	if len(env) > MaxEnvelope {
		return fmt.Errorf("lease: %s of %d bytes: %w", domain, len(env), ErrMalformed)
	}
	signer, data, err := signed.Open(domain, env)
	if err != nil {
		return fmt.Errorf("lease: %w: %w", ErrMalformed, err)
	}
	if signer != by {
		return fmt.Errorf("lease: %s signed by %s instead of %s: %w", domain, signer, by, ErrWrongPeer)
	}
	if err := wire.Unmarshal(data, record); err != nil {
		return fmt.Errorf("lease: %w: %w", ErrMalformed, err)
	}
	return nil
}

// OpenAccept verifies an accept signed by a peer that must be the requester of the terms in it.
func OpenAccept(env []byte, by peer.ID) (AcceptRecord, error) {
	var a AcceptRecord
	if err := open(AcceptDomain, env, by, &a); err != nil {
		return AcceptRecord{}, err
	}
	if err := a.Terms.Validate(); err != nil {
		return AcceptRecord{}, err
	}
	if a.Terms.Requester != by {
		return AcceptRecord{}, fmt.Errorf("lease: accept by %s: %w", by, ErrWrongPeer)
	}
	return a, nil
}

// OpenGrant verifies the grant of a lease.
func OpenGrant(env []byte, l Lease) (GrantRecord, error) {
	var g GrantRecord
	if err := open(GrantDomain, env, l.Terms.Provider, &g); err != nil {
		return GrantRecord{}, err
	}
	if g.Lease != l.ID || g.Slot != l.Terms.Slot || g.Epoch == 0 || g.UntilMs <= g.FromMs {
		return GrantRecord{}, fmt.Errorf("lease %s: grant of lease %s, slot %d, epoch %d: %w",
			l.ID.Short(), g.Lease.Short(), g.Slot, g.Epoch, ErrMalformed)
	}
	return g, nil
}

// OpenAck verifies the acknowledgement of a lease's grant.
func OpenAck(env []byte, l Lease) (AckRecord, error) {
	var a AckRecord
	if err := open(AckDomain, env, l.Terms.Requester, &a); err != nil {
		return AckRecord{}, err
	}
	if a.Lease != l.ID || a.Epoch != l.Epoch {
		return AckRecord{}, fmt.Errorf("lease %s: ack of lease %s, epoch %d: %w", l.ID.Short(), a.Lease.Short(), a.Epoch, ErrMalformed)
	}
	return a, nil
}

// OpenClose verifies the close of a lease by the other side.
func OpenClose(env []byte, l Lease) (CloseRecord, error) {
	var c CloseRecord
	if err := open(CloseDomain, env, l.Other(), &c); err != nil {
		return CloseRecord{}, err
	}
	if c.Lease != l.ID || !c.Reason.Known() {
		return CloseRecord{}, fmt.Errorf("lease %s: close of lease %s for %q: %w", l.ID.Short(), c.Lease.Short(), c.Reason, ErrMalformed)
	}
	return c, nil
}
