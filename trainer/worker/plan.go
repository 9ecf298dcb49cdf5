package worker

import (
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/trainer/codec"
	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/outer"
	"github.com/capacloud/capanode/trainer/round"
	"github.com/capacloud/capanode/trainer/tempo"
)

// Plan is what all peers of a run agree on, derived from the job record.
type Plan struct {
	Rounds     uint64 // with LocalSteps the length of the run: it ends after Rounds · LocalSteps nominal steps
	LocalSteps int    // optimiser steps H of one round; with a Tempo only the mean
	BatchRows  int    // sequences of one step
	MicroRows  int    // sequences computed at once; 0 means BatchRows
	Context    int    // tokens of one sequence
	Seed       uint64 // of the sample order

	Codec     string         // of the updates, such as "int8" or "top64"
	Outer     outer.Settings // outer optimiser
	Tempo     *tempo.Plan    // when set, chooses steps, codec and outer step of every round anew
	Params    int            // of the model: what turns bytes into the tempo's bits; needed with a Tempo
	Fragments int            // parts in which the weights travel, one each round; 0 means 1
	Group     int            // most members of a group; 0 means all up to 16 members, groups of 8 above
	Overlap   Overlap        // whether the next round's steps run beside the exchange

	Inner           engine.Step // inner AdamW; its LearningRate is overwritten by Schedule
	Schedule        Schedule    // inner learning rate
	CheckpointEvery uint64      // times LocalSteps: nominal steps between calls of OnCheckpoint; 0 means only after the last
}

// Overlap says whether the steps of the next round run while this one is exchanged.
type Overlap uint8

// Ways to overlap. The choice is each peer's own: its mates see no difference but in the lag that its headers tell.
const (
	OverlapAuto   Overlap = iota // when the network takes more than a twentieth of the time
	OverlapNever                 // equal runs end with equal bits
	OverlapAlways                // whatever it brings
)

// RoundTokens returns the tokens that one peer trains on in one round of nominal length.
func (p Plan) RoundTokens() uint64 {
	return uint64(p.LocalSteps) * uint64(p.BatchRows) * uint64(p.Context)
}

// MostTokens returns the tokens that one update may count for at most, whatever its peer's speed.
func (p Plan) MostTokens() uint64 { return p.mostSteps() * uint64(p.BatchRows) * uint64(p.Context) }

// TotalSteps returns the nominal steps after which the run is over.
func (p Plan) TotalSteps() uint64 { return p.Rounds * uint64(p.LocalSteps) }

// RoundsAfter returns how many rounds follow after so many committed steps, as long as links are no limit. For very long
// runs with a tempo it is an estimate.
func (p Plan) RoundsAfter(done uint64) uint64 {
	total := p.TotalSteps()
	if p.Tempo == nil {
		return (total - min(done, total) + uint64(p.LocalSteps) - 1) / uint64(p.LocalSteps)
	}
	const exact = 100_000
	var rounds uint64
	for first := done; done < total; rounds++ {
		if rounds == exact {
			return uint64(float64(rounds) * float64(total-first) / float64(done-first))
		}
		done += max(p.pace(ledger{steps: done}, 0).steps, 1)
	}
	return rounds
}

// maxSequences bounds the sequences of one round of one peer: 64 MiB of sample positions.
const maxSequences = 1 << 22

// longest returns the nominal steps of the longest round.
func (p Plan) longest() uint64 {
	if p.Tempo != nil {
		return tempo.Longest
	}
	return uint64(p.LocalSteps)
}

// mostSteps returns the steps of one peer in one round at most.
func (p Plan) mostSteps() uint64 {
	return min(round.MaxPace*p.longest(), max(maxSequences/uint64(p.BatchRows), 1))
}

// mostRows returns the sequences of one peer's gradient in one round at most.
func (p Plan) mostRows() uint64 { return min(round.MaxPace*uint64(p.BatchRows), maxSequences) }

// mostPerStep returns the tokens that a run can commit in one nominal step at most.
func (p Plan) mostPerStep() uint64 {
	return round.MaxMembers * round.MaxPace * uint64(p.BatchRows) * uint64(p.Context) * 2 // a merge brings as much again
}

// pace is how one round goes: the same on every peer that holds its parent state.
type pace struct {
	steps     uint64 // nominal local steps H
	codec     codec.Codec
	outer     outer.Settings
	fragments uint64
	group     int     // most members of a group; 0: all are in one
	gradients bool    // no local steps: one step by the sign of the members' mean gradient
	decay     float32 // of error feedback, in a round of gradients
	heal      bool    // a slice of the members' weights travels with their updates
	finale    []int   // sides of the grid in which all of the weights travel, without local steps; nil before the end
}

// ledger is what the pace of a round follows from.
type ledger struct {
	steps uint64 // nominal, committed
	pulse round.Pulse
	apart bool
}

func ledgerOf(s *round.State) ledger { return ledger{s.Steps, s.Pulse, s.Apart} }

// pace returns how the round of so many members goes that starts from the ledger. The plan has been checked.
//
// In a run whose members' weights are apart the last nominal step is no training: it is counted when the finale is over, so that
// a run of all its steps is one whose members have equal weights.
func (p Plan) pace(l ledger, members int) pace {
	b := pace{steps: uint64(p.LocalSteps), outer: p.Outer, fragments: uint64(max(p.Fragments, 1)), group: p.groupOf(members), heal: l.apart}
	end := p.TotalSteps()
	if !l.apart && l.steps+1 >= end {
		b.group = 0 // too late to part
	}
	if l.apart || b.group > 0 {
		end--
	}
	if l.apart && l.steps >= end {
		b.steps, b.codec, b.finale = 1, mergeCodec, []int{members}
		if b.group > 0 {
			b.finale = round.Grid(members, b.group)
		}
		return b
	}
	name := p.Codec
	if p.Tempo != nil {
		t := *p.Tempo
		t.Steps = end
		if b.group > 0 {
			t.Mates = b.group
		}
		if bits := 8 * float64(l.pulse.Budget) / float64(p.Params); bits > 0 && (t.Bits == 0 || bits < t.Bits) {
			t.Bits = bits
		}
		t.Link = int(min(l.pulse.Least, tempo.Longest))
		t.Least = max(t.Least, t.Link)
		t.Gradients = p.gradients() && b.group == 0 && !l.apart
		next := t.Next(l.steps)
		b.steps, b.outer, name = uint64(next.LocalSteps), next.Outer, next.Codec
		b.gradients, b.decay = next.Gradients, next.Decay
	}
	if l.steps < end {
		b.steps = min(b.steps, end-l.steps)
	}
	b.codec, _ = codec.Parse(name)
	return b
}

// gradients reports whether the plan has rounds of gradients where budget, links and groups allow them. The tiles of their
// transform are no whole number of fragments.
func (p Plan) gradients() bool { return p.Tempo != nil && p.Tempo.Gradients && p.Fragments <= 1 }

// role is what a member brings to the round.
func (b pace) role() round.Role {
	switch {
	case b.finale != nil:
		return round.RoleWeights
	case b.gradients:
		return round.RoleGradient
	}
	return round.RoleTrained
}

// Groups that a plan without a size of its own chooses: one while its blobs cost less than what groups lose, then small ones
// (docs/decisions/0003-averaging-defaults.md).
const (
	mostInOne  = 16
	smallGroup = 8
)

// groupOf returns the size of the groups of so many members; 0 where all are in one.
func (p Plan) groupOf(members int) int {
	size := p.Group
	if size == 0 {
		if size = mostInOne; members > mostInOne {
			size = smallGroup
		}
	}
	if members <= size {
		return 0
	}
	return size
}

func (p Plan) check() error {
	switch {
	case p.Rounds == 0 || p.Rounds > round.MaxRounds:
		return fmt.Errorf("worker: %d rounds: %w", p.Rounds, ErrConfig)
	case p.LocalSteps < 1 || p.BatchRows < 1 || p.Context < 1 || p.MicroRows < 0 || p.TotalSteps() > round.MaxSteps:
		return fmt.Errorf("worker: %d rounds of %d steps of %d rows of %d tokens: %w", p.Rounds, p.LocalSteps, p.BatchRows, p.Context, ErrConfig)
	case p.Group < 0 || p.Group == 1 || p.Group > round.MaxMembers:
		return fmt.Errorf("worker: groups of %d, want 2 to %d, or 0 to choose by the number of members: %w", p.Group, round.MaxMembers, ErrConfig)
	case p.Fragments < 0 || p.Fragments > round.MaxFragments:
		return fmt.Errorf("worker: %d fragments, want at most %d: %w", p.Fragments, round.MaxFragments, ErrConfig)
	}
	if p.Tempo == nil {
		if _, err := codec.Parse(p.Codec); err != nil {
			return fmt.Errorf("worker: %w: %w", err, ErrConfig)
		}
		return nil
	}
	if p.Tempo.Steps != p.TotalSteps() || p.Params < 1 {
		return fmt.Errorf("worker: tempo for %d steps, the run has %d of a model of %d parameters: %w", p.Tempo.Steps, p.TotalSteps(), p.Params, ErrConfig)
	}
	if _, err := codec.Parse(p.Tempo.Next(0).Codec); err != nil {
		return fmt.Errorf("worker: %w: %w", err, ErrConfig)
	}
	return nil
}

// pace returns how the round goes that starts at the committed state. Whether there are groups follows from the members in the
// state, so that all switch in the same round; in the first round from those that live.
func (w *worker) pace() pace {
	members := 0
	if w.state.Round == 0 || w.seated() {
		members = len(w.dealt())
	}
	return w.cfg.Plan.pace(ledgerOf(w.state), members)
}

// fragment returns the part of the weights that the round averages.
func (w *worker) fragment(b pace) (from, to int) {
	n := len(w.state.Weights)
	if b.finale != nil {
		return 0, n
	}
	parts := max(min(int(b.fragments), codec.Blocks(n)), 1)
	return round.Slice(w.state.Round, n, codec.Block, parts)
}

// over reports whether the run is.
func (w *worker) over() bool { return w.state.Steps >= w.cfg.Plan.TotalSteps() }

// trainers lists who trains in the coming round, this peer included, ascending, and the speeds of those who told one; 0
// stands for the others.
func (w *worker) trainers() (ids []peer.ID, speeds []uint64) {
	ids, speeds = []peer.ID{w.self}, []uint64{w.ownSpeed()}
	at := w.claim()
	for _, m := range w.board.mates(time.Now()) {
		if m.gets(at) {
			ids, speeds = append(ids, m.id), append(speeds, m.speed)
		}
	}
	slices.Sort(ids)
	return ids, speeds
}

// deal returns the sample ranges of this peer's round, nil when its shards hold none.
func (w *worker) deal(members []peer.ID, cursors []uint64, need uint64) []round.Range {
	var own []int
	for shard, m := range round.Assign(w.cfg.Plan.Seed, len(w.windows), members) {
		if members[m] == w.self {
			own = append(own, shard)
		}
	}
	return round.Take(own, w.windows, cursors, need)
}

// measured is the least size of a blob whose transfer says something about the link: below, it is all latency.
const measured = 32 << 10

// noticeLink remembers how fast updates arrive.
func (w *worker) noticeLink(size uint64, took time.Duration) {
	if size < measured || took <= 0 {
		return
	}
	rate := uint64(float64(size) / took.Seconds())
	if w.link == 0 {
		w.link = rate
	}
	w.link = (3*w.link + rate) / 4
}

// affords returns what this peer's link affords: the bytes that it carries in half of a step's time, and the steps that take as
// long as an exchange. Both are 0, no limit, as long as the network takes less than a fifth of the time; so is the former
// when updates are too small to measure a rate by.
//
// Where rounds of gradients are possible the choice hangs on whether an exchange fits into one step, in every kind of round alike: a
// run that left them for slow links must not come back because longer rounds hide those. An exchange that fits is no limit, so
// that such runs on fast networks repeat to the bit as well. Where a mate cannot catch up, rounds have to be longer than it takes to
// fetch a state.
func (w *worker) affords(step time.Duration) (bytes uint64, least uint32) {
	if step <= 0 {
		return 0, 0
	}
	least = uint32(min(math.Ceil(float64(w.exchanging)/float64(step)), tempo.Longest))
	slow := w.waiting >= 0.2
	if w.cfg.Plan.gradients() {
		if w.leavesBehind() {
			least = max(least, longRounds)
		}
		if least <= 1 {
			return 0, 0
		}
	} else if !slow {
		return 0, 0
	}
	if slow && w.link > 0 {
		bytes = max(uint64(float64(w.link)*step.Seconds()/2), 1)
	}
	return bytes, least
}

// noticeWait remembers how long an exchange takes, and which share of the time goes to waiting for the network.
func (w *worker) noticeWait(compute, wait time.Duration) {
	if compute > 0 {
		w.exchanging += (wait - w.exchanging) / 4
		w.waiting += 0.25 * (float64(wait)/float64(wait+compute) - w.waiting)
	}
}

func (w *worker) ownSpeed() uint64 {
	w.mu.RLock()
	defer w.mu.RUnlock()
	return w.speed
}

func (w *worker) setSpeed(tokens uint64, took time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if took > 0 {
		w.speed = uint64(float64(tokens) / took.Seconds())
	}
}
