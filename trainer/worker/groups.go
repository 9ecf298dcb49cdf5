package worker

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/trainer/codec"
	"github.com/capacloud/capanode/trainer/outer"
	"github.com/capacloud/capanode/trainer/round"
)

// healParts is in how many slices weights that are apart are healed, one each round: once round costs an int4 copy of the model
// from each mate, and its members' weights differ by what they have done since.
const healParts = 32

// healCodec carries the slices: coarse, as healing moves everybody by a difference of what all have decoded.
var healCodec = codec.Int4{}

// dealt lists the members among whom the round from the own state is dealt, ascending: shards, and groups. It is fixed when it is
// first asked for.
func (w *worker) dealt() []peer.ID {
	if w.members == nil {
		w.members = w.view()
	}
	return w.members
}

// seated reports whether rounds are dealt among the members in the state: where there are groups, since all must know alike who is
// in which. In one group each deals among those whom it has heard of; the worst that comes of it is a shard dealt twice.
func (w *worker) seated() bool {
	return w.state.Apart || w.cfg.Plan.groupOf(len(w.state.View)) > 0
}

// view is the view in the state where groups go by it, unless nobody of it is left; else the peers that train, as far as this one
// has heard of them.
func (w *worker) view() []peer.ID {
	ids, _ := w.trainers()
	if !w.seated() {
		return ids
	}
	seats, at := w.state.Members(), w.claim()
	if _, ok := slices.BinarySearch(seats, w.self); ok {
		return seats
	}
	for _, m := range w.board.mates(time.Now()) {
		if _, ok := slices.BinarySearch(seats, m.id); ok && m.takesPart(at) {
			return seats
		}
	}
	return ids
}

// groups returns who averages with whom in the round from the own state, in the order in which sums are taken; nil where all are
// in one group.
func (w *worker) groups(b pace) [][]peer.ID {
	if b.group == 0 {
		return nil
	}
	members := w.dealt()
	var places [][]int
	if b.finale == nil {
		places = round.Grouping{Seed: w.cfg.Plan.Seed, Size: b.group}.Groups(w.state.Round, len(members))
	} else {
		places = round.Lines(b.finale, min(int(w.state.Mixed), len(b.finale)-1))
	}
	groups := make([][]peer.ID, len(places))
	for i, group := range places {
		for _, p := range group {
			groups[i] = append(groups[i], members[p])
		}
	}
	return groups
}

// offers lists whose weights the finale averages: the first of the members, as many as its grid has points.
func (w *worker) offers(b pace) []peer.ID {
	points := 1
	for _, side := range b.finale {
		points *= side
	}
	return w.dealt()[:min(points, len(w.dealt()))]
}

// turn is what the ledger is told about a round.
func (w *worker) turn(b pace) round.Turn {
	t := round.Turn{Steps: b.steps, Groups: b.group > 0}
	if b.finale != nil {
		t.Axes, t.Offers = len(b.finale), w.offers(b)
	}
	return t
}

// healing returns the part of the weights that the round heals: a slice of the fragment that it averages.
func (w *worker) healing(b pace) (from, to int) {
	if !b.heal || b.finale != nil {
		return 0, 0
	}
	lo, hi := w.fragment(b)
	from, to = round.Slice(w.state.Round/b.fragments, hi-lo, codec.Block, healParts)
	return lo + from, lo + to
}

// away writes how far the weights are from those that the run began with, from an element on: what members tell each other of
// their weights, as it takes fewer bits than the weights.
func (w *worker) away(dst []float32, from int) []float32 {
	phi, first := w.state.Weights[from:], w.first[from:]
	for i := range dst {
		dst[i] = phi[i] - first[i]
	}
	return dst
}

// offerWeights makes this peer's update of a round of the finale: all of its weights. Who has no place in the grid sits it out.
func (w *worker) offerWeights(ctx context.Context) error {
	b := w.pace()
	if _, ok := slices.BinarySearch(w.offers(b), w.self); !ok {
		w.listen = true
		return nil
	}
	w.enter(round.PhaseTraining)
	header := w.fill(round.Header{Role: round.RoleWeights, Loss: w.state.Pulse.Loss, View: round.HashView(w.dealt())}, b)
	return w.encode(ctx, header, w.away(w.mean, 0), nil, 0)
}

// assemble takes the mean of a group's weights for the own, in the group's order: who has taken part in the last rounds ends
// with the same bits as all others.
func (w *worker) assemble(accepted []round.Signed, blobs exchanged, b pace) error {
	order := make([]peer.ID, 0, len(accepted))
	for _, h := range accepted {
		order = append(order, h.Author)
	}
	for _, group := range w.groups(b) {
		if slices.Contains(group, w.self) {
			order = group
		}
	}
	var all []codec.Source
	for _, id := range order {
		if i := slices.IndexFunc(accepted, func(h round.Signed) bool { return h.Author == id }); i >= 0 {
			all = append(all, blobs.sources[accepted[i].ID])
		}
	}
	if err := outer.Average(w.mean, all); err != nil {
		return err
	}
	for i, v := range w.first {
		w.state.Weights[i] = v + w.mean[i]
	}
	clear(w.state.Momentum)
	return nil
}

// healSlice moves the round's slice of the weights towards the group's mean. Only who is in the mean moves, so that the sum over
// the group stays what it was.
func (w *worker) healSlice(mates []round.Signed, blobs exchanged, b pace) error {
	from, to := w.healing(b)
	if from == to || w.own == nil || w.own.slice == nil {
		return nil
	}
	var all []codec.Source
	in := false
	for _, h := range mates {
		if s := blobs.slices[h.ID]; s != nil {
			all = append(all, s)
			in = in || h.ID == w.own.ID
		}
	}
	if !in {
		return nil
	}
	mean, own := make([]float32, to-from), make([]float32, to-from)
	if err := outer.Average(mean, all); err != nil {
		return err
	}
	codec.Decode(own, w.own.slice)
	return outer.Heal(w.state.Weights[from:to], mean, own, 1)
}

// sitOut waits for the end of a finale that this peer's weights are no part of, and takes over what it led to. Where all who are
// part of it are gone, the peer goes on with those that are left.
func (w *worker) sitOut(ctx context.Context) error {
	w.enter(round.PhaseListening)
	tick := time.NewTicker(round.HeartbeatInterval / 4)
	defer tick.Stop()
	for !w.draining() {
		at, hope := w.claim(), false
		for _, m := range w.board.mates(time.Now()) {
			if m.claim.Steps >= w.cfg.Plan.TotalSteps() {
				if claim, ok := w.beaten(); ok {
					return w.adopt(ctx, claim)
				}
			}
			hope = hope || m.takesPart(at) || m.claim.Round > at.Round && m.claim.Tokens >= at.Tokens
		}
		if !hope {
			w.listen, w.members = false, nil
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-w.board.changed:
		case <-tick.C:
		}
	}
	return nil
}

// hello makes the header by which a peer that sits a round out asks to be dealt in from the next one on.
func (w *worker) hello() ([]byte, round.Signed, error) {
	header := w.fill(round.Header{Role: round.RoleHello, View: round.HashView(w.dealt())}, w.pace())
	message, err := round.Seal(w.cfg.Net.Key(), header)
	if err != nil {
		return nil, round.Signed{}, fmt.Errorf("worker: round %d: %w", w.state.Round, err)
	}
	m, err := round.Open(w.cfg.Run, message)
	if err != nil {
		return nil, round.Signed{}, fmt.Errorf("worker: round %d: own hello: %w", w.state.Round, err)
	}
	return message, round.Signed{Header: header, Author: w.self, ID: m.Hash}, nil
}
