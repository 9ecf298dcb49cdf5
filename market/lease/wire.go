package lease

import (
	"strings"

	"github.com/libp2p/go-libp2p/core/protocol"
)

const (
	// Protocol carries requests of the requester to the provider.
	Protocol protocol.ID = "/capanode/lease/1.0.0"
	// NoticeProtocol carries the provider's notices to the requester: close, drain and reclaim.
	NoticeProtocol protocol.ID = "/capanode/lease-notice/1.0.0"
	// MaxMessage is the largest message of both protocols in bytes.
	MaxMessage = 16 << 10
)

// Op is what a message asks for.
type Op string

// The operations.
const (
	OpQuote   Op = "quote"   // request for quote: Terms with a bid; the reply has Terms with the slot, held
	OpAccept  Op = "accept"  // Envelope is an accept; the reply's Envelope is the grant
	OpAck     Op = "ack"     // Envelope is an ack; the reply says ACTIVE
	OpBeat    Op = "beat"    // sign of life; the reply has the phase
	OpResume  Op = "resume"  // after a restart: Envelope is the newest receipt, if any; the reply has the phase
	OpDrain   Op = "drain"   // finish the step, then close, for Reason
	OpReclaim Op = "reclaim" // notice only: the owner takes the device back in WaitMs, for Reason
	OpClose   Op = "close"   // Envelope is a close record; the reply says CLOSED
)

// Request is one message to the other side. Every operation may be repeated: the same request gives the same outcome.
type Request struct {
	Op       Op     `cbor:"op"`
	Lease    ID     `cbor:"lease"`
	Terms    *Terms `cbor:"terms,omitempty"`
	Envelope []byte `cbor:"env,omitempty"`
	Reason   Reason `cbor:"reason,omitempty"`
	WaitMs   uint32 `cbor:"wait,omitempty"`
}

// Reply answers one request. Code is empty on success, else the code of a [Refusal].
type Reply struct {
	Code     string `cbor:"code,omitempty"`
	Detail   string `cbor:"detail,omitempty"`
	Terms    *Terms `cbor:"terms,omitempty"`
	Envelope []byte `cbor:"env,omitempty"`
	Phase    Phase  `cbor:"phase,omitempty"`
	Reason   Reason `cbor:"reason,omitempty"`
	Receipt  uint64 `cbor:"receipt,omitempty"` // nonce of the newest receipt that the answering side has
}

// maxDetail is how much of an error travels to the other side, in bytes.
const maxDetail = 256

// Refuse is the reply that carries an error. An error without a code stays at home: it is not the other side's business.
func Refuse(err error) Reply {
	code := CodeOf(err)
	if code == ErrInternal.Code {
		return Reply{Code: code}
	}
	detail := err.Error()
	return Reply{Code: code, Detail: strings.ToValidUTF8(detail[:min(len(detail), maxDetail)], "")}
}

// Err is the refusal in the reply, nil on success.
func (r Reply) Err() error { return FromCode(r.Code, r.Detail) }
