package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestRunOnTrainedTokenizer follows a BPE from the corpus to the exported folder, and from there into another run by its path.
func TestRunOnTrainedTokenizer(t *testing.T) {
	job := func(tokenizer string) string {
		path := jobFile(t, 3, 2)
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		text := strings.Replace(string(raw), "max_bytes: 600000", "max_bytes: 400000, tokenizer: "+tokenizer, 1)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	home, out := t.TempDir(), filepath.Join(t.TempDir(), "model")
	p := start(t, "train", "train", job("bpe:512"), "--local", "2", "--home", home, "--out", out)
	eval := p.await("the held-out loss", typed("eval"))
	done := p.await("the done event", typed("done"))
	p.end(exitDone)
	perByte, perToken := eval["bits_per_byte"].(float64), eval["loss"].(float64)/0.6931471805599453
	if !(perByte > 0 && perByte < perToken) {
		t.Errorf("%v bits per byte, %v per token: a token is more than a byte", perByte, perToken)
	}
	var config struct {
		Vocab int `json:"vocab_size"`
		End   int `json:"eos_token_id"`
	}
	raw, err := os.ReadFile(filepath.Join(out, "config.json"))
	if err != nil || json.Unmarshal(raw, &config) != nil || config.Vocab != 512 || config.End != 256 {
		t.Errorf("config.json: %+v, %v", config, err)
	}
	text, errs, code := capanode(t, "sample", out, "func ", "--tokens", "12", "--seed", "3")
	if code != exitDone || !strings.HasPrefix(text, "func ") || len(text) < len("func ")+12 {
		t.Errorf("sample: exit %d, %q: %s", code, text, errs)
	}
	if _, errs, code := capanode(t, "checkpoint", "verify", done["checkpoint"].(string), "--home", home); code != exitDone {
		t.Errorf("checkpoint verify: exit %d: %s", code, errs)
	}
	if _, errs, code := capanode(t, "train", job(out), "--local", "2", "--home", t.TempDir(), "--dry-run"); code != exitDone {
		t.Errorf("a run on the exported tokenizer: exit %d: %s", code, errs)
	}
	for word, says := range map[string]string{"gpt2": "bpe:SIZE", "bpe:5": "257", "/nowhere/tokenizer.json": "tokenizer.json"} {
		if _, errs, code := capanode(t, "train", job(word), "--local", "2", "--home", t.TempDir(), "--dry-run"); code != exitUsage || !strings.Contains(errs, says) {
			t.Errorf("%s: exit %d: %s", word, code, errs)
		}
	}
}
