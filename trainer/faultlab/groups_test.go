package faultlab_test

import (
	"context"
	"testing"
	"time"

	"github.com/capacloud/capanode/trainer/faultlab"
)

// grouped is a run of so many rounds in groups of a size.
func grouped(rounds uint64, size int) faultlab.Options {
	plan := faultlab.Plan(rounds)
	plan.Group = size
	return faultlab.Options{Plan: plan, Link: home, Log: logLevel()}
}

// In groups nobody needs the blobs of all, and yet all end with the same bits.
func TestGroupsEndAlike(t *testing.T) {
	s := seed(t)
	for _, c := range []struct{ peers, size int }{{8, 4}, {6, 2}} {
		faultlab.Virtual(t, time.Hour, func(ctx context.Context, t *testing.T) {
			o := grouped(8, c.size)
			o.Link.Seed = s
			names := faultlab.Names(c.peers)
			l := faultlab.New(ctx, t, o, names...)
			defer l.Close()
			for _, name := range names {
				l.Start(name)
			}
			ends := l.Finish(names...)
			for i, o := range ends {
				t.Logf("%s: round %d, %d contributed, %d healed, %d down", names[i], o.State.Round, o.Contributed, o.Healed, o.Down)
			}
		})
	}
}
