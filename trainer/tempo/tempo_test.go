package tempo

import (
	"testing"

	"pgregory.net/rapid"
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
