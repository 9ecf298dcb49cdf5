package faultlab

import (
	"context"
	"log/slog"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/p2p/memnet"
	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/worker"
)

// body is one life of a peer: from its start to its death or end.
type body struct {
	lab    *Lab
	name   string
	node   *memnet.Node
	dir    string // its disk, "" when it has none
	pace   time.Duration
	born   time.Time
	log    *slog.Logger // may be nil
	cancel context.CancelFunc
	gone   chan struct{} // closed by its death
	done   chan struct{} // closed when its worker has returned

	result worker.Result // once done
	err    error

	mu       sync.Mutex
	next     string // the disk that the next life finds, once dead
	died     time.Time
	working  uint64        // round that it works on
	began    time.Time     // of that round's local steps
	training time.Duration // spent on local steps
	pending  time.Duration // of that, since the last commit
	commits  []Commit
	warnings int
	spoke    time.Time // last
	words    int       // said at that instant
}

// Commit is a round that a peer committed.
type Commit struct {
	worker.Report
	Began time.Time // of its own local steps; zero when it listened
	At    time.Time
}

// Life is what is known of one life of a peer.
type Life struct {
	Peer     string
	ID       peer.ID
	Born     time.Time
	Died     time.Time     // zero when it was not killed
	Training time.Duration // spent on local steps
	Pending  time.Duration // of that, since the last commit
	Commits  []Commit      // in the order of time
	Warnings int
}

// Contributed reports whether an update of this peer entered the round.
func (l Life) Contributed(c Commit) bool { return c.Work[l.ID] > 0 }

// Lives returns the lives of all peers, those begun first first.
func (l *Lab) Lives() []Life {
	l.mu.Lock()
	defer l.mu.Unlock()
	var lives []Life
	for _, b := range l.lives {
		b.mu.Lock()
		lives = append(lives, Life{b.name, b.node.ID(), b.born, b.died, b.training, b.pending, slices.Clone(b.commits), b.warnings})
		b.mu.Unlock()
	}
	return lives
}

// die reports whether the peer lived until now.
func (b *body) die() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.died.IsZero() || b.over() {
		return false
	}
	b.died = time.Now()
	close(b.gone)
	if b.log != nil {
		b.log.Info("dies")
	}
	if b.dir == "" {
		return true
	}
	life, _ := strconv.Atoi(filepath.Base(b.dir))
	b.next = filepath.Join(filepath.Dir(b.dir), strconv.Itoa(life+1))
	if err := copyDisk(b.dir, b.next); err != nil {
		b.lab.t.Error(err)
	}
	return true
}

func (b *body) dead() bool {
	select {
	case <-b.gone:
		return true
	default:
		return false
	}
}

func (b *body) over() bool {
	select {
	case <-b.done:
		return true
	default:
		return false
	}
}

// disk is where the next life finds its snapshots.
func (b *body) disk() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.next != "" {
		return b.next
	}
	return b.dir
}

func (b *body) round() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.working
}

// at tells the script that the peer has reached a point.
func (b *body) at(p Point, number uint64, mate string) {
	if b.lab.script == nil {
		return
	}
	b.lab.scripting.Lock()
	defer b.lab.scripting.Unlock()
	if !b.dead() {
		b.lab.script(Event{b.name, p, number, mate})
	}
}

// speaks counts what the peer says at one instant. A worker that goes round in circles without waiting would stop the clock
// for ever: it fails the test and dies.
func (b *body) speaks() {
	const storm = 2000
	b.mu.Lock()
	if now := time.Now(); !now.Equal(b.spoke) {
		b.spoke, b.words = now, 0
	}
	b.words++
	words := b.words
	b.mu.Unlock()
	if words == storm {
		b.lab.t.Errorf("%s says %d messages at one instant, in round %d", b.name, words, b.round())
		b.lab.Kill(b.name)
	}
}

// holds notes the state that the peer says it is at.
func (b *body) holds(number uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.working = number
}

func (b *body) stepped(s worker.Step) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s.Step == 0 {
		b.began = time.Now().Add(-b.pace)
	}
}

func (b *body) committed(r worker.Report) {
	if b.lab.options.Forget || b.dead() {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.pending = 0
	c := Commit{Report: r, At: time.Now()}
	if r.Compute > 0 {
		c.Began = b.began
	}
	b.commits = append(b.commits, c)
}

func (b *body) worked(since time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.training += time.Since(since)
	b.pending += time.Since(since)
}

func (b *body) warned(error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.warnings++
}

// paced is an engine whose steps take virtual time.
type paced struct {
	engine.Differentiating
	body *body
}

func (e paced) Train(ctx context.Context, batches []engine.Batch, step engine.Step) (loss float64, err error) {
	e.takes(1, func() { loss, err = e.Differentiating.Train(ctx, batches, step) }, &err)
	return loss, err
}

// Gradient takes as long as a step over as many samples.
func (e paced) Gradient(ctx context.Context, batches []engine.Batch) (g engine.Gradient, err error) {
	rows := 0
	for _, b := range batches {
		rows += b.Rows
	}
	share := float64(rows) / float64(e.body.lab.options.Plan.BatchRows)
	e.takes(share, func() { g, err = e.Differentiating.Gradient(ctx, batches) }, &err)
	return g, err
}

// takes lets that share of a step's time pass before f.
func (e paced) takes(share float64, f func(), err *error) {
	b := e.body
	b.at(Training, b.round(), "")
	b.lab.mu.Lock()
	pace := b.pace
	b.lab.mu.Unlock()
	began := time.Now()
	defer b.worked(began)
	timer := time.NewTimer(time.Duration(share * float64(pace)))
	defer timer.Stop()
	select {
	case <-timer.C:
		f()
	case <-b.gone:
		*err = context.Canceled
	}
}
