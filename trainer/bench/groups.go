package bench

import (
	"context"
	"fmt"

	"github.com/capacloud/capanode/trainer/lab"
)

// Groups is the comparison of groups smaller than the run with one group, at one number of peers.
type Groups struct {
	Peers    int
	Unit     float64     // bits per parameter and step of data-parallel training: what Outcome.Share is a share of
	Whole    lab.Outcome // one group
	Chosen   lab.Outcome // groups as the worker makes them
	Outcomes []lab.Outcome
}

// groupRuns are the numbers of peers that the comparison takes, with the size of the groups that the worker would choose.
var groupRuns = []struct{ peers, size int }{{16, 8}, {32, 8}}

// CompareGroups runs it: short rounds of small batches, so that thirty-two peers fit one machine. The seeds are what its losses
// are means of.
func CompareGroups(ctx context.Context, text lab.Text, seeds []uint64, steps int) (groups []Groups, err error) {
	for _, run := range groupRuns {
		setup, err := lab.Bench(text, run.peers, steps)
		if err != nil {
			return nil, fmt.Errorf("bench: %w", err)
		}
		setup.Rows = 4
		outcomes, err := lab.Study{Setup: setup, Seeds: seeds}.Run(ctx, lab.Parts(setup, run.size))
		if err != nil {
			return nil, fmt.Errorf("bench: %d peers: %w", run.peers, err)
		}
		groups = append(groups, Groups{run.peers, 64 * float64(run.peers-1) / float64(run.peers), outcomes[1], outcomes[3], outcomes})
	}
	return groups, nil
}
