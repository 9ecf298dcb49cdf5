package transfer

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
)

// plan is the work that one object still needs: which blocks nobody was asked for, and who was asked for the others.
type plan struct {
	cid     cid.Cid
	whole   bool // the block of the CID itself instead of numbered blocks
	deliver func(block int, data []byte) error
	hedge   time.Duration

	mu      sync.Mutex
	pending []int       // ascending
	asked   map[int]ask // by block
	done    []bool      // by block
	left    int         // blocks that have not arrived
	err     error       // why the plan failed, for reasons that no other source can mend
	changed chan struct{}
	ended   chan struct{} // closed when left is 0 or err is set
}

// ask is one block in flight.
type ask struct {
	from *conn
	at   time.Time
	also *conn // a second source that was asked because the first is slow
}

// newPlan plans for at least one block, in ascending order.
func newPlan(c cid.Cid, blocks []int, hedge time.Duration, deliver func(int, []byte) error) *plan {
	return &plan{
		cid: c, deliver: deliver, hedge: hedge,
		pending: blocks, asked: map[int]ask{}, done: make([]bool, blocks[len(blocks)-1]+1), left: len(blocks),
		changed: make(chan struct{}), ended: make(chan struct{}),
	}
}

// take returns up to n blocks for the source to ask for, waiting for work if others have it all. Blocks that another
// source has owed for longer than the hedge delay are asked for twice. It returns nil when there is nothing left to do
// for this source.
func (p *plan) take(ctx context.Context, c *conn, n int) []int {
	for {
		blocks, wait, changed := p.tryTake(c, n)
		if len(blocks) > 0 || changed == nil {
			return blocks
		}
		timer := time.NewTimer(wait)
		select {
		case <-changed:
		case <-timer.C:
		case <-c.dead:
		case <-p.ended:
		case <-ctx.Done():
		}
		timer.Stop()
		if ctx.Err() != nil || c.isDead() {
			return nil
		}
	}
}

// tryTake is one turn of take. A nil channel means that the plan has ended.
func (p *plan) tryTake(c *conn, n int) (blocks []int, wait time.Duration, changed <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.left == 0 || p.err != nil {
		return nil, 0, nil
	}
	now := time.Now()
	if n = min(n, len(p.pending)); n > 0 {
		blocks = slices.Clone(p.pending[:n])
		p.pending = p.pending[n:]
		for _, b := range blocks {
			p.asked[b] = ask{from: c, at: now}
		}
		return blocks, 0, p.changed
	}
	wait = p.hedge
	for b, a := range p.asked {
		if a.also != nil || a.from == c {
			continue
		}
		if late := p.hedge - now.Sub(a.at); late > 0 {
			wait = min(wait, late)
			continue
		}
		a.also = c
		p.asked[b] = a
		return []int{b}, 0, p.changed
	}
	return nil, max(wait, time.Millisecond), p.changed
}

// arrived takes in one block from a source. A block that another source delivered first is ignored. The error is that of
// deliver, and the block is still owed then.
func (p *plan) arrived(block int, data []byte) error {
	p.mu.Lock()
	done := p.done[block] || p.err != nil
	p.mu.Unlock()
	if done {
		return nil
	}
	if err := p.deliver(block, data); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.done[block] {
		return nil
	}
	p.done[block] = true
	delete(p.asked, block)
	if at, ok := slices.BinarySearch(p.pending, block); ok {
		p.pending = slices.Delete(p.pending, at, at+1)
	}
	if p.left--; p.left == 0 {
		p.end(nil)
	}
	return nil
}

// giveBack puts a block that a source failed to deliver back to work.
func (p *plan) giveBack(c *conn, block int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	a, ok := p.asked[block]
	switch {
	case !ok || (a.from != c && a.also != c):
		return
	case a.also == c:
		a.also = nil
		p.asked[block] = a
		return
	case a.also != nil:
		p.asked[block] = ask{from: a.also, at: a.at}
		return
	}
	delete(p.asked, block)
	at, _ := slices.BinarySearch(p.pending, block)
	p.pending = slices.Insert(p.pending, at, block)
	close(p.changed)
	p.changed = make(chan struct{})
}

// fail ends the plan for a reason that no other source can mend.
func (p *plan) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.end(err)
}

// end is called with mu held.
func (p *plan) end(err error) {
	select {
	case <-p.ended:
	default:
		p.err = err
		close(p.ended)
	}
}

// result returns whether the plan has ended, and how.
func (p *plan) result() (ended bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.left == 0 || p.err != nil, p.err
}
