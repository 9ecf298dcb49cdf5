package offer

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// Limits on how often one peer may announce.
const (
	// RateEvery is the time after which a peer earns one more beacon.
	RateEvery = 10 * time.Second
	// RateBurst is how many beacons a quiet peer may send at once.
	RateBurst = 3
)

// ErrDuplicate reports a beacon that is already known, byte for byte.
var ErrDuplicate = errors.New("beacon is already known")

// Equivocation is proof that one key signed two different beacons with one sequence number. It is an error value, so
// that the rule that finds it returns it like any other.
type Equivocation struct {
	Peer   peer.ID
	Seq    uint64
	First  []byte // envelope that was known
	Second []byte // envelope that contradicts it
}

// Error says who signed what twice.
func (e *Equivocation) Error() string {
	return fmt.Sprintf("offer: %s signed two different beacons with sequence %d", e.Peer, e.Seq)
}

// Verify checks the proof from its bytes alone: two valid beacons, one signer, one sequence number, different content.
func (e *Equivocation) Verify() error {
	a, err := Open(e.First)
	if err != nil {
		return fmt.Errorf("offer: first beacon of the proof: %w", err)
	}
	b, err := Open(e.Second)
	if err != nil {
		return fmt.Errorf("offer: second beacon of the proof: %w", err)
	}
	if a.Peer != b.Peer || a.Peer != e.Peer || a.Beacon.Seq != b.Beacon.Seq || a.Beacon.Seq != e.Seq {
		return fmt.Errorf("offer: the two beacons of the proof differ in signer or sequence: %w", ErrMalformed)
	}
	if bytes.Equal(a.Payload, b.Payload) {
		return fmt.Errorf("offer: the two beacons of the proof say the same: %w", ErrMalformed)
	}
	return nil
}

// Check judges a beacon by the local clock and the newest beacon known from the same peer, nil for none. A nil error
// means that it replaces the known one.
func Check(known *Offer, next Offer, now time.Time) error {
	b := next.Beacon
	if b.Issued().After(now.Add(Skew)) {
		return fmt.Errorf("offer: from %s: %s ahead: %w", next.Peer, b.Issued().Sub(now).Round(time.Second), ErrFuture)
	}
	if Dead(b, now) {
		return fmt.Errorf("offer: from %s: %s ago: %w", next.Peer, now.Sub(b.Expires()).Round(time.Second), ErrExpired)
	}
	if known == nil || b.Seq > known.Beacon.Seq {
		return nil
	}
	if b.Seq < known.Beacon.Seq {
		return fmt.Errorf("offer: from %s: sequence %d, known %d: %w", next.Peer, b.Seq, known.Beacon.Seq, ErrStale)
	}
	if bytes.Equal(next.Payload, known.Payload) {
		return fmt.Errorf("offer: from %s: sequence %d: %w", next.Peer, b.Seq, ErrDuplicate)
	}
	return &Equivocation{Peer: next.Peer, Seq: b.Seq, First: known.Envelope, Second: next.Envelope}
}

// Dead tells whether the beacon's life ended more than [Skew] ago.
func Dead(b Beacon, now time.Time) bool { return now.After(b.Expires().Add(Skew)) }

// Bucket limits how often something happens, by the generic cell rate algorithm: it holds the time at which the next
// event would be due if events were evenly spaced. The zero Bucket is full.
type Bucket struct{ due time.Time }

// Take asks for one event at now with one event per every and a burst. It returns the bucket after the event, or the
// bucket unchanged and false when the event comes too early.
func (b Bucket) Take(now time.Time, every time.Duration, burst int) (Bucket, bool) {
	if b.Wait(now, every, burst) > 0 {
		return b, false
	}
	due := b.due
	if due.Before(now) {
		due = now
	}
	return Bucket{due.Add(every)}, true
}

// Wait is how long after now the next event is allowed; zero or less means at once.
func (b Bucket) Wait(now time.Time, every time.Duration, burst int) time.Duration {
	return b.due.Add(-time.Duration(burst-1) * every).Sub(now)
}
