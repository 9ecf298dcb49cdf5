package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/p2p"
	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/encode"
	"github.com/capacloud/capanode/storage/unixfs"
)

// Stats counts what moved since the start, in one direction.
type Stats struct {
	Requests uint64
	Blocks   uint64
	Bytes    uint64 // of blocks
	Wire     uint64 // of the same blocks as they travelled between peers, encoded
	Refused  uint64 // server: requests for what is not here; fetcher: blocks that failed their hash
}

// counters is the running form of Stats.
type counters struct{ requests, blocks, bytes, wire, refused atomic.Uint64 }

func (c *counters) stats() Stats {
	return Stats{c.requests.Load(), c.blocks.Load(), c.bytes.Load(), c.wire.Load(), c.refused.Load()}
}

func (c *counters) block(n int) {
	c.blocks.Add(1)
	c.bytes.Add(uint64(n))
}

// ServeOptions tunes a server. Zero fields take the defaults.
type ServeOptions struct {
	Rate    int64        // bytes per second to all peers together; 0 means no limit
	PerPeer int64        // bytes per second to one peer, over all its streams; 0 means no limit
	Memory  int64        // bytes of blocks that are being sent at a time; default 64 MiB, at least 4 MiB. One peer gets a quarter of it
	Encode  Encode       // when blocks travel encoded to a client that takes it; default [EncodeIfFaster]
	Logger  *slog.Logger // nil discards
}

// Server answers requests from a store.
type Server struct {
	store *storage.Store
	opts  ServeOptions
	log   *slog.Logger
	up    counters
	rate  *bucket
	room  room
	bufs  sync.Pool // *sendBuffer
	codes sync.Pool // *encode.Encoder

	mu      sync.Mutex
	offers  map[cid.Cid]*offer
	nodes   map[cid.Cid][]byte // interior nodes of the files in offers
	stopped []*offer           // those of offers that nobody goes on with, the oldest first
	peers   map[peer.ID]*bucket
}

// yamuxFrame is what the multiplexer sends at a time in bytes: 64 KiB less its header.
const yamuxFrame = 64<<10 - 12

// sendBuffer holds an answer: header and block.
type sendBuffer [headerSize + unixfs.MaxBlock]byte

// Serve answers blob requests on the network from the store until the network stops. Any peer may ask for any object.
func Serve(net p2p.Network, store *storage.Store, o ServeOptions) *Server {
	s := newServer(store, o)
	net.Handle(Protocol, limits, func(ctx context.Context, stream p2p.Stream) {
		err := s.serve(ctx, stream)
		if err == nil || errors.Is(err, io.EOF) {
			_ = stream.Close() // the client is gone either way
			return
		}
		s.log.Debug("blob stream ended", "peer", stream.Remote(), "err", err)
		_ = stream.Reset()
	})
	return s
}

func newServer(store *storage.Store, o ServeOptions) *Server {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Memory == 0 {
		o.Memory = 64 << 20
	}
	blocks := int(max(o.Memory, minMemory) / unixfs.MaxBlock)
	return &Server{
		store: store, opts: o, log: o.Logger, rate: newBucket(o.Rate),
		room:   room{free: blocks, share: max(1, blocks/4), held: map[peer.ID]int{}, changed: make(chan struct{})},
		bufs:   sync.Pool{New: func() any { return new(sendBuffer) }},
		codes:  sync.Pool{New: func() any { return encode.NewEncoder() }},
		offers: map[cid.Cid]*offer{}, nodes: map[cid.Cid][]byte{}, peers: map[peer.ID]*bucket{},
	}
}

// Stats returns what was served.
func (s *Server) Stats() Stats { return s.up.stats() }

// serve answers the requests of one stream in order. While it answers it holds one block in memory and one open object.
func (s *Server) serve(ctx context.Context, stream p2p.Stream) error {
	a := &answerer{s: s, stream: stream, peer: s.peer(stream.Remote())}
	defer a.close()
	for ctx.Err() == nil {
		if err := stream.SetDeadline(time.Now().Add(idleTimeout)); err != nil {
			return err
		}
		req, err := readRequest(stream)
		if err != nil {
			return err
		}
		s.up.requests.Add(1)
		if err := a.turn(ctx, req); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// maxPeers is how many peers' rates are remembered before those that are at rest are forgotten.
const maxPeers = 1024

// peer returns the bucket that all streams of a peer share.
func (s *Server) peer(id peer.ID) *bucket {
	if s.opts.PerPeer <= 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.peers[id] == nil {
		for other, b := range s.peers {
			if len(s.peers) >= maxPeers && b.full() {
				delete(s.peers, other)
			}
		}
		s.peers[id] = newBucket(s.opts.PerPeer)
	}
	return s.peers[id]
}

// answerer is the state of one stream.
type answerer struct {
	s      *Server
	stream p2p.Stream
	peer   *bucket
	buf    *sendBuffer // while a request is being answered
	open   cid.Cid
	reader *storage.Reader // of open, nil when none is

	last   cid.Cid // of which choice speaks
	choice encode.Choice
	pace   pace
}

func (a *answerer) close() {
	if a.reader != nil {
		_ = a.reader.Close() // read only
		a.reader = nil
	}
}

// turn answers one request once there is memory for it.
func (a *answerer) turn(ctx context.Context, req Request) error {
	if err := a.s.room.enter(ctx, a.stream.Remote()); err != nil {
		return err
	}
	defer a.s.room.leave(a.stream.Remote())
	a.buf = a.s.bufs.Get().(*sendBuffer)
	defer a.s.bufs.Put(a.buf)
	switch {
	case req.Have:
		return a.have(ctx, req)
	case len(req.Ranges) == 0:
		block, err := a.whole(ctx, req.CID.Cid)
		return a.send(ctx, 0, block, err)
	}
	for _, run := range req.Ranges {
		for i := run.First; i < run.First+run.Count; i++ {
			encoded := a.mayEncode(req)
			if !encoded {
				if sent, err := a.pass(ctx, req.CID.Cid, i); err != nil {
					return err
				} else if sent {
					continue
				}
			}
			block, err := a.block(ctx, req.CID.Cid, int(i))
			if err == nil && encoded {
				if sent, sendErr := a.sendEncoded(ctx, i, block, req.Encodings); sent || sendErr != nil {
					if sendErr != nil {
						return sendErr
					}
					continue
				}
			}
			if sendErr := a.send(ctx, i, block, err); err != nil || sendErr != nil {
				return sendErr // a refusal ends the request, not the stream
			}
		}
	}
	return nil
}

// whole returns the block that a CID names.
func (a *answerer) whole(ctx context.Context, c cid.Cid) ([]byte, error) {
	block, err := a.s.store.GetBlock(ctx, c, a.buf[headerSize:])
	if errors.Is(err, storage.ErrNotFound) {
		if node, ok := a.s.node(c, a.buf[headerSize:]); ok {
			return node, nil
		}
		if a.s.resume(ctx, c) != nil {
			if node, ok := a.s.node(c, a.buf[headerSize:]); ok {
				return node, nil
			}
		}
	}
	return block, err
}

// block returns a leaf of a file, from the store or from an unfinished fetch.
func (a *answerer) block(ctx context.Context, c cid.Cid, i int) ([]byte, error) {
	if o := a.s.offered(c); o != nil {
		block, err := o.part.Block(i, a.buf[headerSize:])
		if !errors.Is(err, fs.ErrClosed) {
			return block, err
		}
		o.withdraw()
	}
	if a.reader == nil || a.open != c {
		a.close()
		r, err := a.s.store.Open(ctx, c)
		if errors.Is(err, storage.ErrNotFound) {
			if o := a.s.resume(ctx, c); o != nil {
				return o.part.Block(i, a.buf[headerSize:])
			}
		}
		if err != nil {
			return nil, err
		}
		a.open, a.reader = c, r
	}
	return a.reader.Check(i, a.buf[headerSize:])
}

// pass sends a leaf that was hashed before in pieces that stay in the processor's cache between the file and the stream. False
// means that it takes the long way, by block and send.
func (a *answerer) pass(ctx context.Context, c cid.Cid, i uint32) (bool, error) {
	if a.reader == nil || a.open != c {
		return false, nil
	}
	leaf := a.reader.Hashed(int(i))
	if leaf == nil {
		return false, nil
	}
	start := time.Now()
	plain(statusBlock, i, int(leaf.Size())).put(a.buf[:])
	for at := headerSize; leaf.Size() > 0; at = 0 {
		n, err := leaf.Read(a.buf[at:yamuxFrame])
		if err == io.EOF {
			break
		}
		if err == nil {
			err = a.write(ctx, a.buf[:at+n])
		}
		if err != nil {
			return false, fmt.Errorf("transfer: send block %d of %s: %w", i, c, err)
		}
	}
	if short := leaf.Size() - position(leaf); short != 0 {
		return false, fmt.Errorf("transfer: send block %d of %s: its file ended %d bytes early", i, c, short)
	}
	a.pace.wrote(time.Since(start), int(leaf.Size()))
	a.s.up.block(int(leaf.Size()))
	a.s.up.wire.Add(uint64(leaf.Size()))
	return true, nil
}

// position returns how far a section was read.
func position(s *io.SectionReader) int64 {
	at, _ := s.Seek(0, io.SeekCurrent) // of a section, which cannot fail
	return at
}

// have says which blocks of an object are here.
func (a *answerer) have(ctx context.Context, req Request) error {
	h, c := have{complete: true}, req.CID.Cid
	o := a.s.offered(c)
	if !o.running() {
		whole, err := a.s.store.Has(ctx, c)
		switch {
		case whole:
			o.withdraw() // it has ended in another way
			o = nil
		case o == nil:
			o = a.s.resume(ctx, c)
		}
		if err != nil || !whole && o == nil {
			return a.send(ctx, 0, nil, errors.Join(storage.ErrNotFound, err))
		}
	}
	if o != nil {
		h = o.news(req.Epoch, req.Since)
	}
	payload := h.encode()
	n := copy(a.buf[headerSize:], payload)
	plain(statusHave, 0, n).put(a.buf[:])
	return a.write(ctx, a.buf[:headerSize+n])
}

// send writes one answer: a block, or why there is none.
func (a *answerer) send(ctx context.Context, number uint32, block []byte, err error) error {
	h := plain(statusBlock, number, len(block))
	switch {
	case errors.Is(err, storage.ErrNotFound) || errors.Is(err, storage.ErrWrongKind):
		h = plain(statusNotFound, number, 0)
	case err != nil:
		a.s.log.Warn("cannot serve a block", "block", number, "err", err)
		h = plain(statusUnavailable, number, 0)
	}
	if h.status != statusBlock {
		a.s.up.refused.Add(1)
	}
	h.put(a.buf[:])
	if h.length > 0 && &block[0] != &a.buf[headerSize] {
		copy(a.buf[headerSize:], block) // the store had it elsewhere in memory: small
	}
	return a.finish(ctx, h)
}

// finish writes the answer that lies in the buffer.
func (a *answerer) finish(ctx context.Context, h header) error {
	start := time.Now()
	if err := a.write(ctx, a.buf[:headerSize+h.length]); err != nil {
		return fmt.Errorf("transfer: write block: %w", err)
	}
	if h.status == statusBlock {
		a.pace.wrote(time.Since(start), int(h.length))
		a.s.up.block(int(h.size))
		a.s.up.wire.Add(uint64(h.length))
	}
	return nil
}

// write sends bytes as fast as the limits allow: in one piece when there are none.
func (a *answerer) write(ctx context.Context, b []byte) error {
	piece := len(b)
	if a.s.rate != nil || a.peer != nil {
		piece = segment
	}
	for len(b) > 0 {
		part := b[:min(piece, len(b))]
		if err := errors.Join(a.peer.wait(ctx, len(part)), a.s.rate.wait(ctx, len(part))); err != nil {
			return err
		}
		if err := a.stream.SetDeadline(time.Now().Add(writeTimeout)); err != nil {
			return err
		}
		if _, err := a.stream.Write(part); err != nil {
			return err
		}
		b = b[len(part):]
	}
	return nil
}

// room counts the blocks in memory. One peer gets a share of it, so that peers that take their blocks slowly leave something to
// the others.
type room struct {
	share int // blocks at most for one peer

	mu      sync.Mutex
	free    int
	held    map[peer.ID]int
	changed chan struct{}
}

func (r *room) enter(ctx context.Context, id peer.ID) error {
	for {
		r.mu.Lock()
		if r.free > 0 && r.held[id] < r.share {
			r.free--
			r.held[id]++
			r.mu.Unlock()
			return nil
		}
		changed := r.changed
		r.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (r *room) leave(id peer.ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.free++
	if r.held[id]--; r.held[id] == 0 {
		delete(r.held, id)
	}
	close(r.changed)
	r.changed = make(chan struct{})
}

// Sending returns how many blocks are in memory on their way out, and how many of them at most for one peer.
func (s *Server) Sending() (blocks, onePeer int) {
	s.room.mu.Lock()
	defer s.room.mu.Unlock()
	for _, n := range s.room.held {
		blocks += n
		onePeer = max(onePeer, n)
	}
	return blocks, onePeer
}
