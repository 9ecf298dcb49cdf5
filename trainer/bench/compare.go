package bench

import (
	"context"
	"fmt"
	"slices"

	"github.com/capacloud/capanode/trainer/lab"
)

// Comparison is the program's averaging against other methods at equal tokens.
type Comparison struct {
	Conditions string
	Front      []lab.Outcome // four peers under budgets of bytes
	Parity     []Parity      // at four and at eight peers
	Won        int           // budgets at which the loss of the program is the lowest
}

// Parity is the comparison with data-parallel training, whatever the bytes, at one number of peers.
type Parity struct {
	Peers                    int
	Parallel                 float64 // loss of data-parallel training
	OverParallel, OverDiLoCo float64 // the program's loss over data-parallel's, and over exact DiLoCo's with as many rounds
	Local                    float64 // loss of the program without rounds of gradients over data-parallel's
	Share                    float64 // the program's bytes, of data-parallel's
	Outcomes                 []lab.Outcome
}

// Compare runs the comparison; full takes longer runs and three seeds.
func Compare(ctx context.Context, text lab.Text, full bool) (c Comparison, err error) {
	seeds, steps := []uint64{1}, 150
	if full {
		seeds, steps = []uint64{1, 2, 3}, 300
	}
	c.Conditions = fmt.Sprintf("llama-tiny, context 32, batch 8 a peer, %d steps, seeds %v", steps, seeds)
	study := func(peers int, cases func(lab.Setup) []lab.Case) ([]lab.Outcome, error) {
		setup, err := lab.Bench(text, peers, steps)
		if err != nil {
			return nil, err
		}
		return lab.Study{Setup: setup, Seeds: seeds}.Run(ctx, cases(setup))
	}
	if c.Front, err = study(4, func(s lab.Setup) []lab.Case { return lab.Front(s, full) }); err != nil {
		return c, fmt.Errorf("bench: %w", err)
	}
	for _, peers := range []int{4, 8} {
		outcomes, err := study(peers, lab.Parity)
		if err != nil {
			return c, fmt.Errorf("bench: %w", err)
		}
		parallel, own, diloco := outcomes[0], outcomes[1], outcomes[2]
		c.Parity = append(c.Parity, Parity{Peers: peers, Parallel: parallel.Loss, OverParallel: own.Loss / parallel.Loss, OverDiLoCo: own.Loss / diloco.Loss,
			Local: outcomes[3].Loss / parallel.Loss, Share: own.Share, Outcomes: outcomes})
	}
	c.Won, _ = lab.Won(c.Front, []string{lab.Ours}, lab.Others)
	return c, nil
}

// Families lists the methods of the front that have budgets, in its order.
func (c Comparison) Families() (names []string) {
	for _, o := range c.Front {
		if o.Budget > 0 && !slices.Contains(names, o.Family) {
			names = append(names, o.Family)
		}
	}
	return names
}

// At returns a method's outcome under a budget.
func (c Comparison) At(family string, budget float64) (lab.Outcome, bool) {
	i := slices.IndexFunc(c.Front, func(o lab.Outcome) bool { return o.Family == family && o.Budget == budget })
	if i < 0 {
		return lab.Outcome{}, false
	}
	return c.Front[i], true
}

// Best returns the outcome with the lowest loss of all that keep to a budget, a peer alone included.
func (c Comparison) Best(budget float64) (best lab.Outcome, ok bool) {
	for _, o := range c.Front {
		if o.Share <= 1.02*budget && (!ok || o.Loss < best.Loss) {
			best, ok = o, true
		}
	}
	return best, ok
}

// Curve is an outcome that a plot against tokens shows.
type Curve struct {
	lab.Outcome
	Label string
}

// Curves picks the outcomes whose course is worth a line: those without a budget, and the best under some.
func (c Comparison) Curves() (curves []Curve) {
	for _, o := range c.Front {
		switch {
		case o.Budget == 0:
			curves = append(curves, Curve{o, o.Family})
		case o.Family == lab.Ours && (o.Budget == lab.Budgets[0] || o.Budget == lab.Budgets[2] || o.Budget == lab.Budgets[4]),
			o.Family == lab.LocalSteps && o.Budget == lab.Budgets[0], o.Family == lab.Streaming4 && o.Budget == lab.Budgets[2]:
			curves = append(curves, Curve{o, fmt.Sprintf("%s, 1/%.0f", o.Family, 1/o.Budget)})
		}
	}
	return curves
}
