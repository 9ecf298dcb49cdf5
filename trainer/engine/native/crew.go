package native

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/engine/native/kernel"
)

// worker is one goroutine's place to compute: nobody else touches it while a step runs.
type worker struct {
	kernel.Set
	product kernel.Product // lives here because an argument on the stack would escape
	scratch []float32
}

// multiply runs one matrix product.
func (w *worker) multiply(p kernel.Product) {
	w.product = p
	w.Multiply(&w.product)
}

// phase is work without order: tasks that touch different memory. Phases run one after the other.
type phase struct {
	groups []group
	tasks  int
	next   atomic.Int64 // the first task that nobody has taken
}

// group is tasks of one operation.
type group struct {
	tasks int
	run   func(w *worker, task int)
}

func (p *phase) add(tasks int, run func(w *worker, task int)) {
	p.groups = append(p.groups, group{tasks, run})
	p.tasks += tasks
}

func (p *phase) do(w *worker, task int) {
	for i := range p.groups {
		g := &p.groups[i]
		if task < g.tasks {
			g.run(w, task)
			return
		}
		task -= g.tasks
	}
}

// crew runs phases on a fixed number of goroutines. Each takes the next task when it is free, so that one that shares
// its core with other programs takes fewer. Who computes what never shows in the result.
type crew struct {
	workers  []*worker
	members  []func() // what the goroutine of each worker runs
	watchdog time.Duration
	timer    *time.Timer
	done     chan struct{} // one message for each goroutine that has left

	phases []*phase
	stop   atomic.Bool
	beats  atomic.Int64 // tasks done
	failed atomic.Pointer[error]
	gate   barrier
}

func newCrew(set kernel.Set, workers int, watchdog time.Duration) *crew {
	c := &crew{watchdog: watchdog, done: make(chan struct{}, workers)}
	c.gate.size, c.gate.wake.L = int32(workers), &c.gate.mu
	for range workers {
		w := &worker{Set: set}
		c.workers = append(c.workers, w)
		c.members = append(c.members, func() { c.work(w) })
	}
	return c
}

// reserve makes sure that each worker has that many elements of scratch.
func (c *crew) reserve(scratch int) {
	for _, w := range c.workers {
		if len(w.scratch) < scratch {
			w.scratch = make([]float32, scratch)
		}
	}
}

// run computes all phases in order. It returns the context's error when that ended first, the error of a task that
// panicked, or [engine.ErrHung] when no task ended for the watchdog's time: then the goroutines are lost and the crew
// must not be used again.
func (c *crew) run(ctx context.Context, phases []*phase) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	c.phases = phases
	for _, p := range phases {
		p.next.Store(0)
	}
	c.stop.Store(false)
	c.failed.Store(nil)
	c.gate.open()
	for _, member := range c.members {
		go member()
	}
	return c.await(ctx)
}

func (c *crew) await(ctx context.Context) error {
	if c.timer == nil {
		c.timer = time.NewTimer(c.watchdog)
	} else {
		c.timer.Reset(c.watchdog)
	}
	defer c.timer.Stop()
	ended, beats := ctx.Done(), c.beats.Load()
	for left := len(c.workers); left > 0; {
		select {
		case <-c.done:
			left--
		case <-ended:
			ended = nil // the goroutines leave after the task at hand
			c.abort()
		case <-c.timer.C:
			now := c.beats.Load()
			if now == beats {
				c.abort()
				return fmt.Errorf("no progress for %v: %w", c.watchdog, engine.ErrHung)
			}
			beats = now
			c.timer.Reset(c.watchdog)
		}
	}
	if err := c.failed.Load(); err != nil {
		return *err
	}
	if c.stop.Load() {
		return ctx.Err()
	}
	return nil
}

// abort lets all goroutines leave at their next task.
func (c *crew) abort() {
	c.stop.Store(true)
	c.gate.abort()
}

// work takes tasks of one phase after the other. A panic is a mistake of this package; it becomes an error, so that it
// costs a step and not the process.
func (c *crew) work(w *worker) {
	defer func() {
		if r := recover(); r != nil {
			err := fmt.Errorf("panic in a task: %v", r)
			c.failed.CompareAndSwap(nil, &err)
			c.abort()
		}
		c.done <- struct{}{}
	}()
	for _, p := range c.phases {
		for !c.stop.Load() {
			task := int(p.next.Add(1) - 1)
			if task >= p.tasks {
				break
			}
			p.do(w, task)
			c.beats.Add(1)
		}
		if !c.gate.wait() {
			return
		}
	}
}

// barrier holds its members until all have come. Phases are short, so members look again for a while before they sleep.
type barrier struct {
	size       int32
	arrived    atomic.Int32
	generation atomic.Int32
	aborted    atomic.Bool
	sleepers   atomic.Int32
	mu         sync.Mutex
	wake       sync.Cond
}

func (b *barrier) open() {
	b.arrived.Store(0)
	b.aborted.Store(false)
}

// looks is how often a member looks whether the others have come before it sleeps, some ten microseconds.
const looks = 2000

// wait returns true once all members have come, or false when the barrier was aborted.
func (b *barrier) wait() bool {
	generation := b.generation.Load()
	if b.arrived.Add(1) == b.size {
		b.arrived.Store(0)
		b.generation.Add(1)
		b.rouse()
		return !b.aborted.Load()
	}
	for i := range looks {
		if b.generation.Load() != generation || b.aborted.Load() {
			return !b.aborted.Load()
		}
		if i%128 == 127 {
			runtime.Gosched()
		}
	}
	b.mu.Lock()
	b.sleepers.Add(1)
	for b.generation.Load() == generation && !b.aborted.Load() {
		b.wake.Wait()
	}
	b.sleepers.Add(-1)
	b.mu.Unlock()
	return !b.aborted.Load()
}

// rouse wakes the sleepers. A member that counts itself after the look at sleepers has seen the new generation.
func (b *barrier) rouse() {
	if b.sleepers.Load() > 0 {
		b.mu.Lock()
		b.wake.Broadcast()
		b.mu.Unlock()
	}
}

func (b *barrier) abort() {
	b.aborted.Store(true)
	b.mu.Lock()
	b.wake.Broadcast()
	b.mu.Unlock()
}
