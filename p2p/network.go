// Package p2p owns how two Capanode processes find and reach each other: the libp2p host, the node's identity,
// discovery, gossip topics and streams. It refuses to know what an offer, a round or a shard is: those rooms hand it
// opaque bytes and a protocol name.
//
// The rest of the program sees [Network], [Topic] and [Stream] only. [Host] implements them over go-libp2p; package
// memnet implements them in memory for tests. Both pass the conformance suite in package nettest.
package p2p

import (
	"context"
	"io"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

// MaxGossip is the largest gossip message in bytes. Larger state travels by CID over a stream.
const MaxGossip = 64 << 10

// Network is one node's view of the network.
type Network interface {
	// ID returns the node's own peer ID, the hash of its public key.
	ID() peer.ID
	// Key returns the private key that signs the node's records.
	Key() crypto.PrivKey
	// Open opens a stream to a peer. The dial uses every address the network knows for it. A peer over its limits refuses the
	// stream with [ErrReset], from Open or from the first read.
	Open(ctx context.Context, to peer.ID, proto protocol.ID) (Stream, error)
	// Handle serves a protocol. The handler owns the stream and must close or reset it.
	Handle(proto protocol.ID, limits Limits, handler Handler)
	// Join subscribes to a gossip topic, whose name must pass [CheckTopic]. Each message passes the validator before it is
	// delivered or forwarded; a nil validator accepts all.
	Join(topic string, validate Validator) (Topic, error)
}

// Router introduces peers to each other: who is connected and who says that it holds an object.
type Router interface {
	// Connect makes sure that a connection to the peer exists.
	Connect(ctx context.Context, to peer.AddrInfo) error
	// Connected lists the peers with an open connection, sorted by peer ID. One that vanished without a word may be listed for
	// half a minute more.
	Connected() []peer.ID
	// Provide announces that this node holds the object.
	Provide(ctx context.Context, c cid.Cid) error
	// Providers returns up to limit peers that announced the object.
	Providers(ctx context.Context, c cid.Cid, limit int) ([]peer.ID, error)
}

// Handler serves one incoming stream. The context ends when the node stops.
type Handler func(ctx context.Context, s Stream)

// Limits bounds what one protocol may use. Zero fields take the defaults of [DefaultLimits].
type Limits struct {
	Streams        int           // concurrent incoming streams of this protocol, all peers
	StreamsPerPeer int           // concurrent incoming streams of this protocol from one peer
	Idle           time.Duration // deadline set on an incoming stream before the handler runs
}

// DefaultLimits suits small control protocols.
var DefaultLimits = Limits{Streams: 256, StreamsPerPeer: 16, Idle: 30 * time.Second}

// Stream is a reliable, ordered, encrypted byte stream to one peer. It mirrors a libp2p stream.
type Stream interface {
	io.ReadWriteCloser
	// CloseWrite tells the other side that nothing more comes.
	CloseWrite() error
	// Reset aborts both directions.
	Reset() error
	// SetDeadline bounds every read and write from now on.
	SetDeadline(t time.Time) error
	// Remote is the authenticated peer at the other end.
	Remote() peer.ID
}

// Verdict is what a validator decides about a gossip message.
type Verdict int

const (
	// Accept delivers and forwards the message.
	Accept Verdict = iota
	// Ignore drops the message without blaming anyone: stale or duplicate.
	Ignore
	// Reject drops the message and penalises the peer that forwarded it: provable garbage.
	Reject
)

// Validator judges one gossip message by its author and bytes. It must be quick and must not block.
type Validator func(from peer.ID, data []byte) Verdict

// Message is one delivered gossip message.
type Message struct {
	From peer.ID // author, authenticated by its signature
	Data []byte
}

// Topic is a joined gossip topic.
type Topic interface {
	// Publish sends a message of at most [MaxGossip] bytes to every subscriber. Bytes that this node published on the topic
	// within the last two minutes are not sent again: messages carry a time or a sequence number.
	Publish(ctx context.Context, data []byte) error
	// Next returns the next message from another node, in arrival order; the node's own messages are not returned.
	Next(ctx context.Context) (Message, error)
	// Peers lists the other nodes known to subscribe, sorted by peer ID.
	Peers() []peer.ID
	// Close leaves the topic; a pending Next returns an error.
	Close() error
}
