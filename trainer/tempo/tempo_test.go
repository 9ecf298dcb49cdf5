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
			Bits: rapid.Float64Range(0.05, 200).Draw(t, "bits"),
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
	sgd := func(rate float32) outer.Settings { return outer.Settings{LearningRate: rate} }
	for _, c := range []struct {
		share float64 // of data-parallel bytes, one in so many
		least int
		want  Beat
	}{
		{1, 1, Beat{1, "int8", sgd(1.15)}}, {10, 1, Beat{1, "top1024", sgd(1.15)}}, {20, 1, Beat{1, "top512", sgd(1.15)}},
		{30, 1, Beat{1, "top256", sgd(1.15)}}, {100, 1, Beat{5, "top512", sgd(1.15)}}, {300, 1, Beat{15, "top512", sgd(1.45)}},
		{1000, 1, Beat{14, "top96", sgd(1.45)}}, {10, 5, Beat{5, "int8", sgd(1)}}, {100, 20, Beat{20, "top1024", sgd(1.45)}},
		{1e6, 1, Beat{100, "top64", sgd(1.45)}},
	} {
		p := Plan{Steps: 10_000, Mates: 4, Bits: 48 / c.share, Least: c.least}
		if got := p.Next(0); got != c.want {
			t.Errorf("1/%g, rounds of %d steps at least: %+v, want %+v", c.share, c.least, got, c.want)
		}
	}
	if got, want := (Plan{Steps: 100, Mates: 4}).Next(0), (Beat{1, "int8", sgd(1.15)}); got != want {
		t.Errorf("without a budget: %+v, want %+v", got, want)
	}
	if got, want := (Plan{Steps: 100, Mates: 1, Bits: 1, Codec: "fp32"}).Next(98), (Beat{1, "fp32", sgd(1)}); got != want {
		t.Errorf("alone, with a codec: %+v, want %+v", got, want)
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
