// Package tempo owns the pace of a run: how many steps peers train alone before they average, in which codec, and how far the
// outer step goes, as one schedule under a budget of bytes. It refuses to measure anything: everything here is a pure function
// of the plan and of how far the run is, so that all peers compute the same beat, on every machine.
package tempo

import (
	"github.com/capacloud/capanode/trainer/outer"
)

// Plan is what does not change during a run.
type Plan struct {
	Steps uint64  // optimiser steps of one peer over the whole run, at least 1
	Mates int     // members of a group, each of which fetches the updates of all others; all members where there is one group
	Bits  float64 // budget: bits per parameter and optimiser step that a peer downloads in the mean over the run; 0: no limit
	Codec string  // fixed codec; "" lets the budget choose
}

// Beat is how the next round goes.
type Beat struct {
	LocalSteps int            // optimiser steps H before the peers average
	Codec      string         // of the updates, as package codec parses it
	Outer      outer.Settings // of the step on the mean update
}

// rung is a codec with its bits per parameter, as measured on updates of training.
type rung struct {
	codec string
	bits  float64
}

// ladder lists the codecs from fine to coarse.
var ladder = []rung{{"int8", 8.05}, {"int4", 4.05}, {"top1024", 1.36}, {"top512", 0.80}, {"top256", 0.47}, {"top128", 0.27}, {"top64", 0.15}}

// Longest is the longest round in steps: local steps beyond it cost more loss than any budget is worth.
const Longest = 60

// Next returns the beat of the round that begins after done steps. The round never goes past the end of the run.
//
// Rounds grow over the run: early updates disagree most and gain most from averaging. With a share p of the steps done, the
// bits of a step are spent at 7/4 − 3p/2 times their mean.
func (p Plan) Next(done uint64) Beat {
	left := 1
	if done < p.Steps {
		left = int(min(p.Steps-done, Longest))
	}
	r, each := p.rung()
	b := Beat{LocalSteps: 2, Codec: r.codec, Outer: outer.Settings{LearningRate: 0.7, Momentum: 0.6}}
	if each > 0 {
		share := float64(min(done, p.Steps)) / float64(max(p.Steps, 1))
		now := each * (1.75 - float64(1.5*share))
		b.LocalSteps = int(max(1, min(r.bits/now+0.5, Longest)))
	}
	b.LocalSteps = min(b.LocalSteps, left)
	return b
}

// rung returns the codec of the run and the bits per parameter and step that one update may cost, 0 for any.
func (p Plan) rung() (rung, float64) {
	each := p.Bits / float64(max(p.Mates-1, 1))
	chosen := ladder[0]
	for _, r := range ladder {
		if p.Codec == r.codec {
			return r, each
		}
		if each > 0 && r.bits >= 6*each {
			chosen = r
		}
	}
	return chosen, each
}
