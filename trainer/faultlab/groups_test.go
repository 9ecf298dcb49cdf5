package faultlab_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/faultlab"
	"github.com/capacloud/capanode/trainer/round"
)

// grouped is a run of so many rounds in groups of a size.
func grouped(rounds uint64, size int, seed uint64) faultlab.Options {
	plan := faultlab.Plan(rounds)
	plan.Group = size
	link := home
	link.Seed = seed
	return faultlab.Options{Plan: plan, Link: link, Log: logLevel()}
}

// swarms are the numbers of members and the sizes of groups that a test takes: the short form few of few, the long one many. One
// at a time can be had where time is short: CAPANODE_FAULT_SWARM=32x8.
func swarms(short ...[2]int) [][2]int {
	var one [2]int
	if n, _ := fmt.Sscanf(os.Getenv("CAPANODE_FAULT_SWARM"), "%dx%d", &one[0], &one[1]); n == 2 {
		return [][2]int{one}
	}
	if long() {
		return [][2]int{{16, 4}, {24, 4}, {24, 8}, {32, 4}, {32, 8}}
	}
	return short
}

// In groups nobody fetches the blobs of all, and yet all end with the same bits: also where members fill no cube, and where one
// is left over by every grid.
func TestGroupsEndAlike(t *testing.T) {
	s := seed(t)
	for _, c := range swarms([2]int{4, 2}, [2]int{5, 2}) {
		faultlab.Virtual(t, time.Hour, func(ctx context.Context, t *testing.T) {
			names := faultlab.Names(c[0])
			l := faultlab.New(ctx, t, grouped(6, c[1], s), names...)
			defer l.Close()
			for _, name := range names {
				l.Start(name)
			}
			ends := l.Finish(names...)
			var healed uint64
			for _, o := range ends {
				healed += o.Healed
			}
			t.Logf("C13: %d peers in groups of %d: all end with state %s after %d rounds; %d took it from a mate",
				c[0], c[1], ends[0].State.Hash().Short(), ends[0].State.Round, healed)
			if int(healed) > c[0]-points(round.Grid(c[0], c[1])) {
				t.Errorf("%d peers took over a state, the grid leaves %d over", healed, c[0]-points(round.Grid(c[0], c[1])))
			}
			time.Sleep(time.Second) // virtual: what was said last arrives
			if best := l.Owner().State().State; best != ends[0].State.Hash() {
				t.Errorf("the owner saw the run end with %s, the members with %s", best.Short(), ends[0].State.Hash().Short())
			}
			paid, trained := uint64(0), uint64(0)
			for _, work := range l.Owner().Work() {
				for _, tokens := range work {
					paid += tokens
				}
			}
			for _, o := range ends {
				trained += o.Tokens
			}
			if paid != trained || paid != ends[0].State.Tokens {
				t.Errorf("the owner counts %d tokens, the members committed %d, the state holds %d", paid, trained, ends[0].State.Tokens)
			}
		})
	}
}

func points(sides []int) int {
	n := 1
	for _, s := range sides {
		n *= s
	}
	return n
}

// What a peer downloads does not grow with the run: the rounds cost the same, and the finale a copy of the weights in int8 for
// each point but one on the sides of its grid.
func TestGroupBytesAreFlat(t *testing.T) {
	const rounds = 8 // in which one slice of the weights comes up
	s, sizes, group := seed(t), []int{4, 8}, 2
	if long() {
		sizes, group = []int{8, 16, 24, 32}, 4
	}
	const params = 16 << 10 // four blocks, so that slices come up
	first := 0.0
	for _, n := range sizes {
		var trained, finale float64
		faultlab.Virtual(t, time.Hour, func(ctx context.Context, t *testing.T) {
			o := grouped(rounds, group, s)
			o.Engine = func() (engine.Engine, error) { return faultlab.NewQuadratic(params, nil), nil }
			o.Plan.LocalSteps, o.Plan.BatchRows, o.Plan.MicroRows, o.Plan.Codec = 2, 1, 1, "top512"
			o.Plan.Rounds++ // the last two steps are one of training and the finale's
			names := faultlab.Names(n)
			l := faultlab.New(ctx, t, o, names...)
			defer l.Close()
			for _, name := range names {
				l.Start(name)
			}
			l.Finish(names...)
			for _, life := range l.Lives() {
				for _, c := range life.Commits {
					switch bits := 8 * float64(c.Down) / params / float64(n); {
					case len(c.Contributors) == 0:
						finale += bits
					case c.Round < rounds:
						trained += bits / float64(rounds)
					}
				}
			}
		})
		if first == 0 {
			first = trained
		}
		copies := 0
		for _, side := range round.Grid(n, group) {
			copies += side - 1
		}
		t.Logf("C2: %d peers in groups of %d: %.2f bits for each parameter and round (%+.1f %% of %d peers'), and %.1f in the finale, %d copies in int8",
			n, group, trained, 100*(trained/first-1), sizes[0], finale, copies)
		if trained > 1.1*first || trained < 0.9*first {
			t.Errorf("%d peers download %.2f bits a round, %d peers %.2f: more than a tenth apart", n, trained, sizes[0], first)
		}
		if finale > 1.05*8.6*float64(copies) { // blocks of int8 in one group of four: 8.6 bits
			t.Errorf("the finale of %d peers costs %.1f bits, want those of %d copies", n, finale, copies)
		}
	}
}

// chosen is the size of the groups that a plan without one makes of more than sixteen members.
const chosen = 8

// Training in groups against training in one, at equal tokens: the loss of the models that all end with. Smaller groups than the
// worker would choose are reported without a limit: what they cost is why it does not.
func TestGroupLoss(t *testing.T) {
	if testing.Short() {
		t.Skip("trains transformers; the long form runs without -short")
	}
	base, rounds := seed(t), uint64(12)
	if long() {
		rounds = 24
	}
	for _, c := range swarms([2]int{6, 3}) {
		loss := func(group int) float64 {
			o := llamaOptions(rounds, base)
			o.Plan.Group = group
			_, _, ends := train(t, c[0], o, nil)
			return heldOut(t, ends[0].State, speech)
		}
		one, many := loss(c[0]), loss(c[1])
		t.Logf("C1: %d peers, %d rounds: loss %.4f in groups of %d, %.4f in one: %+.2f %%", c[0], rounds, many, c[1], one, 100*(many/one-1))
		if smaller := c[0] > 16 && c[1] < chosen; many > 1.04*one && !smaller {
			t.Errorf("groups of %d have a loss %.2f %% above one group's, want at most 4 %%", c[1], 100*(many/one-1))
		}
	}
}

// A peer dies in every round, at a random step of the protocol, and comes back a little later: nobody hangs, and whoever lives at
// the end has the same state.
func TestDeathsInGroups(t *testing.T) {
	s, rounds := seed(t), uint64(12)
	if long() {
		rounds = 40
	}
	for _, c := range swarms([2]int{6, 3}) {
		faultlab.Virtual(t, time.Duration(rounds)*time.Minute, func(ctx context.Context, t *testing.T) {
			o := grouped(rounds+8, c[1], s)
			o.Snapshots = t.TempDir()
			names := faultlab.Names(c[0])
			l := faultlab.New(ctx, t, o, names...)
			defer l.Close()
			injected := dieOften(l, rand.New(rand.NewPCG(s, 7)), rounds+4)
			for _, name := range names {
				l.Start(name)
			}
			l.Finish(names...)
			lives := l.Lives()
			all := spans(lives)
			median, p99, most := quantile(all, 0.5), quantile(all, 0.99), longestGap(lives)
			t.Logf("C4: %d peers in groups of %d: a death in %d of %d rounds, 0 hangs, p99 delay %.2f median rounds, longest wait for a commit %.1f, %d rounds forked",
				c[0], c[1], len(injected), rounds, float64(p99-median)/float64(median), float64(most)/float64(median), forks(lives))
			if p99 > 3*median || most > 10*median {
				t.Errorf("p99 of a round is %v, the longest wait %v, the median %v", p99, most, median)
			}
			if uint64(len(injected)) < rounds/2 {
				t.Errorf("only %d of %d rounds were injected", len(injected), rounds)
			}
		})
	}
}

// One death: the other groups lose no update, take over no state, and wait no longer than those of the dead.
func TestDeathStaysInItsGroup(t *testing.T) {
	s := seed(t)
	faultlab.Virtual(t, time.Hour, func(ctx context.Context, t *testing.T) {
		names := faultlab.Names(6)
		l := faultlab.New(ctx, t, grouped(8, 3, s), names...)
		defer l.Close()
		died := false
		l.Script(func(e faultlab.Event) {
			if e.Peer == "f" && e.Round == 4 && e.Point == faultlab.BeforeVote && !died {
				died = true
				l.Kill("f")
			}
		})
		for _, name := range names {
			l.Start(name)
		}
		ends := l.Finish(names[:5]...)
		lives := l.Lives()
		for i, o := range ends {
			if o.Contributed != 8 || o.Healed > 1 { // a grid leaves one of five over
				t.Errorf("%s contributed to %d of 8 rounds and took over %d states", names[i], o.Contributed, o.Healed)
			}
		}
		delay := quantile(spans(lives[:5]), 1) - quantile(spans(lives[:5]), 0.5)
		t.Logf("C4: a death in one of two groups: no update of the five others dropped, the round %v longer, %d rounds forked", delay, forks(lives))
		if forks(lives) > 0 {
			t.Error("the ledger forked")
		}
	})
}

// Members come until they are too many for one group, and go until one is enough again: all switch at the same round.
func TestGroupSizeChanges(t *testing.T) {
	s := seed(t)
	few, many, size, rounds := 3, 5, 3, uint64(20)
	if long() {
		few, many, size, rounds = 14, 18, 0, 32
	}
	faultlab.Virtual(t, time.Hour, func(ctx context.Context, t *testing.T) {
		names := faultlab.Names(many)
		l := faultlab.New(ctx, t, grouped(rounds, size, s), names...)
		defer l.Close()
		for _, name := range names[:few] {
			l.Start(name)
		}
		time.Sleep(30 * time.Second) // virtual
		for _, name := range names[few:] {
			l.Start(name)
		}
		time.Sleep(time.Duration(rounds) * 2 * time.Second)
		for _, name := range names[few-1 : many-1] {
			l.Kill(name)
		}
		stay := slices.Delete(slices.Clone(names), few-1, many-1)
		ends := l.Finish(stay...)
		var text strings.Builder
		sizes, last := map[uint32]bool{}, uint32(1<<31)
		for _, link := range l.Conserved(ends[0].State) {
			in := map[uint32]bool{}
			for _, h := range link.Accepted {
				in[h.Group] = true
				sizes[h.Group] = true
				if h.Group != last {
					fmt.Fprintf(&text, " %d from round %d (%d members)", h.Group, link.Round, len(link.Accepted))
					last = h.Group
				}
			}
			if len(in) != 1 {
				t.Errorf("round %d has groups of %d sizes", link.Round, len(in))
			}
		}
		newest := l.Lives()[many-1]
		t.Logf("C7: from %d to %d members and back: group size%s; the last to come contributed to %d rounds", few, many, text.String(), contributions(newest))
		if len(sizes) < 2 {
			t.Errorf("the group size never changed: %s", text.String())
		}
		if contributions(newest) < 3 {
			t.Errorf("a peer that joined groups contributed to %d rounds", contributions(newest))
		}
	})
}

// All peers of a run in groups are killed at a random instant and go on from their disks, with the bits of a run that was never
// disturbed: everybody's own weights, moments and error feedback were there.
func TestKillAllInGroups(t *testing.T) {
	s, times := seed(t), 2
	peers, size := 4, 2
	if long() {
		times, peers, size = 5, 16, 4
	}
	run := func(kill time.Duration) (end round.Hash) {
		disk := t.TempDir()
		faultlab.Virtual(t, time.Hour, func(ctx context.Context, t *testing.T) {
			names := faultlab.Names(peers)
			o := grouped(6, size, s)
			o.Snapshots, o.Plan.Codec = disk, "top512"
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
				time.Sleep(20 * time.Second) // longer than they were known to live
				for _, name := range names {
					l.Start(name)
				}
			}
			end = l.Finish(names...)[0].State.Hash()
		})
		return end
	}
	want, same := run(0), 0
	rng := rand.New(rand.NewPCG(s, 16))
	for range times {
		if run(8*time.Second+time.Duration(rng.Int64N(int64(16*time.Second)))) == want {
			same++
		}
	}
	t.Logf("C15: %d times all of %d peers in groups of %d killed at a random instant: %d ended with the bits of an undisturbed run", times, peers, size, same)
	if same != times {
		t.Errorf("%d of %d runs ended with another state than the undisturbed one", times-same, times)
	}
}

// The network falls into two halves for five rounds. Their ledgers fork and heal, and both halves' weights go on.
func TestPartitionInGroups(t *testing.T) {
	s := seed(t)
	faultlab.Virtual(t, time.Hour, func(ctx context.Context, t *testing.T) {
		peers, size := 6, 2
		if long() {
			peers, size = 16, 4
		}
		names := faultlab.Names(peers)
		l := faultlab.New(ctx, t, grouped(18, size, s), names...)
		defer l.Close()
		for _, name := range names {
			l.Start(name)
		}
		time.Sleep(22 * time.Second) // virtual
		l.Cut(names[:peers/2])
		time.Sleep(20 * time.Second)
		l.Heal()
		ends := l.Finish(names...)
		var healed uint64
		for _, o := range ends {
			healed += o.Healed
		}
		full := uint64(peers) * 18 * faultlab.Plan(18).RoundTokens()
		t.Logf("C6: %d peers in groups of %d, 50/50 for 5 of 18 rounds: %d heals, %.1f %% of the tokens of a whole run are in the state",
			peers, size, healed, 100*float64(ends[0].State.Tokens)/float64(full))
		if ends[0].State.Tokens < full*7/10 { // half of five rounds is lost, and two rounds of those who yield
			t.Errorf("only %d of %d tokens are in the state", ends[0].State.Tokens, full)
		}
	})
}
