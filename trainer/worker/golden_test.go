package worker_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/engine/native"
	"github.com/capacloud/capanode/trainer/faultlab"
	"github.com/capacloud/capanode/trainer/round"
	"github.com/capacloud/capanode/trainer/tempo"
	"github.com/capacloud/capanode/trainer/worker"
)

var update = flag.Bool("update", false, "rewrite golden files")

// counting is a language that a tiny model learns in seconds: every window counts up from its start in its own step width.
type counting struct{ faultlab.Numbers }

func (c counting) Batch(_ context.Context, windows []round.Window) (engine.Batch, error) {
	b := engine.Batch{Rows: len(windows), Context: c.Context}
	for _, w := range windows {
		at, step := int32(w.Index%32), int32(1+w.Shard%3)
		for i := range int32(c.Context) {
			b.Inputs = append(b.Inputs, (at+i*step)%32)
			b.Targets = append(b.Targets, (at+(i+1)*step)%32)
		}
	}
	return b, nil
}

// llamaPlan is a run of thirty steps: five rounds of six local steps, or thirty of gradients.
func llamaPlan(gradients bool) worker.Plan {
	plan := testPlan
	plan.Rounds, plan.LocalSteps, plan.BatchRows, plan.Context = 5, 6, 8, 16
	plan.MicroRows = 8
	plan.Inner.WeightDecay = 0.1
	plan.Schedule = worker.Schedule{Peak: 1e-2, Floor: 1e-3, Warmup: 5, Total: 30}
	if gradients {
		plan.Rounds, plan.LocalSteps, plan.Params = 30, 1, 30_000
		plan.Tempo = &tempo.Plan{Steps: 30, Mates: 3, Gradients: true}
	}
	return plan
}

// llamaRun trains a tiny Llama on three peers and returns one line for each round, as every peer saw it.
func llamaRun(t *testing.T, plan worker.Plan) string {
	var lines strings.Builder
	virtual(t, 30*time.Minute, func(ctx context.Context, t *testing.T) {
		names := []string{"a", "b", "c"}
		s := newSwarm(t, plan, names...)
		s.data = counting{faultlab.Numbers{Count: 6, Length: 64, Context: 16}}
		defer s.end(names...)
		var all []<-chan outcome
		for _, name := range names {
			eng, err := faultlab.Llama(11)
			if err != nil {
				t.Fatal(err)
			}
			defer eng.Close()
			cfg := s.config(name)
			cfg.Engine, cfg.Numerics = eng, native.Numerics()
			all = append(all, start(ctx, cfg))
		}
		ends := s.finish(all...)
		for _, r := range s.reports["a"] {
			fmt.Fprintf(&lines, "round %d: loss %.6f, %d tokens, state %s\n", r.Round, r.Loss, r.Total, r.Next)
		}
		for _, r := range s.reports["a"] {
			if len(r.Contributors) != 3 {
				t.Errorf("round %d has %d contributors", r.Round, len(r.Contributors))
			}
		}
		first, last := s.reports["a"][0].Loss, s.reports["a"][plan.Rounds-1].Loss
		if !(last < first/2) || math.IsNaN(last) {
			t.Errorf("loss went from %g to %g", first, last)
		}
		if ends[0].State.Round != plan.Rounds {
			t.Errorf("ended at round %d", ends[0].State.Round)
		}
	})
	return lines.String()
}

// The same job gives the same bits: twice in this process, and as recorded for this numerics class.
func TestGoldenLlama(t *testing.T) {
	t.Run("local steps", func(t *testing.T) { golden(t, "llama-", llamaPlan(false)) })
	t.Run("gradients", func(t *testing.T) { golden(t, "gradients-", llamaPlan(true)) })
}

func golden(t *testing.T, name string, plan worker.Plan) {
	first := llamaRun(t, plan)
	if second := llamaRun(t, plan); second != first {
		t.Errorf("two runs differ:\n%s\n%s", first, second)
	}
	class := strings.ReplaceAll(native.Numerics(), "/", "-")
	path := filepath.Join("testdata", name+class+".txt")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(first), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		t.Skipf("no golden file for numerics class %s: run with -update on such a machine to record one", native.Numerics())
	}
	if err != nil {
		t.Fatal(err)
	}
	if first != string(want) {
		t.Errorf("the run changed:\n%s\nrecorded:\n%s", first, want)
	}
}
