package node

import (
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/hf"
	"github.com/capacloud/capanode/trainer/job"
	"github.com/capacloud/capanode/trainer/peft"
)

// rewrite changes a job file.
func rewrite(t *testing.T, path string, pairs ...string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(strings.NewReplacer(pairs...).Replace(string(text))), 0o600); err != nil {
		t.Fatal(err)
	}
}

// A model is trained; then runs start from it as a whole, with adapters, and with a part of it frozen. Two members commit each
// round, so both have begun at the same state.
func TestRunsFromAModel(t *testing.T) {
	if testing.Short() {
		t.Skip("whole runs; the long form runs without -short")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	m := newMarket(ctx, t)
	homes := []string{m.provider().home, m.provider().home}
	home, dir := t.TempDir(), t.TempDir()
	train := func(name string, rounds int, pairs ...string) (out string, done DoneEvent, first RoundEvent) {
		t.Helper()
		path, said := testJob(t, rounds), newEvents()
		rewrite(t, path, append([]string{"name: tiny", "name: " + name}, pairs...)...)
		out = filepath.Join(dir, name)
		o := TrainOptions{JobPath: path, Home: home, Config: m.cfg, Out: out, Emit: said.emit, CompareAlone: name == "base"}
		if err := Train(ctx, o); err != nil {
			t.Fatal(err)
		}
		rounds2 := of[RoundEvent](said)
		for _, r := range rounds2 {
			if r.Peers != 2 {
				t.Errorf("%s: round %d holds updates of %d peers", name, r.Round, r.Peers)
			}
		}
		return out, of[DoneEvent](said)[0], rounds2[0]
	}
	base, trained, whole := train("base", 3)
	if trained.AloneLoss <= 0 || math.Abs(trained.AloneLoss-trained.ValLoss) > trained.ValLoss/2 {
		t.Errorf("held-out loss %v, of one peer alone %v", trained.ValLoss, trained.AloneLoss)
	}
	from := "model: {preset: llama-tiny}"
	_, more, continued := train("more", 1, from, "init: "+base)
	if more.ValLoss >= trained.ValLoss || continued.Loss >= whole.Loss {
		t.Errorf("held-out loss %v, before %v; first round %v, of a fresh model %v", more.ValLoss, trained.ValLoss, continued.Loss, whole.Loss)
	}
	lora, adapted, small := train("lora", 1, from, "init: "+trained.Checkpoint+"\nlora: {rank: 2, targets: [q_proj, v_proj]}")
	if small.BytesDown*20 > whole.BytesDown {
		t.Errorf("a round of adapters takes %d bytes, of the model %d", small.BytesDown, whole.BytesDown)
	}
	before, merged := readHF(t, base), readHF(t, lora)
	changed := changedTensors(before, merged)
	if len(changed) != 4 || !strings.Contains(changed[0], "q_proj") || merged.Provenance.Init != trained.Checkpoint || merged.Provenance.State != "" {
		t.Errorf("changed %v, provenance %+v", changed, merged.Provenance)
	}
	head, err := peft.ReadHead(hf.Dir(adapted.Adapter))
	if err != nil || head.LoRA.Rank != 2 || head.Base.String() != trained.Checkpoint {
		t.Errorf("%+v, %v", head, err)
	}
	u := Use{Home: home, Config: m.cfg}
	for _, what := range []string{adapted.Checkpoint, adapted.Adapter} { // an adapter is used like a model
		got, err := loadModel(ctx, u, what)
		if err != nil || !slices.Equal(got.Weights, merged.Weights) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := Export(ctx, u, adapted.Checkpoint, filepath.Join(dir, "again"), ExportOptions{Merge: true}); err != nil || !slices.Equal(readHF(t, filepath.Join(dir, "again")).Weights, merged.Weights) {
		t.Errorf("merged export: %v", err)
	}
	part, _, _ := train("part", 1, from, "init: "+base+"\nfreeze: ['*mlp*', 'model.embed*']")
	for _, name := range changedTensors(before, readHF(t, part)) {
		if strings.Contains(name, "mlp") || strings.Contains(name, "embed") {
			t.Errorf("%s is frozen, and has changed", name)
		}
	}
	checkBooks(t, m.cfg, home, homes)
	for _, pin := range pinsOf(t, home, m.cfg) {
		if strings.HasPrefix(pin, "init/") {
			t.Errorf("the runs are done, and %s is still pinned", pin)
		}
	}
	checkMistakes(ctx, t, TrainOptions{Home: home, Config: m.cfg, Out: filepath.Join(dir, "never"), DryRun: true}, base)
}

// checkMistakes: each has one line, before anything is leased.
func checkMistakes(ctx context.Context, t *testing.T, o TrainOptions, base string) {
	t.Helper()
	for _, c := range []struct {
		says string
		kind error
		with []string
	}{
		{"model.width: 128, the model of init has 64", job.ErrSyntax, []string{"llama-tiny}", "llama-1m}\ninit: " + base}},
		{"train.context: 64 tokens, the model of init takes at most 32", job.ErrSyntax, []string{"context: 32", "context: 64", "llama-tiny}", "llama-tiny}\ninit: " + base}},
		{"leave data.tokenizer out", ErrJob, []string{"validation: 0.1", "tokenizer: 'bpe:300', validation: 0.1", "llama-tiny}", "llama-tiny}\ninit: " + base}},
		{"no folder", ErrNotFound, []string{"llama-tiny}", "llama-tiny}\ninit: nowhere"}},
		{"no linear layer is named \"c_attn\"", job.ErrSyntax, []string{"llama-tiny}", "llama-tiny}\nlora: {rank: 1, targets: [c_attn]}\ninit: " + base}},
	} {
		o.JobPath = testJob(t, 1)
		rewrite(t, o.JobPath, c.with...)
		err := Train(ctx, o)
		if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v: %v, want %q", c.with, err, c.says)
		}
	}
}

func readHF(t *testing.T, dir string) hf.Model {
	t.Helper()
	m, err := hf.Read(dir)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// changedTensors names the tensors in which two models differ.
func changedTensors(a, b hf.Model) (names []string) {
	for i, p := range a.Params {
		q := b.Params[i]
		if !slices.Equal(a.Weights[p.Offset:p.Offset+p.Size()], b.Weights[q.Offset:q.Offset+q.Size()]) {
			names = append(names, p.Name)
		}
	}
	return names
}

// A model of which a member has changed what it was not to train is not the run's, although its trained part is.
func TestFrozenPartIsChecked(t *testing.T) {
	params := []engine.Param{{Name: "a", Shape: []int{2}}, {Name: "b", Shape: []int{2}, Offset: 2}}
	fixed := frozen{[]engine.Param{{Name: "b", Shape: []int{2}}}, []float32{3, 4}}
	m := readModel{Model: hf.Model{Params: params, Weights: []float32{1, 2, 3, 4}}}
	if err := m.holds(fixed); err != nil {
		t.Error(err)
	}
	m.Weights[3] = 5
	if err := m.holds(fixed); err == nil || !strings.Contains(err.Error(), "b is frozen") {
		t.Errorf("changed: %v", err)
	}
}
