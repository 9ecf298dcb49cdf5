// Package tempo owns the pace of a run: how many steps peers train alone before they average, or whether they take one step
// together, in which codec, and how far the outer step goes, as one schedule under a budget of bytes. It refuses to measure anything: everything here is a pure function
// of the plan and of how far the run is, so that all peers compute the same beat, on every machine.
//
// The rules come from comparisons in package lab; docs/decisions/0003-averaging-defaults.md holds the figures.
package tempo

import (
	"math"
	"slices"

	"github.com/capacloud/capanode/trainer/outer"
)

// Plan is what does not change during a run.
type Plan struct {
	Steps uint64  // optimiser steps of one peer over the whole run, at least 1
	Mates int     // members of a group, each of which fetches the updates of all others; all members where there is one group
	Bits  float64 // budget: bits per parameter and optimiser step that a peer downloads in the mean over the run; 0: no limit
	Least int     // fewest steps of a round of local steps, from what a round costs besides bytes: delays, signatures, hashing; 0 means 1
	Codec string  // fixed codec; "" lets the budget choose

	Gradients bool // rounds may be one step on everybody's gradients
	Link      int  // steps that take as long as an exchange on the run's links, rounded up; 0 where that is no limit
}

// Beat is how the next round goes.
type Beat struct {
	LocalSteps int            // optimiser steps H before the peers average
	Codec      string         // of the updates, as package codec parses it
	Outer      outer.Settings // of the step on the mean update; zero in a round of gradients

	Gradients bool    // no local steps: the peers take one step together, by the sign of their mean gradient
	Decay     float32 // in a round of gradients, of what each peer's codec has left of earlier ones
}

// rung is a codec with its bits per parameter on updates of training.
type rung struct {
	codec string
	bits  float64
}

// ladder lists the codecs from fine to coarse. Dense four bits are left out: top1024 with error feedback costs a third and loses
// no more.
var ladder = []rung{
	{"int8", 8.04}, {"top1024", 1.33}, {"top768", 1.09}, {"top512", 0.81}, {"top384", 0.645}, {"top256", 0.473},
	{"top192", 0.374}, {"top128", 0.271}, {"top96", 0.213}, {"top64", 0.153},
}

const (
	// finest is the rung at which codecs of gradients begin. What a coarse codec leaves is the momentum that the sign of the mean needs, so
	// finer ones gain nothing: dense ones leave no momentum at all.
	finest = 3
	// What error feedback keeps of a round of gradients in the next. A codec down to top384 says so much that less of it would be momentum;
	// coarser ones say late what a longer memory would only delay more.
	fineDecay, coarseDecay = 0.98, 0.96
)

// decay returns the decay that suits a codec of gradients.
func (r rung) decay() float32 {
	if r.bits > 0.5 {
		return fineDecay
	}
	return coarseDecay
}

const (
	middle  = 5   // rung below which a round is rather made longer than the codec coarser
	brisk   = 5   // steps that a round grows to first
	patient = 16  // steps that a round grows to before the codec goes below middle
	Longest = 100 // steps of a round, whatever the budget
)

// Next returns the beat of the round that begins after done steps. The round never goes past the end of the run.
//
// The loss depends on the bytes, hardly on how they are cut into rounds: at equal bytes, a sixty-fourth of the elements every
// step, a sixteenth every third and an eighth every fifth differ by less than the seeds do. When bytes are so few that an
// element's turn comes but once or twice in a run, a quarter to a sixteenth of the elements at a time goes furthest. So the
// codec is the finest that the shortest round pays for, down to top256; then rounds grow to 5 steps, then to 16, with the
// finest codec that makes good use of the budget; then the codec goes down the ladder; then rounds grow again.
//
// The last round carries everything that error feedback still holds, in int8, where that costs no more than a twentieth of
// the whole budget.
func (p Plan) Next(done uint64) Beat {
	if done >= p.Steps {
		return Beat{LocalSteps: 1, Codec: p.last(p.each()).codec, Outer: outer.Settings{LearningRate: 1}}
	}
	each := p.each()
	if r, ok := p.gradients(each); ok {
		return Beat{LocalSteps: 1, Codec: r.codec, Gradients: true, Decay: r.decay()}
	}
	left := int(min(p.Steps-done, Longest))
	r, h := p.choose(max(p.Least, 1), each)
	if h >= left {
		if end := p.last(each); end.codec != "" {
			return Beat{LocalSteps: left, Codec: end.codec, Outer: outer.Settings{LearningRate: 1}}
		}
	}
	return Beat{LocalSteps: min(h, left), Codec: r.codec, Outer: outer.Settings{LearningRate: p.rate(r, h)}}
}

// gradients returns the codec of a round of gradients, if the next round is one: where the budget pays for an exchange in every
// step, and an exchange takes no longer than a step. There one step by the sign of the mean gradient is worth more than a step of
// AdamW on each peer alone, whose updates are averaged (docs/decisions/0006-gradient-rounds.md).
func (p Plan) gradients(each float64) (rung, bool) {
	if !p.Gradients || p.Link > 1 || p.Mates < 2 {
		return rung{}, false
	}
	for _, r := range ladder[finest:] {
		if steps(r, each) == 1 && (p.Codec == "" || r.codec == p.Codec) {
			return r, true
		}
	}
	return rung{}, false
}

// last returns the codec of a last round that leaves nothing unsaid; its zero value says that this costs too much.
func (p Plan) last(each float64) rung {
	if p.Codec == "" && (each == 0 || ladder[0].bits <= each*float64(p.Steps)/20) {
		return ladder[0]
	}
	return rung{}
}

// each returns the bits per parameter and step that one update may cost; 0 means any.
func (p Plan) each() float64 { return p.Bits / float64(max(p.Mates-1, 1)) }

// choose returns the codec and the length of a round.
func (p Plan) choose(least int, each float64) (rung, int) {
	if i := slices.IndexFunc(ladder, func(r rung) bool { return r.codec == p.Codec }); i >= 0 {
		return ladder[i], max(least, steps(ladder[i], each))
	}
	if p.Codec != "" {
		return rung{codec: p.Codec}, least
	}
	for _, grown := range []int{max(least, brisk), max(least, patient)} {
		for i, r := range ladder {
			h := max(least, steps(r, each))
			spent := r.bits / (each * float64(h)) // of the budget; infinite without one, when h is the least
			if i > middle && grown < patient {
				break
			}
			if h == least || i > 0 && h <= grown && spent >= 0.85 {
				return r, h
			}
		}
	}
	coarsest := ladder[len(ladder)-1]
	return coarsest, steps(coarsest, each)
}

// steps returns how many steps must lie between two updates in a codec; 1 without a budget. Bits differ a little with the
// updates, so two in a hundred more count as fitting.
func steps(r rung, each float64) int {
	if each <= 0 {
		return 1
	}
	return int(max(1, min(math.Ceil(r.bits/float64(1.02*each)), Longest)))
}

// rate returns the outer learning rate η; momentum gains nothing over it. Above 1 it makes up for what local AdamW loses to
// the noise of a peer's own small batch, which the mean does not have, a twentieth for each mate, and for what a sparse codec
// sends late when rounds are long. Twice as much is better with some seeds and much worse with others. Dense updates of
// longer rounds want none of it.
func (p Plan) rate(r rung, h int) float32 {
	twentieths := max(p.Mates-1, 0)
	switch {
	case h > 1 && r.bits > 2:
		twentieths = 0
	case h >= 12:
		twentieths += 6
	}
	return float32(20+min(twentieths, 10)) / 20
}
