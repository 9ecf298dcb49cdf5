package lease

import (
	"fmt"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// Phase is where a lease is in its life.
type Phase string

// The phases. docs/protocol/lease.md draws the graph.
const (
	RFQ        Phase = "rfq"        // requester asks; nothing is promised
	Held       Phase = "held"       // provider keeps the slot for a moment; dies with the process
	Accepted   Phase = "accepted"   // requester signed the terms
	Granted    Phase = "granted"    // provider signed and bound the slot, durably
	Active     Phase = "active"     // requester acknowledged; work and metering run
	Suspect    Phase = "suspect"    // the other side is silent
	Detached   Phase = "detached"   // silent for long; work may go on inside the autonomy time
	Reclaiming Phase = "reclaiming" // owner wants the device back; notice runs
	Draining   Phase = "draining"   // one side asked to finish the current step
	Disputed   Phase = "disputed"   // a receipt was refused; evidence window runs
	Closed     Phase = "closed"     // over, with a reason
)

// Role is which side of the lease this record belongs to.
type Role string

// The two sides.
const (
	Buyer  Role = "buyer"  // the requester
	Seller Role = "seller" // the provider
)

// Reason is why a lease closed.
type Reason string

// The close reasons.
const (
	OwnerPreempt  Reason = "owner-preempt"
	Thermal       Reason = "thermal"
	Schedule      Reason = "schedule"
	RequesterDone Reason = "requester-done"
	Unpaid        Reason = "unpaid"
	Unresponsive  Reason = "unresponsive"
	BadWork       Reason = "bad-work"
	OverBudget    Reason = "over-budget"
	Capacity      Reason = "capacity"
	Shutdown      Reason = "shutdown"
	Upgrade       Reason = "upgrade"
	NotCompleted  Reason = "not-completed" // the handshake did not reach ACTIVE in time
	TimeUp        Reason = "time-up"       // the leased time is over
	DisputeOver   Reason = "dispute-over"  // the evidence window ended
)

var reasons = []Reason{
	OwnerPreempt, Thermal, Schedule, RequesterDone, Unpaid, Unresponsive, BadWork, OverBudget, Capacity, Shutdown, Upgrade,
	NotCompleted, TimeUp, DisputeOver,
}

// Known tells whether the reason is one of the enumeration.
func (r Reason) Known() bool { return slices.Contains(reasons, r) }

// Timers of the state machine.
const (
	HoldTime      = 5 * time.Second  // HELD, until the requester accepts
	GrantTime     = 5 * time.Second  // ACCEPTED, until the provider grants
	AckTime       = 5 * time.Second  // GRANTED, until the requester acknowledges
	BeatEvery     = 5 * time.Second  // heartbeat of the requester, ± 20 %
	SilenceTime   = 3 * BeatEvery    // ACTIVE, until silence makes it SUSPECT
	SuspectTime   = 30 * time.Second // SUSPECT, until DETACHED
	AutonomyTime  = 10 * time.Minute // DETACHED, until the lease closes as unresponsive
	DrainTime     = 2 * time.Minute  // DRAINING, at most
	DisputeTime   = 24 * time.Hour   // DISPUTED, at most
	MaxNotice     = 10 * time.Minute // RECLAIMING, at most
	SettleTime    = time.Minute      // CLOSED: how long a last tick is still paid
	historyLength = 128
)

// next is the graph of allowed transitions. Closing is allowed from every phase but CLOSED.
var next = map[Phase][]Phase{
	RFQ:        {Held},
	Held:       {Accepted},
	Accepted:   {Granted},
	Granted:    {Active},
	Active:     {Suspect, Reclaiming, Draining, Disputed},
	Suspect:    {Active, Detached, Reclaiming, Draining, Disputed},
	Detached:   {Active, Reclaiming, Draining, Disputed},
	Reclaiming: {Draining, Disputed},
	Draining:   {Disputed},
}

// Step is one line of a lease's timeline.
type Step struct {
	AtMs  int64  `cbor:"at"` // Unix milliseconds of the clock of this side
	Phase Phase  `cbor:"phase"`
	Note  string `cbor:"note,omitempty"`
}

// Lease is one side's record of a lease. Methods return the changed lease and leave the receiver as it was.
type Lease struct {
	ID         ID     `cbor:"id"`
	Role       Role   `cbor:"role"`
	Terms      Terms  `cbor:"terms"`
	Phase      Phase  `cbor:"phase"`
	Epoch      uint64 `cbor:"epoch"`              // how many times the slot has been granted, this grant included
	Reason     Reason `cbor:"reason,omitempty"`   // when DRAINING, RECLAIMING or CLOSED
	ActiveMs   int64  `cbor:"active,omitempty"`   // when it became ACTIVE, Unix ms
	DeadlineMs int64  `cbor:"deadline,omitempty"` // when the phase's timer fires, Unix ms
	EndMs      int64  `cbor:"end,omitempty"`      // when the leased time is over, Unix ms
	ClosedMs   int64  `cbor:"closed,omitempty"`   // when it became CLOSED, Unix ms
	Accept     []byte `cbor:"accept,omitempty"`   // envelope signed by the requester
	Grant      []byte `cbor:"grant,omitempty"`    // envelope signed by the provider
	Ack        []byte `cbor:"ack,omitempty"`      // envelope signed by the requester
	Closing    []byte `cbor:"closing,omitempty"`  // envelope signed by the side that closed
	History    []Step `cbor:"history"`
}

// New starts a lease in RFQ.
func New(role Role, t Terms, now time.Time) (Lease, error) {
	if err := t.Validate(); err != nil {
		return Lease{}, err
	}
	id, err := t.ID()
	if err != nil {
		return Lease{}, err
	}
	l := Lease{ID: id, Role: role, Terms: t, Phase: RFQ}
	l.History = []Step{{AtMs: now.UnixMilli(), Phase: RFQ}}
	return l, nil
}

// move checks and records one transition; stay is how long the new phase may last, 0 for no timer.
func (l Lease) move(to Phase, now time.Time, stay time.Duration, note string) (Lease, error) {
	if l.Phase == Closed || to != Closed && !slices.Contains(next[l.Phase], to) {
		return l, fmt.Errorf("lease %s: %s → %s: %w", l.ID.Short(), l.Phase, to, ErrTransition)
	}
	l.Phase, l.DeadlineMs = to, 0
	if stay > 0 {
		l.DeadlineMs = now.Add(stay).UnixMilli()
	}
	history := append(slices.Clone(l.History), Step{AtMs: now.UnixMilli(), Phase: to, Note: note})
	if len(history) > historyLength {
		history = history[len(history)-historyLength:]
	}
	l.History = history
	return l, nil
}

// Hold enters HELD: the provider keeps the slot.
func (l Lease) Hold(now time.Time) (Lease, error) { return l.move(Held, now, HoldTime, "") }

// Accepted enters ACCEPTED with the requester's signature.
func (l Lease) Accepted(env []byte, now time.Time) (Lease, error) {
	if now.UnixMilli() > l.Terms.StartByMs {
		return l, fmt.Errorf("lease %s: %w", l.ID.Short(), ErrStartBy)
	}
	out, err := l.move(Accepted, now, GrantTime, "")
	if err != nil {
		return l, err
	}
	out.Accept = env
	return out, nil
}

// Granted enters GRANTED with the provider's signature and the slot's new epoch.
func (l Lease) Granted(env []byte, epoch uint64, now time.Time) (Lease, error) {
	out, err := l.move(Granted, now, AckTime, "")
	if err != nil {
		return l, err
	}
	out.Grant, out.Epoch = env, epoch
	return out, nil
}

// Activate enters ACTIVE with the requester's second signature. The leased time starts.
func (l Lease) Activate(env []byte, now time.Time) (Lease, error) {
	out, err := l.move(Active, now, SilenceTime, "")
	if err != nil {
		return l, err
	}
	out.Ack, out.ActiveMs = env, now.UnixMilli()
	out.EndMs = now.Add(time.Duration(l.Terms.MaxSeconds) * time.Second).UnixMilli()
	return out, nil
}

// Heard notes a sign of life of the other side. It re-arms the silence timer and brings SUSPECT and DETACHED back to
// ACTIVE. The result says whether the phase changed, so that it must be recorded.
func (l Lease) Heard(now time.Time) (Lease, bool) {
	switch l.Phase {
	case Active:
		l.DeadlineMs = now.Add(SilenceTime).UnixMilli()
		return l, false
	case Suspect, Detached:
		out, err := l.move(Active, now, SilenceTime, "heard again")
		return out, err == nil
	default:
		return l, false
	}
}

// Reclaim enters RECLAIMING: the owner takes the device back after the notice, at most [MaxNotice].
func (l Lease) Reclaim(reason Reason, notice time.Duration, now time.Time) (Lease, error) {
	out, err := l.move(Reclaiming, now, min(max(notice, time.Millisecond), MaxNotice), string(reason))
	if err != nil {
		return l, err
	}
	out.Reason = reason
	return out, nil
}

// Drain enters DRAINING: finish the current step, then close.
func (l Lease) Drain(reason Reason, now time.Time) (Lease, error) {
	out, err := l.move(Draining, now, DrainTime, string(reason))
	if err != nil {
		return l, err
	}
	out.Reason = reason
	return out, nil
}

// Dispute enters DISPUTED.
func (l Lease) Dispute(note string, now time.Time) (Lease, error) {
	return l.move(Disputed, now, DisputeTime, note)
}

// Close enters CLOSED. Closing a closed lease is [ErrTransition] and keeps the first reason.
func (l Lease) Close(reason Reason, env []byte, now time.Time) (Lease, error) {
	out, err := l.move(Closed, now, 0, string(reason))
	if err != nil {
		return l, err
	}
	out.Reason, out.Closing, out.ClosedMs = reason, env, now.UnixMilli()
	return out, nil
}

// Due is when a timer of this lease next fires; false when none runs.
func (l Lease) Due() (time.Time, bool) {
	at := l.DeadlineMs
	if l.EndMs > 0 && l.Live() && (at == 0 || l.EndMs < at) {
		at = l.EndMs
	}
	return time.UnixMilli(at), at > 0 && l.Phase != Closed
}

// Expire applies the timers that have fired at now. The result says whether anything changed.
func (l Lease) Expire(now time.Time) (Lease, bool) {
	at, armed := l.Due()
	if !armed || now.Before(at) {
		return l, false
	}
	var out Lease
	var err error
	switch {
	case l.EndMs > 0 && l.Live() && now.UnixMilli() >= l.EndMs:
		out, err = l.Close(TimeUp, nil, now)
	case l.Phase == Active:
		out, err = l.move(Suspect, now, SuspectTime, "silent")
	case l.Phase == Suspect:
		out, err = l.move(Detached, now, AutonomyTime, "silent")
	case l.Phase == Detached:
		out, err = l.Close(Unresponsive, nil, now)
	case l.Phase == Reclaiming || l.Phase == Draining:
		out, err = l.Close(l.Reason, nil, now)
	case l.Phase == Disputed:
		out, err = l.Close(DisputeOver, nil, now)
	default:
		out, err = l.Close(NotCompleted, nil, now)
	}
	return out, err == nil
}

// Rearm prepares a lease read from the log after a restart: silence is counted from now on, all other timers run on.
func (l Lease) Rearm(now time.Time) Lease {
	switch l.Phase {
	case Active:
		l.DeadlineMs = now.Add(SilenceTime).UnixMilli()
	case Suspect:
		l.DeadlineMs = now.Add(SuspectTime).UnixMilli()
	}
	return l
}

// Live tells whether the lease has reached ACTIVE and is not over: work may run. A disputed lease is not live.
func (l Lease) Live() bool {
	switch l.Phase {
	case Active, Suspect, Detached, Reclaiming, Draining:
		return true
	}
	return false
}

// Metered tells whether ticks are still paid: while live, and for [SettleTime] after the close of a lease that was active.
func (l Lease) Metered(now time.Time) bool {
	return l.Live() || l.Phase == Closed && l.ActiveMs > 0 && now.UnixMilli() <= l.ClosedMs+SettleTime.Milliseconds()
}

// Elapsed is how long the lease has been held since ACTIVE, on this side's clock, up to its close.
func (l Lease) Elapsed(now time.Time) time.Duration {
	if l.ActiveMs == 0 {
		return 0
	}
	until := now.UnixMilli()
	if l.Phase == Closed {
		until = l.ClosedMs
	}
	return time.Duration(max(until-l.ActiveMs, 0)) * time.Millisecond
}

// Other is the peer at the other end.
func (l Lease) Other() peer.ID {
	if l.Role == Buyer {
		return l.Terms.Provider
	}
	return l.Terms.Requester
}
