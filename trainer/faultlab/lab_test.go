package faultlab_test

import (
	"context"
	"log/slog"
	"os"
	"strconv"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/capacloud/capanode/trainer/faultlab"
	"github.com/capacloud/capanode/trainer/worker"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// long reports whether the long forms of the tests are wanted: `make test-faults`.
func long() bool { return os.Getenv("CAPANODE_FAULT_LONG") != "" }

// seed returns the seed of a test's faults and says how to run the test with it again.
func seed(t testing.TB) uint64 {
	n, err := strconv.ParseUint(os.Getenv("CAPANODE_FAULT_SEED"), 10, 64)
	if err != nil {
		n = 1
	}
	t.Logf("again: CAPANODE_FAULT_SEED=%d CAPANODE_FAULT_LONG=%s go test -run '^%s$' ./trainer/faultlab", n, os.Getenv("CAPANODE_FAULT_LONG"), t.Name())
	return n
}

// logLevel is the level from which on the workers' own logs are shown, nil when they are not.
func logLevel() slog.Leveler {
	var level slog.Level
	if level.UnmarshalText([]byte(os.Getenv("CAPANODE_FAULT_LOG"))) != nil {
		return nil
	}
	return level
}

// localSteps is a run of so many rounds of four local steps of a second each.
func localSteps(rounds, seed uint64) faultlab.Options {
	return kind(faultlab.Plan(rounds), time.Second, seed)
}

// gradients is a run of so many rounds of gradients, which take as long.
func gradients(rounds, seed uint64) faultlab.Options {
	return kind(faultlab.GradientPlan(rounds), 4*time.Second, seed)
}

func kind(plan worker.Plan, pace time.Duration, seed uint64) faultlab.Options {
	link := home
	link.Seed = seed
	return faultlab.Options{Plan: plan, Link: link, Pace: pace, Log: logLevel()}
}

// Without faults every peer contributes to every round, and the laboratory sees all of it.
func TestQuietRun(t *testing.T) {
	faultlab.Virtual(t, time.Hour, func(ctx context.Context, t *testing.T) {
		plan := faultlab.Plan(10)
		l := faultlab.New(ctx, t, faultlab.Options{Plan: plan}, "a", "b", "c")
		defer l.Close()
		seen := map[faultlab.Point]int{}
		l.Script(func(e faultlab.Event) { seen[e.Point]++ })
		for _, name := range []string{"a", "b", "c"} {
			l.Start(name)
		}
		ends := l.Finish("a", "b", "c")
		if want := 3 * plan.Rounds * plan.RoundTokens(); ends[0].State.Tokens != want {
			t.Errorf("%d tokens, want %d", ends[0].State.Tokens, want)
		}
		for _, p := range faultlab.Points() {
			if seen[p] < 30 {
				t.Errorf("%s: reached %d times in 10 rounds of 3 peers", p, seen[p])
			}
		}
		for _, life := range l.Lives() {
			if len(life.Commits) != 10 {
				t.Errorf("%s committed %d rounds", life.Peer, len(life.Commits))
			}
			for _, c := range life.Commits[1:] {
				if d := c.At.Sub(c.Began); d < 4*time.Second || d > 5*time.Second {
					t.Errorf("%s: round %d took %v", life.Peer, c.Round, d)
				}
			}
		}
		time.Sleep(time.Second) // virtual: what was said last arrives
		if n := len(l.Watched()); n != 10 {
			t.Errorf("the owner saw %d rounds", n)
		}
	})
}
