package faultlab_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/faultlab"
	"github.com/capacloud/capanode/trainer/round"
	"github.com/capacloud/capanode/trainer/worker"
)

// speech is the language of the tests that compare losses.
var speech = faultlab.Text{Numbers: faultlab.Numbers{Count: 64, Length: 1 << 14, Context: 16}}

// curve is the loss on held-out text by committed tokens, on the way to the state that all ended with.
type curve struct {
	tokens []uint64
	loss   []float64
}

// at returns the loss at some number of tokens, between the points on a straight line.
func (c curve) at(tokens uint64) float64 {
	i, _ := slices.BinarySearch(c.tokens, tokens)
	switch {
	case i == 0:
		return c.loss[0]
	case i == len(c.tokens):
		return c.loss[i-1]
	}
	share := float64(tokens-c.tokens[i-1]) / float64(c.tokens[i]-c.tokens[i-1])
	return c.loss[i-1] + share*(c.loss[i]-c.loss[i-1])
}

func (c curve) last() uint64 { return c.tokens[len(c.tokens)-1] }

// llamaOptions is a laboratory of tiny transformers. The seed decides data order and initial weights.
func llamaOptions(rounds, seed uint64) faultlab.Options {
	plan := faultlab.LlamaPlan(rounds)
	plan.Seed = seed
	link := home
	link.Seed = seed
	return faultlab.Options{
		Plan: plan, Data: speech, Link: link, Log: logLevel(),
		Engine: func() (engine.Engine, error) { return faultlab.Llama(seed) },
	}
}

// train runs peers to the end of the plan while fault does what it likes, and returns the loss curve of the final state's
// past and how the laboratory ended.
func train(t *testing.T, peers int, o faultlab.Options, fault func(*faultlab.Lab)) (c curve, lives []faultlab.Life, ends []faultlab.Outcome) {
	t.Helper()
	batch := speech.HeldOut(128)
	states := map[round.Hash]float64{}
	faultlab.Virtual(t, 24*time.Hour, func(ctx context.Context, t *testing.T) {
		o.Plan.CheckpointEvery = 2
		names := faultlab.Names(peers)
		l := faultlab.New(ctx, t, o, names...)
		defer l.Close()
		judge, err := o.Engine()
		if err != nil {
			t.Fatal(err)
		}
		defer judge.Close()
		weigh := func(cfg *worker.Config) {
			cfg.Hooks.OnCheckpoint = l.Alone(func(s *round.State) error {
				h := s.Hash()
				if _, known := states[h]; known {
					return nil
				}
				copy(judge.State().Weights, s.Weights)
				var err error
				states[h], err = judge.Evaluate(ctx, batch)
				return err
			})
		}
		for _, name := range names {
			l.Start(name, weigh)
		}
		if fault != nil {
			fault(l)
		}
		ends = l.Finish(l.Alive()...)
		lives = l.Lives()
		for _, link := range l.Conserved(ends[0].State) {
			if loss, ok := states[link.Next]; ok {
				c.tokens, c.loss = append(c.tokens, link.Total), append(c.loss, loss)
			}
		}
	})
	return c, lives, ends
}

// compare returns how much higher the loss of a disturbed run is than that of a quiet one, in per cent at equal tokens: the
// mean over the last third of the tokens that both have.
func compare(disturbed, quiet curve) float64 {
	end := min(disturbed.last(), quiet.last())
	var sum float64
	const points = 20
	for i := range points {
		at := end - end/3*uint64(i)/points
		sum += disturbed.at(at)/quiet.at(at) - 1
	}
	return 100 * sum / points
}

// Half of the peers die at the same instant.
func TestKillHalf(t *testing.T) {
	if testing.Short() {
		t.Skip("trains transformers; the long form runs without -short")
	}
	base, peers, rounds, runs := seed(t), 4, uint64(14), 1
	if long() {
		peers, rounds, runs = 16, 60, 3
	}
	worst, sum := -100.0, 0.0
	for i := range runs {
		s := base + uint64(i)
		quiet, _, _ := train(t, peers, llamaOptions(rounds, s), nil)
		var killed time.Time
		kill := func(l *faultlab.Lab) {
			time.Sleep(time.Duration(rounds/2)*4*time.Second + 1500*time.Millisecond) // virtual; in the middle of local steps
			killed = time.Now()
			for _, name := range faultlab.Names(peers)[peers/2:] {
				l.Kill(name)
			}
		}
		disturbed, lives, ends := train(t, peers, llamaOptions(rounds*3/2, s), kill)
		more := compare(disturbed, quiet)
		sum, worst = sum+more, max(worst, more)
		slowest := time.Duration(0)
		for _, l := range lives[:peers/2] {
			next := slices.IndexFunc(l.Commits, func(c faultlab.Commit) bool { return c.At.After(killed) })
			slowest = max(slowest, l.Commits[next].At.Sub(killed))
			if got := len(l.Commits[next].Contributors); got != peers/2 {
				t.Errorf("seed %d: the next round of %s has %d contributors, want the %d survivors", s, l.Peer, got, peers/2)
			}
		}
		for _, o := range ends {
			if o.Healed != 0 || o.Rounds != rounds*3/2 {
				t.Errorf("seed %d: a survivor rolled back: %d rounds, %d heals", s, o.Rounds, o.Healed)
			}
		}
		t.Logf("C5: seed %d: %d of %d killed, next commit %v after, loss %+.2f %% at equal tokens (%.4f of %.4f at %d tokens)",
			s, peers/2, peers, slowest, more, disturbed.at(quiet.last()), quiet.at(quiet.last()), quiet.last())
	}
	t.Logf("C5: loss %+.2f %% in the mean of %d seeds, at worst %+.2f %%", sum/float64(runs), runs, worst)
	if sum > float64(runs) {
		t.Errorf("the loss is %.2f %% higher, want at most 1 %%", sum/float64(runs))
	}
}

// The network falls into two halves for ten rounds.
func TestPartitionOfTenRounds(t *testing.T) {
	if testing.Short() {
		t.Skip("trains transformers; the long form runs without -short")
	}
	base, peers, rounds, runs := seed(t), 4, uint64(26), 1
	if long() {
		peers, rounds, runs = 8, 60, 3
	}
	var sum, lost float64
	for i := range runs {
		s := base + uint64(i)
		quiet, _, _ := train(t, peers, llamaOptions(rounds, s), nil)
		cut := func(l *faultlab.Lab) {
			time.Sleep(22 * time.Second)
			names := faultlab.Names(peers)
			l.Cut(names[:peers/2])
			time.Sleep(40 * time.Second)
			l.Heal()
		}
		disturbed, _, ends := train(t, peers, llamaOptions(rounds, s), cut)
		more := compare(disturbed, quiet)
		behind := 100 * (disturbed.loss[len(disturbed.loss)-1]/quiet.loss[len(quiet.loss)-1] - 1)
		full := uint64(peers) * rounds * faultlab.LlamaPlan(rounds).RoundTokens()
		share := 1 - float64(ends[0].State.Tokens)/float64(full)
		sum, lost = sum+more, lost+share
		var healed uint64
		for _, o := range ends {
			healed += o.Healed
		}
		t.Logf("C6: seed %d: 50/50 for 10 of %d rounds: loss %+.2f %% at equal tokens, %+.2f %% at equal rounds; %.1f %% of all updates dropped, %d heals",
			s, rounds, more, behind, 100*share, healed)
	}
	t.Logf("C6: partition: loss %+.2f %% at equal tokens in the mean of %d seeds", sum/float64(runs), runs)
	if sum > float64(runs) {
		t.Errorf("the loss is %.2f %% higher, want at most 1 %%", sum/float64(runs))
	}
}
