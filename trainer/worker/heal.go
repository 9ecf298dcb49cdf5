package worker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/trainer/codec"
	"github.com/capacloud/capanode/trainer/round"
)

// adopt takes over the claimed state from whichever live mate hands it out.
func (w *worker) adopt(ctx context.Context, claim round.Claim) error {
	donors := []peer.ID{claim.Peer}
	for _, m := range w.board.mates(time.Now()) {
		if m.claim.State == claim.State && m.id != claim.Peer {
			donors = append(donors, m.id)
		}
	}
	return w.heal(ctx, donors)
}

// heal fetches a state that beats the own one from the donors, in order; one that dies in the middle is followed by the
// next. When none delivers, the worker stays as it is and the caller's loop looks again.
func (w *worker) heal(ctx context.Context, donors []peer.ID) error {
	w.dropLap()
	speaks := w.speaksForSide()
	w.enter(round.PhaseJoining)
	var failed error
	for _, donor := range donors {
		got, err := w.fetchState(ctx, donor, donors)
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			failed = errors.Join(failed, err)
			w.doubted[donor] = time.Now()
			continue
		}
		if err := w.settleFeedback(got); err != nil {
			return err
		}
		if speaks && !got.state.Apart {
			w.keepSide(got.lineage)
		}
		w.mu.Lock()
		w.state, w.hash, w.lineage = got.state, got.state.Key(), got.lineage
		w.mu.Unlock()
		w.unlearn()
		w.rewind()
		w.result.Healed++
		w.result.Down += got.size
		w.settle(w.lost == nil)
		w.snapshotIfDue(0, 0)
		w.checkpoint(w.state.Steps - min(w.state.Steps, 1))
		w.log.Info("took over the state of a mate", "donor", donor, "round", w.state.Round, "state", w.hash.Short())
		return nil
	}
	w.rewind()
	w.retry++
	w.warn(fmt.Errorf("worker: round %d: %w: %w", w.state.Round, ErrNoDonor, failed))
	w.enter(round.PhaseExchanging)
	return nil
}

// settleFeedback closes the books before another state is taken over. A state that came about from the own one holds what this
// peer has said so far, so what it has left unsaid still is: the residual stays, less the last update if that went in. On the
// other side of a fork it corrects what never was said. So may the components of a snapshot that is some rounds old: what they said
// in those rounds is not taken off them.
func (w *worker) settleFeedback(got handed) error {
	if w.restored && w.components || !got.ledger && !got.lineage.Has(round.Ancestor{State: w.hash, Tokens: w.state.Tokens}) {
		w.feedback.Reset()
		return nil
	}
	entered := false
	if w.own != nil {
		for _, c := range w.board.about(w.state.Round, w.hash).commits {
			entered = entered || slices.Contains(c.Set, w.own.ID) && got.lineage.Knows(c.Next)
		}
	}
	return w.credit(entered)
}

// handed is a state as a mate handed it out.
type handed struct {
	state   *round.State
	lineage round.Lineage
	size    uint64 // bytes fetched
	ledger  bool   // only the ledger is the mate's: the arrays are this peer's own
}

// freshRounds is how many rounds a peer may be behind to keep its own weights where members' weights differ anyway.
const freshRounds = 2

// keepsWeights reports whether only the ledger of what a mate holds is taken over. Where members' weights differ by nature, those
// that came about on the losing side of a fork are as good as any: what they learnt reaches the others by the groups to come,
// in place of a merge.
func (w *worker) keepsWeights(res stateResponse) bool {
	return res.Head.Defined() && w.state.Round > 0 && w.state.Round+freshRounds >= res.Round && res.Steps+1 < w.cfg.Plan.TotalSteps()
}

// fetchState asks the donor where its state is and fetches it from any of the donors.
func (w *worker) fetchState(ctx context.Context, donor peer.ID, donors []peer.ID) (handed, error) {
	res, err := ask(ctx, w.cfg.Net, donor, w.cfg.Run)
	if err != nil {
		return handed{}, err
	}
	claim := round.Claim{Peer: donor, Round: res.Round, Steps: res.Steps, Tokens: res.Tokens, State: res.State}
	if _, better := round.Best(w.claim(), []round.Claim{claim}, w.cfg.Plan.mostPerStep()); !better {
		return handed{}, fmt.Errorf("worker: state of %s at round %d does not beat ours: %w", donor, res.Round, ErrNoDonor)
	}
	got, err := w.fetchParts(ctx, res, donor, donors)
	if err != nil {
		return handed{}, err
	}
	s := got.state
	same := s.Key() == res.State && s.Round == res.Round && s.Tokens == res.Tokens && s.Steps == res.Steps
	if !same || s.Steps > w.cfg.Plan.TotalSteps() {
		return handed{}, fmt.Errorf("worker: state of %s is not the one it announced: %w", donor, round.ErrState)
	}
	got.lineage = lineageOf(res)
	return got, nil
}

// fetchParts fetches the state that a donor told of, or only its ledger.
func (w *worker) fetchParts(ctx context.Context, res stateResponse, donor peer.ID, donors []peer.ID) (handed, error) {
	shape, link := w.state.Shape(), res.Blob.Cid
	got := handed{ledger: w.keepsWeights(res)}
	size := shape.MaxSize()
	if got.ledger {
		link, size = res.Head.Cid, shape.HeadSize()
	}
	ctx, cancel := context.WithTimeout(ctx, fetchTime(size))
	defer cancel()
	raw, err := w.cfg.Blobs.Get(ctx, link, donors, size)
	if err != nil {
		return got, fmt.Errorf("worker: fetch the state of %s: %w", donor, err)
	}
	defer w.cfg.Blobs.Drop(context.WithoutCancel(ctx), link)
	got.size = uint64(len(raw))
	if got.ledger {
		if got.state, err = round.DecodeHead(raw, shape); err == nil {
			got.state.Weights, got.state.Momentum = w.state.Weights, w.state.Momentum
		}
	} else {
		got.state, err = round.DecodeState(raw, shape)
	}
	if err != nil {
		return got, fmt.Errorf("worker: state of %s: %w", donor, err)
	}
	return got, nil
}

// lineageOf returns the lineage that a donor tells, or only the state itself where what it tells cannot be.
func lineageOf(res stateResponse) round.Lineage {
	tip, lineage := round.Ancestor{State: res.State, Tokens: res.Tokens}, round.Lineage(res.Lineage)
	impossible := func(a round.Ancestor) bool { return a.Tokens > tip.Tokens && a.Tokens != round.Merged }
	if len(lineage) > round.MaxLineage || !lineage.Has(tip) || slices.ContainsFunc(lineage, impossible) {
		return round.Lineage{tip}
	}
	return lineage
}

// lostSide is what this peer's side of a fork had when the other side won.
type lostSide struct {
	merge   round.Merge
	weights []float32
	cursors []uint64
	tokens  uint64 // since the fork
	tries   int
}

// mergeTries is how many rounds a lost side is offered for.
const mergeTries = 3

// speaksForSide reports whether this peer offers what its side of a fork has trained: of those that hold its state, the first.
func (w *worker) speaksForSide() bool {
	return !slices.ContainsFunc(w.board.mates(time.Now()), func(m mate) bool { return m.claim.State == w.hash && m.id < w.self })
}

// keepSide remembers the own state as the losing side of a fork, if it is one: if it left the winner's lineage at a state
// that both know.
func (w *worker) keepSide(winner round.Lineage) {
	fork, known := w.lineage.Meet(winner)
	if !known || w.state.Tokens <= fork.Tokens {
		return
	}
	w.lost = &lostSide{
		merge:   round.Merge{Base: fork.State, Tokens: fork.Tokens, State: w.hash},
		weights: w.state.Weights, cursors: w.state.Cursors, tokens: w.state.Tokens - fork.Tokens,
	}
	w.log.Info("kept the losing side of a fork", "state", w.hash.Short(), "tokens", w.lost.tokens)
}

// mergeCodec carries what a lost side brings back, whatever the codec of the run: a sparse one would lose most of it.
var mergeCodec = codec.Int8{}

// offerMerge makes this round's update from the lost side: φ of the lost state less φ of the parent.
func (w *worker) offerMerge(ctx context.Context) error {
	side := w.lost
	side.tries++
	if w.lineage.Knows(side.merge.State) || side.tries > mergeTries {
		w.lost = nil
		return nil
	}
	w.enter(round.PhaseTraining)
	update := w.mean
	for i, v := range side.weights {
		update[i] = v - w.state.Weights[i]
	}
	var ranges []round.Range
	for shard, to := range side.cursors {
		if from := w.state.Cursors[shard]; to > from && len(ranges) < round.MaxRanges {
			ranges = append(ranges, round.Range{Shard: uint32(shard), From: from, To: to})
		}
	}
	merge := side.merge
	header := w.fill(round.Header{Ranges: ranges, Tokens: side.tokens, Loss: w.state.Pulse.Loss, Merge: &merge}, w.pace())
	header.Codec = mergeCodec.ID()
	// Nobody has to wait for this update, but it has to wait for those of the others.
	return w.encode(ctx, header, update, nil, max(w.compute, w.roundTime()))
}

// mergeable checks a header that brings back the losing side of a fork.
func (w *worker) mergeable(h round.Signed) error {
	m := *h.Merge
	_, fits := h.Fits(w.state.Cursors, w.windows)
	at := round.Ancestor{State: m.Base, Tokens: m.Tokens}
	switch {
	case h.Codec != mergeCodec.ID() || h.Size != uint64(mergeCodec.Bound(len(w.state.Weights))):
		return fmt.Errorf("merge of %d bytes in %s", h.Size, h.Codec)
	case m.Tokens > w.state.Tokens || !w.lineage.Has(at):
		return fmt.Errorf("merge from state %s, which this peer never held", m.Base.Short())
	case w.lineage.Knows(m.State):
		return fmt.Errorf("merge of state %s, which was merged before", m.State.Short())
	case h.Tokens > w.state.Tokens-m.Tokens || !fits:
		return fmt.Errorf("merge of %d tokens from %v", h.Tokens, h.Ranges)
	}
	return nil
}
