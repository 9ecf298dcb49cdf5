package round

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/p2p/wire"
)

// Version is the protocol version that every record carries.
const Version = 4

// Limits of the records. A record beyond them is refused.
const (
	MaxMembers = 512     // members of a run
	MaxRanges  = 1024    // ranges in one header
	MaxShards  = 1 << 16 // shards of a data set
	MaxName    = 64      // bytes in a codec id or numerics class
	MaxRounds  = 1 << 32 // rounds of a run

	MaxSteps     = 1 << 33 // nominal steps of a run
	MaxLoss      = 1e12    // micronats per token: far from where sums that are part of the state would overflow
	MaxFragments = 256     // parts in which the weights travel
)

// HeartbeatInterval is the time between two heartbeats of a member. A member that was silent for [Silence] is not waited
// for. The cost is one signed message of about 300 bytes per member and interval.
const HeartbeatInterval = time.Second

// Silence is how long a member may be silent and still count as live: three heartbeats.
const Silence = 3 * HeartbeatInterval

// ErrRecord reports a record that breaks a limit or a rule of its kind.
var ErrRecord = errors.New("invalid round record")

// Range is a run of consecutive sample windows of one shard, counted from the shard's first epoch: position p is window
// Permute(p) of epoch p / windows.
type Range struct {
	Shard uint32 `cbor:"shard"`
	From  uint64 `cbor:"from"` // first position
	To    uint64 `cbor:"to"`   // one past the last position
}

// Role says what a header brings.
type Role uint8

// Roles of a header.
const (
	RoleTrained  Role = iota // the update of local steps, or what the losing side of a fork had trained
	RoleHello                // nothing: the signer sits the round out and asks to be dealt in from the next one on
	RoleWeights              // all of the signer's weights, in the rounds that bring the groups of a run together
	RoleGradient             // the cosine components of a gradient at the parent's weights, in a round without local steps
)

// Header describes one peer's update of one round.
type Header struct {
	Version   uint16    `cbor:"version"`
	Run       wire.Link `cbor:"run"`       // the job record
	Round     uint64    `cbor:"round"`     // number of rounds committed in the parent state
	Parent    Hash      `cbor:"parent"`    // state that the steps started from
	View      Hash      `cbor:"view"`      // hash of the members among whom the shards were dealt
	Codec     string    `cbor:"codec"`     // id of the blob's codec
	Role      Role      `cbor:"role"`      // what it brings
	Group     uint32    `cbor:"group"`     // members of a group in this round; 0 where all are in one
	Blob      wire.Link `cbor:"blob"`      // the encoded update, and behind it the healing slice
	Size      uint64    `cbor:"size"`      // bytes of the blob
	Slice     uint64    `cbor:"slice"`     // of these, at the end, the healing slice
	Ranges    []Range   `cbor:"ranges"`    // samples trained on, sorted by shard, one range for each
	Seed      uint64    `cbor:"seed"`      // seed of the sample order
	Steps     uint32    `cbor:"steps"`     // optimiser steps
	Tokens    uint64    `cbor:"tokens"`    // tokens trained on
	Loss      int64     `cbor:"loss"`      // mean training loss in micronats per token
	Before    Hash      `cbor:"before"`    // inner optimiser state before the first step
	After     Hash      `cbor:"after"`     // inner optimiser state after the last step
	Precision string    `cbor:"precision"` // numerics class, such as "native/1"
	Budget    uint64    `cbor:"budget"`    // bytes that the signer's link affords to fetch for each step; 0 is no limit
	Least     uint32    `cbor:"least"`     // steps of the signer that take as long as an exchange; 0 where exchanges are short
	Lag       uint32    `cbor:"lag"`       // steps that were run before the parent was known, while the round before was exchanged
	Fragments uint32    `cbor:"fragments"` // in how many parts the weights travel, one each round
	Merge     *Merge    `cbor:"merge"`     // not null: this brings back the losing side of a fork
}

// Trains reports whether the header brings what its signer has learnt from samples: by local steps, as a gradient, or on the losing
// side of a fork.
func (h Header) Trains() bool { return h.Role == RoleTrained || h.Role == RoleGradient }

// Seen is a vote: the headers of a round whose blobs the signer holds, and the hellos that it had heard when it first voted. A
// later Seen of the same round only adds headers.
type Seen struct {
	Version uint16    `cbor:"version"`
	Run     wire.Link `cbor:"run"`
	Round   uint64    `cbor:"round"`
	Parent  Hash      `cbor:"parent"`
	Headers []Hash    `cbor:"headers"` // ascending
	Hellos  []Hash    `cbor:"hellos"`  // ascending
}

// Commit announces the state that the signer moved to. The totals after Next are for display.
type Commit struct {
	Version uint16    `cbor:"version"`
	Run     wire.Link `cbor:"run"`
	Round   uint64    `cbor:"round"`
	Parent  Hash      `cbor:"parent"`
	Set     []Hash    `cbor:"set"`    // committed headers, ascending
	Next    Hash      `cbor:"next"`   // the state after the round
	Total   uint64    `cbor:"total"`  // committed tokens in the next state
	Steps   uint64    `cbor:"steps"`  // committed nominal steps in the next state
	Tokens  uint64    `cbor:"tokens"` // tokens of this round
	Loss    int64     `cbor:"loss"`   // token-weighted mean training loss in micronats per token
	Up      uint64    `cbor:"up"`     // bytes of the signer's own blob
	Down    uint64    `cbor:"down"`   // bytes of blobs that the signer fetched
	Compute uint64    `cbor:"compute_ms"`
	Comm    uint64    `cbor:"comm_ms"`
}

// Phase says what a member is doing.
type Phase uint8

// Phases of a member, as told in its heartbeats.
const (
	PhaseJoining    Phase = iota // looking for the run's state
	PhaseTraining                // local steps
	PhaseExchanging              // waiting for headers, blobs and votes
	PhaseListening               // holds the state, sits this round out
	PhaseDone                    // all rounds committed; still serves state and blobs
	PhaseLeaving                 // last message
)

var phaseNames = [...]string{"joining", "training", "exchanging", "listening", "done", "leaving"}

// String returns the phase in one word.
func (p Phase) String() string {
	if int(p) >= len(phaseNames) {
		return fmt.Sprintf("phase %d", uint8(p))
	}
	return phaseNames[p]
}

// Heartbeat says that a member lives and which state it holds.
type Heartbeat struct {
	Version uint16    `cbor:"version"`
	Run     wire.Link `cbor:"run"`
	Seq     uint64    `cbor:"seq"`    // grows with each heartbeat of the signer; an older one is ignored
	Round   uint64    `cbor:"round"`  // rounds committed
	State   Hash      `cbor:"state"`  // hash of the state held
	Tokens  uint64    `cbor:"tokens"` // committed tokens in that state
	Steps   uint64    `cbor:"steps"`  // committed nominal steps in that state
	Phase   Phase     `cbor:"phase"`
	Elapsed uint64    `cbor:"elapsed_ms"` // since the signer began its local steps of this round; 0 before the first
	Speed   uint64    `cbor:"speed"`      // local training speed in tokens per second
}

// Roster names the members of a run. It is signed by the run's owner; of two, the higher epoch counts.
type Roster struct {
	Version uint16    `cbor:"version"`
	Run     wire.Link `cbor:"run"`
	Epoch   uint64    `cbor:"epoch"`
	Members []peer.ID `cbor:"members"` // ascending by bytes
}

// Has reports whether the peer is a member.
func (r Roster) Has(id peer.ID) bool {
	_, ok := slices.BinarySearch(r.Members, id)
	return ok
}

// HashHeader identifies a header and its author. The author is hashed in, so that a copied header is another header.
func HashHeader(author peer.ID, record []byte) Hash {
	h := sha256.New()
	h.Write([]byte("capanode-round-header/1\x00"))
	h.Write([]byte{byte(len(author) >> 8), byte(len(author))})
	h.Write([]byte(author))
	h.Write(record)
	return Hash(h.Sum(nil))
}

// HashView identifies a set of members.
func HashView(members []peer.ID) Hash {
	sorted := slices.Sorted(slices.Values(members))
	h := sha256.New()
	for _, id := range sorted {
		h.Write([]byte{byte(len(id) >> 8), byte(len(id))})
		h.Write([]byte(id))
	}
	return Hash(h.Sum(nil))
}

func (Header) kind() Kind    { return KindHeader }
func (Seen) kind() Kind      { return KindSeen }
func (Commit) kind() Kind    { return KindCommit }
func (Heartbeat) kind() Kind { return KindHeartbeat }
func (Roster) kind() Kind    { return KindRoster }

func bad(kind Kind, format string, args ...any) error {
	return fmt.Errorf("round: %s: %s: %w", kind, fmt.Sprintf(format, args...), ErrRecord)
}

func checkCommon(kind Kind, version uint16, run wire.Link, round uint64) error {
	if version != Version {
		return bad(kind, "version %d, this program speaks %d", version, Version)
	}
	if !run.Defined() {
		return bad(kind, "no run")
	}
	if round > MaxRounds {
		return bad(kind, "round %d, limit %d", round, uint64(MaxRounds))
	}
	return nil
}

func (h Header) check() error {
	if err := checkCommon(KindHeader, h.Version, h.Run, h.Round); err != nil {
		return err
	}
	trained := h.Trains() && h.Merge == nil
	switch {
	case h.Role > RoleGradient || h.Role != RoleTrained && h.Merge != nil:
		return bad(KindHeader, "role %d", h.Role)
	case h.Role == RoleHello && (h.Blob.Defined() || h.Size > 0):
		return bad(KindHeader, "a hello with a blob")
	case h.Role != RoleHello && (!h.Blob.Defined() || h.Size <= h.Slice):
		return bad(KindHeader, "a blob of %d bytes, %d of them a slice", h.Size, h.Slice)
	case !h.Trains() && (len(h.Ranges) > 0 || h.Steps > 0 || h.Tokens > 0 || h.Slice > 0):
		return bad(KindHeader, "role %d with samples or a slice", h.Role)
	case h.Group > MaxMembers:
		return bad(KindHeader, "groups of %d, limit %d", h.Group, MaxMembers)
	case len(h.Codec) > MaxName || len(h.Precision) > MaxName:
		return bad(KindHeader, "name longer than %d bytes", MaxName)
	case len(h.Ranges) == 0 && trained || len(h.Ranges) > MaxRanges:
		return bad(KindHeader, "%d ranges, want 1 to %d", len(h.Ranges), MaxRanges)
	case h.Steps == 0 && trained || h.Tokens == 0 && h.Trains():
		return bad(KindHeader, "%d steps over %d tokens", h.Steps, h.Tokens)
	case h.Role == RoleGradient && (h.Steps != 1 || h.Slice > 0 || h.Lag > 0 || h.Group > 0 || h.Fragments != 1):
		return bad(KindHeader, "a gradient of %d steps, %d of them early, with a slice of %d bytes, in groups of %d and %d fragments", h.Steps, h.Lag, h.Slice, h.Group, h.Fragments)
	case h.Loss > MaxLoss || h.Loss < -MaxLoss:
		return bad(KindHeader, "a loss of %d micronats", h.Loss)
	case h.Lag > h.Steps:
		return bad(KindHeader, "%d of %d steps before the parent", h.Lag, h.Steps)
	case h.Fragments == 0 || h.Fragments > MaxFragments:
		return bad(KindHeader, "%d fragments, want 1 to %d", h.Fragments, MaxFragments)
	}
	for i, r := range h.Ranges {
		if r.To <= r.From || r.Shard >= MaxShards {
			return bad(KindHeader, "range %d of shard %d is [%d, %d)", i, r.Shard, r.From, r.To)
		}
		if i > 0 && h.Ranges[i-1].Shard >= r.Shard {
			return bad(KindHeader, "ranges are not sorted by shard")
		}
	}
	return nil
}

func (s Seen) check() error {
	if err := checkCommon(KindSeen, s.Version, s.Run, s.Round); err != nil {
		return err
	}
	for _, set := range [][]Hash{s.Headers, s.Hellos} {
		if len(set) > 2*MaxMembers || !sortedSet(set) {
			return bad(KindSeen, "%d headers, want an ascending set of at most %d", len(set), 2*MaxMembers)
		}
	}
	return nil
}

func (c Commit) check() error {
	if err := checkCommon(KindCommit, c.Version, c.Run, c.Round); err != nil {
		return err
	}
	if len(c.Set) == 0 || len(c.Set) > MaxMembers || !sortedSet(c.Set) {
		return bad(KindCommit, "%d headers, want an ascending set of 1 to %d", len(c.Set), MaxMembers)
	}
	return nil
}

func (h Heartbeat) check() error {
	if err := checkCommon(KindHeartbeat, h.Version, h.Run, h.Round); err != nil {
		return err
	}
	if h.Phase > PhaseLeaving {
		return bad(KindHeartbeat, "%s", h.Phase)
	}
	return nil
}

func (r Roster) check() error {
	if err := checkCommon(KindRoster, r.Version, r.Run, 0); err != nil {
		return err
	}
	if len(r.Members) == 0 || len(r.Members) > MaxMembers {
		return bad(KindRoster, "%d members, want 1 to %d", len(r.Members), MaxMembers)
	}
	for i := 1; i < len(r.Members); i++ {
		if bytes.Compare([]byte(r.Members[i-1]), []byte(r.Members[i])) >= 0 {
			return bad(KindRoster, "members are not an ascending set")
		}
	}
	return nil
}
