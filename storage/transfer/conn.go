package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/capacloud/capanode/p2p"
	"github.com/capacloud/capanode/p2p/wire"
	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/unixfs"
)

// perRequest is how many blocks a fetcher names in one request: enough to keep requests rare, few enough that work stays
// divisible between sources.
const perRequest = 4

// conn is one stream to one source. Requests go out from any goroutine; one goroutine reads the answers, which come in
// the order of the requests.
type conn struct {
	stream p2p.Stream
	stall  time.Duration
	down   *counters
	credit chan struct{} // one token per block in flight: bounds what the source may have under way
	dead   chan struct{} // closed when the stream is given up

	send  sync.Mutex // one request at a time on the stream, in the order of calls
	calls chan call  // requests whose answers have not been read

	mu     sync.Mutex
	closed bool
	blocks uint64 // good blocks so far
}

// call is one request on its way.
type call struct {
	plan   *plan
	blocks []int
	misses func() // the source does not have it
}

func newConn(s p2p.Stream, o Options, down *counters) *conn {
	return &conn{
		stream: s, stall: o.Stall, down: down,
		credit: make(chan struct{}, o.Window), calls: make(chan call, o.Window), dead: make(chan struct{}),
	}
}

func (c *conn) isDead() bool {
	select {
	case <-c.dead:
		return true
	default:
		return false
	}
}

// work feeds a plan's blocks through the stream until the plan ends, the source turns out not to have the object, or the
// stream dies.
func (c *conn) work(ctx context.Context, p *plan) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	n := min(perRequest, cap(c.credit))
	for {
		blocks := p.take(ctx, c, n)
		if len(blocks) == 0 {
			return
		}
		if !c.request(ctx, call{p, blocks, stop}) {
			for _, b := range blocks {
				p.giveBack(c, b)
			}
			return
		}
	}
}

// request sends one request once there is credit for its blocks. False means that it was not sent and never will be.
func (c *conn) request(ctx context.Context, k call) bool {
	for got := range k.blocks {
		select {
		case c.credit <- struct{}{}:
		case <-c.dead:
			return false
		case <-k.plan.ended:
			c.repay(got)
			return false
		case <-ctx.Done():
			c.repay(got)
			return false
		}
	}
	c.send.Lock()
	defer c.send.Unlock()
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return false
	}
	c.calls <- k // never blocks: a call holds at least one of as many credits
	c.mu.Unlock()
	req := Request{CID: wire.Link{Cid: k.plan.cid}}
	if !k.plan.whole {
		req.Ranges = rangesOf(k.blocks)
	}
	c.down.requests.Add(1)
	err := c.stream.SetDeadline(time.Now().Add(c.stall))
	if err == nil {
		err = wire.WriteRecord(c.stream, req)
	}
	if err != nil {
		_ = c.stream.Reset() // the reader sees it and gives the call back
	}
	return true
}

func (c *conn) repay(n int) {
	for range n {
		<-c.credit
	}
}

// read reads answers until the context ends or the source fails. It returns why it stopped; the blocks that it owed are
// given back.
func (c *conn) read(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = c.stream.Reset() })
	defer stop()
	err := c.loop(ctx)
	close(c.dead)
	_ = c.stream.Reset()
	c.mu.Lock()
	c.closed = true
	close(c.calls)
	c.mu.Unlock()
	for k := range c.calls {
		c.giveUp(k, 0)
	}
	return err
}

func (c *conn) loop(ctx context.Context) error {
	buf := make([]byte, unixfs.MaxBlock)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case k := <-c.calls:
			for i, block := range k.blocks {
				more, err := c.answer(k, block, buf)
				if err != nil {
					c.giveUp(k, i)
					return err
				}
				if !more {
					c.giveUp(k, i)
					k.misses()
					c.repay(len(k.blocks) - i)
					break
				}
				c.repay(1)
			}
		}
	}
}

// giveUp gives the blocks of a call back, from the i-th on.
func (c *conn) giveUp(k call, i int) {
	for _, b := range k.blocks[i:] {
		k.plan.giveBack(c, b)
	}
}

// answer reads one answer. False means that the source ended the request because it does not have the object.
func (c *conn) answer(k call, block int, buf []byte) (bool, error) {
	// The deadline covers one block: a source that needs longer for a megabyte counts as stalled.
	if err := c.stream.SetDeadline(time.Now().Add(c.stall)); err != nil {
		return false, err
	}
	var head [headerSize]byte
	if _, err := io.ReadFull(c.stream, head[:]); err != nil {
		return false, fmt.Errorf("transfer: read answer: %w", err)
	}
	h, err := parseHeader(head[:], uint32(block))
	if err != nil {
		return false, err
	}
	if h.status != statusBlock {
		return false, nil
	}
	data := buf[:h.length]
	if _, err := io.ReadFull(c.stream, data); err != nil {
		return false, fmt.Errorf("transfer: read block of %d bytes: %w", h.length, err)
	}
	err = k.plan.arrived(block, data)
	switch {
	case errors.Is(err, storage.ErrCorrupt):
		c.down.refused.Add(1)
		return false, err
	case err != nil:
		k.plan.fail(err) // the disk, the quota: the source did nothing wrong
		return true, nil
	}
	c.down.block(len(data))
	c.mu.Lock()
	defer c.mu.Unlock()
	c.blocks++
	return true, nil
}

// delivered returns the good blocks that came over this stream.
func (c *conn) delivered() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.blocks
}
