package lab

import (
	"fmt"

	"github.com/capacloud/capanode/trainer/outer"
	"github.com/capacloud/capanode/trainer/tempo"
)

// What the comparison of groups holds still: the worker's healing of sparse rounds, and rounds of five steps.
const (
	partSteps  = 5  // local steps of a round
	partHeal   = 32 // slices that the weights are healed in
	denseHeal  = 8  // the same where updates are dense, so that healing costs a like share of the bytes
	partFinale = "int8"
)

// Parts returns the cases that compare groups smaller than the run with one group, under equal conditions: one group with
// sparse updates, and groups and pairs with sparse and dense ones. In one case the one group is as long silent as makes its
// bytes those of groups of small. Every case in groups ends with a finale, whose bytes count.
func Parts(s Setup, small int) []Case {
	sparse := func(size int) Case {
		beat := s.part(size, partSteps, "top512")
		return grouped(fmt.Sprintf("groups of %d, top512", size), Gossip{Pace: beat, Size: size, Heal: partHeal, Rate: 1, Codec: "int4", Finale: partFinale})
	}
	dense := func(size int) Case {
		beat := s.part(size, partSteps, "int8")
		return grouped(fmt.Sprintf("groups of %d, int8", size), Gossip{Pace: beat, Size: size, Heal: denseHeal, Rate: 1, Codec: "int8", Finale: partFinale})
	}
	silent := partSteps * (s.Peers - 1) / (small - 1)
	return []Case{
		{Family: DataParallel, Method: Parallel{}},
		s.whole("one group, top512", partSteps),
		s.whole(fmt.Sprintf("one group, top512, H %d", silent), silent),
		sparse(small), dense(small), sparse(4), dense(4),
		grouped("pairs, int4", Gossip{Pace: s.part(2, partSteps, "int4"), Size: 2, Heal: partHeal, Rate: 1, Codec: "int4", Finale: partFinale}),
	}
}

// grouped is a case whose peers keep weights of their own until the finale.
func grouped(name string, m Gossip) Case {
	m.Label = fmt.Sprintf("%s, healing 1/%d in %s", name, m.Heal, m.Codec)
	return Case{Family: name, Method: m}
}

// whole is one group with sparse updates.
func (s Setup) whole(name string, steps int) Case {
	return Case{Family: name, Method: Gather{Label: name, Pace: s.part(s.Peers, steps, "top512")}}
}

// part is a steady pace in groups of so many.
func (s Setup) part(size, steps int, codec string) func(uint64) tempo.Beat {
	plan := tempo.Plan{Steps: uint64(s.Steps), Mates: size, Least: steps, Codec: codec}
	if codec == "top512" {
		return plan.Next
	}
	return func(done uint64) tempo.Beat { // dense means of longer rounds want no more than η = 1
		b := plan.Next(done)
		b.Outer = outer.Settings{LearningRate: 1}
		return b
	}
}
