package p2p

import (
	"context"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"github.com/capacloud/capanode/p2p/internal/gate"
)

// Bare returns the libp2p host for a protocol that exists as a library over libp2p. The library gets what a [Handler] gets: at
// most as many incoming streams as the limits say, over all protocols that it handles through the result, at most limits.Idle
// for each read of one, and no crash of the node by a panic in a handler. It cannot dial: who is connected is decided elsewhere.
// Its streams must be gone before the host is closed, and it must not close the host.
func (h *Host) Bare(limits Limits) host.Host {
	limits = limits.WithDefaults()
	return bare{Host: h.host, h: h, idle: limits.Idle, streams: gate.New(limits.Streams, limits.StreamsPerPeer)}
}

// Supports says whether a connected peer has told that it serves one of the protocols.
func (h *Host) Supports(id peer.ID, protos ...protocol.ID) bool {
	known, err := h.host.Peerstore().SupportsProtocols(id, protos...)
	return err == nil && len(known) > 0
}

type bare struct {
	host.Host
	h       *Host
	idle    time.Duration
	streams *gate.Gate
}

func (b bare) SetStreamHandler(proto protocol.ID, handle network.StreamHandler) {
	b.Host.SetStreamHandler(proto, b.guarded(proto, handle))
}

func (b bare) SetStreamHandlerMatch(proto protocol.ID, match func(protocol.ID) bool, handle network.StreamHandler) {
	b.Host.SetStreamHandlerMatch(proto, match, b.guarded(proto, handle))
}

func (b bare) guarded(proto protocol.ID, handle network.StreamHandler) network.StreamHandler {
	return b.h.guarded(proto, b.streams, func(s network.Stream) { handle(impatient{s, b.idle}) })
}

// Connect answers for peers that are connected, and refuses to dial others.
func (b bare) Connect(_ context.Context, to peer.AddrInfo) error {
	if b.Network().Connectedness(to.ID) == network.Connected {
		return nil
	}
	return fmt.Errorf("p2p: %s is not connected: %w", to.ID, ErrUnreachable)
}

func (b bare) NewStream(ctx context.Context, to peer.ID, protos ...protocol.ID) (network.Stream, error) {
	return b.Host.NewStream(network.WithNoDial(ctx, "who is connected is decided elsewhere"), to, protos...)
}

// impatient is an incoming stream that ends when the peer stays silent for too long.
type impatient struct {
	network.Stream
	idle time.Duration
}

func (s impatient) Read(b []byte) (int, error) {
	if err := s.SetReadDeadline(time.Now().Add(s.idle)); err != nil {
		return 0, err
	}
	return s.Stream.Read(b)
}
