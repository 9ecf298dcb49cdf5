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
	"github.com/capacloud/capanode/storage/encode"
	"github.com/capacloud/capanode/storage/unixfs"
)

// newsEvery is how often a source that has not everything yet is asked for what it got since.
const newsEvery = 200 * time.Millisecond

// lane is a way to one source: a stream to a peer, or a web server.
type lane interface {
	// work feeds a plan's blocks through the lane until the plan or the lane ends, or the source has nothing of it.
	work(ctx context.Context, p *plan)
	// state says how the source is doing.
	state() *flow
}

// conn is one stream to one peer. Requests go out from any goroutine; one goroutine reads the answers, which come in the
// order of the requests, and hands the blocks to those that hash and write them.
type conn struct {
	*flow
	stream p2p.Stream
	s      *session

	send sync.Mutex // one request at a time on the stream, in the order of calls

	mu     sync.Mutex
	closed bool
	calls  []call        // requests whose answers have not been read
	more   chan struct{} // holds a token when calls has grown
	bad    error         // a block that did not match, noticed by a worker

	working sync.WaitGroup // blocks that are being hashed and written
}

// call is one request on its way.
type call struct {
	plan   *plan
	blocks []int // none when it asks for what is there
}

func newConn(s *session, stream p2p.Stream) *conn {
	return &conn{flow: newFlow(stream.Remote().String()), stream: stream, s: s, more: make(chan struct{}, 1)}
}

func (c *conn) state() *flow { return c.flow }

// work implements [lane].
func (c *conn) work(ctx context.Context, p *plan) {
	defer p.forget(c.flow)
	asked, spent := time.Now(), false
	if !p.whole && !c.askHave(p) {
		return
	}
	for ctx.Err() == nil && !c.isDead() {
		next := p.look(c.flow, 1)
		if next.over {
			return
		}
		if _, _, growing := p.known(c.flow); growing && time.Since(asked) >= newsEvery {
			asked = time.Now()
			if !c.askHave(p) {
				return
			}
		}
		if len(next.blocks) == 0 {
			if now := p.spent(c.flow); now != spent {
				spent = now
				c.s.update(func() {}) // nobody need wait for this source
			}
			p.pause(ctx, c.flow, next)
			continue
		}
		n := c.s.f.mem.acquire(ctx, c.flow, p, p.batch())
		if n == 0 {
			return
		}
		blocks := p.take(c.flow, n).blocks
		c.s.f.mem.release(c.flow, int64(n-len(blocks))*p.blockSize)
		for len(blocks) > 0 {
			n := oneRequest(blocks)
			if !c.request(call{p, blocks[:n]}) {
				c.giveUp(call{p, blocks})
				return
			}
			blocks = blocks[n:]
		}
	}
}

// askHave asks the source what it has of the plan's object.
func (c *conn) askHave(p *plan) bool { return c.request(call{p, nil}) }

// request sends one request. False means that it was not sent and never will be.
func (c *conn) request(k call) bool {
	c.send.Lock()
	defer c.send.Unlock()
	c.asked(int64(len(k.blocks)) * k.plan.blockSize)
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return false
	}
	c.calls = append(c.calls, k)
	c.mu.Unlock()
	select {
	case c.more <- struct{}{}:
	default:
	}
	req := Request{CID: wire.Link{Cid: k.plan.cid}}
	switch {
	case len(k.blocks) == 0:
		req.Have = true
		req.Epoch, req.Since, _ = k.plan.known(c.flow)
	case !k.plan.whole:
		req.Ranges, req.Encodings = rangesOf(k.blocks), c.s.f.encodings()
	}
	c.s.f.down.requests.Add(1)
	err := c.stream.SetDeadline(time.Now().Add(c.s.f.opts.Stall))
	if err == nil {
		err = wire.WriteRecord(c.stream, req)
	}
	if err != nil {
		_ = c.stream.Reset() // the reader sees it and gives the call back
	}
	return true
}

// read reads answers until the context ends or the source fails. It returns why it stopped; the blocks that it owed are
// given back.
func (c *conn) read(ctx context.Context) error {
	c.s.f.mem.join()
	defer c.s.f.mem.leave()
	stop := context.AfterFunc(ctx, func() { _ = c.stream.Reset() })
	defer stop()
	err := c.loop(ctx)
	close(c.dead)
	_ = c.stream.Reset()
	c.mu.Lock()
	c.closed = true
	calls := c.calls
	c.calls = nil
	c.mu.Unlock()
	for _, k := range calls {
		c.giveUp(k)
	}
	c.working.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.bad != nil {
		return c.bad
	}
	return err
}

func (c *conn) loop(ctx context.Context) error {
	for {
		c.mu.Lock()
		var k call
		if len(c.calls) > 0 {
			k, c.calls = c.calls[0], c.calls[1:]
		}
		c.mu.Unlock()
		if k.plan == nil {
			select {
			case <-c.more:
			case <-ctx.Done():
				return ctx.Err()
			}
			continue
		}
		if err := c.answers(ctx, k); err != nil {
			return err
		}
	}
}

// answers reads all answers to one request.
func (c *conn) answers(ctx context.Context, k call) error {
	if len(k.blocks) == 0 {
		return c.hear(k.plan)
	}
	for i, block := range k.blocks {
		more, err := c.answer(ctx, k.plan, block)
		if err != nil || !more {
			c.giveUp(call{k.plan, k.blocks[i:]})
			if err == nil {
				k.plan.missed(c.flow, block)
			}
			return err
		}
	}
	return nil
}

// giveUp gives the blocks of a call back.
func (c *conn) giveUp(k call) {
	for _, b := range k.blocks {
		k.plan.giveBack(c.flow, b)
	}
	n := int64(len(k.blocks)) * k.plan.blockSize
	c.forgave(n)
	c.s.f.mem.release(c.flow, n)
}

// header reads the header of an answer.
func (c *conn) header(want uint32, have, whole bool) (header, error) {
	if err := c.stream.SetDeadline(time.Now().Add(c.s.f.opts.Stall)); err != nil {
		return header{}, err
	}
	var head [headerSize]byte
	if _, err := io.ReadFull(c.stream, head[:]); err != nil {
		return header{}, fmt.Errorf("transfer: read answer: %w", err)
	}
	c.answered()
	from := c.s.f.encodings()
	if have || whole {
		from = 0
	}
	return parseHeader(head[:], want, have, from)
}

// hear reads what the source has.
func (c *conn) hear(p *plan) error {
	h, err := c.header(0, true, false)
	if err != nil {
		return err
	}
	if h.status != statusHave {
		p.useless(c.flow)
		return nil
	}
	b := make([]byte, h.length)
	if _, err := io.ReadFull(c.stream, b); err != nil {
		return fmt.Errorf("transfer: read what the source has: %w", err)
	}
	news, err := parseHave(b)
	if err != nil {
		return err
	}
	p.learn(c.flow, news)
	return nil
}

// answer reads one block and hands it on. False means that the source ended the request because it does not have the block.
func (c *conn) answer(ctx context.Context, p *plan, block int) (bool, error) {
	h, err := c.header(uint32(block), false, p.whole)
	if err != nil || h.status != statusBlock {
		return false, err
	}
	if int64(h.size) > p.blockSize {
		return false, fmt.Errorf("transfer: block of %d bytes, its object's have at most %d: %w", h.size, p.blockSize, ErrProtocol)
	}
	buf := c.s.f.buffer()
	data := buf[:h.length]
	for at := 0; at < len(data); {
		part := data[at:min(at+segment, len(data))]
		if err = c.s.f.rate.wait(ctx, len(part)); err == nil {
			err = c.stream.SetDeadline(time.Now().Add(c.s.f.opts.Stall))
		}
		n := 0
		if err == nil {
			n, err = io.ReadFull(c.stream, part)
		}
		if err != nil {
			c.s.f.recycle(buf)
			return false, fmt.Errorf("transfer: read block of %d bytes after %d: %w", h.length, at+n, err)
		}
		c.alive()
		at += n
	}
	c.s.f.down.wire.Add(uint64(h.length))
	c.got(int64(h.size), p.blockSize)
	c.working.Add(1)
	c.s.hand(func() {
		defer c.working.Done()
		if h.encoding == encode.Raw {
			c.settle(p, block, data)
		} else {
			c.decode(p, block, h, data)
		}
		c.s.f.recycle(buf)
	})
	return true, nil
}

// decode decodes a block, then settles it.
func (c *conn) decode(p *plan, block int, h header, data []byte) {
	f := c.s.f
	d := f.decoders.Get().(*encode.Decoder)
	defer f.decoders.Put(d)
	buf := f.buffer()
	defer f.recycle(buf)
	if err := d.Decode(h.encoding, data, buf[:h.size]); err != nil {
		f.down.refused.Add(1)
		p.giveBack(c.flow, block)
		f.mem.release(c.flow, p.blockSize)
		c.blame(fmt.Errorf("transfer: block %d: %w: %w", block, ErrProtocol, err))
		return
	}
	c.settle(p, block, buf[:h.size])
}

// settle hashes and writes a block.
func (c *conn) settle(p *plan, block int, data []byte) {
	defer c.s.f.mem.release(c.flow, p.blockSize)
	if err := c.s.settle(p, c.flow, block, data); err != nil {
		c.blame(err)
	}
}

// blame ends the use of a source: nothing more that it sends is of use.
func (c *conn) blame(err error) {
	c.mu.Lock()
	c.bad = err
	c.mu.Unlock()
	_ = c.stream.Reset()
}

// settle takes a block from a source. An error says that the source is to blame.
func (s *session) settle(p *plan, f *flow, block int, data []byte) error {
	err := p.arrived(block, data)
	switch {
	case errors.Is(err, storage.ErrCorrupt):
		s.f.down.refused.Add(1)
		p.giveBack(f, block)
		return err
	case err != nil:
		p.fail(err) // the disk, the quota: the source did nothing wrong
	default:
		s.f.down.block(len(data))
	}
	return nil
}

// buffer returns room for one block.
func (f *Fetcher) buffer() *[unixfs.MaxBlock]byte   { return f.bufs.Get().(*[unixfs.MaxBlock]byte) }
func (f *Fetcher) recycle(b *[unixfs.MaxBlock]byte) { f.bufs.Put(b) }
