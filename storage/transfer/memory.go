package transfer

import (
	"context"
	"sync"

	"github.com/capacloud/capanode/storage/unixfs"
)

// minMemory is the smallest budget of a fetcher in bytes: below, nothing could move.
const minMemory = 4 * unixfs.MaxBlock

// memory is the budget of bytes that a fetcher has asked for and not yet written to the disk, over all its fetches and
// sources. They lie in a source's send queue, on the way, in the transport's receive buffer or in a block buffer here, so
// the budget bounds all four.
type memory struct {
	limit int64

	mu      sync.Mutex
	used    int64
	peak    int64
	flows   int           // live sources, which share the budget
	changed chan struct{} // closed and replaced when something is given back
}

func newMemory(limit int64) *memory {
	return &memory{limit: max(limit, minMemory), changed: make(chan struct{})}
}

// join counts one more source among those that share the budget.
func (m *memory) join() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.flows++
}

func (m *memory) leave() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.flows--
	m.wake()
}

// acquire reserves up to want blocks for a source, at least one, and waits until there is room. It returns 0 when the source,
// the work or the context ends first.
func (m *memory) acquire(ctx context.Context, f *flow, p *plan, want int) int {
	for {
		m.mu.Lock()
		share := max(p.blockSize, m.limit/int64(max(1, m.flows)))
		room := min(m.limit-m.used, min(share, f.window(p.blockSize))-f.underWay())
		if n := min(int64(want), room/p.blockSize); n > 0 {
			m.used += n * p.blockSize
			m.peak = max(m.peak, m.used)
			f.promise(n * p.blockSize)
			m.mu.Unlock()
			return int(n)
		}
		changed := m.changed
		m.mu.Unlock()
		select {
		case <-changed:
		case <-f.dead:
			return 0
		case <-p.ended:
			return 0
		case <-ctx.Done():
			return 0
		}
	}
}

// release gives the bytes of blocks back that have been written, or will not come.
func (m *memory) release(f *flow, n int64) {
	if n == 0 {
		return
	}
	f.promise(-n)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.used -= n
	m.wake()
}

// wake is called with mu held.
func (m *memory) wake() {
	close(m.changed)
	m.changed = make(chan struct{})
}

// usage returns the bytes in use now and at most so far.
func (m *memory) usage() (used, peak int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.used, m.peak
}
