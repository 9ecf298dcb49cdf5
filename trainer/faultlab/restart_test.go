package faultlab_test

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/capacloud/capanode/p2p/memnet"
	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/faultlab"
	"github.com/capacloud/capanode/trainer/round"
	"github.com/capacloud/capanode/trainer/worker"
)

// The same seed and schedule of faults give the same final state, and all peers end with it.
func TestSameSeedSameState(t *testing.T) {
	s, reruns := seed(t), 2
	if long() {
		reruns = 10
	}
	cases := []struct {
		name   string
		link   memnet.Link
		faulty bool
	}{
		{"no faults", memnet.Link{}, false},
		{"slow links", home, false},
		{"slow links and lost gossip", memnet.Link{Latency: 50 * time.Millisecond, Jitter: 50 * time.Millisecond, Loss: 0.05}, false},
		{"deaths", home, true},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			o := localSteps(10, s)
			c.link.Seed = s
			o.Link = c.link
			ends := map[round.Hash]int{}
			for range reruns {
				ends[scripted(t, o, c.faulty)]++
			}
			t.Logf("C13: %s: %d runs with one seed ended with %d different states", c.name, reruns, len(ends))
			if len(ends) != 1 {
				t.Errorf("the same seed gave %d different states in %d runs", len(ends), reruns)
			}
		})
	}
}

// scripted runs three peers of unequal speed and returns the hash of the state that all end with. With faults, b dies after
// its vote in round 3 and comes back, and c dies before its header in round 6.
func scripted(t *testing.T, o faultlab.Options, faulty bool) (end round.Hash) {
	faultlab.Virtual(t, time.Hour, func(ctx context.Context, t *testing.T) {
		names := faultlab.Names(3)
		l := faultlab.New(ctx, t, o, names...)
		defer l.Close()
		died := map[string]bool{}
		l.Script(func(e faultlab.Event) {
			b := e.Peer == "b" && e.Round == 3 && e.Point == faultlab.AfterVote
			c := e.Peer == "c" && e.Round == 6 && e.Point == faultlab.BeforeHeader
			if faulty && (b || c) && !died[e.Peer] {
				died[e.Peer] = true
				l.Crash(e.Peer, 1700*time.Millisecond)
			}
		})
		for _, name := range names {
			l.Start(name)
		}
		end = l.Finish(names...)[0].State.Hash()
	})
	return end
}

// All peers are killed at a random instant and start again from their disks. When nobody's work was committed halfway, the
// run ends with the very bits of a run that was never killed: weights, moments, error feedback and cursors were all there.
func TestKillAllAndResume(t *testing.T) {
	s, times := seed(t), 4
	if long() {
		times = 100
	}
	killAllAndResume(t, func() faultlab.Options { return localSteps(6, s) }, times, 25*time.Second)
}

// killAllAndResume kills all peers of a run within the window, so many times.
func killAllAndResume(t *testing.T, options func() faultlab.Options, times int, window time.Duration) {
	t.Helper()
	o := options()
	s := o.Link.Seed
	resume := func(kill time.Duration) (round.Hash, uint64) {
		o.Snapshots = t.TempDir()
		return resumed(t, o, kill)
	}
	want, tokens := resume(0)
	rng := rand.New(rand.NewPCG(s, 15))
	same, most := 0, uint64(0)
	for range times {
		at := 3*time.Second + time.Duration(rng.Int64N(int64(window)))
		got, total := resume(at)
		if got == want {
			same++
		}
		most = max(most, tokens-min(total, tokens))
	}
	t.Logf("C15: %d times all of 3 peers killed at a random instant: %d ended with the bits of an undisturbed run, at most %d tokens were lost",
		times, same, most)
	if same != times {
		t.Errorf("%d of %d runs ended with another state than the undisturbed one", times-same, times)
	}
}

// resumed runs three peers, kills all after some time if that is not zero, and returns the final state's hash and tokens.
func resumed(t *testing.T, o faultlab.Options, kill time.Duration) (end round.Hash, tokens uint64) {
	faultlab.Virtual(t, time.Hour, func(ctx context.Context, t *testing.T) {
		names := faultlab.Names(3)
		l := faultlab.New(ctx, t, o, names...)
		defer l.Close()
		for _, name := range names {
			l.Start(name)
		}
		if kill > 0 {
			time.Sleep(kill)
			for _, name := range names {
				l.Kill(name)
			}
			tear(t, o.Snapshots, o.Link.Seed)
			time.Sleep(20 * time.Second) // longer than they were known to live
			for _, name := range names {
				l.Start(name)
			}
		}
		ends := l.Finish(names...)
		end, tokens = ends[0].State.Hash(), ends[0].State.Tokens
	})
	return end, tokens
}

// tear leaves half a snapshot, not yet renamed, on every disk, as a kill in the middle of a write does.
func tear(t *testing.T, disk string, seed uint64) {
	folders, err := filepath.Glob(filepath.Join(disk, "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	half := make([]byte, 1000+seed%1000)
	for _, folder := range folders {
		if err := os.WriteFile(filepath.Join(folder, "new-1.tmp"), half, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// One peer is killed at random instants, again and again, and comes back from its disk: it trains on with the moments that
// it had, no sample is in the state twice, and it loses at most the round under way.
func TestKillOneAndResume(t *testing.T) {
	s, rounds := seed(t), uint64(30)
	if long() {
		rounds = 600
	}
	killOneAndResume(t, localSteps(rounds, s), rounds)
}

func killOneAndResume(t *testing.T, o faultlab.Options, rounds uint64) {
	t.Helper()
	s := o.Link.Seed
	faultlab.Virtual(t, 24*time.Hour, func(ctx context.Context, t *testing.T) {
		names := faultlab.Names(3)
		o.Snapshots = t.TempDir()
		l := faultlab.New(ctx, t, o, names...)
		defer l.Close()
		rng := rand.New(rand.NewPCG(s, 16))
		kills := 0
		var again func()
		again = func() {
			time.AfterFunc(6*time.Second+time.Duration(rng.Int64N(int64(14*time.Second))), func() {
				if len(l.Alive()) < 3 || ctx.Err() != nil {
					return
				}
				kills++
				away := 100*time.Millisecond + time.Duration(rng.Int64N(int64(6*time.Second)))
				l.Crash("c", away)
				time.AfterFunc(away, again)
			})
		}
		for _, name := range names {
			l.Start(name)
		}
		again()
		l.Finish("a", "b")
		end := l.Await("a")[0].State
		resumed, cold, lost := moments(l.Ledger.Headers(l.ID("c")), l.Conserved(end))
		t.Logf("C15: %d kills of one peer in %d rounds: it always trained on with its moments, %d times with those before its last header, at most %d committed round back, %d times with others; no sample twice",
			kills, rounds, resumed, lost, cold)
		if cold > 0 || lost > 1 {
			t.Errorf("%d restarts began with moments that no round had ended with, others lost up to %d rounds", cold, lost)
		}
		if kills < int(rounds/10) {
			t.Errorf("only %d kills in %d rounds", kills, rounds)
		}
	})
}

// moments follows the inner optimiser through a peer's headers. It counts those that do not begin where the one before ended:
// resumed ones begin where an earlier one ended, cold ones nowhere. lost is the largest number of committed rounds between.
func moments(headers []round.Signed, links []faultlab.Link) (resumed, cold, lost int) {
	committed := map[round.Hash]bool{}
	for _, link := range links {
		for _, h := range link.Accepted {
			committed[h.ID] = true
		}
	}
	for i := 1; i < len(headers); i++ {
		behind := 0
		j := i - 1
		for ; j >= 0 && headers[j].After != headers[i].Before; j-- {
			if committed[headers[j].ID] {
				behind++
			}
		}
		switch {
		case j < 0:
			cold++
		case j < i-1:
			resumed++
			lost = max(lost, behind)
		}
	}
	return resumed, cold, lost
}

// The memory of two peers, and of the owner who follows them, over many rounds.
func TestMemoryIsFlat(t *testing.T) {
	rounds := uint64(400)
	if long() {
		rounds = 10_000
	}
	faultlab.Virtual(t, 24*time.Hour, func(ctx context.Context, t *testing.T) {
		plan := faultlab.Plan(rounds)
		plan.LocalSteps, plan.BatchRows, plan.MicroRows = 1, 1, 1
		l := faultlab.New(ctx, t, faultlab.Options{Plan: plan, Forget: true, Engine: tiny, Pace: 900 * time.Millisecond}, "a", "b")
		defer l.Close()
		// KiB after each fortieth of the run: what is under way when one is taken comes and goes, what stays is the lowest of several.
		var heap []float64
		sample := func(cfg *worker.Config) {
			cfg.Hooks.OnRound = func(r worker.Report) {
				if (r.Round+1)%(rounds/40) == 0 {
					heap = append(heap, inUse())
				}
			}
		}
		l.Start("a", sample)
		l.Start("b")
		for _, o := range l.Await("a", "b") {
			if o.Err != nil || o.State.Round != rounds || o.Contributed < rounds-2 {
				t.Errorf("ended after %d rounds: %v", o.Rounds, o.Err)
			}
		}
		// The network in memory knows what was said in the last two minutes: the first half of the short form.
		growth := (slices.Min(heap[30:38]) - slices.Min(heap[14:22])) * 1024 / (0.4 * float64(rounds))
		t.Logf("C14: heap in KiB after each fortieth of %d rounds %.0f: %+.0f bytes a round", rounds, heap, growth)
		if growth > 100 {
			t.Errorf("the heap grows by %.0f bytes a round", growth)
		}
	})
}

func tiny() (engine.Engine, error) { return faultlab.NewQuadratic(16, nil), nil }

// inUse returns the live heap in KiB.
func inUse() float64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc) / 1024
}
