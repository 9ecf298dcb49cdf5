package node

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestFindRun(t *testing.T) {
	r := runs{t.TempDir()}
	start := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	for i, run := range []Run{{ID: "bafyreiaaa1", Name: "tiny"}, {ID: "bafyreiaab2", Name: "tiny"}, {ID: "bafyreibbb3", Name: "bafyreiaaa"}} {
		run.Started = start.Add(time.Duration(i) * time.Hour)
		if err := r.save(run); err != nil {
			t.Fatal(err)
		}
	}
	// What a crash may leave: a folder without a record, a model that was being read, a stray file.
	for _, dir := range []string{"bafyreinone", ".model-123"} {
		if err := os.Mkdir(filepath.Join(r.dir, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(r.dir, "stray"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for what, want := range map[string]string{
		"bafyreiaaa1": "bafyreiaaa1", // whole
		"bafyreib":    "bafyreibbb3", // the start of one
		"tiny":        "bafyreiaab2", // the newest of a name
		"bafyreiaaa":  "bafyreibbb3", // a name before the start of an ID
	} {
		if got, err := r.find(what); err != nil || got.ID != want {
			t.Errorf("%q: %s, %v; want %s", what, got.ID, err, want)
		}
	}
	for what, want := range map[string]error{"": ErrNotFound, "none": ErrNotFound, "bafyr": ErrNotFound, "bafyrei": ErrUsage, "bafyreinone": ErrNotFound, "../x": ErrNotFound} {
		if got, err := r.find(what); !errors.Is(err, want) {
			t.Errorf("%q: %s, %v; want %v", what, got.ID, err, want)
		}
	}
	if all, err := r.list(); err != nil || len(all) != 3 || all[0].ID != "bafyreibbb3" {
		t.Errorf("list: %v, %v", all, err)
	}
}

func TestMetricsAfterATornLine(t *testing.T) {
	r := runs{t.TempDir()}
	if err := r.save(Run{ID: "a"}); err != nil {
		t.Fatal(err)
	}
	write := func(typ string) {
		t.Helper()
		if err := r.metrics("a", WarningEvent{Type: typ}); err != nil {
			t.Fatal(err)
		}
	}
	write("one")
	write("two")
	path := r.path("a", "metrics.jsonl")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b[:len(b)-5], 0o600); err != nil {
		t.Fatal(err)
	}
	write("three")
	if b, err = os.ReadFile(path); err != nil {
		t.Fatal(err)
	}
	var seen []string
	for line := range strings.Lines(string(b)) {
		var e WarningEvent
		if json.Unmarshal([]byte(line), &e) == nil {
			seen = append(seen, e.Type)
		}
	}
	if got := strings.Join(seen, " "); got != "one three" {
		t.Errorf("events %q", got)
	}
}

func TestSweepRemovesHalfCopies(t *testing.T) {
	r := runs{t.TempDir()}
	if err := r.save(Run{ID: "a"}); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{".model-1", "a/checkpoint-5", "a/snapshots"} {
		if err := os.MkdirAll(filepath.Join(r.dir, dir, "deep"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.sweep(); err != nil {
		t.Fatal(err)
	}
	for dir, stays := range map[string]bool{".model-1": false, "a/checkpoint-5": false, "a/snapshots": true, "a/run.json": true} {
		if _, err := os.Stat(filepath.Join(r.dir, dir)); (err == nil) != stays {
			t.Errorf("%s: %v", dir, err)
		}
	}
}
