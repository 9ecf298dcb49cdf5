package worker

import (
	"context"
	"fmt"
	"math"
	"slices"
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
	slices  map[round.Hash]codec.Source // of the healing slices in them
	mate    func(round.Signed) bool     // whether a header is of the own group
	down    uint64                      // bytes fetched
	comm    time.Duration               // the whole exchange
	wait    time.Duration               // the part of it after the last update was announced: what the network takes
}

// fetched is the outcome of one blob's fetch.
type fetched struct {
	header round.Signed
	source codec.Source
	slice  codec.Source // nil when there is none
	took   time.Duration
	err    error
}

// exchange drives one attempt of the round's state machine: it feeds it messages, blobs and deadlines, and does what it
// asks, until the attempt ends in Decide, Heal or Abort.
func (w *worker) exchange(ctx context.Context) (round.Action, exchanged, error) {
	x := &exchange{
		worker: w, began: time.Now(), announced: time.Now(), results: make(chan fetched),
		seenAt: map[peer.ID]time.Time{}, refused: map[round.Hash]bool{},
		out: exchanged{sources: map[round.Hash]codec.Source{}, slices: map[round.Hash]codec.Source{}},
		attempt: round.NewAttempt(round.Setup{
			Self: w.self, Round: w.state.Round, Parent: w.hash, Listen: w.listen, Retry: w.retry, Hellos: w.hellos, Groups: w.groups(w.pace()),
		}),
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
		x.out.sources[w.own.ID], x.out.slices[w.own.ID] = w.own.decoded, w.own.slice
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
	x.out.comm, x.out.wait, x.out.mate = time.Since(x.began), time.Since(x.announced), x.attempt.Mate
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
	greeting  []byte // the hello of a peer that sits the round out
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
			x.vote, x.hellos = a.Set, a.Hellos
			x.publishVote(ctx)
		default:
			x.end = a
		}
	}
}

func (x *exchange) publishVote(ctx context.Context) {
	x.publish(ctx, round.Seen{
		Version: round.Version, Run: wire.Link{Cid: x.cfg.Run}, Round: x.state.Round, Parent: x.hash, Headers: x.vote, Hellos: x.hellos,
	})
}

// start enters what the mates have said so far, then the own header, and tells it to the mates. In this order, because with
// the own header in, and nobody left to wait for, the attempt would end.
func (x *exchange) start(ctx context.Context) {
	x.feed(ctx)
	switch {
	case x.end != nil:
	case !x.listen && x.own != nil:
		x.own.said = true
		x.send(ctx, x.own.message)
		if x.retry > 0 {
			x.passOn(ctx)
		}
		x.do(ctx, func(a round.Attempt) (round.Attempt, []round.Action) { return a.Publish(x.own.Signed) })
	case x.listen && x.seated():
		message, h, err := x.hello()
		if err != nil {
			x.log.Error("hello not sent", "error", err) // a bug: our own records fit their limits
			return
		}
		x.greeting = message
		x.send(ctx, message)
		x.do(ctx, func(a round.Attempt) (round.Attempt, []round.Action) { return a.Header(h) })
	}
}

// passOn says what silent members have said about the round: a header that reached some mates before its author died keeps
// those whom it did not reach from building what the others voted for.
func (x *exchange) passOn(ctx context.Context) {
	live := x.board.mates(time.Now())
	for _, h := range x.board.about(x.state.Round, x.hash).headers {
		if !slices.ContainsFunc(live, func(m mate) bool { return m.id == h.Author }) {
			x.send(ctx, h.message)
		}
	}
}

// repeat says again what this attempt has said.
func (x *exchange) repeat(ctx context.Context) {
	switch {
	case x.greeting != nil:
		x.send(ctx, x.greeting)
	case x.own != nil && !x.listen:
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
			if h.at.After(x.announced) && h.Role != round.RoleHello {
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

// trained checks a header of local steps, of a gradient, of weights, or a hello.
func (w *worker) trained(h round.Signed) error {
	b := w.pace()
	from, to := w.fragment(b)
	lo, hi := w.healing(b)
	rows, windows := uint64(w.cfg.Plan.BatchRows), uint64(h.Steps)*uint64(w.cfg.Plan.BatchRows)
	n, fits := h.Fits(w.state.Cursors, w.windows)
	switch {
	case h.Role != b.role() && (h.Role != round.RoleHello || b.finale != nil):
		return fmt.Errorf("role %d, the round's is %d: %w", h.Role, b.role(), ErrKind)
	case h.Codec != b.codec.ID() || uint64(h.Fragments) != b.fragments || int(h.Group) != b.group:
		return fmt.Errorf("codec %.64s in %d fragments and groups of %d, the round has %s in %d and groups of %d",
			h.Codec, h.Fragments, h.Group, b.codec.ID(), b.fragments, b.group)
	case h.Role == round.RoleHello:
		return nil
	case h.Slice != sliceSize(hi-lo) || h.Size-h.Slice > uint64(b.codec.Bound(to-from)):
		return fmt.Errorf("blob of %d bytes, %d of them a slice", h.Size, h.Slice)
	case h.Role == round.RoleWeights:
		return nil
	case !fits || n > max(w.cfg.Plan.mostSteps()*rows, rows) || h.Tokens != n*uint64(w.cfg.Plan.Context):
		return fmt.Errorf("%d tokens from %v", h.Tokens, h.Ranges)
	case b.gradients && n > w.cfg.Plan.mostRows(), !b.gradients && n != windows:
		return fmt.Errorf("%d steps on %d windows of %v", h.Steps, n, h.Ranges)
	}
	return nil
}

// sliceSize returns the bytes of a healing slice of n elements.
func sliceSize(n int) uint64 {
	if n == 0 {
		return 0
	}
	return uint64(healCodec.Bound(n))
}

// expected is what a mate's blob must hold.
type expected struct {
	update, slice     int     // elements
	limit, sliceLimit float64 // largest norms
}

// fetch gets a blob in the background.
func (x *exchange) fetch(ctx context.Context, f round.Fetch) {
	b := x.pace()
	from, to := x.fragment(b)
	want := expected{update: to - from, limit: x.limit}
	if f.Header.Merge != nil {
		want.update = len(x.state.Weights)
	} else {
		from, to = x.healing(b)
		want.slice, want.sliceLimit = to-from, x.sliceLimit()
	}
	x.fetches.Go(func() {
		began := time.Now()
		r := fetched{header: f.Header}
		r.source, r.slice, r.err = fetchBlob(ctx, x.cfg.Blobs, f, want)
		r.took = time.Since(began)
		select {
		case x.results <- r:
		case <-ctx.Done():
		}
	})
}

// sliceLimit is the largest norm of a mate's healing slice. All have come from the same weights by as many steps, so a slice
// that is much further from them than the own one is not what it should be.
func (x *exchange) sliceLimit() float64 {
	if x.own == nil || x.own.slice == nil {
		return x.limit
	}
	return min(x.limit, 4*outer.Norm(x.own.slice)+x.limit/1000)
}

// fetchBlob fetches an update, and the healing slice behind it, and checks them: length, codec, finiteness, and a norm that
// training can reach.
func fetchBlob(ctx context.Context, blobs Blobs, f round.Fetch, want expected) (update, slice codec.Source, err error) {
	size := int64(f.Header.Size)
	ctx, cancel := context.WithTimeout(ctx, fetchTime(size))
	defer cancel()
	raw, err := blobs.Get(ctx, f.Header.Blob.Cid, f.From, size)
	if err != nil {
		return nil, nil, fmt.Errorf("worker: update of %s: %w", f.Header.Author, err)
	}
	if int64(len(raw)) != size {
		return nil, nil, fmt.Errorf("worker: update of %s: %d bytes, its header says %d: %w", f.Header.Author, len(raw), size, codec.ErrBlob)
	}
	c, err := codec.Parse(f.Header.Codec)
	if err != nil {
		return nil, nil, fmt.Errorf("worker: update of %s: %w", f.Header.Author, err)
	}
	cut := len(raw) - int(f.Header.Slice)
	if update, err = unpack(c, raw[:cut], want.update, want.limit); err == nil && want.slice > 0 {
		slice, err = unpack(healCodec, raw[cut:], want.slice, want.sliceLimit)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("worker: update of %s: %w", f.Header.Author, err)
	}
	return update, slice, nil
}

// unpack opens one vector of a blob.
func unpack(c codec.Codec, raw []byte, n int, limit float64) (codec.Source, error) {
	src, err := c.Open(raw, n)
	if err != nil {
		return nil, err
	}
	if norm := outer.Norm(src); !(norm <= limit) {
		return nil, fmt.Errorf("norm %g, limit %g: %w", norm, limit, codec.ErrBlob)
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
	x.out.sources[id], x.out.slices[id] = r.source, r.slice
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
		if _, known := w.counted[h.ID]; !known && h.Role != round.RoleHello {
			w.counted[h.ID] = number
			w.headerWait = w.headerWait.Add(h.at.Sub(since))
		}
	}
}
