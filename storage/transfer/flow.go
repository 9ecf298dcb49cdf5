package transfer

import (
	"math"
	"sync"
	"time"
)

const (
	// minWindow is what a source may have under way before its speed is known, and the least that a fast one gets, in bytes.
	minWindow = 4 << 20
	// horizon bounds the window of a slow source: what it would need longer for is better asked of another.
	horizon = 2 * time.Second
	// rateMemory is the time over which a source's rate is averaged; minSample is the fewest bytes that say anything about it.
	rateMemory = time.Second
	minSample  = 256 << 10
)

// flow is how one source is doing: what it owes and how fast it delivers. It is what a plan knows of a source.
type flow struct {
	name string        // peer ID or URL
	dead chan struct{} // closed when the source is given up

	mu     sync.Mutex
	held   int64     // bytes of the budget that the source has
	owed   int64     // bytes that were asked for and have not arrived
	mark   time.Time // since when sample counts
	sample int64     // bytes since then
	sum    float64   // bytes of the samples, and
	time   float64   // their seconds, both forgotten over rateMemory: the rate is their quotient
	heard  time.Time // last sign of life, or when it began to owe
	probe  time.Time // when it was asked while it owed nothing; zero once answered
	rtt    time.Duration
	rate   float64 // bytes per second while it owed something; 0 means unknown
	bytes  int64   // delivered
	blocks int
}

func newFlow(name string) *flow { return &flow{name: name, dead: make(chan struct{})} }

func (f *flow) isDead() bool {
	select {
	case <-f.dead:
		return true
	default:
		return false
	}
}

func (f *flow) lastHeard() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.heard
}

func (f *flow) promise(n int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.held += n
}

func (f *flow) underWay() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.held
}

// window returns how many bytes the source may have under way: four times the bandwidth-delay product, at least 4 MiB, and no
// more than it delivers within the horizon. What is under way counts from the request until it is on the disk, in whole blocks
// and between two ends that have other work, too: that takes longer than the way there and back, and a window that is in
// proportion to a rate that it limits itself never grows.
func (f *flow) window(block int64) int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	w := max(minWindow, int64(4*f.rate*f.rtt.Seconds()))
	if f.rate > 0 {
		w = min(w, int64(f.rate*horizon.Seconds()))
	}
	return max(block, w)
}

// asked notes a request.
func (f *flow) asked(n int64) {
	now := time.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.owed == 0 {
		f.mark, f.heard, f.probe, f.sample = now, now, now, 0
	}
	f.owed += n
}

// answered notes the first byte of an answer.
func (f *flow) answered() {
	now := time.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.heard = now
	if f.probe.IsZero() {
		return
	}
	if took := now.Sub(f.probe); f.rtt == 0 || took < f.rtt {
		f.rtt = took
	}
	f.probe, f.mark = time.Time{}, now // the way there and back is no part of the rate
}

// alive notes that bytes come.
func (f *flow) alive() {
	now := time.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.heard = now
}

// got notes a block of n bytes, for which owed were counted.
func (f *flow) got(n, owed int64) {
	now := time.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.owed -= owed
	f.bytes += n
	f.blocks++
	f.heard = now
	if f.sample += n; f.sample < minSample {
		return
	}
	// Blocks that come in a bunch share the time before the first of them.
	took := max(now.Sub(f.mark).Seconds(), 1e-6)
	keep := math.Exp(-took / rateMemory.Seconds())
	f.sum, f.time = keep*f.sum+float64(f.sample), keep*f.time+took
	f.rate, f.mark, f.sample = f.sum/f.time, now, 0
}

// forgave notes that blocks will not come.
func (f *flow) forgave(n int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.owed -= n
}

// due estimates when the source has delivered what it owes and more bytes on top; an hour if that cannot be told.
func (f *flow) due(more int64) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.rate == 0 {
		return time.Hour
	}
	return f.rtt + time.Duration(float64(f.owed+more)/f.rate*float64(time.Second))
}

// silent returns for how long a source that owes something has said nothing.
func (f *flow) silent(now time.Time) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.owed == 0 {
		return 0
	}
	return now.Sub(f.heard)
}

// speed returns the rate in bytes per second, 0 if it is not known.
func (f *flow) speed() float64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.rate
}

// total returns what the source has delivered.
func (f *flow) total() (bytes int64, blocks int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.bytes, f.blocks
}
