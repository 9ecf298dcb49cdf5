package faultlab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/multiformats/go-multihash"

	"github.com/capacloud/capanode/p2p"
	"github.com/capacloud/capanode/p2p/wire"
	"github.com/capacloud/capanode/trainer/worker"
)

// BlobProtocol hands out blobs of one laboratory. One frame with a CID, one frame with its bytes.
const BlobProtocol protocol.ID = "/faultlab/blob/1"

// Blobs is a content-addressed store in memory that fetches over the network under test. It implements [worker.Blobs].
type Blobs struct {
	net    p2p.Network
	notice func(Point, peer.ID) // told what happens, and with whom; never nil

	mu   sync.Mutex
	data map[cid.Cid][]byte
}

var _ worker.Blobs = (*Blobs)(nil)

// NewBlobs returns an empty store that serves its blobs on the network.
func NewBlobs(net p2p.Network) *Blobs { return newBlobs(net, func(Point, peer.ID) {}) }

func newBlobs(net p2p.Network, notice func(Point, peer.ID)) *Blobs {
	b := &Blobs{net: net, notice: notice, data: map[cid.Cid][]byte{}}
	net.Handle(BlobProtocol, p2p.Limits{}, b.serve)
	return b
}

// serve notices the middle of a transfer when half of it is written.
func (b *Blobs) serve(_ context.Context, s p2p.Stream) {
	raw, err := wire.ReadFrame(s, 128)
	if err != nil {
		_ = s.Reset()
		return
	}
	_, c, err := cid.CidFromBytes(raw)
	b.mu.Lock()
	data, ok := b.data[c]
	b.mu.Unlock()
	if err != nil || !ok {
		_ = s.Reset()
		return
	}
	b.notice(BeforeServe, s.Remote())
	var frame bytes.Buffer
	_ = wire.WriteFrame(&frame, data) // a buffer takes every write
	half := frame.Len() / 2
	_, first := s.Write(frame.Bytes()[:half])
	b.notice(MidServe, s.Remote())
	_, second := s.Write(frame.Bytes()[half:])
	if errors.Join(first, second) != nil {
		_ = s.Reset()
		return
	}
	b.notice(AfterServe, s.Remote())
	_ = s.Close()
}

// Put implements [worker.Blobs].
func (b *Blobs) Put(_ context.Context, data []byte) (cid.Cid, error) {
	sum, err := multihash.Sum(data, multihash.SHA2_256, -1)
	if err != nil {
		return cid.Undef, err
	}
	c := cid.NewCidV1(cid.Raw, sum)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.data[c] = bytes.Clone(data)
	return c, nil
}

// Get implements [worker.Blobs]: it asks one peer after another.
func (b *Blobs) Get(ctx context.Context, c cid.Cid, from []peer.ID, limit int64) ([]byte, error) {
	b.mu.Lock()
	data, ok := b.data[c]
	b.mu.Unlock()
	if ok {
		return data, nil
	}
	var failed error
	for _, id := range from {
		b.notice(BeforeFetch, id)
		data, err := b.get(ctx, c, id, limit)
		if err == nil {
			_, err = b.Put(ctx, data)
			b.notice(AfterFetch, id)
			return data, err
		}
		failed = errors.Join(failed, err)
	}
	return nil, fmt.Errorf("nobody has %s: %w", c, failed)
}

func (b *Blobs) get(ctx context.Context, c cid.Cid, id peer.ID, limit int64) ([]byte, error) {
	s, err := b.net.Open(ctx, id, BlobProtocol)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	stop := context.AfterFunc(ctx, func() { _ = s.Reset() })
	defer stop()
	if err := wire.WriteFrame(s, c.Bytes()); err != nil {
		return nil, err
	}
	return wire.ReadFrame(s, int(limit))
}

// Drop implements [worker.Blobs].
func (b *Blobs) Drop(_ context.Context, c cid.Cid) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.data, c)
}

// Count returns the number of blobs held.
func (b *Blobs) Count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.data)
}
