package worker

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/p2p/wire"
	"github.com/capacloud/capanode/trainer/codec"
	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/round"
)

// errData marks samples that could not be read now. Whoever has the shard may be back for the next round.
var errData = errors.New("samples are out of reach")

// lap is one round's local steps. While it runs it alone touches the engine.
//
// A lap starts at φ + e: the committed weights, and what the codec has left of this peer's updates. That is not lost to the
// peer while it is not said: gradients are taken where its knowledge is, and its update θ − φ brings the rest along.
//
// When the network is slow against the computer, the next lap starts while the round before is still being exchanged, at the
// peer's fast weights θ as they are; φ + e reaches it on base, between two steps, and the steps taken since carry over:
//
//	θ ← φ + e + (θ − θ at the start of the lap)
type lap struct {
	number  uint64 // of the round that the update is for
	members []peer.ID
	ranges  []round.Range
	windows []round.Window // step-major
	steps   int            // of this peer
	pace    pace           // of the round
	first   uint64         // nominal steps committed before the round

	base chan base     // what was committed meanwhile; nil when the lap starts at the committed state
	stop func()        // ends the lap before its next step
	done chan struct{} // closed when the lap has ended; the fields below are valid then

	lag           int // steps before the base came
	loss          float64
	before, after round.Hash // of the inner optimiser
	compute       time.Duration
	err           error
}

// base is where fast weights start after a commit, φ + e, in the part of the weights that it moved.
type base struct {
	start    []float32
	from, to int
}

// plan chooses samples and steps for the round that starts at the cursors after so many committed steps; nil when this
// peer's shards are empty.
func (w *worker) plan(number uint64, cursors []uint64, members []peer.ID, p pace, first uint64) *lap {
	if _, seated := slices.BinarySearch(members, w.self); !seated {
		return nil // came after they were dealt
	}
	_, speeds := w.trainers()
	rows := uint64(w.cfg.Plan.BatchRows)
	own := uint64(1)
	if p.gradients { // who is faster takes more samples into its gradient
		rows = min(round.Pace(rows, w.ownSpeed(), speeds), w.cfg.Plan.mostRows())
	} else {
		own = max(min(round.Pace(p.steps, w.ownSpeed(), speeds), maxSequences/rows), 1)
	}
	ranges := w.deal(members, cursors, own*rows)
	if ranges == nil {
		w.warn(fmt.Errorf("worker: round %d: %d shards leave none for this peer among %d: listening", number, len(w.windows), len(members)))
		return nil
	}
	return &lap{
		number: number, members: members, ranges: ranges, steps: int(own), pace: p, first: first,
		windows: round.Windows(w.cfg.Plan.Seed, ranges, w.windows, int(own)), done: make(chan struct{}), stop: func() {},
	}
}

// run takes the steps.
func (l *lap) run(ctx context.Context, w *worker) {
	defer close(l.done)
	began, rows := time.Now(), w.cfg.Plan.BatchRows
	l.before, w.still = momentsHash(w.cfg.Engine.State()), false
	var total float64
	for i := range l.steps {
		select {
		case b := <-l.base:
			w.carry(b)
			l.lag = i
		default:
		}
		if l.err = ctx.Err(); l.err != nil {
			return
		}
		var loss float64
		if loss, l.err = w.step(ctx, l, i, l.windows[i*rows:][:rows]); l.err != nil {
			l.err = fmt.Errorf("worker: round %d, step %d: %w", l.number, i, l.err)
			return
		}
		total += loss
	}
	l.loss, l.after = total/float64(l.steps), momentsHash(w.cfg.Engine.State())
	l.compute = time.Since(began)
}

// carry moves the fast weights to the base, and keeps the steps taken since the lap began.
func (w *worker) carry(b base) {
	theta := w.cfg.Engine.State().Weights[b.from:b.to]
	sent := w.sent[b.from:b.to]
	for i, start := range b.start {
		theta[i] = start + float32(theta[i]-sent[i])
	}
}

// batches reads windows in micro-batches.
func (w *worker) batches(ctx context.Context, windows []round.Window) (batches []engine.Batch, err error) {
	rows := w.cfg.Plan.MicroRows
	if rows == 0 {
		rows = w.cfg.Plan.BatchRows
	}
	for micro := range slices.Chunk(windows, rows) {
		b, err := w.cfg.Data.Batch(ctx, micro)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errData, err)
		}
		batches = append(batches, b)
	}
	return batches, nil
}

// step runs one optimiser step over its windows.
func (w *worker) step(ctx context.Context, l *lap, step int, windows []round.Window) (float64, error) {
	plan := w.cfg.Plan
	batches, err := w.batches(ctx, windows)
	if err != nil {
		return 0, err
	}
	hyper := plan.Inner
	hyper.LearningRate = plan.Schedule.At(l.first + uint64(step)*l.pace.steps/uint64(l.steps))
	// A step that has begun is finished even when the run is told to stop.
	loss, err := w.cfg.Engine.Train(context.WithoutCancel(ctx), batches, hyper)
	if err == nil && w.cfg.Hooks.OnStep != nil {
		tokens := uint64(plan.BatchRows * plan.Context)
		w.cfg.Hooks.OnStep(Step{Round: l.number, Step: step, Loss: loss, Tokens: tokens})
	}
	return loss, err
}

// train finishes this round's lap, or runs it, and turns what it gave into an update. A lap that fails leaves this peer
// listening.
func (w *worker) train(ctx context.Context) error {
	w.enter(round.PhaseTraining)
	l := w.lap
	if l == nil {
		if l = w.plan(w.state.Round, w.state.Cursors, w.dealt(), w.pace(), w.state.Steps); l == nil {
			w.listen = true
			return nil
		}
		w.hold(l.pace)
		if l.pace.gradients {
			l.differentiate(ctx, w)
		} else {
			w.mark(l)
			l.run(ctx, w)
		}
	}
	select {
	case <-l.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	w.lap = nil
	select {
	case b := <-l.base: // committed during the last step
		w.carry(b)
		l.lag = l.steps
	default:
	}
	if errors.Is(l.err, engine.ErrNumerics) || errors.Is(l.err, errData) && ctx.Err() == nil {
		w.warn(fmt.Errorf("%w: sitting this round out", l.err))
		w.listen = true
		w.forgetSteps(l)
		w.rewind()
		return nil
	}
	if l.err != nil {
		return l.err
	}
	w.compute = l.compute
	w.setSpeed(uint64(len(l.windows)*w.cfg.Plan.Context), l.compute)
	return w.publishLap(ctx, l)
}

// publishLap makes the update of a finished lap: θ − φ of this round's fragment, or the components of the gradient.
func (w *worker) publishLap(ctx context.Context, l *lap) error {
	p := w.pace()
	from, to := w.fragment(p)
	update := w.mean[:to-from]
	if !p.gradients { // else it is there
		theta, phi := w.cfg.Engine.State().Weights, w.state.Weights
		for i := range update {
			update[i] = theta[from+i] - phi[from+i]
		}
	}
	pending, err := w.feedback.PendingPart(from, update)
	if err != nil {
		return fmt.Errorf("worker: round %d: %w", w.state.Round, err)
	}
	header := round.Header{
		Role: p.role(), Ranges: l.ranges, Steps: uint32(l.steps), Tokens: uint64(len(l.windows) * w.cfg.Plan.Context),
		Loss: int64(math.Round(min(l.loss*1e6, round.MaxLoss))), View: round.HashView(l.members), Before: l.before, After: l.after,
		Lag: uint32(l.lag),
	}
	header.Budget, header.Least = w.affords(l.compute / time.Duration(l.steps))
	lo, hi := w.healing(p)
	err = w.encode(ctx, w.fill(header, p), pending, w.away(make([]float32, hi-lo), lo), l.compute)
	if err == nil && !p.gradients {
		w.own.lap = l
	}
	return err
}

// fill adds what all headers of a round have in common.
func (w *worker) fill(h round.Header, b pace) round.Header {
	h.Version, h.Run, h.Round, h.Parent = round.Version, wire.Link{Cid: w.cfg.Run}, w.state.Round, w.hash
	h.Group, h.Codec, h.Fragments, h.Seed, h.Precision = uint32(b.group), b.codec.ID(), uint32(b.fragments), w.cfg.Plan.Seed, w.cfg.Numerics
	return h
}

// encode turns an update, and a slice of the weights to be healed, into a blob that mates can fetch and a signed header.
func (w *worker) encode(ctx context.Context, header round.Header, update, slice []float32, compute time.Duration) error {
	c, err := codec.Parse(header.Codec)
	if err != nil {
		return fmt.Errorf("worker: round %d: %w", header.Round, err)
	}
	if bound := c.Bound(len(update)) + healCodec.Bound(len(slice)); len(w.blob) < bound {
		w.blob = make([]byte, bound)
	}
	size, decoded, err := pack(c, w.blob, update)
	var healed codec.Source
	if err == nil && len(slice) > 0 {
		var more int
		more, healed, err = pack(healCodec, w.blob[size:], slice)
		header.Slice = uint64(more)
		size += more
	}
	if err != nil {
		return fmt.Errorf("worker: round %d: own blob: %w", header.Round, err)
	}
	blob := w.blob[:size]
	link, err := w.cfg.Blobs.Put(ctx, blob)
	if err != nil {
		return fmt.Errorf("worker: round %d: store own blob: %w", header.Round, err)
	}
	w.keep(header.Round, link)
	header.Blob, header.Size = wire.Link{Cid: link}, uint64(size)
	message, err := round.Seal(w.cfg.Net.Key(), header)
	if err != nil {
		return fmt.Errorf("worker: round %d: %w", header.Round, err)
	}
	// Opening the own message gives the hash that the mates will compute.
	m, err := round.Open(w.cfg.Run, message)
	if err != nil {
		return fmt.Errorf("worker: round %d: own header: %w", header.Round, err)
	}
	w.own = &own{Signed: round.Signed{Header: header, Author: w.self, ID: m.Hash}, message: message, decoded: decoded, slice: healed, compute: compute}
	w.result.Up += header.Size
	return nil
}

// pack encodes a vector at the beginning of a buffer, and opens it as the mates will.
func pack(c codec.Codec, buf []byte, x []float32) (int, codec.Source, error) {
	size, err := c.Encode(buf, x)
	if err != nil {
		return 0, nil, err
	}
	src, err := c.Open(buf[:size], len(x))
	return size, src, err
}

// runAhead starts the next round's lap beside the exchange of this one, when waiting for the network costs enough. It starts
// from what will be known if the own update is committed; settleLap finds out.
func (w *worker) runAhead(ctx context.Context) {
	b := w.pace()
	next := w.state.Steps + b.steps
	last := w.cfg.Plan.TotalSteps()
	if w.state.Apart || b.group > 0 {
		last-- // the finale's
	}
	if w.own == nil || w.own.Merge != nil || w.listen || w.lap != nil || w.retry > 0 || w.draining() ||
		b.finale != nil || b.gradients || next >= last || !w.overlaps() {
		return
	}
	cursors := slices.Clone(w.state.Cursors)
	for _, r := range w.own.Ranges {
		cursors[r.Shard] = r.To
	}
	members := w.view()
	ahead := w.cfg.Plan.pace(ledger{next, w.state.Pulse, w.state.Apart || b.group > 0}, len(members))
	if ahead.gradients { // they are taken at weights that are not there yet
		return
	}
	l := w.plan(w.state.Round+1, cursors, members, ahead, next)
	if l == nil {
		return
	}
	if w.sent == nil {
		w.sent = make([]float32, len(w.state.Weights))
	}
	copy(w.sent, w.cfg.Engine.State().Weights)
	w.mark(l)
	ctx, l.stop = context.WithCancel(ctx)
	l.base = make(chan base, 1)
	w.lap = l
	go l.run(ctx, w)
}

// settleLap brings the committed weights to the fast ones, or to the lap that runs ahead: if what it assumed came true, it
// goes on from them, else it was for nothing.
func (w *worker) settleLap(from, to int, accepted bool) {
	if w.lap == nil {
		w.start(w.cfg.Engine.State().Weights[from:to], from)
		return
	}
	// Dealt among other members, the lap's shards may be somebody else's now; so far it has run only as long as the exchange.
	_, fits := round.Header{Ranges: w.lap.ranges}.Fits(w.state.Cursors, w.windows)
	if !accepted || !fits || w.pace().gradients || w.lap.number != w.state.Round || !slices.Equal(w.view(), w.lap.members) {
		w.dropLap()
		w.rewind()
		return
	}
	b := base{make([]float32, to-from), from, to}
	w.start(b.start, from)
	w.lap.base <- b // buffered; a lap gets one base
}

// start fills dst with where fast weights start, φ + e, from that element on. What is left of gradients is not of weights: there it
// is φ alone.
func (w *worker) start(dst []float32, from int) {
	if w.components {
		copy(dst, w.state.Weights[from:])
		return
	}
	phi, e := w.state.Weights[from:], w.feedback.Residual()[from:]
	for i := range dst {
		dst[i] = phi[i] + e[i]
	}
}

// dropLap stops a lap that runs ahead.
func (w *worker) dropLap() {
	if w.lap == nil {
		return
	}
	w.lap.stop()
	<-w.lap.done
	w.forgetSteps(w.lap)
	w.lap = nil
}

// mark remembers the inner optimiser as it is at the start of a lap.
func (w *worker) mark(l *lap) {
	inner := w.cfg.Engine.State()
	if w.restart.m == nil {
		w.restart.m, w.restart.v = make([]float32, len(inner.M)), make([]float32, len(inner.M))
	}
	copy(w.restart.m, inner.M)
	copy(w.restart.v, inner.V)
	w.restart.steps, w.restart.lap = inner.Steps, l
}

// forgetSteps takes the moments back to where a lap began: steps that nobody hears of never were, and headers continue each other.
func (w *worker) forgetSteps(l *lap) {
	if w.restart.lap != l {
		return
	}
	inner := w.cfg.Engine.State()
	copy(inner.M, w.restart.m)
	copy(inner.V, w.restart.v)
	inner.Steps, w.still = w.restart.steps, false
}

// unlearn forgets the steps of the own update when another state takes the place of its parent before it was said.
func (w *worker) unlearn() {
	if w.own != nil && w.own.lap != nil && !w.own.said {
		w.forgetSteps(w.own.lap)
	}
}

// rewind drops what local steps did since the last commit.
func (w *worker) rewind() { w.start(w.cfg.Engine.State().Weights, 0) }

// overlaps reports whether the next lap should run beside the exchange.
func (w *worker) overlaps() bool {
	switch w.cfg.Plan.Overlap {
	case OverlapAlways:
		return true
	case OverlapNever:
		return false
	}
	return w.waiting > worthOverlap && w.calm >= calmRounds
}

// calmRounds is for how many rounds the same peers must have trained before steps run ahead: whoever comes or goes changes whose
// shards they are, and makes them worthless.
const calmRounds = 4

// noticeMembers counts the rounds in which the same peers trained.
func (w *worker) noticeMembers() {
	members := w.view()
	if !slices.Equal(members, w.crew) {
		w.crew, w.calm = members, 0
		return
	}
	w.calm++
}

// worthOverlap is the share of a round's time spent on the exchange above which the next round's steps run beside it. Below,
// a run whose peers are in step repeats to the bit, which is worth more than the time.
const worthOverlap = 0.05

// momentsHash identifies the inner optimiser's state.
func momentsHash(s *engine.State) round.Hash {
	h := sha256.New()
	_ = binary.Write(h, binary.LittleEndian, s.Steps) // a hash takes every write
	_, _ = round.WriteFloats(h, s.M)
	_, _ = round.WriteFloats(h, s.V)
	return round.Hash(h.Sum(nil))
}
