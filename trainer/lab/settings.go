package lab

import (
	"fmt"

	"github.com/capacloud/capanode/trainer/model"
	"github.com/capacloud/capanode/trainer/outer"
	"github.com/capacloud/capanode/trainer/tempo"
)

// Names of the methods in tables and plots.
const (
	Ours         = "Capanode"
	LocalSteps   = "Capanode, local steps alone"
	DataParallel = "data-parallel"
	exact        = "exact DiLoCo"
	Streaming4   = "Streaming DiLoCo, 4 bits"
	pairs        = "NoLoCo"
	sparse       = "SparseLoCo"
	transformed  = "DeMo"
	lone         = "one peer alone"
)

// Others are the methods that are not the program's.
var Others = []string{DataParallel, lone, Streaming4, exact, pairs, sparse, transformed}

// Budgets are the shares of data-parallel bytes at which methods are compared.
var Budgets = []float64{1.0 / 10, 1.0 / 30, 1.0 / 100, 1.0 / 300, 1.0 / 1000}

// Bench returns the conditions of the published comparison: a Llama of a tenth of a million parameters over bytes, 8 sequences
// of 32 in each step of each peer. Matrices start four times wider than the models' 0.02, which suits widths of many hundreds:
// at width 64 it costs half of a short run to leave the plateau of letter frequencies, by chance sooner or later, and that
// would drown what is to be compared.
func Bench(text Text, peers, steps int) (Setup, error) {
	spec, err := model.Preset("llama-tiny")
	if err != nil {
		return Setup{}, fmt.Errorf("lab: %w", err)
	}
	spec.Context = 32
	return Setup{Model: spec, Text: text, Peers: peers, Rows: 8, Steps: steps, Rate: 6e-3, Scale: 4, Points: 10}, nil
}

// unit returns the bits per parameter and step of data-parallel training.
func (s Setup) unit() float64 { return 64 * float64(s.Peers-1) / float64(s.Peers) }

// every returns the steps between exchanges of so many bits per parameter, the last at the end, that keep to the budget; 0 where
// it does not pay for one.
func (s Setup) every(budget, bits float64) int {
	rounds := int(budget*s.unit()*float64(s.Steps)/bits + 0.01)
	if rounds == 0 {
		return 0
	}
	return max(1, (s.Steps+rounds-1)/rounds)
}

// mine is the program's own schedule under a budget, as the worker follows it on quick links. Where the bytes are too few to bring
// the peers together at the end, each keeps its own weights.
func (s Setup) mine(budget float64) Case {
	plan := s.plan(budget)
	plan.Gradients = true
	if b := plan.Next(0); b.Gradients { // under a budget that does not change all rounds are
		return Case{Family: Ours, Budget: budget, Method: Relay{b.Codec, b.Decay}}
	}
	c := s.local(budget)
	c.Family = Ours
	return c
}

func (s Setup) plan(budget float64) tempo.Plan {
	return tempo.Plan{Steps: uint64(s.Steps), Mates: s.Peers, Bits: budget * s.unit()}
}

// local is the same schedule where a job excludes gradients.
func (s Setup) local(budget float64) Case {
	plan := s.plan(budget)
	b := plan.Next(0)
	label := fmt.Sprintf("%s, H %d, %s", b.Codec, b.LocalSteps, rates(b.Outer))
	return Case{Family: LocalSteps, Budget: budget, Method: Gather{Label: label, Pace: plan.Next, Own: budget < 1.0/500}}
}

// Front returns the cases of the front of loss against bytes: every method at the best settings that were found for it by
// sweeps of inner and outer rates and momenta at four peers (docs/decisions/0003-averaging-defaults.md). A method has no case
// where nothing of it fits the budget, and, unless all is set, where it is out of the running.
func Front(s Setup, all bool) []Case {
	cases := []Case{{Family: DataParallel, Method: Parallel{}}, {Family: lone, Method: Alone{}}}
	for i, b := range Budgets {
		own := s.mine(b)
		cases = append(cases, own)
		if _, gradients := own.Method.(Relay); gradients {
			cases = append(cases, s.local(b))
		}
		// The last step sends the fragments that were not due once more, at worst all.
		const bits = 1.5 * e3m0Bits
		if h := s.every(b-bits/s.unit()/float64(s.Steps), bits); h > 0 {
			cases = append(cases, Case{Family: Streaming4, Budget: b, Method: Streaming{Every: h, Outer: outer.Settings{LearningRate: streamRate(h)}}})
		}
		if h := s.every(b, s.unit()); h > 0 {
			cases = append(cases, Case{Family: exact, Budget: b, Method: DiLoCo{h, outer.Settings{LearningRate: 1}}})
		}
		if h := s.every(b, 64); h > 0 && (all || i < 2) {
			cases = append(cases, Case{Family: pairs, Budget: b, Method: NoLoCo{h, 0.5, 0.7, 0.7}})
		}
		top := []int{256, 256, 64, 64, 64}[i]
		if h := s.every(b, float64(s.Peers-1)*(14*float64(top)+64)/4096); h > 0 && (all || i == 2 || i == 3) {
			cases = append(cases, s.published(b, top, h))
		}
		if all || i < 2 {
			cases = append(cases, Case{Family: transformed, Budget: b, Method: DeMo{Keep: []int{234, 78, 23, 7, 2}[i], Decay: 0.9}})
		}
	}
	return cases
}

// streamRate is the outer rate of Streaming DiLoCo that was best for rounds of so many steps.
func streamRate(h int) float32 {
	if h > 6 && h < 30 {
		return 1
	}
	return 1.3
}

// published is SparseLoCo with its own error feedback and positions.
func (s Setup) published(budget float64, top, h int) Case {
	beat := tempo.Beat{LocalSteps: h, Codec: fmt.Sprint("top", top), Outer: outer.Settings{LearningRate: 1}}
	return Case{Family: sparse, Budget: budget, Method: Gather{
		Label: fmt.Sprintf("%s, H %d", beat.Codec, h), Pace: func(uint64) tempo.Beat { return beat }, Reset: true, Forget: 0.05, Plain: true, Fixed: true,
	}}
}

// Parity returns the cases of the comparison with data-parallel training: that, the program with a tenth of its bytes, exact DiLoCo
// with as many rounds, and the program where a job excludes gradients.
func Parity(s Setup) []Case {
	own, local := s.mine(1.0/10), s.local(1.0/10)
	own.Budget, local.Budget = 0, 0
	beat := local.Method.(Gather).Pace(0)
	return []Case{{Family: DataParallel, Method: Parallel{}}, own, {Family: exact, Method: DiLoCo{beat.LocalSteps, beat.Outer}}, local}
}
