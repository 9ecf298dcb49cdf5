package p2p

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime/debug"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multistream"

	"github.com/capacloud/capanode/p2p/internal/gate"
)

// stream is a libp2p stream whose errors are those of this package.
type stream struct{ inner network.Stream }

var _ Stream = stream{}

func (s stream) Remote() peer.ID               { return s.inner.Conn().RemotePeer() }
func (s stream) Close() error                  { return s.inner.Close() }
func (s stream) CloseWrite() error             { return s.inner.CloseWrite() }
func (s stream) Reset() error                  { return s.inner.Reset() }
func (s stream) SetDeadline(t time.Time) error { return s.inner.SetDeadline(t) }

func (s stream) Read(b []byte) (int, error) {
	n, err := s.inner.Read(b)
	return n, s.explain(err)
}

func (s stream) Write(b []byte) (int, error) {
	n, err := s.inner.Write(b)
	return n, s.explain(err)
}

// explain maps the many errors of transports and muxers to the few that callers act on.
func (s stream) explain(err error) error {
	var timeout net.Error
	switch {
	case err == nil || err == io.EOF || errors.Is(err, os.ErrDeadlineExceeded):
		return err
	case errors.Is(err, multistream.ErrNotSupported[protocol.ID]{}):
		return fmt.Errorf("%w: %w", ErrNoProtocol, err)
	case errors.Is(err, network.ErrReset) || s.inner.Conn().IsClosed():
		return fmt.Errorf("%w: %w", ErrReset, err)
	case errors.As(err, &timeout) && timeout.Timeout():
		return fmt.Errorf("%w: %w", os.ErrDeadlineExceeded, err)
	}
	return err
}

// Open implements [Network].
func (h *Host) Open(ctx context.Context, to peer.ID, proto protocol.ID) (Stream, error) {
	if err := h.usable(ctx); err != nil {
		return nil, fmt.Errorf("p2p: open %s to %s: %w", proto, to, err)
	}
	s, err := h.host.NewStream(ctx, to, proto)
	switch {
	case err == nil:
		return stream{s}, nil
	case errors.Is(err, multistream.ErrNotSupported[protocol.ID]{}):
		return nil, fmt.Errorf("p2p: open %s to %s: %w", proto, to, ErrNoProtocol)
	case errors.Is(err, network.ErrReset): // connected, and refused before the protocol was agreed on
		return nil, fmt.Errorf("p2p: open %s to %s: %w: %w", proto, to, ErrReset, err)
	case ctx.Err() != nil:
		err = errors.Join(ctx.Err(), err)
	}
	return nil, fmt.Errorf("p2p: open %s to %s: %w: %w", proto, to, ErrUnreachable, err)
}

// Handle implements [Network]. A handler that panics loses its stream and nothing else.
func (h *Host) Handle(proto protocol.ID, limits Limits, handler Handler) {
	limits = limits.WithDefaults()
	h.host.SetStreamHandler(proto, h.guarded(proto, gate.New(limits.Streams, limits.StreamsPerPeer), func(s network.Stream) {
		if err := s.SetDeadline(time.Now().Add(limits.Idle)); err != nil {
			s.Reset()
			return
		}
		handler(h.ctx, stream{s})
	}))
}

// guarded runs a handler for as many streams as the gate admits, until the host closes, and survives its panics.
func (h *Host) guarded(proto protocol.ID, streams *gate.Gate, handle network.StreamHandler) network.StreamHandler {
	return func(s network.Stream) {
		remote := s.Conn().RemotePeer()
		if !streams.Enter(remote) {
			h.log.Debug("stream refused: too many of this protocol", "protocol", proto, "peer", remote)
			s.ResetWithError(network.StreamResourceLimitExceeded)
			return
		}
		defer streams.Leave(remote)
		if !h.begin() {
			s.ResetWithError(network.StreamShutdown)
			return
		}
		defer h.work.Done()
		defer func() {
			if cause := recover(); cause != nil {
				h.log.Error("handler panicked, stream reset", "protocol", proto, "peer", remote, "cause", cause, "stack", string(debug.Stack()))
				s.Reset()
			}
		}()
		handle(s)
	}
}
