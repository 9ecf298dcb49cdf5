package faultlab_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/capacloud/capanode/p2p/memnet"
	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/faultlab"
	"github.com/capacloud/capanode/trainer/round"
	"github.com/capacloud/capanode/trainer/tempo"
	"github.com/capacloud/capanode/trainer/worker"
)

// usage counts how long peers compute between their first and their last step.
type usage struct {
	mu    sync.Mutex
	pace  time.Duration
	steps map[string]int
	first map[string]time.Time
	last  map[string]time.Time
}

func newUsage(pace time.Duration) *usage {
	return &usage{pace: pace, steps: map[string]int{}, first: map[string]time.Time{}, last: map[string]time.Time{}}
}

// of counts the steps of one peer.
func (u *usage) of(name string) func(*worker.Config) {
	return func(cfg *worker.Config) {
		inner := cfg.Hooks.OnStep
		cfg.Hooks.OnStep = func(s worker.Step) {
			inner(s)
			u.mu.Lock()
			defer u.mu.Unlock()
			if s.Round < 4 { // until the deadlines and the estimates have settled
				return
			}
			u.steps[name]++
			u.last[name] = time.Now()
			if u.first[name].IsZero() {
				u.first[name] = u.last[name].Add(-u.pace)
			}
		}
	}
}

// least is the share of its time that the least busy peer computed.
func (u *usage) least() float64 {
	least := 1.0
	for name, n := range u.steps {
		busy := float64(n) * u.pace.Seconds() / u.last[name].Sub(u.first[name]).Seconds()
		least = min(least, busy)
	}
	return least
}

// wide is a link across continents: 100 Mbit/s, 150 ms, a tenth of that as jitter.
var wide = memnet.Link{Latency: 150 * time.Millisecond, Jitter: 15 * time.Millisecond, Bandwidth: 100e6 / 8}

// heldOut measures a state of the tiny transformer on text that no run trains on.
func heldOut(t *testing.T, s *round.State, text faultlab.Text) float64 {
	t.Helper()
	eng, err := faultlab.Llama(5)
	if err != nil {
		t.Fatal(err)
	}
	defer eng.Close()
	copy(eng.State().Weights, s.Weights)
	loss, err := eng.Evaluate(context.Background(), text.HeldOut(256))
	if err != nil {
		t.Fatal(err)
	}
	return loss
}

// overWide trains the tiny transformer on a wide link and returns the least utilisation and the held-out loss.
func overWide(t *testing.T, plan worker.Plan) (used, loss float64) {
	faultlab.Virtual(t, 10*time.Hour, func(ctx context.Context, t *testing.T) {
		names := faultlab.Names(4)
		text := faultlab.Text{Numbers: faultlab.Numbers{Count: 8, Length: 1 << 18, Context: 16}}
		l := faultlab.New(ctx, t, faultlab.Options{
			Plan: plan, Data: text, Link: wide, Pace: 250 * time.Millisecond, Log: logLevel(),
			Engine: func() (engine.Engine, error) { return faultlab.Llama(5) },
		}, names...)
		defer l.Close()
		u := newUsage(250 * time.Millisecond)
		for _, name := range names {
			l.Start(name, u.of(name))
		}
		ends := l.Finish(names...)
		used, loss = u.least(), heldOut(t, ends[0].State, text)
	})
	return used, loss
}

// Steps beside the exchange hide the network, and cost next to nothing.
func TestOverlapHidesTheNetwork(t *testing.T) {
	if testing.Short() {
		t.Skip("trains transformers; the long form runs without -short")
	}
	plan := faultlab.LlamaPlan(16)
	plan.LocalSteps = 20
	plan.Schedule = worker.Schedule{Peak: 5e-3, Floor: 5e-4, Warmup: 20, Total: plan.TotalSteps()}
	if long() {
		plan.Rounds = 80
		plan.Schedule.Total = plan.TotalSteps()
	}
	plan.Overlap = worker.OverlapNever
	waiting, exact := overWide(t, plan)
	plan.Overlap = worker.OverlapAuto
	used, loss := overWide(t, plan)
	t.Logf("C9: %.1f %% of the time computing, %.1f %% without overlap; loss %.4f, without %.4f: %+.2f %%",
		100*used, 100*waiting, loss, exact, 100*(loss/exact-1))
	if used < 0.97 {
		t.Errorf("%.1f %% of the time computing, want 97 %%", 100*used)
	}
	if loss > 1.005*exact {
		t.Errorf("loss %.4f, without overlap %.4f: more than 0.5 %%", loss, exact)
	}
	if waiting > 0.95 {
		t.Errorf("without overlap %.1f %% of the time computing: there is nothing to hide", 100*waiting)
	}
}

// timeTo trains on peers whose steps take these times and returns when the training loss first stayed below the target for
// two rounds, and the tokens committed by then.
func timeTo(t *testing.T, plan worker.Plan, paces []time.Duration, target float64) (took time.Duration, tokens uint64) {
	faultlab.Virtual(t, 1000*time.Hour, func(ctx context.Context, t *testing.T) {
		names := faultlab.Names(len(paces))
		text := faultlab.Text{Numbers: faultlab.Numbers{Count: 8, Length: 1 << 18, Context: 16}}
		l := faultlab.New(ctx, t, faultlab.Options{
			Plan: plan, Data: text, Link: home, Log: logLevel(), Engine: func() (engine.Engine, error) { return faultlab.Llama(5) },
		}, names...)
		defer l.Close()
		began := time.Now()
		for i, name := range names {
			l.Start(name)
			l.Slow(name, paces[i])
		}
		l.Finish(names...)
		for _, life := range l.Lives()[:1] {
			below := 0
			for _, c := range life.Commits {
				if below++; c.Loss > target {
					below = 0
				}
				if below == 2 {
					took, tokens = c.At.Sub(began), c.Total
					return
				}
			}
		}
		t.Errorf("the loss never stayed below %g", target)
	})
	return took, tokens
}

// Peers of unequal speed choose their own steps: the run reaches a loss sooner than one that waits for the slowest. Such a
// run is one where all are as slow.
func TestUnequalPeersBeatABarrier(t *testing.T) {
	if testing.Short() {
		t.Skip("trains transformers; the long form runs without -short")
	}
	plan := faultlab.LlamaPlan(14)
	plan.LocalSteps, plan.Overlap = 20, worker.OverlapNever
	const target = 1.35
	slowest := 10 * time.Second
	barrier, same := timeTo(t, plan, []time.Duration{slowest, slowest, slowest, slowest}, target)
	took, tokens := timeTo(t, plan, []time.Duration{time.Second, 2 * time.Second, 4 * time.Second, slowest}, target)
	gain := barrier.Seconds() / took.Seconds()
	t.Logf("C8: speeds 1, 2, 4 and 10: loss %g after %v and %d tokens, with a barrier after %v and %d: %.1f times sooner",
		target, took, tokens, barrier, same, gain)
	if gain < 1.5 {
		t.Errorf("%.2f times sooner than with a barrier, want 1.5", gain)
	}
}

// Weights that travel in fragments, one each round, train as well as whole ones at equal tokens, and a peer that is killed
// goes on with the fast weights it had.
func TestFragments(t *testing.T) {
	if testing.Short() {
		t.Skip("trains transformers; the long form runs without -short")
	}
	run := func(fragments int, die bool) (loss float64) {
		faultlab.Virtual(t, 100*time.Hour, func(ctx context.Context, t *testing.T) {
			plan := faultlab.LlamaPlan(30)
			plan.LocalSteps, plan.Fragments = 5, fragments
			plan.Schedule = worker.Schedule{Peak: 5e-3, Floor: 5e-4, Warmup: 20, Total: plan.TotalSteps()}
			names := faultlab.Names(3)
			text := faultlab.Text{Numbers: faultlab.Numbers{Count: 6, Length: 1 << 18, Context: 16}}
			l := faultlab.New(ctx, t, faultlab.Options{
				Plan: plan, Data: text, Link: home, Log: logLevel(), Engine: func() (engine.Engine, error) { return faultlab.Llama(5) },
				Snapshots: t.TempDir(),
			}, names...)
			defer l.Close()
			killed := false
			l.Script(func(e faultlab.Event) {
				if die && !killed && e.Peer == "c" && e.Round == 20 && e.Point == faultlab.Training {
					killed = true
					l.Crash("c", 2*time.Second)
				}
			})
			for _, name := range names {
				l.Start(name)
			}
			ends := l.Finish(names...)
			if die && !killed {
				t.Error("nobody was killed")
			}
			loss = heldOut(t, ends[0].State, text)
		})
		return loss
	}
	whole, parts, killed := run(1, false), run(3, false), run(3, true)
	t.Logf("loss %.4f whole, %.4f in three fragments (%+.2f %%), %.4f with a kill", whole, parts, 100*(parts/whole-1), killed)
	if parts > 1.03*whole || killed > 1.03*whole {
		t.Errorf("loss %.4f and %.4f in fragments, %.4f whole", parts, killed, whole)
	}
}

// A run whose pace is left to itself finds out that its link is narrow: updates become smaller and rounds longer, in mid-run,
// on all peers at once; and it stays as it was where the link is wide.
func TestPaceFollowsTheLink(t *testing.T) {
	if testing.Short() {
		t.Skip("trains many parameters; the long form runs without -short")
	}
	const params = 40_000
	run := func(link memnet.Link) (pace []string) {
		faultlab.Virtual(t, 100*time.Hour, func(ctx context.Context, t *testing.T) {
			plan := faultlab.Plan(40)
			plan.LocalSteps = 5
			plan.Params, plan.Tempo = params, &tempo.Plan{Steps: plan.TotalSteps(), Mates: 3, Least: 4}
			plan.Schedule.Total = plan.TotalSteps()
			names := faultlab.Names(3)
			l := faultlab.New(ctx, t, faultlab.Options{
				Plan: plan, Link: link, Pace: 200 * time.Millisecond, Log: logLevel(),
				Engine: func() (engine.Engine, error) { return faultlab.NewQuadratic(params, nil), nil },
			}, names...)
			defer l.Close()
			for _, name := range names {
				l.Start(name)
			}
			ends := l.Await(names...)
			for i, o := range ends {
				if o.Err != nil || o.State.Hash() != ends[0].State.Hash() || o.State.Steps != plan.TotalSteps() {
					t.Fatalf("%s ended at step %d of %d: %v", names[i], o.State.Steps, plan.TotalSteps(), o.Err)
				}
			}
			for _, link := range l.Conserved(ends[0].State) {
				h := link.Accepted[0]
				if p := fmt.Sprintf("%s every %d", h.Codec, h.Steps); len(pace) == 0 || pace[len(pace)-1] != p {
					pace = append(pace, p)
				}
			}
		})
		return pace
	}
	narrow := run(memnet.Link{Latency: 800 * time.Millisecond, Bandwidth: 64 << 10})
	broad := run(memnet.Link{Latency: time.Millisecond, Bandwidth: 100 << 20})
	t.Logf("on a narrow link: %s", strings.Join(narrow, ", "))
	t.Logf("on a broad link: %s", strings.Join(broad, ", "))
	if len(broad) > 2 { // the last round may be shorter
		t.Errorf("the pace changed on a broad link: %s", strings.Join(broad, ", "))
	}
	if len(narrow) < 3 || !strings.HasPrefix(narrow[0], "int8") || !slices.ContainsFunc(narrow, func(p string) bool { return strings.HasPrefix(p, "top") }) {
		t.Errorf("the pace did not follow a narrow link: %s", strings.Join(narrow, ", "))
	}
}
