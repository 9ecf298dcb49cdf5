package outer_test

import (
	"errors"
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/capacloud/capanode/trainer/codec"
	"github.com/capacloud/capanode/trainer/outer"
)

// through returns what mates decode of x.
func through(t interface{ Fatal(...any) }, c codec.Codec, x []float32) codec.Source {
	blob := make([]byte, c.Bound(len(x)))
	size, err := c.Encode(blob, x)
	if err != nil {
		t.Fatal(err)
	}
	src, err := c.Open(blob[:size], len(x))
	if err != nil {
		t.Fatal(err)
	}
	return src
}

// What was committed and the residual are together what was offered, whatever codec, and whichever rounds were aborted.
func TestFeedbackConserves(t *testing.T) {
	codecs := []codec.Codec{codec.FP32{}, codec.Int8{}, codec.Int4{}, codec.Top{K: 1}, codec.Top{K: 64}, codec.Top{K: 2048}}
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 3*codec.Block).Draw(t, "n")
		f := outer.NewFeedback(n, 1)
		sum, magnitude := make([]float64, n), make([]float64, n)
		rounds := rapid.IntRange(1, 12).Draw(t, "rounds")
		for range rounds {
			update := normal(rapid.Uint64().Draw(t, "seed"), n, math.Exp(rapid.Float64Range(-5, 5).Draw(t, "log std")))
			before := slices.Clone(f.Residual())
			pending, err := f.Pending(update)
			if err != nil {
				t.Fatal(err)
			}
			if rapid.Bool().Draw(t, "abort") {
				f.Abort()
				if !slices.Equal(before, f.Residual()) {
					t.Fatal("an aborted round changed the residual")
				}
				continue
			}
			decoded := through(t, rapid.SampledFrom(codecs).Draw(t, "codec"), pending)
			committed := make([]float32, n)
			codec.Decode(committed, decoded)
			if err := f.Commit(decoded); err != nil {
				t.Fatal(err)
			}
			for i := range sum {
				sum[i] += float64(update[i]) - float64(committed[i])
				magnitude[i] += math.Abs(float64(update[i])) + math.Abs(float64(committed[i])) + math.Abs(float64(f.Residual()[i]))
			}
		}
		for i, r := range f.Residual() {
			if math.Abs(sum[i]-float64(r)) > 2e-7*magnitude[i] {
				t.Fatalf("element %d: offered less committed is %g, the residual %g", i, sum[i], r)
			}
		}
	})
}

// Updates of parts leave the residual of the other parts alone.
func TestFeedbackOfParts(t *testing.T) {
	f := outer.NewFeedback(6, 1)
	for _, from := range []int{0, 4, 2, 0} {
		pending, err := f.PendingPart(from, []float32{1, 2})
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Commit(vector{pending[0], 0}); err != nil { // a codec that loses every second
			t.Fatal(err)
		}
	}
	if want := []float32{0, 4, 0, 2, 0, 2}; !slices.Equal(f.Residual(), want) {
		t.Errorf("residual %v, want %v", f.Residual(), want)
	}
	if _, err := f.PendingPart(5, []float32{1, 2}); !errors.Is(err, outer.ErrShape) {
		t.Errorf("a part past the end: %v", err)
	}
}

func TestFeedbackDecays(t *testing.T) {
	f := outer.NewFeedback(2, 0.5)
	for _, want := range [][]float32{{4, 8}, {6, 12}, {7, 14}} {
		pending, err := f.Pending([]float32{4, 8})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(pending, want) {
			t.Errorf("pending %v, want %v", pending, want)
		}
		if err := f.Commit(make(vector, 2)); err != nil { // a codec that loses everything
			t.Fatal(err)
		}
	}
	f.Reset()
	if !slices.Equal(f.Residual(), []float32{0, 0}) {
		t.Errorf("after a reset the residual is %v", f.Residual())
	}
}

func TestFeedbackRefuses(t *testing.T) {
	f := outer.NewFeedback(3, 1)
	if _, err := f.Pending(make([]float32, 2)); !errors.Is(err, outer.ErrShape) {
		t.Errorf("short update: %v", err)
	}
	if err := f.Commit(make(vector, 3)); !errors.Is(err, outer.ErrFeedback) {
		t.Errorf("commit of nothing: %v", err)
	}
	if _, err := f.Pending([]float32{1, 2, 3}); err != nil {
		t.Fatal(err)
	}
	if err := f.Commit(make(vector, 2)); !errors.Is(err, outer.ErrShape) {
		t.Errorf("short source: %v", err)
	}
	if err := f.Commit(make(vector, 3)); err != nil {
		t.Errorf("the pending update is gone after a refused commit: %v", err)
	}
	if err := f.Commit(make(vector, 3)); !errors.Is(err, outer.ErrFeedback) {
		t.Errorf("second commit: %v", err)
	}
}
