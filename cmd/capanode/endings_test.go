package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

// local runs a job with three providers of its own.
func local(t *testing.T, file, home, out string, more ...string) *process {
	t.Helper()
	return start(t, "train", append([]string{"train", file, "--local", "3", "--home", home, "--out", out}, more...)...)
}

func TestInterruptedRunSettlesAndGoesOn(t *testing.T) {
	if testing.Short() {
		t.Skip("real processes; the long form runs without -short")
	}
	home, out, file := t.TempDir(), filepath.Join(t.TempDir(), "model"), jobFile(t, 300, "")
	first := local(t, file, home, out)
	id := first.await("the plan", typed("plan"))["run"]
	first.await("round 4", atRound(4))
	if err := first.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	first.end(exitInterrupted)
	if out, errs, code := capanode(t, "ledger", "verify", "--home", home); code != exitDone {
		t.Errorf("ledger verify: exit %d: %s%s", code, out, errs)
	}
	second := local(t, file, home, out)
	if again := second.await("the plan", typed("plan"))["run"]; again != id {
		t.Errorf("the second command runs %v, want %v continued", again, id)
	}
	if round := second.await("a round", typed("round"))["round"].(float64); round <= 4 {
		t.Errorf("the second command begins at round %v, the first had reached 4", round)
	}
	if err := second.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	second.end(exitInterrupted)
}

func TestBudgetEndsARunWithItsOwnCode(t *testing.T) {
	if testing.Short() {
		t.Skip("real processes; the long form runs without -short")
	}
	home := t.TempDir()
	p := local(t, jobFile(t, 6, ""), home, filepath.Join(t.TempDir(), "model"), "--budget", "0.000005")
	p.end(exitBudget)
	out, _, code := capanode(t, "job", "show", "e2e", "--home", home, "-o", "json")
	if code != exitDone {
		t.Fatalf("job show: exit %d", code)
	}
	var run struct {
		State string
		Spent float64
	}
	decode(t, out, &run)
	if run.Spent > 0.000005 || run.State != "stopped" {
		t.Errorf("the run is %+v; it must be stopped within its budget", run)
	}
}

func decode(t *testing.T, text string, v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), v); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
}
