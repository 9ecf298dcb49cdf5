package lab

import (
	"context"
	"fmt"
	"math"
	"slices"
)

// Case is one line of a comparison: a method under a budget.
type Case struct {
	Family string  // what the line is called in tables and plots
	Budget float64 // bytes allowed, as a share of data-parallel training's; 0: not part of the front
	Rate   float64 // peak of the inner learning rate; 0: the setup's
	Method Method
}

// Outcome is what a case gave over all seeds.
type Outcome struct {
	Case
	Loss   float64 // mean of the seeds, nats per token
	Spread float64 // between the largest and the smallest of the seeds
	Share  float64 // bytes, as a share of data-parallel training's
	Rounds float64 // exchanges, mean of the seeds
	Curve  []Point // of the first seed
}

// Study runs cases under equal conditions, each with every seed.
type Study struct {
	Setup Setup // its seed is replaced
	Seeds []uint64
}

// Unit returns the bytes that one peer downloads in data-parallel training with a float32 ring.
func (s Setup) Unit() (float64, error) {
	n, err := s.Model.Parameters()
	if err != nil {
		return 0, fmt.Errorf("lab: %w", err)
	}
	return 8 * float64(n) * float64(s.Peers-1) / float64(s.Peers) * float64(s.Steps), nil
}

// Run measures the cases in order.
func (s Study) Run(ctx context.Context, cases []Case) ([]Outcome, error) {
	unit, err := s.Setup.Unit()
	if err != nil {
		return nil, err
	}
	if len(s.Seeds) == 0 {
		return nil, fmt.Errorf("lab: no seeds: %w", ErrSetup)
	}
	var outcomes []Outcome
	for _, c := range cases {
		o := Outcome{Case: c}
		least, most := math.Inf(1), math.Inf(-1)
		for i, seed := range s.Seeds {
			setup := s.Setup
			setup.Seed = seed
			if c.Rate > 0 {
				setup.Rate = c.Rate
			}
			r, err := Run(ctx, setup, c.Method)
			if err != nil {
				return nil, err
			}
			if i == 0 {
				o.Curve = r.Curve
			}
			o.Loss += r.Loss / float64(len(s.Seeds))
			o.Rounds += float64(r.Rounds) / float64(len(s.Seeds))
			o.Share += r.Bytes / unit / float64(len(s.Seeds))
			least, most = min(least, r.Loss), max(most, r.Loss)
		}
		o.Spread = most - least
		outcomes = append(outcomes, o)
	}
	return outcomes, nil
}

// Won counts the budgets at which the best of the own families has a lower loss than the best of the others, of those at which
// it has a case. A method that needs fewer bytes than a budget allows competes for it too.
func Won(outcomes []Outcome, own, others []string) (won, of int) {
	for _, budget := range Budgets {
		mine, best, has := math.Inf(1), math.Inf(1), false
		for _, o := range outcomes {
			fits := o.Share <= 1.02*budget
			if slices.Contains(own, o.Family) {
				has = has || o.Budget == budget
				if fits {
					mine = min(mine, o.Loss)
				}
			} else if slices.Contains(others, o.Family) && fits {
				best = min(best, o.Loss)
			}
		}
		if has {
			of++
		}
		if has && mine < best {
			won++
		}
	}
	return won, of
}
