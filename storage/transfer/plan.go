package transfer

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/storage/unixfs"
)

const (
	// slowShare is the part of the median rate below which a source's blocks are asked of others, too.
	slowShare = 4
	// tailShare is the part of a plan, one in so many blocks, that counts as its tail: sources that would end it later than the
	// others leave it to them.
	tailShare = 50
	// rareScan bounds how many blocks are looked at for the rarest.
	rareScan = 4096
	// requestBytes is how much a request asks for at most: enough to keep requests rare, little enough to stay divisible.
	requestBytes = 4 << 20
)

// plan is the work that one object still needs: which blocks nobody was asked for, who was asked for the others, and which
// source has which.
type plan struct {
	cid       cid.Cid
	whole     bool           // the block of the CID itself instead of numbered blocks
	blockSize int64          // of the largest block
	layout    *unixfs.Layout // of the file whose leaves these are; nil for a whole block
	start     int            // where the search for work begins
	deliver   func(block int, data []byte) error
	landed    func(block, size int) // called once for each block that was delivered, with mu held; may be nil
	hedge     time.Duration

	mu      sync.Mutex
	pending bits
	waiting int // blocks in pending
	asked   map[int]ask
	seq     uint64
	done    bits
	left    int // blocks that have not arrived
	total   int
	views   map[*flow]*view
	rare    []uint16       // by block: how many of the incomplete sources have it; nil without such a source
	readers map[any]window // what is being read
	twice   int            // blocks that were asked of a second source
	err     error          // why the plan failed, for reasons that no other source can mend
	changed chan struct{}
	ended   chan struct{} // closed when left is 0 or err is set
}

// ask is one block in flight.
type ask struct {
	from *flow
	at   time.Time
	seq  uint64 // order of asking
	also *flow  // a second source that was asked because the first is slow
}

// window is a run of blocks that a reader wants next.
type window struct{ first, end int }

// view is what is known of a source's blocks.
type view struct {
	out   bool // the source is of no use for this plan
	all   bool // it has every block, as is assumed of one that has not said
	have  bits // what it has, when not all
	fixed bool // and it will not get more
	epoch uint64
	count uint32
}

// newPlan plans for at least one block, in ascending order.
func newPlan(c cid.Cid, blocks []int, hedge time.Duration, deliver func(int, []byte) error) *plan {
	size := blocks[len(blocks)-1] + 1
	p := &plan{
		cid: c, deliver: deliver, hedge: hedge, blockSize: unixfs.MaxBlock,
		pending: newBits(size), waiting: len(blocks), asked: map[int]ask{}, done: newBits(size),
		left: len(blocks), total: len(blocks), views: map[*flow]*view{}, readers: map[any]window{},
		changed: make(chan struct{}), ended: make(chan struct{}),
	}
	for _, b := range blocks {
		p.pending.set(b)
	}
	return p
}

// choice is what a source should do next.
type choice struct {
	blocks  []int
	wait    time.Duration // until asking again makes sense, if there are no blocks
	changed <-chan struct{}
	over    bool // there is nothing left for this source
}

// look says what take would give.
func (p *plan) look(f *flow, n int) choice {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.choose(f, n)
}

// take hands out up to n blocks for the source to ask for.
func (p *plan) take(f *flow, n int) choice {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.choose(f, n)
	now := time.Now()
	for _, b := range c.blocks {
		if a, ok := p.asked[b]; ok {
			a.also = f
			p.asked[b] = a
			p.twice++
			continue
		}
		p.pending.clear(b)
		p.waiting--
		p.seq++
		p.asked[b] = ask{from: f, at: now, seq: p.seq}
	}
	return c
}

// choose picks in this order: what a reader waits for, what it waits for from a slow source, what nobody was asked for, and at
// the end what others owe for too long. It is called with mu held.
func (p *plan) choose(f *flow, n int) choice {
	v := p.view(f)
	if p.left == 0 || p.err != nil || v.out {
		return choice{over: true}
	}
	var have bits
	if !v.all {
		have = v.have
	}
	now := time.Now()
	for _, r := range p.readers {
		if blocks := p.run(have, r.first, r.end, n); len(blocks) > 0 {
			return choice{blocks: blocks}
		}
		if b, ok := p.late(f, have, now, r); ok {
			return choice{blocks: []int{b}}
		}
	}
	if p.waiting > 0 && !p.leave(f) {
		if blocks := p.rarest(have, n); len(blocks) > 0 {
			return choice{blocks: blocks}
		}
	}
	if p.waiting == 0 {
		if b, ok := p.late(f, have, now, window{0, 64 * len(p.done)}); ok {
			return choice{blocks: []int{b}}
		}
	}
	return choice{wait: min(p.hedge, 100*time.Millisecond), changed: p.changed}
}

func (p *plan) view(f *flow) *view {
	v := p.views[f]
	if v == nil {
		v = &view{all: true}
		p.views[f] = v
	}
	return v
}

// run returns up to n pending blocks of a source from first to end.
func (p *plan) run(have bits, first, end, n int) []int {
	var blocks []int
	for b := p.pending.next(have, first); b >= 0 && b < end && len(blocks) < n; b = p.pending.next(have, b+1) {
		blocks = append(blocks, b)
	}
	return blocks
}

// rarest returns up to n pending blocks of a source: those that the fewest incomplete sources have, and of equally rare ones
// the first from start on.
func (p *plan) rarest(have bits, n int) []int {
	end := 64 * len(p.pending)
	if p.rare == nil {
		blocks := p.run(have, p.start, end, n)
		return append(blocks, p.run(have, 0, p.start, n-len(blocks))...)
	}
	var blocks []int
	least := ^uint16(0)
	scanned := 0
	for _, part := range []window{{p.start, end}, {0, p.start}} {
		for b := p.pending.next(have, part.first); b >= 0 && b < part.end && scanned < rareScan; b = p.pending.next(have, b+1) {
			scanned++
			if p.rare[b] < least {
				least, blocks = p.rare[b], blocks[:0]
			}
			if p.rare[b] == least && len(blocks) < n {
				blocks = append(blocks, b)
			}
		}
	}
	return blocks
}

// leave reports whether a source should leave the rest of a plan to others, because they will be done before it would deliver
// one more block.
func (p *plan) leave(f *flow) bool {
	if p.waiting > max(p.total/tailShare, 2*len(p.views)) {
		return false
	}
	var rate float64
	for other, v := range p.views {
		if !v.out && v.all && other != f && !other.isDead() && other.silent(time.Now()) < p.hedge {
			rate += other.speed()
		}
	}
	if rate == 0 {
		return false
	}
	others := time.Duration(float64(int64(p.left)*p.blockSize) / rate * float64(time.Second))
	return f.speed() > 0 && f.due(p.blockSize) > 2*others+p.hedge
}

// late returns a block within a window that a source has owed for too long, the one that will come last.
func (p *plan) late(f *flow, have bits, now time.Time, within window) (int, bool) {
	best, last := -1, uint64(0)
	for b, a := range p.asked {
		if a.also != nil || a.from == f || b < within.first || b >= within.end || have != nil && !have.has(b) || a.seq < last {
			continue
		}
		if p.overdue(f, a, now) {
			best, last = b, a.seq
		}
	}
	return best, best >= 0
}

// overdue reports whether a block should be asked of f, too: its source is dead or silent, far slower than the others, or would
// deliver it long after f.
func (p *plan) overdue(f *flow, a ask, now time.Time) bool {
	if now.Sub(a.at) < p.hedge {
		return false
	}
	if a.from.isDead() || a.from.silent(now) >= p.hedge || now.Sub(a.at) > horizon+p.hedge {
		return true
	}
	if rate := a.from.speed(); rate > 0 && rate*slowShare < p.median() {
		return true
	}
	return f.speed() > 0 && a.from.due(0) > 2*f.due(p.blockSize)+p.hedge
}

// median returns the middle of the sources' known rates.
func (p *plan) median() float64 {
	var rates []float64
	for f, v := range p.views {
		if r := f.speed(); r > 0 && !v.out && !f.isDead() {
			rates = append(rates, r)
		}
	}
	if len(rates) < 2 {
		return 0
	}
	slices.Sort(rates)
	return rates[len(rates)/2]
}

// batch returns how many blocks a source should ask for at once: fewer as the plan ends, so that the others get a part.
func (p *plan) batch() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := int(min(requestBytes/p.blockSize, 256))
	return max(1, min(n, p.waiting/max(1, 2*len(p.views))))
}

// arrived takes in one block from a source. A block that another source delivered first is ignored. The error is that of
// deliver, and the block is still owed then.
func (p *plan) arrived(block int, data []byte) error {
	p.mu.Lock()
	done := p.done.has(block) || p.err != nil
	p.mu.Unlock()
	if done {
		return nil
	}
	if err := p.deliver(block, data); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.done.has(block) {
		return nil
	}
	p.done.set(block)
	delete(p.asked, block)
	if p.pending.has(block) {
		p.pending.clear(block)
		p.waiting--
	}
	if p.landed != nil {
		p.landed(block, len(data))
	}
	if p.left--; p.left == 0 {
		p.end(nil) // wakes the readers, too
	} else if len(p.readers) > 0 {
		p.wake()
	}
	return nil
}

// giveBack puts a block that a source failed to deliver back to work.
func (p *plan) giveBack(f *flow, block int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	a, ok := p.asked[block]
	switch {
	case !ok || (a.from != f && a.also != f):
		return
	case a.also == f:
		a.also = nil
		p.asked[block] = a
		return
	case a.also != nil:
		p.asked[block] = ask{from: a.also, at: a.at, seq: a.seq}
		return
	}
	delete(p.asked, block)
	p.pending.set(block)
	p.waiting++
	p.wake()
}

// missed notes that a source does not have a block that it was asked for.
func (p *plan) missed(f *flow, block int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	v := p.view(f)
	switch {
	case p.whole || v.all:
		v.out = true // whoever has all of it, and yet not this, has nothing
	case v.have.has(block):
		v.have.clear(block)
		p.rare[block]--
	}
	p.wake()
}

// useless notes that a source has nothing of the object.
func (p *plan) useless(f *flow) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.view(f).out = true
	p.wake()
}

// learn takes in what a source says that it has.
func (p *plan) learn(f *flow, h have) {
	p.mu.Lock()
	defer p.mu.Unlock()
	v := p.view(f)
	if !h.delta || v.all || h.epoch != v.epoch {
		p.unlearn(v)
		v.have = newBits(64 * len(p.done))
	}
	if v.all = h.complete; v.all {
		p.unlearn(v)
		v.have = nil
	} else if p.rare == nil {
		p.rare = make([]uint16, 64*len(p.done))
	}
	v.epoch, v.count, v.fixed = h.epoch, h.count, h.epoch == fixedEpoch && !h.complete
	for b := h.blocks.next(nil, 0); !v.all && b >= 0 && b < 64*len(v.have); b = h.blocks.next(nil, b+1) {
		if !v.have.has(b) {
			v.have.set(b)
			p.rare[b]++
		}
	}
	p.wake()
}

// unlearn takes a source's blocks out of the counts.
func (p *plan) unlearn(v *view) {
	for b := v.have.next(nil, 0); b >= 0; b = v.have.next(nil, b+1) {
		p.rare[b]--
	}
}

// forget drops a source that has gone.
func (p *plan) forget(f *flow) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if v := p.views[f]; v != nil {
		p.unlearn(v)
		delete(p.views, f)
	}
}

// known returns what to ask a source for: its news since an earlier answer, if it may have some.
func (p *plan) known(f *flow) (epoch uint64, count uint32, growing bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	v := p.view(f)
	return v.epoch, v.count, !v.all && !v.out && !v.fixed
}

// spent reports whether a source has given all that it has and will not get more.
func (p *plan) spent(f *flow) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	v := p.views[f]
	if v == nil || !v.fixed || v.out || p.pending.next(v.have, 0) >= 0 {
		return false
	}
	for _, a := range p.asked {
		if a.from == f || a.also == f {
			return false
		}
	}
	return true
}

// reading moves a reader's window; an empty one ends it.
func (p *plan) reading(who any, w window) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if w.first >= w.end {
		delete(p.readers, who)
		return
	}
	if p.readers[who] != w {
		p.readers[who] = w
		p.wake()
	}
}

// pause waits until the plan may have something for a source, or it has news to ask for.
func (p *plan) pause(ctx context.Context, f *flow, c choice) {
	timer := time.NewTimer(c.wait)
	defer timer.Stop()
	select {
	case <-c.changed:
	case <-timer.C:
	case <-f.dead:
	case <-p.ended:
	case <-ctx.Done():
	}
}

// wake is called with mu held.
func (p *plan) wake() {
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
		p.wake()
	}
}

// watch returns a channel that is closed at the next change, which for a plan with readers is the next block.
func (p *plan) watch() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.changed
}

// result returns whether the plan has ended, and how.
func (p *plan) result() (ended bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.left == 0 || p.err != nil, p.err
}
