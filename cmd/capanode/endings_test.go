package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/capacloud/capanode/p2p/nettest"
)

// endless is more rounds than any machine trains while a test looks on: these runs end because something ends them.
const endless = 500_000

// local runs a job with three providers of its own.
func local(t *testing.T, file, home, out string, more ...string) *process {
	t.Helper()
	return start(t, "train", append([]string{"train", file, "--local", "3", "--home", home, "--out", out}, more...)...)
}

func TestInterruptedRunSettlesAndGoesOn(t *testing.T) {
	if testing.Short() {
		t.Skip("real processes; the long form runs without -short")
	}
	home, out, file := t.TempDir(), filepath.Join(t.TempDir(), "model"), jobFile(t, 300, 3)
	first := local(t, file, home, out)
	id := first.await("the plan", typed("plan"))["run"]
	first.await("round 4", atRound(4))
	first.signal(os.Interrupt)
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
	second.signal(os.Interrupt)
	second.end(exitInterrupted)
}

func TestBudgetEndsARunWithItsOwnCode(t *testing.T) {
	if testing.Short() {
		t.Skip("real processes; the long form runs without -short")
	}
	home := t.TempDir()
	p := local(t, jobFile(t, 6, 3), home, filepath.Join(t.TempDir(), "model"), "--budget", "0.000005")
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

// children lists the processes that a process has started.
func (p *process) children() []int {
	p.t.Helper()
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", p.cmd.Process.Pid)) // the pattern is good
	if len(lists) == 0 {
		p.t.Skip("this test finds child processes in /proc, which is not here")
	}
	var pids []int
	for _, list := range lists { // each thread has those that it started
		b, err := os.ReadFile(list)
		if err != nil {
			continue // the thread has ended
		}
		for _, f := range strings.Fields(string(b)) {
			pid, err := strconv.Atoi(f)
			if err != nil {
				p.t.Fatal(err)
			}
			pids = append(pids, pid)
		}
	}
	return pids
}

// over tells whether a process has ended; whether somebody has asked for its exit code does not matter.
func over(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	_, state, _ := strings.Cut(string(b), ") ")
	return strings.HasPrefix(state, "Z") || strings.HasPrefix(state, "X")
}

// goesOn gives a command again and expects it to continue the run where the last one left it; then it ends that one, too.
func goesOn(t *testing.T, id any, after float64, again *process) {
	t.Helper()
	plan := again.await("the plan", typed("plan"))
	if plan["run"] != id || plan["resumed"] != true {
		t.Errorf("the next command plans %v, want run %v continued", plan, id)
	}
	if round := again.await("a round", typed("round"))["round"].(float64); round <= after {
		t.Errorf("the next command begins at round %v, the last had reached %v", round, after)
	}
	again.signal(os.Interrupt)
	again.end(exitInterrupted)
}

// sound checks that a home's store and ledger verify.
func sound(t *testing.T, homes ...string) {
	t.Helper()
	for _, home := range homes {
		for _, what := range []string{"storage", "ledger"} {
			if out, errs, code := capanode(t, what, "verify", "--home", home); code != exitDone {
				t.Errorf("%s verify of %s: exit %d: %s%s", what, home, code, out, errs)
			}
		}
	}
}

// localHomes are the homes of a local run: the requester's, then its providers'.
func localHomes(home string, n int) []string {
	all := []string{home}
	for i := range n {
		all = append(all, filepath.Join(home, "local", fmt.Sprintf("provider%d", i+1)))
	}
	return all
}

// localRun is a local run at round 3, which never ends by itself.
type localRun struct {
	*process
	home  string
	id    any
	again func() *process // gives the same command again
}

func unending(t *testing.T) localRun {
	t.Helper()
	home, out, file := t.TempDir(), filepath.Join(t.TempDir(), "model"), jobFile(t, endless, 3)
	again := func() *process { return local(t, file, home, out) }
	r := localRun{process: again(), home: home, again: again}
	r.id = r.await("the plan", typed("plan"))["run"]
	r.await("round 3", atRound(3))
	return r
}

// providers lists the three processes that the run has started.
func (r localRun) providers() []int {
	r.t.Helper()
	pids := r.children()
	if len(pids) != 3 {
		r.t.Fatalf("%d child processes, want three providers", len(pids))
	}
	return pids
}

// The second Ctrl-C settles nothing and waits for nothing: the command says so, takes its children along, and leaves a run
// that goes on.
func TestSecondInterruptStopsAtOnce(t *testing.T) {
	if testing.Short() {
		t.Skip("real processes; the long form runs without -short")
	}
	p := unending(t)
	children := p.providers()
	p.signal(os.Interrupt)
	nettest.Eventually(t, "the first Ctrl-C is heard", func() bool { return strings.Contains(p.stderr.String(), "press Ctrl-C again") })
	p.signal(os.Interrupt)
	p.end(exitInterrupted)
	last := p.await("the error", typed("error"))
	if last["exit_code"] != float64(exitInterrupted) || !strings.Contains(p.stderr.String(), "capanode: stopped at once") {
		t.Errorf("it ends with %v and says %s", last, p.stderr.String())
	}
	for _, pid := range children {
		if !over(pid) {
			t.Errorf("provider %d outlives the command that started it", pid)
		}
	}
	sound(t, localHomes(p.home, 3)...)
	goesOn(t, p.id, 3, p.again())
}

func TestJobStopSettles(t *testing.T) {
	if testing.Short() {
		t.Skip("real processes; the long form runs without -short")
	}
	p := unending(t)
	if out, errs, code := capanode(t, "job", "stop", "--home", p.home); code != exitDone {
		t.Fatalf("job stop: exit %d: %s%s", code, out, errs)
	}
	p.end(exitInterrupted)
	text, _, _ := capanode(t, "job", "show", "e2e", "--home", p.home, "-o", "json")
	var run struct {
		State string
		Spent float64
		Round float64
	}
	decode(t, text, &run)
	if run.State != "stopped" || run.Spent <= 0 {
		t.Errorf("the run is %+v; it must be stopped, its work paid", run)
	}
	if _, errs, code := capanode(t, "job", "stop", "--home", p.home); code != exitNoSuchThing {
		t.Errorf("job stop without a run: exit %d: %s", code, errs)
	}
	sound(t, localHomes(p.home, 3)...)
	goesOn(t, p.id, run.Round, p.again())
}

// A provider that is asked to end finishes its round, is paid, closes its lease and leaves; the run goes on without it.
func TestTerminatedProviderDrains(t *testing.T) {
	if testing.Short() {
		t.Skip("real processes; the long form runs without -short")
	}
	s, home, run := endlessSwarm(t)
	gone := s.providers[1]
	id := gone.await("its name", typed("provider"))["peer"]
	gone.terminate()
	closed := gone.await("the end of its lease", func(e map[string]any) bool { return e["state"] == "closed" })
	if closed["detail"] != "shutdown" {
		t.Errorf("the lease ended with %v", closed)
	}
	run.await("the news of it", func(e map[string]any) bool {
		return e["type"] == "lease" && e["peer"] == id && e["state"] == "closed" && e["reason"] == "shutdown"
	})
	left := run.await("a round of those who stay", func(e map[string]any) bool { return e["type"] == "round" && e["peers"].(float64) == 2 })
	run.await("another round", atRound(left["round"].(float64)+2))
	run.signal(os.Interrupt)
	run.end(exitInterrupted)
	s.providers[0].terminate()
	s.providers[2].terminate()
	s.checkBooks(home)
	sound(t, append(s.homes, home)...)
}

func TestKilledProviderIsReplacedByASpare(t *testing.T) {
	if testing.Short() {
		t.Skip("real processes; the long form runs without -short")
	}
	s := newSwarm(t, 4)
	home, out := t.TempDir(), filepath.Join(t.TempDir(), "model")
	rounds := s.roundsFor(25)
	run := s.train(jobFile(t, rounds, 3), home, out)
	members := map[any]bool{}
	for range 3 {
		members[run.await("a lease", func(e map[string]any) bool { return e["type"] == "lease" && !members[e["peer"]] })["peer"]] = true
	}
	run.await("round 3", atRound(3))
	var dead *process
	for _, p := range s.providers {
		if members[p.await("its name", typed("provider"))["peer"]] {
			dead = p
		}
	}
	id := dead.await("its name", typed("provider"))["peer"]
	dead.kill()
	spare := run.await("a replacement", func(e map[string]any) bool { return e["type"] == "lease" && e["replaces"] == id })
	if members[spare["peer"]] || spare["state"] != "active" {
		t.Errorf("the replacement is %v", spare)
	}
	done := s.finish(run, home, out, rounds)
	if done["replaced_peers"] != 1.0 {
		t.Errorf("done %v, want one replaced peer", done)
	}
}

// A local run's providers never outlive it, however it ends.
func TestKilledLocalRunLeavesNoOrphans(t *testing.T) {
	if testing.Short() {
		t.Skip("real processes; the long form runs without -short")
	}
	p := unending(t)
	children := p.providers()
	p.kill()
	for _, pid := range children {
		nettest.Eventually(t, fmt.Sprintf("the end of provider %d", pid), func() bool { return over(pid) })
	}
	sound(t, localHomes(p.home, 3)...)
	goesOn(t, p.id, 3, p.again())
}
