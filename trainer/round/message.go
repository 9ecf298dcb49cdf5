package round

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/p2p/signed"
	"github.com/capacloud/capanode/p2p/wire"
)

// A message on a run's topic is the kind (1 byte), a salt (4 bytes, little-endian) and the signed envelope. A topic delivers
// equal bytes of one author once; the salt lets a record be said again, to those who missed it. It means nothing else.
const (
	saltAt     = 1
	envelopeAt = 5
)

// MaxMessage is the largest message in bytes on a run's topic.
const MaxMessage = 64 << 10

// Kind is the first byte of each message: which record follows.
type Kind byte

// Kinds of message on a run's topic.
const (
	KindHeader Kind = iota + 1
	KindSeen
	KindCommit
	KindHeartbeat
	KindRoster
)

var kinds = map[Kind]struct {
	name   string
	domain signed.Domain
}{
	KindHeader:    {"header", "capanode-round-header/1"},
	KindSeen:      {"seen", "capanode-round-seen/1"},
	KindCommit:    {"commit", "capanode-round-commit/1"},
	KindHeartbeat: {"heartbeat", "capanode-round-heartbeat/1"},
	KindRoster:    {"roster", "capanode-round-roster/1"},
}

// String returns the name of the record.
func (k Kind) String() string {
	if k, ok := kinds[k]; ok {
		return k.name
	}
	return fmt.Sprintf("kind %d", byte(k))
}

// Message is one verified message of a run's topic. Exactly one record pointer is set.
type Message struct {
	Kind      Kind
	From      peer.ID // signer of the envelope
	Hash      Hash    // of the header, for KindHeader
	Header    *Header
	Seen      *Seen
	Commit    *Commit
	Heartbeat *Heartbeat
	Roster    *Roster
}

// Topic returns the gossip topic of a run.
func Topic(run cid.Cid) string { return "/capanode/run/" + run.String() + "/4" }

// Record is what the five records share.
type Record interface {
	kind() Kind
	check() error
}

// Salt returns the message with another salt: other bytes that say the same.
func Salt(message []byte, salt uint32) []byte {
	again := slices.Clone(message)
	if len(again) >= envelopeAt {
		binary.LittleEndian.PutUint32(again[saltAt:], salt)
	}
	return again
}

// Seal signs one of the five records and returns the message for the topic, with salt 0.
func Seal(key crypto.PrivKey, rec Record) ([]byte, error) {
	kind := rec.kind()
	if err := rec.check(); err != nil {
		return nil, err
	}
	data, err := wire.Marshal(rec)
	if err != nil {
		return nil, fmt.Errorf("round: seal %s: %w", kind, err)
	}
	env, err := signed.Seal(key, kinds[kind].domain, data)
	if err != nil {
		return nil, fmt.Errorf("round: seal %s: %w", kind, err)
	}
	if len(env)+envelopeAt > MaxMessage {
		return nil, fmt.Errorf("round: seal %s: %d bytes, limit %d: %w", kind, len(env)+envelopeAt, MaxMessage, wire.ErrTooLarge)
	}
	return append([]byte{byte(kind), 0, 0, 0, 0}, env...), nil
}

// Open verifies a message of a run: size, kind, signature, limits of the record, and that it is of this run. Whether the
// signer is a member is for the caller to judge.
func Open(run cid.Cid, raw []byte) (Message, error) {
	if len(raw) <= envelopeAt || len(raw) > MaxMessage {
		return Message{}, fmt.Errorf("round: message of %d bytes: %w", len(raw), ErrRecord)
	}
	m := Message{Kind: Kind(raw[0])}
	kind, ok := kinds[m.Kind]
	if !ok {
		return Message{}, fmt.Errorf("round: message of %s: %w", m.Kind, ErrRecord)
	}
	from, data, err := signed.Open(kind.domain, raw[envelopeAt:])
	if err != nil {
		return Message{}, fmt.Errorf("round: open %s: %w", m.Kind, err)
	}
	m.From = from
	rec, of, err := m.decode(data)
	if err != nil {
		return Message{}, fmt.Errorf("round: open %s of %s: %w", m.Kind, from, err)
	}
	if err := rec.check(); err != nil {
		return Message{}, fmt.Errorf("round: open %s of %s: %w", m.Kind, from, err)
	}
	if !of.Equals(run) {
		return Message{}, fmt.Errorf("round: open %s of %s: run %s, want %s: %w", m.Kind, from, of, run, ErrRecord)
	}
	return m, nil
}

// Read reads a message that [Open] has accepted before, without verifying it again: a signature costs ten times the rest.
func Read(raw []byte) (Message, error) {
	if len(raw) <= envelopeAt {
		return Message{}, fmt.Errorf("round: message of %d bytes: %w", len(raw), ErrRecord)
	}
	m := Message{Kind: Kind(raw[0])}
	from, data, err := signed.Peek(raw[envelopeAt:])
	if err != nil {
		return Message{}, fmt.Errorf("round: read %s: %w", m.Kind, err)
	}
	m.From = from
	if _, _, err := m.decode(data); err != nil {
		return Message{}, fmt.Errorf("round: read %s of %s: %w", m.Kind, from, err)
	}
	return m, nil
}

// decode fills the record of the message's kind and returns it with the run it names.
func (m *Message) decode(data []byte) (Record, wire.Link, error) {
	switch m.Kind {
	case KindHeader:
		m.Header, m.Hash = new(Header), HashHeader(m.From, data)
		err := wire.Unmarshal(data, m.Header)
		return m.Header, m.Header.Run, err
	case KindSeen:
		m.Seen = new(Seen)
		err := wire.Unmarshal(data, m.Seen)
		return m.Seen, m.Seen.Run, err
	case KindCommit:
		m.Commit = new(Commit)
		err := wire.Unmarshal(data, m.Commit)
		return m.Commit, m.Commit.Run, err
	case KindHeartbeat:
		m.Heartbeat = new(Heartbeat)
		err := wire.Unmarshal(data, m.Heartbeat)
		return m.Heartbeat, m.Heartbeat.Run, err
	default:
		m.Roster = new(Roster)
		err := wire.Unmarshal(data, m.Roster)
		return m.Roster, m.Roster.Run, err
	}
}
