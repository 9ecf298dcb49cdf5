package memnet

import (
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/p2p"
)

// stream is one end of a stream. It implements [p2p.Stream].
type stream struct {
	node   *Node
	remote peer.ID
	in     *flow // the other end writes, this end reads
	out    *flow
}

var _ p2p.Stream = (*stream)(nil)

func (s *stream) Remote() peer.ID             { return s.remote }
func (s *stream) Read(b []byte) (int, error)  { return s.in.read(b) }
func (s *stream) Write(b []byte) (int, error) { return s.out.write(b) }

func (s *stream) SetDeadline(t time.Time) error {
	s.in.set(&s.in.readBy, t)
	s.out.set(&s.out.writeBy, t)
	return nil
}

func (s *stream) CloseWrite() error {
	s.out.finish()
	return nil
}

// Close ends both directions for this end: what was written still arrives, what the other end writes from now on fails
// there, as it does over QUIC.
func (s *stream) Close() error {
	s.out.finish()
	s.in.abort(p2p.ErrReset)
	s.node.forget(s)
	return nil
}

func (s *stream) Reset() error {
	s.out.abort(p2p.ErrReset)
	s.in.abort(p2p.ErrReset)
	s.node.forget(s)
	return nil
}
