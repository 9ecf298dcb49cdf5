package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// binary is the program under test, built once by TestMain.
var binary string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "capanode-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	binary = filepath.Join(dir, "capanode")
	build := exec.Command("go", "build", "-o", binary, ".")
	build.Stderr = os.Stderr
	code := 1
	if err := build.Run(); err == nil {
		code = m.Run()
	} else {
		fmt.Fprintln(os.Stderr, "build the program under test:", err)
	}
	os.RemoveAll(dir)
	os.Exit(code)
}

// process is one running capanode.
type process struct {
	t      *testing.T
	name   string
	cmd    *exec.Cmd
	mu     sync.Mutex
	events []map[string]any
	stderr safeBuffer
	news   chan struct{}
	done   chan struct{}
}

// safeBuffer gathers what a process writes while the test reads it.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(b)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// start runs capanode with JSON lines on standard output. It is killed when the test ends.
func start(t *testing.T, name string, args ...string) *process {
	t.Helper()
	p := &process{t: t, name: name, news: make(chan struct{}, 1), done: make(chan struct{})}
	p.cmd = exec.Command(binary, append(args, "-o", "jsonl")...)
	p.cmd.Env = environment("/ip4/127.0.0.1/tcp/0,/ip4/127.0.0.1/udp/0/quic-v1")
	p.cmd.Stderr = &p.stderr
	out, err := p.cmd.StdoutPipe()
	if err == nil {
		err = p.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	go p.read(out)
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill() // it may have ended
		<-p.done
		if t.Failed() {
			t.Logf("%s said:\n%s", name, p.stderr.String())
		}
	})
	return p
}

// environment is that of a process under test: nothing but the test itself configures it, on loopback.
func environment(listen string) []string {
	env := slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, "CAPANODE_") })
	return append(env, "CAPANODE_MDNS=false", "CAPANODE_LISTEN="+listen, "CAPANODE_NETWORK=e2e")
}

func (p *process) read(out io.Reader) {
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var e map[string]any
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			continue
		}
		p.mu.Lock()
		p.events = append(p.events, e)
		p.mu.Unlock()
		select {
		case p.news <- struct{}{}:
		default:
		}
	}
	_ = p.cmd.Wait() // its exit code is read from ProcessState
	close(p.done)
}

// await returns the first event that matches, which must come within two minutes.
func (p *process) await(what string, match func(e map[string]any) bool) map[string]any {
	p.t.Helper()
	deadline := time.After(2 * time.Minute)
	for seen := 0; ; {
		p.mu.Lock()
		for ; seen < len(p.events); seen++ {
			if match(p.events[seen]) {
				defer p.mu.Unlock()
				return p.events[seen]
			}
		}
		p.mu.Unlock()
		select {
		case <-p.news:
		case <-p.done:
			p.mu.Lock()
			rest := len(p.events) > seen
			p.mu.Unlock()
			if !rest {
				p.t.Fatalf("%s ended before %s: exit %d\n%s", p.name, what, p.cmd.ProcessState.ExitCode(), p.stderr.String())
			}
		case <-deadline:
			p.t.Fatalf("%s: no %s within two minutes", p.name, what)
		}
	}
}

func typed(typ string) func(map[string]any) bool {
	return func(e map[string]any) bool { return e["type"] == typ }
}

func atRound(n float64) func(map[string]any) bool {
	return func(e map[string]any) bool { return e["type"] == "round" && e["round"].(float64) >= n }
}

// kill ends the process as a power cut would.
func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.done
}

// end waits for the process and checks its exit code.
func (p *process) end(code int) {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(2 * time.Minute):
		p.t.Fatalf("%s did not end within two minutes", p.name)
	}
	if got := p.cmd.ProcessState.ExitCode(); got != code {
		p.t.Fatalf("%s: exit code %d, want %d\n%s", p.name, got, code, p.stderr.String())
	}
}

// signal sends the process a signal.
func (p *process) signal(s os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

// terminate asks the process to end and expects it to do so well.
func (p *process) terminate() {
	p.t.Helper()
	p.signal(syscall.SIGTERM)
	p.end(exitDone)
}

// capanode runs one command to its end and returns its standard output and exit code.
func capanode(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := exec.Command(binary, args...)
	cmd.Env = environment("/ip4/127.0.0.1/tcp/0")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// jobFile writes a small job on Go's own sources, which every machine that runs this test has.
func jobFile(t *testing.T, rounds, peers int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "job.yaml")
	text := fmt.Sprintf(`version: 1
name: e2e
task: causal-lm
data: {paths: [%q], include: [.go], max_bytes: 600000}
model: {preset: llama-tiny}
train: {rounds: %d, batch: 4, context: 64, warmup: 5}
rounds: {pace: fixed, local_steps: 5}
market: {peers: %d}
checkpoint: {every: 5}
`, filepath.Join(goroot(t), "src", "strings"), rounds, peers)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// goroot is the Go tree of this machine.
func goroot(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// swarm is a bootstrap node and providers as processes of their own.
type swarm struct {
	t         *testing.T
	bootstrap *process
	meeting   string // home of the bootstrap node
	address   string
	homes     []string
	providers []*process
}

func newSwarm(t *testing.T, providers int) *swarm {
	t.Helper()
	s := &swarm{t: t, meeting: t.TempDir()}
	s.bootstrap = s.meet("/ip4/127.0.0.1/tcp/0")
	s.address = s.bootstrap.await("its address", typed("bootstrap"))["join"].(string)
	for i := range providers {
		s.homes = append(s.homes, t.TempDir())
		s.providers = append(s.providers, s.provider(i))
	}
	for i, p := range s.providers {
		p.await(fmt.Sprintf("provider %d ready", i), func(e map[string]any) bool { return e["state"] == "ready" })
	}
	return s
}

// meet starts the bootstrap node.
func (s *swarm) meet(listen string) *process {
	return start(s.t, "bootstrap", "bootstrap", "--home", s.meeting, "--listen", listen)
}

func (s *swarm) provider(i int) *process {
	return start(s.t, fmt.Sprintf("provider%d", i), "provide", "--device", "cpu", "--threads", "1", "--price", fmt.Sprintf("0.0%d", i+1),
		"--home", s.homes[i], "--bootstrap", s.address)
}

func (s *swarm) train(file, home, out string) *process {
	return start(s.t, "train", "train", file, "--home", home, "--out", out, "--bootstrap", s.address, "--yes")
}

// roundsFor is how many rounds of a job take about so many seconds here, however fast this machine computes.
func (s *swarm) roundsFor(seconds float64) int {
	s.t.Helper()
	const some = 1000
	p := start(s.t, "plan", "train", jobFile(s.t, some, 3), "--home", s.t.TempDir(), "--bootstrap", s.address, "--dry-run")
	guess := p.await("the plan", typed("plan"))["seconds"].(float64)
	p.end(exitDone)
	return min(max(int(seconds*some/guess), 30), 400) // a round takes longer than its computing
}

// finish checks a run that must have come to a good end: the done event, the model, and every ledger equal to the others.
func (s *swarm) finish(p *process, home, out string, rounds int) map[string]any {
	s.t.Helper()
	done := p.await("the done event", typed("done"))
	p.end(exitDone)
	if done["rounds"].(float64) != float64(rounds) || done["checkpoint"] == "" || done["verified_work_units"].(float64) <= 0 {
		s.t.Errorf("done: %v", done)
	}
	if _, err := os.Stat(filepath.Join(out, "model.safetensors")); err != nil {
		s.t.Errorf("the model was not exported: %v", err)
	}
	s.checkBooks(home)
	return done
}

// checkBooks compares what the requester owes with what each provider earned.
func (s *swarm) checkBooks(home string) {
	s.t.Helper()
	owed := s.ledger(home)
	for _, h := range s.homes {
		for account, amount := range s.ledger(h) {
			if owed[account] != amount && strings.HasPrefix(account, "provider:") {
				s.t.Errorf("%s: the provider booked %s, the requester %s", account, amount, owed[account])
			}
		}
	}
}

// ledger verifies a home's books and returns its balances.
func (s *swarm) ledger(home string) map[string]string {
	s.t.Helper()
	if out, errs, code := capanode(s.t, "ledger", "verify", "--home", home); code != exitDone {
		s.t.Errorf("ledger verify of %s: exit %d: %s%s", home, code, out, errs)
	}
	out, _, code := capanode(s.t, "ledger", "show", "--home", home, "-o", "json")
	var all []struct{ Account, Credits string }
	if err := json.Unmarshal([]byte(out), &all); err != nil || code != exitDone {
		s.t.Fatalf("ledger show: exit %d, %v: %s", code, err, out)
	}
	m := map[string]string{}
	for _, b := range all {
		m[b.Account] = b.Credits
	}
	return m
}

func TestLocalRunEndsWithADoneEvent(t *testing.T) {
	home, out := t.TempDir(), filepath.Join(t.TempDir(), "model")
	p := start(t, "train", "train", jobFile(t, 6, 3), "--local", "3", "--home", home, "--out", out)
	p.await("the plan", typed("plan"))
	for range 3 {
		p.await("a lease", typed("lease"))
	}
	done := p.await("the done event", typed("done"))
	p.end(exitDone)
	if done["rounds"].(float64) != 6 || done["spent"].(float64) <= 0 {
		t.Errorf("done: %v", done)
	}
	p.mu.Lock()
	first, last := 0.0, 0.0
	for _, e := range p.events {
		if e["type"] == "round" {
			if first == 0 {
				first = e["loss"].(float64)
			}
			last = e["loss"].(float64)
		}
	}
	p.mu.Unlock()
	if !(last < first-0.3) {
		t.Errorf("loss went from %v to %v; it must fall", first, last)
	}
	text, errs, code := capanode(t, "sample", out, "func ", "--tokens", "20", "--seed", "3")
	again, _, _ := capanode(t, "sample", out, "func ", "--tokens", "20", "--seed", "3")
	if code != exitDone || !strings.HasPrefix(text, "func ") || text != again {
		t.Errorf("sample: exit %d, %q then %q: %s", code, text, again, errs)
	}
	if _, errs, code := capanode(t, "checkpoint", "verify", done["checkpoint"].(string), "--home", home); code != exitDone {
		t.Errorf("checkpoint verify: exit %d: %s", code, errs)
	}
}

func TestRunSurvivesTheDeathOfAProvider(t *testing.T) {
	if testing.Short() {
		t.Skip("real processes; the long form runs without -short")
	}
	s := newSwarm(t, 3)
	home, out := t.TempDir(), filepath.Join(t.TempDir(), "model")
	run := s.train(jobFile(t, 25, 3), home, out)
	run.await("round 3", atRound(3))
	s.providers[1].kill()
	s.bootstrap.kill() // nobody needs it any more
	done := s.finish(run, home, out, 25)
	// The dead provider missed at least the last rounds.
	if all := 25 * 3 * 5 * 4 * 64.0; done["tokens"].(float64) >= all {
		t.Errorf("%v tokens are committed, all three would have made %v", done["tokens"], all)
	}
}

// endlessSwarm is three providers and a run of all three at round 3, which never ends by itself.
func endlessSwarm(t *testing.T) (s *swarm, home string, run *process) {
	t.Helper()
	s, home = newSwarm(t, 3), t.TempDir()
	run = s.train(jobFile(t, endless, 3), home, filepath.Join(t.TempDir(), "model"))
	run.await("round 3", atRound(3))
	return s, home, run
}

func TestKilledProviderResumes(t *testing.T) {
	if testing.Short() {
		t.Skip("real processes; the long form runs without -short")
	}
	s, home, run := endlessSwarm(t)
	s.providers[2].kill()
	s.providers[2] = s.provider(2)
	back := s.providers[2].await("a round after the restart", func(e map[string]any) bool { return e["state"] == "round" })
	run.await("a round of all three", func(e map[string]any) bool {
		return e["type"] == "round" && e["round"].(float64) >= back["round"].(float64) && e["peers"] == 3.0
	})
	run.signal(os.Interrupt)
	run.end(exitInterrupted)
	for _, p := range s.providers {
		p.terminate()
	}
	s.checkBooks(home)
}

func TestKilledRequesterFindsItsRun(t *testing.T) {
	if testing.Short() {
		t.Skip("real processes; the long form runs without -short")
	}
	s := newSwarm(t, 3)
	home, out, file := t.TempDir(), filepath.Join(t.TempDir(), "model"), jobFile(t, 40, 3)
	first := s.train(file, home, out)
	id := first.await("the plan", typed("plan"))["run"]
	first.await("round 3", atRound(3))
	first.kill()
	s.providers[0].await("a round without the requester", func(e map[string]any) bool {
		return e["state"] == "round" && e["round"].(float64) >= 6
	})
	second := s.train(file, home, out)
	plan := second.await("the plan", typed("plan"))
	if plan["run"] != id || plan["resumed"] != true {
		t.Errorf("second plan: %v, want run %v continued", plan, id)
	}
	done := s.finish(second, home, out, 40)
	if done["run"] != id {
		t.Errorf("done: %v", done)
	}
}
