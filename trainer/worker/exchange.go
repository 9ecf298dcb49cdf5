package worker

import (
	"context"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/p2p/wire"
	"github.com/capacloud/capanode/trainer/codec"
	"github.com/capacloud/capanode/trainer/outer"
	"github.com/capacloud/capanode/trainer/round"
)

// repeatAfter is how long a worker waits before it says its header and its vote again: gossip can lose a message, above all
// while a topic's mesh forms.
const repeatAfter = 2 * round.HeartbeatInterval

// maxPatience bounds how many times as long as the first attempt at a round later ones wait, less one.
const maxPatience = 3

// exchanged is what an exchange leaves for the commit.
type exchanged struct {
	sources map[round.Hash]codec.Source // of every blob held
	down    uint64                      // bytes fetched
	comm    time.Duration               // the whole exchange
	wait    time.Duration               // the part of it after the last update was announced: what the network takes
}

// fetched is the outcome of one blob's fetch.
type fetched struct {
	header round.Signed
	source codec.Source
	took   time.Duration
	err    error
}

// exchange drives one attempt of the round's state machine: it feeds it messages, blobs and deadlines, and does what it
// asks, until the attempt ends in Decide, Heal or Abort.
func (w *worker) exchange(ctx context.Context) (round.Action, exchanged, error) {
	x := &exchange{
		worker: w, began: time.Now(), announced: time.Now(), results: make(chan fetched),
		seenAt: map[peer.ID]time.Time{}, refused: map[round.Hash]bool{},
		out:     exchanged{sources: map[round.Hash]codec.Source{}},
		attempt: round.NewAttempt(round.Setup{Self: w.self, Round: w.state.Round, Parent: w.hash, Listen: w.listen, Retry: w.retry}),
	}
	ctx, x.cancel = context.WithCancel(ctx)
	defer x.fetches.Wait()
	defer x.cancel()
	compute := time.Duration(0)
	if w.listen {
		w.enter(round.PhaseListening)
	} else {
		w.enter(round.PhaseExchanging)
		compute = w.own.compute
		x.out.sources[w.own.ID] = w.own.decoded
	}
	// What came to nothing in time gets more of it.
	patience := time.Duration(1 + min(w.retry, maxPatience))
	due := w.lag(time.Now()) + patience*w.headerWait.Deadline(compute)
	x.forVotes = patience * w.voteWait.Deadline(compute)
	headers := time.NewTimer(due)
	defer headers.Stop()
	x.votes = time.NewTimer(due + x.forVotes)
	defer x.votes.Stop()
	tick := time.NewTicker(round.HeartbeatInterval / 2)
	defer tick.Stop()
	again := time.NewTicker(repeatAfter)
	defer again.Stop()

	x.start(ctx)
	for x.end == nil {
		select {
		case <-ctx.Done():
			return nil, x.out, ctx.Err()
		case <-w.board.changed:
			x.feed(ctx)
		case <-tick.C: // mates fall silent without a message
			x.feed(ctx)
		case r := <-x.results:
			x.arrived(ctx, r)
		case <-headers.C:
			x.do(ctx, round.Attempt.HeadersDue)
		case <-x.votes.C:
			x.do(ctx, round.Attempt.VotesDue)
		case <-again.C:
			x.repeat(ctx)
		}
	}
	x.out.comm, x.out.wait = time.Since(x.began), time.Since(x.announced)
	w.observeArrivals(x)
	return x.end, x.out, nil
}

// exchange is one attempt with its I/O.
type exchange struct {
	*worker
	attempt round.Attempt
	end     round.Action
	began   time.Time

	announced time.Time // when the last header of the round came, the own one included
	voted     time.Time // first vote
	vote      []round.Hash
	votes     *time.Timer
	forVotes  time.Duration // from the own vote to the deadline for those of the mates
	seenAt    map[peer.ID]time.Time
	refused   map[round.Hash]bool
	results   chan fetched
	fetches   sync.WaitGroup
	cancel    context.CancelFunc
	out       exchanged
}

// do applies one event to the attempt and carries out the actions.
func (x *exchange) do(ctx context.Context, event func(round.Attempt) (round.Attempt, []round.Action)) {
	var actions []round.Action
	x.attempt, actions = event(x.attempt)
	for _, a := range actions {
		switch a := a.(type) {
		case round.Fetch:
			x.fetch(ctx, a)
		case round.Vote:
			if x.voted.IsZero() {
				x.voted = time.Now()
				x.votes.Reset(x.forVotes)
			}
			x.vote = a.Set
			x.publishVote(ctx)
		default:
			x.end = a
		}
	}
}

func (x *exchange) publishVote(ctx context.Context) {
	x.publish(ctx, round.Seen{
		Version: round.Version, Run: wire.Link{Cid: x.cfg.Run}, Round: x.state.Round, Parent: x.hash, Headers: x.vote,
	})
}

// start enters what the mates have said so far, then the own header, and tells it to the mates. In this order, because with
// the own header in, and nobody left to wait for, the attempt would end.
func (x *exchange) start(ctx context.Context) {
	x.feed(ctx)
	if x.own != nil && !x.listen && x.end == nil {
		x.send(ctx, x.own.message)
		x.do(ctx, func(a round.Attempt) (round.Attempt, []round.Action) { return a.Publish(x.own.Signed) })
	}
}

// repeat says again what this attempt has said.
func (x *exchange) repeat(ctx context.Context) {
	if x.own != nil && !x.listen {
		x.send(ctx, x.own.message)
	}
	if x.vote != nil {
		x.publishVote(ctx)
	}
}

func (x *exchange) view(ctx context.Context) {
	live, expected := []peer.ID{x.self}, []peer.ID(nil)
	at := x.claim()
	for _, m := range x.board.mates(time.Now()) {
		live = append(live, m.id)
		if m.takesPart(at) {
			expected = append(expected, m.id)
		}
	}
	x.do(ctx, func(a round.Attempt) (round.Attempt, []round.Action) { return a.View(live, expected) })
}

// feed enters everything that the board holds about the round. Events may be repeated, so nothing is remembered here.
// The view comes last: a mate that committed is no longer expected, and its commit must be known by then.
func (x *exchange) feed(ctx context.Context) {
	about := x.board.about(x.state.Round, x.hash)
	for _, h := range about.headers {
		if x.end == nil && !x.refused[h.ID] && x.admissible(h.Signed) {
			if h.at.After(x.announced) {
				x.announced = h.at
			}
			x.do(ctx, func(a round.Attempt) (round.Attempt, []round.Action) { return a.Header(h.Signed) })
		}
	}
	for _, id := range x.roster() {
		if s, ok := about.seens[id]; ok && x.end == nil {
			if _, known := x.seenAt[id]; !known {
				x.seenAt[id] = time.Now()
			}
			x.do(ctx, func(a round.Attempt) (round.Attempt, []round.Action) { return a.Seen(id, s) })
		}
		if c, ok := about.commits[id]; ok && x.end == nil {
			x.do(ctx, func(a round.Attempt) (round.Attempt, []round.Action) { return a.Commit(id, c) })
		}
	}
	if x.end == nil {
		x.view(ctx)
	}
}

// admissible checks a header against the parent state: what it says about codec, size, samples and tokens must be what the
// plan and the cursors allow. The verdict is the same on every peer that holds the parent.
func (x *exchange) admissible(h round.Signed) bool {
	var err error
	if h.Merge != nil {
		err = x.mergeable(h)
	} else {
		err = x.trained(h)
	}
	if err == nil {
		return true
	}
	x.refused[h.ID] = true
	x.warn(fmt.Errorf("worker: round %d: header of %s refused: %w", h.Round, h.Author, err))
	return false
}

// trained checks a header of local steps.
func (w *worker) trained(h round.Signed) error {
	b := w.pace()
	from, to := w.fragment(b)
	rows, windows := uint64(w.cfg.Plan.BatchRows), uint64(h.Steps)*uint64(w.cfg.Plan.BatchRows)
	n, fits := h.Fits(w.state.Cursors, w.windows)
	switch {
	case h.Codec != b.codec.ID() || uint64(h.Fragments) != b.fragments:
		return fmt.Errorf("codec %.64s in %d fragments, the round has %s in %d", h.Codec, h.Fragments, b.codec.ID(), b.fragments)
	case h.Size == 0 || h.Size > uint64(b.codec.Bound(to-from)):
		return fmt.Errorf("blob of %d bytes", h.Size)
	case !fits || n != windows || windows > max(w.cfg.Plan.mostSteps()*rows, rows) || h.Tokens != windows*uint64(w.cfg.Plan.Context):
		return fmt.Errorf("%d steps on %d tokens from %v", h.Steps, h.Tokens, h.Ranges)
	}
	return nil
}

// fetch gets a blob in the background.
func (x *exchange) fetch(ctx context.Context, f round.Fetch) {
	from, to := x.fragment(x.pace())
	n, limit := to-from, x.limit
	if f.Header.Merge != nil {
		n = len(x.state.Weights)
	}
	x.fetches.Go(func() {
		began := time.Now()
		r := fetched{header: f.Header}
		r.source, r.err = fetchBlob(ctx, x.cfg.Blobs, f, n, limit)
		r.took = time.Since(began)
		select {
		case x.results <- r:
		case <-ctx.Done():
		}
	})
}

// fetchBlob fetches an update of n elements and checks it: length, codec, finiteness, and a norm that training can reach.
func fetchBlob(ctx context.Context, blobs Blobs, f round.Fetch, n int, limit float64) (codec.Source, error) {
	size := int64(f.Header.Size)
	ctx, cancel := context.WithTimeout(ctx, fetchTime(size))
	defer cancel()
	raw, err := blobs.Get(ctx, f.Header.Blob.Cid, f.From, size)
	if err != nil {
		return nil, fmt.Errorf("worker: update of %s: %w", f.Header.Author, err)
	}
	if int64(len(raw)) != size {
		return nil, fmt.Errorf("worker: update of %s: %d bytes, its header says %d: %w", f.Header.Author, len(raw), size, codec.ErrBlob)
	}
	c, err := codec.Parse(f.Header.Codec)
	if err != nil {
		return nil, fmt.Errorf("worker: update of %s: %w", f.Header.Author, err)
	}
	src, err := c.Open(raw, n)
	if err != nil {
		return nil, fmt.Errorf("worker: update of %s: %w", f.Header.Author, err)
	}
	if norm := outer.Norm(src); !(norm <= limit) {
		return nil, fmt.Errorf("worker: update of %s: norm %g, limit %g: %w", f.Header.Author, norm, limit, codec.ErrBlob)
	}
	return src, nil
}

// normLimit is the largest norm of an update that a peer votes for: ten times that of the weights it starts from.
func normLimit(weights []float32) float64 {
	var sum float64
	for _, v := range weights {
		sum += float64(float64(v) * float64(v))
	}
	return 10 * (1 + math.Sqrt(sum))
}

func (x *exchange) arrived(ctx context.Context, r fetched) {
	id := r.header.ID
	if r.err != nil {
		x.warn(r.err)
		x.do(ctx, func(a round.Attempt) (round.Attempt, []round.Action) { return a.Failed(id) })
		return
	}
	x.keep(r.header.Round, r.header.Blob.Cid)
	x.out.sources[id] = r.source
	x.out.down += r.header.Size
	x.result.Down += r.header.Size
	x.noticeLink(r.header.Size, r.took)
	x.do(ctx, func(a round.Attempt) (round.Attempt, []round.Action) { return a.Held(id) })
}

// observeArrivals feeds the deadlines: how long after the own header and vote the mates' came. Headers that missed the
// round before count too, so that a deadline that was too short grows.
func (w *worker) observeArrivals(x *exchange) {
	if !w.listen {
		w.countHeaders(w.state.Round, w.hash, x.began)
	}
	if w.lastParent != (round.Hash{}) && w.state.Round > 0 {
		w.countHeaders(w.state.Round-1, w.lastParent, w.lastBegan)
	}
	for _, at := range x.seenAt {
		if !x.voted.IsZero() {
			w.voteWait = w.voteWait.Add(at.Sub(x.voted))
		}
	}
	if _, committed := x.end.(round.Decide); committed && !w.listen {
		w.lastParent, w.lastBegan = w.hash, x.began
	}
}

// countHeaders records when the headers of a round came, each once.
func (w *worker) countHeaders(number uint64, parent round.Hash, since time.Time) {
	for _, h := range w.board.about(number, parent).headers {
		if _, known := w.counted[h.ID]; !known {
			w.counted[h.ID] = number
			w.headerWait = w.headerWait.Add(h.at.Sub(since))
		}
	}
}
