// Package signed owns signed envelopes: bytes bound to the key that signed them and to the kind of record they are.
// The envelope is libp2p's own (RFC 0002): the signature covers domain, payload type and payload.
package signed

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/record"
)

// Domain names one kind of record, such as "capanode-beacon/1". A signature made for one domain never verifies in
// another.
type Domain string

// MaxEnvelope is the largest envelope in bytes that [Seal] makes and [Open] looks at.
const MaxEnvelope = 256 << 10

var (
	// ErrInvalid reports an envelope that is malformed, signed by another key or made for another domain.
	ErrInvalid = errors.New("invalid signed envelope")
	// ErrTooLarge reports data that does not fit into an envelope of [MaxEnvelope] bytes.
	ErrTooLarge = errors.New("too large for a signed envelope")
)

// payloadType is the multicodec-style type bytes inside each envelope: dag-cbor (0x71).
var payloadType = []byte{0x71}

type payload struct {
	domain Domain
	data   []byte
}

func (p *payload) Domain() string                 { return string(p.domain) }
func (p *payload) Codec() []byte                  { return payloadType }
func (p *payload) MarshalRecord() ([]byte, error) { return p.data, nil }
func (p *payload) UnmarshalRecord(b []byte) error { p.data = b; return nil }

// Seal signs data for the domain and returns the marshalled envelope. The key must be Ed25519. The same key, domain and
// data give the same bytes.
func Seal(key crypto.PrivKey, domain Domain, data []byte) ([]byte, error) {
	if key.Type() != crypto.Ed25519 {
		return nil, fmt.Errorf("signed: seal %s: %s key, want Ed25519", domain, key.Type())
	}
	env, err := record.Seal(&payload{domain, data}, key)
	if err != nil {
		return nil, fmt.Errorf("signed: seal %s: %w", domain, err)
	}
	raw, err := env.Marshal()
	if err != nil {
		return nil, fmt.Errorf("signed: seal %s: %w", domain, err)
	}
	if len(raw) > MaxEnvelope {
		return nil, fmt.Errorf("signed: seal %s: %d bytes, limit %d: %w", domain, len(raw), MaxEnvelope, ErrTooLarge)
	}
	return raw, nil
}

// Open verifies an envelope made for the domain and returns its signer and data. It takes exactly the bytes that [Seal]
// makes: nobody can turn a valid envelope into another valid one with the same content.
func Open(domain Domain, raw []byte) (peer.ID, []byte, error) {
	if len(raw) > MaxEnvelope {
		return "", nil, fmt.Errorf("signed: open %s: %d bytes: %w", domain, len(raw), ErrInvalid)
	}
	p := payload{domain: domain}
	env, err := record.ConsumeTypedEnvelope(raw, &p)
	if err != nil {
		return "", nil, fmt.Errorf("signed: open %s: %w: %w", domain, ErrInvalid, err)
	}
	if !bytes.Equal(env.PayloadType, payloadType) {
		return "", nil, fmt.Errorf("signed: open %s: payload type %x: %w", domain, env.PayloadType, ErrInvalid)
	}
	if env.PublicKey.Type() != crypto.Ed25519 {
		return "", nil, fmt.Errorf("signed: open %s: %s key: %w", domain, env.PublicKey.Type(), ErrInvalid)
	}
	if again, err := env.Marshal(); err != nil || !bytes.Equal(again, raw) {
		return "", nil, fmt.Errorf("signed: open %s: not the bytes that sealing makes: %w", domain, ErrInvalid)
	}
	id, err := peer.IDFromPublicKey(env.PublicKey)
	if err != nil {
		return "", nil, fmt.Errorf("signed: open %s: %w: %w", domain, ErrInvalid, err)
	}
	return id, p.data, nil
}

// Peek returns signer and data of an envelope that [Open] has accepted before, and saves the cost of the signature. It
// verifies nothing: on any other bytes the answer means nothing.
func Peek(raw []byte) (peer.ID, []byte, error) {
	env, err := record.UnmarshalEnvelope(raw)
	if err != nil {
		return "", nil, fmt.Errorf("signed: peek: %w: %w", ErrInvalid, err)
	}
	id, err := peer.IDFromPublicKey(env.PublicKey)
	if err != nil {
		return "", nil, fmt.Errorf("signed: peek: %w: %w", ErrInvalid, err)
	}
	return id, env.RawPayload, nil
}
