package main

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/hf"
	"github.com/capacloud/capanode/trainer/model"
	"github.com/capacloud/capanode/trainer/tokenizer"
)

// modelFolder writes a small model of bytes whose weights are all zero but for the norms: every token has the same
// probability, so that each figure can be told in advance.
func modelFolder(t *testing.T, dir string) string {
	t.Helper()
	spec, err := model.Preset("llama-tiny")
	if err != nil {
		t.Fatal(err)
	}
	spec.Vocab, spec.Context = 257, 32
	program, err := spec.Program()
	if err != nil {
		t.Fatal(err)
	}
	params, total, err := engine.Layout(program.Params)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "flat-model")
	if err := hf.Write(path, hf.Model{Spec: spec, Params: params, Weights: make([]float32, total), Tokenizer: tokenizer.Byte{}}); err != nil {
		t.Fatal(err)
	}
	return path
}

// A model that knows nothing gets ln 257 nats on every token of a text, of a folder and of a dataset, and what does not fit is
// refused in one line.
func TestEval(t *testing.T) {
	if testing.Short() {
		t.Skip("real processes; the long form runs without -short")
	}
	home, dir := filepath.Join(t.TempDir(), "home"), t.TempDir()
	flat := modelFolder(t, dir)
	path := filepath.Join(dir, "letters.jsonl")
	if err := os.WriteFile(path, []byte(lettersOf(300)), 0o600); err != nil {
		t.Fatal(err)
	}
	add := func(args ...string) string {
		out, errs, code := capanode(t, append([]string{"data", "add", path, "--text", "body", "--context", "64", "--validation", "0.2", "--home", home}, args...)...)
		if code != exitDone {
			t.Fatalf("exit %d: %s", code, errs)
		}
		return strings.Fields(out)[1]
	}
	bytes, words := add(), add("--tokenizer", "bpe:300")
	var first string
	for range 2 {
		out, errs, code := capanode(t, "eval", flat, "--data", path, "--data", bytes, "--text", "body", "--home", home, "-o", "json")
		var got struct {
			Parameters int
			Data       []struct {
				Tokens, Bytes              uint64
				Loss, Perplexity, Accuracy float64
				BitsPerByte                float64 `json:"bits_per_byte"`
			}
		}
		if err := json.Unmarshal([]byte(out), &got); err != nil || code != exitDone || len(got.Data) != 2 {
			t.Fatalf("exit %d, %v: %s%s", code, err, out, errs)
		}
		text := strings.Count(lettersOf(300), "\n")
		for _, d := range got.Data {
			if d.Tokens == 0 || d.Tokens != d.Bytes || math.Abs(d.Loss-math.Log(257)) > 1e-6 || math.Abs(d.Perplexity-257) > 1e-3 ||
				d.Accuracy != 0 || math.Abs(d.BitsPerByte-math.Log2(257)) > 1e-6 {
				t.Errorf("%+v: every token has the probability 1/257", d)
			}
		}
		if got.Data[0].Tokens <= got.Data[1].Tokens || got.Data[0].Tokens < uint64(text) {
			t.Errorf("%d tokens in the text, %d in the held-out part of its dataset", got.Data[0].Tokens, got.Data[1].Tokens)
		}
		if first == "" {
			first = out
		}
		if out != first {
			t.Errorf("the second time it says %s, the first time %s", out, first)
		}
	}
	for _, c := range []struct {
		says string
		code int
		args []string
	}{
		{"tokenizer does not fit", exitUsage, []string{flat, "--data", words}},
		{"does not say what it was trained on", exitUsage, []string{flat}},
		{"--stride", exitUsage, []string{flat, "--data", path, "--stride", "33"}},
		{"--context", exitUsage, []string{flat, "--data", path, "--context", "64"}},
		{"--split", exitUsage, []string{flat, "--data", bytes, "--split", "test"}},
		{"no such text field", exitUsage, []string{flat, "--data", path, "--text", "nothing"}},
		{"does not exist", exitNoSuchThing, []string{flat, "--data", filepath.Join(dir, "missing.txt")}},
		{"not found", exitNoSuchThing, []string{filepath.Join(dir, "missing"), "--data", path}},
	} {
		_, errs, code := capanode(t, append(append([]string{"eval"}, c.args...), "--home", home)...)
		if code != c.code || !strings.Contains(errs, c.says) || strings.Count(errs, "\n") != 1 {
			t.Errorf("eval %v: exit %d, want %d with %q in one line: %s", c.args, code, c.code, c.says, errs)
		}
	}
}
