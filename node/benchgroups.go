package node

import (
	"context"
	"fmt"

	trainerbench "github.com/capacloud/capanode/trainer/bench"
	"github.com/capacloud/capanode/trainer/lab"
)

// groupSteps are the optimiser steps of each peer in the comparison of groups.
const groupSteps = 200

// GroupsBenchOptions say what the comparison of groups trains on, and how often.
type GroupsBenchOptions struct {
	Seeds int    // how many; at least 1
	Text  string // file to train on; "" means Go's own sources
}

// BenchGroups returns the benchmark of groups smaller than the run. It is none of [Benches]: it takes an hour.
func BenchGroups(o GroupsBenchOptions) Bench {
	return Bench{"groups", "Compare groups smaller than the run with one group, at 16 and 32 peers", methodGroups,
		[]string{"loss_over_one_group_n16", "loss_over_one_group_n32", "bits_n16", "bits_n32"},
		func(ctx context.Context, r *BenchReport) error {
			if o.Seeds < 1 {
				return fmt.Errorf("%d seeds, want at least 1: %w", o.Seeds, ErrUsage)
			}
			text, err := benchText(ctx, o.Text)
			if err != nil {
				return err
			}
			var seeds []uint64
			for i := range o.Seeds {
				seeds = append(seeds, uint64(i+1))
			}
			groups, err := trainerbench.CompareGroups(ctx, lab.Split(text), seeds, groupSteps)
			if err != nil {
				return err
			}
			for _, g := range groups {
				groupFigures(r, g)
			}
			return nil
		}}
}

func groupFigures(r *BenchReport, g trainerbench.Groups) {
	whole, chosen := g.Whole, g.Chosen
	r.Figures[fmt.Sprintf("loss_over_one_group_n%d", g.Peers)] = chosen.Loss / whole.Loss
	r.Figures[fmt.Sprintf("bits_n%d", g.Peers)] = chosen.Share * g.Unit
	r.Baseline[fmt.Sprintf("validation_loss_one_group_n%d", g.Peers)] = whole.Loss
	r.Baseline[fmt.Sprintf("bits_one_group_n%d", g.Peers)] = whole.Share * g.Unit
	t := BenchTable{Title: fmt.Sprintf("%d peers, batch 4 a peer, %d steps:", g.Peers, groupSteps),
		Head: []string{"method", "validation loss", "over one group", "spread of seeds", "bits per parameter and step"}}
	for _, o := range g.Outcomes {
		t.Rows = append(t.Rows, []string{o.Method.Name(), fmt.Sprintf("%.4f", o.Loss), percent(o.Loss / whole.Loss), fmt.Sprintf("%.4f", o.Spread),
			fmt.Sprintf("%.2f", o.Share*g.Unit)})
	}
	r.Tables = append(r.Tables, t)
}

const methodGroups = "Peers train one model (llama-tiny, context 32, batch 4 a peer, 200 steps, rounds of five) in one process without a network, in groups of " +
	"several sizes and codecs, with the healing slices and the finale that the worker's runs have; a comparison for 16 peers and one for 32, every loss a mean over the seeds, the same to the digit on every machine. " +
	"loss_over_one_group is groups of eight with sparse updates, which the worker chooses above 16 members, over one group with the same updates; bits are what a peer downloads per parameter and optimiser step, the finale included. " +
	"One case is one group whose rounds are so long that its bytes are those of groups of eight without their finale."
