package tempo

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/capacloud/capanode/trainer/codec"
	"github.com/capacloud/capanode/trainer/outer"
)

func bitsOf(codec string) float64 {
	for _, r := range ladder {
		if r.codec == codec {
			return r.bits
		}
	}
	return 0
}

// Rounds add up to the run, and what they download to the budget.
func TestBeatsKeepTheBudget(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := Plan{
			Steps: rapid.Uint64Range(1, 5000).Draw(t, "steps"), Mates: rapid.IntRange(1, 32).Draw(t, "mates"),
			Bits: rapid.Float64Range(0.05, 200).Draw(t, "bits"), Gradients: rapid.Bool().Draw(t, "gradients"),
		}
		var done uint64
		var spent float64
		for done < p.Steps {
			b := p.Next(done)
			if b.LocalSteps < 1 || bitsOf(b.Codec) == 0 {
				t.Fatalf("after %d of %d steps: %+v", done, p.Steps, b)
			}
			done += uint64(b.LocalSteps)
			spent += float64(p.Mates-1) * bitsOf(b.Codec)
		}
		if done != p.Steps {
			t.Fatalf("%d steps, want %d", done, p.Steps)
		}
		if b := p.Next(p.Steps); b.LocalSteps != 1 {
			t.Fatalf("past the end: %+v", b)
		}
		if each := p.Bits / float64(max(1, p.Mates-1)); p.Mates > 1 && p.Steps > 600 && each < 6 && each > 0.02 && spent > 1.15*p.Bits*float64(p.Steps) {
			t.Fatalf("%.3g bits spent per step of %g", spent/float64(p.Steps), p.Bits)
		}
	})
}

// The schedule that the decision record gives figures for.
func TestBeatsAtFourPeers(t *testing.T) {
	local := func(h int, codec string, rate float32) Beat {
		return Beat{LocalSteps: h, Codec: codec, Outer: outer.Settings{LearningRate: rate}}
	}
	for _, c := range []struct {
		share float64 // of data-parallel bytes, one in so many
		least int
		want  Beat
	}{
		{1, 1, local(1, "int8", 1.15)}, {10, 1, local(1, "top1024", 1.15)}, {20, 1, local(1, "top512", 1.15)},
		{30, 1, local(1, "top256", 1.15)}, {100, 1, local(5, "top512", 1.15)}, {300, 1, local(15, "top512", 1.45)},
		{1000, 1, local(14, "top96", 1.45)}, {10, 5, local(5, "int8", 1)}, {100, 20, local(20, "top1024", 1.45)},
		{1e6, 1, local(100, "top64", 1.45)},
	} {
		p := Plan{Steps: 10_000, Mates: 4, Bits: 48 / c.share, Least: c.least}
		if got := p.Next(0); got != c.want {
			t.Errorf("1/%g, rounds of %d steps at least: %+v, want %+v", c.share, c.least, got, c.want)
		}
	}
	if got, want := (Plan{Steps: 100, Mates: 4}).Next(0), (local(1, "int8", 1.15)); got != want {
		t.Errorf("without a budget: %+v, want %+v", got, want)
	}
	if got, want := (Plan{Steps: 100, Mates: 1, Bits: 1, Codec: "fp32"}).Next(98), (local(1, "fp32", 1)); got != want {
		t.Errorf("alone, with a codec: %+v, want %+v", got, want)
	}
}

// Rounds are one step on gradients where the budget pays for an exchange in every step, links carry it in the time of a step, and
// there is somebody to exchange with; else they are what they would be without gradients.
func TestGradientsWhereTheyPay(t *testing.T) {
	for _, c := range []struct {
		name  string
		plan  Plan
		codec string // of gradients; "" where local steps are due
	}{
		{"no budget", Plan{Mates: 4}, "top512"},
		{"1/10", Plan{Mates: 4, Bits: 4.8}, "top512"},
		{"1/20", Plan{Mates: 4, Bits: 2.4}, "top512"},
		{"1/30", Plan{Mates: 4, Bits: 1.6}, "top256"},
		{"1/100", Plan{Mates: 4, Bits: 0.48}, "top64"},
		{"1/110", Plan{Mates: 4, Bits: 48.0 / 110}, ""},
		{"1/10 among eight", Plan{Mates: 8, Bits: 5.6}, "top512"},
		{"the default of a job with three", Plan{Mates: 3, Bits: 1, Least: 10}, "top256"},
		{"an exchange takes a step", Plan{Mates: 4, Link: 1}, "top512"},
		{"an exchange takes two", Plan{Mates: 4, Link: 2}, ""},
		{"nobody to exchange with", Plan{Mates: 1}, ""},
		{"a codec that pays", Plan{Mates: 4, Bits: 4.8, Codec: "top128"}, "top128"},
		{"a codec that costs too much", Plan{Mates: 4, Bits: 0.48, Codec: "top128"}, ""},
		{"a codec that leaves no momentum", Plan{Mates: 4, Codec: "int8"}, ""},
	} {
		without := c.plan
		without.Steps, c.plan.Steps, c.plan.Gradients = 1000, 1000, true
		for _, done := range []uint64{0, 500, 999} {
			got, want := c.plan.Next(done), Beat{LocalSteps: 1, Codec: c.codec, Gradients: true, Decay: rung{c.codec, bitsOf(c.codec)}.decay()}
			if c.codec == "" {
				want = without.Next(done)
			}
			if got != want || got.Gradients != (c.codec != "") {
				t.Errorf("%s, after %d steps: %+v, want %+v", c.name, done, got, want)
			}
		}
		if without.Next(0).Gradients {
			t.Errorf("%s: gradients although the plan excludes them", c.name)
		}
	}
}

// A long run ends with a round that says everything; a short one under a small budget cannot pay for it.
func TestLastRound(t *testing.T) {
	p := Plan{Steps: 10_000, Mates: 4, Bits: 0.48}
	if got := p.Next(9_998); got.Codec != "int8" || got.LocalSteps != 2 || got.Outer.LearningRate != 1 {
		t.Errorf("last round of a long run: %+v", got)
	}
	p.Steps = 100
	if got := p.Next(98); got.Codec != "top512" || got.LocalSteps != 2 {
		t.Errorf("last round of a short run: %+v", got)
	}
}

func TestCodecsExist(t *testing.T) {
	for i, r := range ladder {
		c, err := codec.Parse(r.codec)
		if err != nil {
			t.Fatal(err)
		}
		if i > 0 && r.bits >= ladder[i-1].bits {
			t.Errorf("%s is not coarser than %s", r.codec, ladder[i-1].codec)
		}
		if bound := 8 * float64(c.Bound(1<<20)) / (1 << 20); bound < r.bits-0.01 {
			t.Errorf("%s takes at most %g bits, the ladder says %g", r.codec, bound, r.bits)
		}
	}
}
