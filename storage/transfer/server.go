package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/p2p"
	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/unixfs"
)

// Stats counts what moved since the start, in one direction.
type Stats struct {
	Requests uint64
	Blocks   uint64
	Bytes    uint64 // of blocks
	Refused  uint64 // server: requests for what is not here; fetcher: blocks that failed their hash
}

// counters is the running form of Stats.
type counters struct{ requests, blocks, bytes, refused atomic.Uint64 }

func (c *counters) stats() Stats {
	return Stats{c.requests.Load(), c.blocks.Load(), c.bytes.Load(), c.refused.Load()}
}

func (c *counters) block(n int) {
	c.blocks.Add(1)
	c.bytes.Add(uint64(n))
}

// Server answers requests from a store.
type Server struct {
	store *storage.Store
	log   *slog.Logger
	up    counters
}

// Serve answers blob requests on the network from the store until the network stops. Any peer may ask for any object.
func Serve(net p2p.Network, store *storage.Store, log *slog.Logger) *Server {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := &Server{store: store, log: log}
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

// Stats returns what was served.
func (s *Server) Stats() Stats { return s.up.stats() }

// serve answers the requests of one stream in order. It holds one block in memory and one open object.
func (s *Server) serve(ctx context.Context, stream p2p.Stream) error {
	a := &answerer{s: s, stream: stream, buf: make([]byte, headerSize+unixfs.MaxBlock)}
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
		if err := a.answer(ctx, req); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// answerer is the state of one stream.
type answerer struct {
	s      *Server
	stream p2p.Stream
	buf    []byte // header and block
	open   cid.Cid
	reader *storage.Reader // of open, nil when none is
}

func (a *answerer) close() {
	if a.reader != nil {
		_ = a.reader.Close() // read only
		a.reader = nil
	}
}

func (a *answerer) answer(ctx context.Context, req Request) error {
	if len(req.Ranges) == 0 {
		block, err := a.s.store.GetBlock(ctx, req.CID.Cid, a.buf[headerSize:])
		return a.send(0, block, err)
	}
	if a.reader == nil || a.open != req.CID.Cid {
		a.close()
		r, err := a.s.store.Open(ctx, req.CID.Cid)
		if err != nil {
			return a.send(req.Ranges[0].First, nil, err)
		}
		a.open, a.reader = req.CID.Cid, r
	}
	for _, run := range req.Ranges {
		for i := run.First; i < run.First+run.Count; i++ {
			block, err := a.reader.Block(int(i), a.buf[headerSize:])
			if sendErr := a.send(i, block, err); err != nil || sendErr != nil {
				return sendErr // a refusal ends the request, not the stream
			}
		}
	}
	return nil
}

// send writes one answer in one write: a block, or why there is none.
func (a *answerer) send(number uint32, block []byte, err error) error {
	h := header{statusBlock, number, uint32(len(block))}
	switch {
	case errors.Is(err, storage.ErrNotFound) || errors.Is(err, storage.ErrWrongKind):
		h = header{statusNotFound, number, 0}
	case err != nil:
		a.s.log.Warn("cannot serve a block", "block", number, "err", err)
		h = header{statusUnavailable, number, 0}
	}
	if h.status != statusBlock {
		a.s.up.refused.Add(1)
	}
	h.put(a.buf)
	if h.length > 0 && &block[0] != &a.buf[headerSize] {
		copy(a.buf[headerSize:], block) // the store had it elsewhere in memory: small
	}
	if err := a.stream.SetDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	if _, err := a.stream.Write(a.buf[:headerSize+h.length]); err != nil {
		return fmt.Errorf("transfer: write block: %w", err)
	}
	if h.status == statusBlock {
		a.s.up.block(int(h.length))
	}
	return nil
}
