package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/trainer/data"
	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/hf"
	"github.com/capacloud/capanode/trainer/job"
	"github.com/capacloud/capanode/trainer/model"
	"github.com/capacloud/capanode/trainer/tokenizer"
)

// Every family trains through the same rounds, with the same job file but for its model, and leaves as a folder that reads back:
// with another codec each, recomputation, and smoothed targets.
func TestFamiliesTrainInRounds(t *testing.T) {
	if testing.Short() {
		t.Skip("whole runs; the long form runs without -short")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	t.Cleanup(cancel) // after the commands have been stopped
	m := newMarket(ctx, t)
	m.provider()
	m.provider()
	home := t.TempDir()
	for _, c := range []struct{ family, task, codec, tokenizer, train string }{
		{model.FamilyGPT2, model.TaskCausal, "int4", "bpe:300", "recompute: true, micro_batch: 4"},
		{model.FamilyBERT, model.TaskMasked, "top64", "bytes", "label_smoothing: 0.1"},
	} {
		path, out, said := testJob(t, 3), filepath.Join(t.TempDir(), "model"), newEvents()
		rewrite(t, path, "name: tiny", "name: tiny-"+c.family, "task: causal-lm", "task: "+c.task, "llama-tiny", c.family+"-tiny",
			"pace: fixed", "pace: fixed, codec: "+c.codec, "include: [.txt]", "include: [.txt], tokenizer: '"+c.tokenizer+"'", "warmup: 2", "warmup: 2, "+c.train)
		o := TrainOptions{JobPath: path, Home: home, Config: m.cfg, Out: out, Emit: said.emit}
		if err := Train(ctx, o); err != nil {
			t.Fatalf("%s: %v", c.family, err)
		}
		rounds, done := of[RoundEvent](said), of[DoneEvent](said)[0]
		first, last := rounds[0].Loss, rounds[len(rounds)-1].Loss
		if !(last < first) || !(done.ValLoss > 0 && done.ValLoss < 7) {
			t.Errorf("%s: the loss went from %.3f to %.3f, held-out %.3f", c.family, first, last, done.ValLoss)
		}
		got, err := hf.Read(out)
		if err != nil || got.Spec.Family != c.family || got.Provenance.State != rounds[len(rounds)-1].State {
			t.Errorf("%s: read back %+v, %v", c.family, got.Spec, err)
		}
		if events := of[CheckpointEvent](said); len(events) != 1 || events[0].Peers != 2 {
			t.Errorf("%s: checkpoints %+v, want one that both members named", c.family, events)
		}
		t.Logf("%s: loss %.3f to %.3f, held-out %.3f, %+v", c.family, first, last, done.ValLoss, got.Spec)
		err = Sample(ctx, SampleOptions{Use: Use{Home: home, Config: m.cfg}, Model: done.Checkpoint, Prompt: "line", Tokens: 4, TopK: 3, TopP: 0.9, Temperature: 1},
			func([]byte) error { return nil })
		if masked := c.task == model.TaskMasked; err == nil == masked || masked && !errors.Is(err, ErrUsage) {
			t.Errorf("%s: sampled with error %v", c.family, err)
		}
	}
}

// Each mistake has one line that says what to do.
func TestFamilyMistakes(t *testing.T) {
	cfg := localConfig(t)
	for name, c := range map[string]struct {
		change []string
		want   error
		says   string
	}{
		"a task for another family": {[]string{"task: causal-lm", "task: masked-lm"}, job.ErrSyntax, "trained with task causal-lm"},
		"bf16 on processors":        {[]string{"warmup: 2", "warmup: 2, precision: bf16"}, ErrJob, "processors compute in fp32"},
		"a precision that is none":  {[]string{"warmup: 2", "warmup: 2, precision: fp8"}, job.ErrSyntax, "auto, fp32 or bf16"},
		"rotary positions":          {[]string{"preset: llama-tiny", "family: gpt2, width: 32, layers: 1, heads: 2, rope_theta: 10"}, job.ErrSyntax, "rope_theta"},
		"too much smoothing":        {[]string{"warmup: 2", "warmup: 2, label_smoothing: 0.9"}, job.ErrSyntax, "label_smoothing"},
		"a corpus for few peers":    {[]string{"validation: 0.1", "validation: 0.1, max_documents: 2", "context: 32", "context: 2048"}, &data.TooSmallError{}, "need at least"},
	} {
		path := testJob(t, 1)
		rewrite(t, path, c.change...)
		err := Train(t.Context(), TrainOptions{JobPath: path, Home: t.TempDir(), Config: cfg, Out: filepath.Join(t.TempDir(), "out"), Local: 2, DryRun: true, Emit: newEvents().emit})
		var small *data.TooSmallError
		holds := errors.Is(err, c.want) || errors.As(c.want, &small) && errors.As(err, &small)
		if err == nil || !holds || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A dry run knows what the published sizes take, before anything is allocated.
func TestDryRunEstimates(t *testing.T) {
	for _, name := range model.PresetNames() {
		spec, err := model.Preset(name)
		if err != nil {
			t.Fatal(err)
		}
		if spec.Width > 2048 {
			continue // planned as quickly; left out to keep the test short
		}
		r := job.Record{Model: spec, Context: uint64(spec.Context), Batch: 8, MicroBatch: 2, Task: spec.Task()}
		plain, err := memoryNeeded(r)
		if err != nil {
			t.Fatal(err)
		}
		r.Recompute = true
		less, err := memoryNeeded(r)
		if err != nil {
			t.Fatal(err)
		}
		params, err := spec.Parameters()
		if err != nil {
			t.Fatal(err)
		}
		if least := params * 4 * (4 + 5); less < least || less > plain || spec.Layers > 2 && less >= plain {
			t.Errorf("%s: %d MiB, recomputing %d MiB, the parameters alone take %d MiB", name, plain>>20, less>>20, least>>20)
		}
	}
}

// imported writes a small model as a folder to import.
func imported(t *testing.T, family string) string {
	t.Helper()
	spec, err := model.Preset(family + "-tiny")
	if err != nil {
		t.Fatal(err)
	}
	spec.Vocab = modelVocab(spec.Task(), tokenizer.Byte{}, 257)
	p, err := spec.Program()
	if err != nil {
		t.Fatal(err)
	}
	state, err := engine.NewState(p.Params, 3)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), family)
	if err := hf.Write(dir, hf.Model{Spec: spec, Params: state.Params, Weights: state.Weights, Tokenizer: tokenizer.Byte{}, Type: hf.BFloat16}); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestImport(t *testing.T) {
	u := Use{Home: t.TempDir(), Config: localConfig(t)}
	for _, family := range []string{model.FamilyLlama, model.FamilyGPT2, model.FamilyBERT} {
		dir := imported(t, family)
		if err := os.WriteFile(filepath.Join(dir, "modeling.py"), []byte("print('hello')"), 0o600); err != nil {
			t.Fatal(err)
		}
		weights := filepath.Join(dir, "model.safetensors") // as a cache of models has it
		if err := errors.Join(os.Rename(weights, weights+".blob"), os.Symlink(weights+".blob", weights)); err != nil {
			t.Fatal(err)
		}
		got, err := Import(t.Context(), u, dir)
		if err != nil {
			t.Fatal(err)
		}
		if got.Family != family || got.Tokenizer != "bytes" || got.Type != "bfloat16" || strings.Join(got.Left, " ") != "model.safetensors.blob modeling.py" {
			t.Errorf("%+v", got)
		}
		again, err := Import(t.Context(), u, got.CID)
		if err != nil || again.CID != got.CID {
			t.Errorf("%s again: %+v, %v", family, again, err)
		}
		if report, _, err := VerifyModel(t.Context(), u, got.CID); err != nil || len(report.Faults) > 0 {
			t.Errorf("%s: %+v, %v", family, report, err)
		}
		if family == model.FamilyBERT {
			continue
		}
		texts := map[string]bool{}
		for range 2 { // equal seeds give equal texts, token by token
			var text []byte
			pieces := 0
			o := SampleOptions{Use: u, Model: got.CID, Prompt: "ab", Tokens: 12, Temperature: 0.9, TopK: 40, TopP: 0.95, Seed: 4}
			if err := Sample(t.Context(), o, func(piece []byte) error { text, pieces = append(text, piece...), pieces+1; return nil }); err != nil {
				t.Fatal(err)
			}
			texts[string(text)] = true
			if pieces < 2 {
				t.Errorf("%s: %d pieces", family, pieces)
			}
		}
		if len(texts) != 1 {
			t.Errorf("%s: one seed gave %d texts", family, len(texts))
		}
	}
	for name, c := range map[string]struct {
		change func(dir string) error
		want   error
	}{
		"an activation": {func(dir string) error {
			path := filepath.Join(dir, "config.json")
			raw, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			return os.WriteFile(path, []byte(strings.Replace(string(raw), "gelu_new", "relu", 1)), 0o600)
		}, hf.ErrUnsupported},
		"cut weights": {func(dir string) error { return os.Truncate(filepath.Join(dir, "model.safetensors"), 1000) }, hf.ErrFormat},
		"no weights":  {func(dir string) error { return os.Remove(filepath.Join(dir, "model.safetensors")) }, fs.ErrNotExist},
		"no config":   {func(dir string) error { return os.Remove(filepath.Join(dir, "config.json")) }, fs.ErrNotExist},
	} {
		dir := imported(t, model.FamilyGPT2)
		if err := c.change(dir); err != nil {
			t.Fatal(err)
		}
		if _, err := Import(t.Context(), u, dir); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if pins := pinsOf(t, u.Home, u.Config); len(pins) != 3 {
		t.Errorf("three imports left the pins %v", pins)
	}
}

// countdown is a context that ends when it has been asked so many times.
type countdown struct {
	context.Context
	left atomic.Int64
	end  context.CancelFunc
}

func (c *countdown) Err() error {
	if c.left.Add(-1) <= 0 {
		c.end()
	}
	return c.Context.Err()
}

// An import that ends anywhere leaves a store that is sound and nothing of the model; the next one succeeds.
func TestImportIsCutShort(t *testing.T) {
	u := Use{Home: t.TempDir(), Config: localConfig(t)}
	dir := imported(t, model.FamilyGPT2)
	killed := filepath.Join(u.Home, "tmp", stagings+"killed") // by a process that did not clean up
	if err := os.MkdirAll(killed, 0o700); err != nil {
		t.Fatal(err)
	}
	cut, done := 0, false
	for after := int64(1); !done && after < 1<<20; after = after*3/2 + 1 {
		inner, end := context.WithCancel(t.Context())
		ctx := &countdown{Context: inner, end: end}
		ctx.left.Store(after)
		_, err := Import(ctx, u, dir)
		end()
		if done = err == nil; done {
			break
		}
		cut++
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("ended after %d questions: %v", after, err)
		}
		if pins := pinsOf(t, u.Home, u.Config); len(pins) > 0 && !(len(pins) == 1 && pins[0] == stagedPin) {
			t.Errorf("ended after %d questions it left the pins %v", after, pins)
		}
		left, err := filepath.Glob(filepath.Join(u.Home, "tmp", stagings+"*"))
		if err != nil || len(left) > 1 || len(left) == 1 && left[0] != killed {
			t.Errorf("ended after %d questions it left %v, %v", after, left, err)
		}
	}
	if !done || cut < 3 {
		t.Fatalf("cut short %d times, in the end done: %v", cut, done)
	}
	err := u.with(t.Context(), func(n *Node) error {
		report, err := n.store.Verify(t.Context())
		if len(report.Faults) > 0 {
			err = fmt.Errorf("%+v: %w", report.Faults, storage.ErrCorrupt)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if pins := pinsOf(t, u.Home, u.Config); len(pins) != 1 || pins[0] == stagedPin {
		t.Errorf("pins %v", pins)
	}
}
