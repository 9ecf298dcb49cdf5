// Package offer owns the beacon: the small signed record by which a provider says what it sells right now. It holds the
// record, its limits and the pure rules that judge one. It refuses to know how beacons travel and where they are kept.
package offer

import (
	"errors"
	"fmt"
	"time"
	"unicode"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/market/credit"
	"github.com/capacloud/capanode/p2p/signed"
	"github.com/capacloud/capanode/p2p/wire"
)

// Limits of the beacon format. docs/protocol/offer.md explains each.
const (
	// Domain binds beacon signatures to beacons.
	Domain signed.Domain = "capanode-beacon/1"
	// Version is the version of the record.
	Version = 1
	// MaxEnvelope is the largest beacon envelope in bytes that anyone reads.
	MaxEnvelope = 512
	// MaxTTL is the longest life of a beacon in seconds.
	MaxTTL = 900
	// MinTTL is the shortest life of a beacon in seconds.
	MinTTL = 10
	// Skew is how far two honest clocks may differ.
	Skew = 30 * time.Second
	// MaxClass is the longest class name in bytes.
	MaxClass = 32
	// MaxRegion is the longest region name in bytes.
	MaxRegion = 16
	// MaxSlots is the largest number of slots that one provider offers.
	MaxSlots = 1024
	// MaxVRAMMiB is the largest memory per slot in MiB: 16 TiB.
	MaxVRAMMiB = 1 << 24
	// MaxPerfMFLOPS is the largest speed per slot in MFLOP/s: 10 exaFLOP/s.
	MaxPerfMFLOPS = 10_000_000_000_000
	// MaxPrice is the largest price or rate in micro-credits: a million credits.
	MaxPrice credit.Micro = 1_000_000 * credit.PerCredit
	// MaxLeaseSeconds is the longest lease that can be offered: 30 days.
	MaxLeaseSeconds = 30 * 24 * 3600
)

// Errors that a beacon can earn. Each is one rule.
var (
	// ErrOversize reports an envelope above [MaxEnvelope].
	ErrOversize = errors.New("beacon envelope is larger than 512 bytes")
	// ErrMalformed reports a bad signature or bytes that are no beacon.
	ErrMalformed = errors.New("not a signed beacon")
	// ErrRange reports a field outside its limits.
	ErrRange = errors.New("beacon field out of range")
	// ErrTTL reports a life longer than [MaxTTL] or shorter than [MinTTL].
	ErrTTL = errors.New("beacon life is outside 10 to 900 seconds")
	// ErrFuture reports a beacon issued more than [Skew] ahead of the local clock.
	ErrFuture = errors.New("beacon was issued in the future")
	// ErrExpired reports a beacon whose life ended more than [Skew] ago.
	ErrExpired = errors.New("beacon has expired")
	// ErrStale reports a sequence number that is not above the known one.
	ErrStale = errors.New("beacon sequence is stale")
	// ErrRate reports a peer that announces more often than one beacon per 10 s with a burst of 3.
	ErrRate = errors.New("peer announces too often")
)

// Beacon is what one provider sells: a number of equal slots. Amounts are micro-credits, times are Unix milliseconds of
// the provider's clock.
type Beacon struct {
	Version    uint64       `cbor:"v"`
	Seq        uint64       `cbor:"seq"`              // grows with every beacon of the peer; the highest wins
	IssuedMs   int64        `cbor:"at"`               // Unix milliseconds
	TTL        uint32       `cbor:"ttl"`              // seconds
	Class      string       `cbor:"class"`            // device class, such as "RTX 4090" or "cpu"
	VRAMMiB    uint32       `cbor:"vram"`             // usable memory per slot in MiB
	PerfMFLOPS uint64       `cbor:"perf"`             // speed of one slot in MFLOP/s
	Claimed    bool         `cbor:"claim,omitempty"`  // true when the speed was not measured on this machine
	Price      credit.Micro `cbor:"price"`            // micro-credits per slot and hour, firm
	Floor      credit.Micro `cbor:"floor"`            // lowest price for interruptible use; at most Price
	Rate       credit.Micro `cbor:"rate"`             // micro-credits per million work units
	Free       uint16       `cbor:"free"`             // slots free now; 0 withdraws the offer
	Total      uint16       `cbor:"total"`            // slots in all
	MaxLease   uint32       `cbor:"max"`              // longest lease in seconds
	Region     string       `cbor:"region,omitempty"` // coarse place, free text
}

// Issued is the time at which the provider says it made the beacon.
func (b Beacon) Issued() time.Time { return time.UnixMilli(b.IssuedMs) }

// Expires is the end of the beacon's life on the provider's clock.
func (b Beacon) Expires() time.Time { return b.Issued().Add(time.Duration(b.TTL) * time.Second) }

// Offer is a beacon that was received, with the key that signed it.
type Offer struct {
	Peer     peer.ID // provider, from the signature
	Beacon   Beacon
	Payload  []byte // the signed bytes
	Envelope []byte // the whole signed envelope, for passing on
}

// Validate checks every field of the beacon against its limits. It looks at no clock.
func (b Beacon) Validate() error {
	if b.TTL > MaxTTL || b.TTL < MinTTL {
		return fmt.Errorf("offer: ttl %d s: %w", b.TTL, ErrTTL)
	}
	for _, f := range []struct {
		name       string
		value, max uint64
		min        uint64
	}{
		{"v", b.Version, Version, Version},
		{"seq", b.Seq, 1<<63 - 1, 1},
		{"vram", uint64(b.VRAMMiB), MaxVRAMMiB, 0},
		{"perf", b.PerfMFLOPS, MaxPerfMFLOPS, 0},
		{"price", uint64(b.Price), uint64(MaxPrice), 0},
		{"floor", uint64(b.Floor), uint64(b.Price), 0},
		{"rate", uint64(b.Rate), uint64(MaxPrice), 0},
		{"total", uint64(b.Total), MaxSlots, 1},
		{"free", uint64(b.Free), uint64(b.Total), 0},
		{"max", uint64(b.MaxLease), MaxLeaseSeconds, 1},
	} {
		if f.value < f.min || f.value > f.max {
			return fmt.Errorf("offer: %s is %d, allowed %d to %d: %w", f.name, f.value, f.min, f.max, ErrRange)
		}
	}
	if b.IssuedMs < 0 || b.IssuedMs > 1<<50 {
		return fmt.Errorf("offer: at is %d ms: %w", b.IssuedMs, ErrRange)
	}
	if b.Class == "" || !name(b.Class, MaxClass) {
		return fmt.Errorf("offer: class %q: want 1 to %d printable bytes: %w", b.Class, MaxClass, ErrRange)
	}
	if !name(b.Region, MaxRegion) {
		return fmt.Errorf("offer: region %q: want at most %d printable bytes: %w", b.Region, MaxRegion, ErrRange)
	}
	return nil
}

func name(s string, limit int) bool {
	if len(s) > limit {
		return false
	}
	for _, r := range s {
		if !unicode.IsPrint(r) {
			return false
		}
	}
	return true
}

// Seal validates, encodes and signs a beacon.
func Seal(key crypto.PrivKey, b Beacon) ([]byte, error) {
	if err := b.Validate(); err != nil {
		return nil, err
	}
	data, err := wire.Marshal(b)
	if err != nil {
		return nil, fmt.Errorf("offer: seal: %w", err)
	}
	env, err := signed.Seal(key, Domain, data)
	if err != nil {
		return nil, fmt.Errorf("offer: seal: %w", err)
	}
	if len(env) > MaxEnvelope {
		return nil, fmt.Errorf("offer: seal: %d bytes: %w", len(env), ErrOversize)
	}
	return env, nil
}

// Open checks size, signature and field limits of a beacon envelope. It looks at no clock and no earlier beacon: that
// is [Check].
func Open(env []byte) (Offer, error) {
	if len(env) > MaxEnvelope {
		return Offer{}, fmt.Errorf("offer: %d bytes: %w", len(env), ErrOversize)
	}
	id, data, err := signed.Open(Domain, env)
	if err != nil {
		return Offer{}, fmt.Errorf("offer: %w: %w", ErrMalformed, err)
	}
	o := Offer{Peer: id, Payload: data, Envelope: env}
	if err := wire.Unmarshal(data, &o.Beacon); err != nil {
		return Offer{}, fmt.Errorf("offer: from %s: %w: %w", id, ErrMalformed, err)
	}
	if err := o.Beacon.Validate(); err != nil {
		return Offer{}, fmt.Errorf("offer: from %s: %w", id, err)
	}
	return o, nil
}
