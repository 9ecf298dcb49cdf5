package node

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/capacloud/capanode/market/lease"
)

// keepUnfinished is how many runs that ended before their last round a provider keeps snapshots of, the newest ones: a
// requester that was interrupted comes back soon or never.
const keepUnfinished = 4

// snapshots is the folder of a run's snapshots on a provider.
const snapshots = "snapshots"

// over notes in the run's record how the work ended, once the lease is closed, and removes snapshots that nobody will need.
func (p *provider) over(t *task) {
	l, err := p.seller.Get(t.lease.ID)
	if err != nil || l.Phase != lease.Closed || t.log.ID == "" {
		return // the next process resumes it
	}
	t.mu.Lock()
	t.log.State, t.log.Reason = RunStopped, string(l.Reason)
	if t.log.Step >= t.log.Steps && l.Reason == lease.RequesterDone {
		t.log.State, t.log.Reason = RunDone, ""
	}
	log := t.log
	t.mu.Unlock()
	if err := errors.Join(p.runs.save(log), p.pruneSnapshots()); err != nil {
		p.log.Warn("end of a run", "run", log.ID, "err", err)
	}
}

// pruneSnapshots removes the snapshots of runs that are done, and of all but the newest unfinished ones. Those of runs under
// way always stay.
func (p *provider) pruneSnapshots() error {
	all, err := p.runs.list()
	if err != nil {
		return err
	}
	slices.SortStableFunc(all, func(a, b Run) int { return b.Updated.Compare(a.Updated) })
	kept := 0
	for _, run := range all {
		dir := p.home.Path("runs", run.ID, snapshots)
		if _, serr := os.Stat(dir); errors.Is(serr, os.ErrNotExist) || run.State == RunTraining {
			continue
		}
		if run.State != RunDone {
			if kept++; kept <= keepUnfinished {
				continue
			}
		}
		if rerr := os.RemoveAll(dir); rerr != nil {
			err = errors.Join(err, fmt.Errorf("run %s: remove snapshots: %w", run.ID, rerr))
		}
	}
	return err
}
