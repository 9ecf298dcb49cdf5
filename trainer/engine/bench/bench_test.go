package bench

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/capacloud/capanode/trainer/engine/gomlx"
)

func TestRunGivesEveryFigureOrNamesIt(t *testing.T) {
	if testing.Short() {
		t.Skip("trains the 10.7 M model for some seconds")
	}
	f, err := Run(t.Context(), Options{PerModel: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", text)
	var figures map[string]any
	if err := json.Unmarshal(text, &figures); err != nil {
		t.Fatal(err)
	}
	for name, value := range figures {
		if n, ok := value.(float64); ok && n <= 0 && !slices.Contains(f.Missing, name) {
			t.Errorf("%s is %v and not named as missing", name, n)
		}
	}
	if f.MatmulShareOfPeak > 1.05 || f.FLOPsShareOfPeak > 1.05 {
		t.Errorf("shares of the peak above one: %s", text)
	}
	if gomlx.SlowKernels() != (f.PeakGFLOPsPerCore == 0) {
		t.Errorf("kernels %s, but a peak of %g", f.Numerics, f.PeakGFLOPsPerCore)
	}
}

func TestRunStopsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Run(ctx, Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want context.Canceled", err)
	}
}
