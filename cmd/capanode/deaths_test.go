package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Who can die in a run, besides the providers 0, 1 and 2.
const (
	theBootstrap = 3
	theRequester = 4
)

// play is a run of five processes that are killed and started again.
type play struct {
	*swarm
	run       *process
	id        any // of the run
	file      string
	home, out string // of the requester
	rounds    int
	began     time.Time
}

const (
	// strikeSeconds and strikeRounds are what the run goes on for while one strike is made good: a few seconds on a fast
	// machine, where that is many rounds, and a few rounds on a slow one, where the guess of what a second holds is worth little.
	strikeSeconds = 5
	strikeRounds  = 20
)

func newPlay(t *testing.T, strikes int) *play {
	t.Helper()
	p := &play{swarm: newSwarm(t, 3), home: t.TempDir(), out: filepath.Join(t.TempDir(), "model")}
	p.rounds = max(p.roundsFor(float64(strikeSeconds*strikes)), strikeRounds*(strikes+1))
	p.file, p.began = jobFile(t, p.rounds, 3), time.Now()
	p.run = p.train(p.file, p.home, p.out)
	p.id = p.run.await("the plan", typed("plan"))["run"]
	p.run.await("a round of all three", ofAll(2))
	return p
}

// ofAll matches a round, not before round n, that holds an update of each provider.
func ofAll(n float64) func(map[string]any) bool {
	return func(e map[string]any) bool { return atRound(n)(e) && e["peers"] == 3.0 }
}

// worked matches a round, not before round n, that a provider committed.
func worked(n float64) func(map[string]any) bool {
	return func(e map[string]any) bool { return e["state"] == "round" && e["round"].(float64) >= n }
}

// newest is the newest round that a process told of.
func (p *process) newest() (n float64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range p.events {
		if e["type"] == "round" || e["state"] == "round" {
			n = max(n, e["round"].(float64))
		}
	}
	return n
}

func (p *play) who(victim int) **process {
	switch victim {
	case theBootstrap:
		return &p.bootstrap
	case theRequester:
		return &p.run
	}
	return &p.providers[victim]
}

// strike kills processes in the middle of the run, sees that those who are left go on, starts them again by the same
// commands, and sees that all work together.
func (p *play) strike(victims ...int) {
	p.t.Helper()
	if n := p.run.newest(); n > float64(p.rounds-strikeRounds/2) {
		p.t.Fatalf("round %v of %d: too late to kill %v in the middle of the run", n, p.rounds, names(victims))
	}
	dead := map[int]bool{}
	for _, v := range victims {
		dead[v] = true
		(*p.who(v)).kill()
	}
	for i, w := range p.providers {
		if !dead[i] {
			p.goesOn(i, w)
		}
	}
	var least float64 // round from which on all must be there
	for _, v := range victims {
		if v == theBootstrap {
			p.bootstrap = p.meet(strings.Split(p.address, "/p2p/")[0])
			p.bootstrap.await("its address", typed("bootstrap"))
		}
	}
	for i := range p.providers {
		if dead[i] {
			p.providers[i] = p.provider(i)
		}
	}
	if dead[theRequester] {
		p.comeBack()
	}
	for i, w := range p.providers {
		if dead[i] {
			least = max(least, w.await("a round after the restart", worked(1))["round"].(float64))
		}
	}
	round := p.run.await("a round of all three again", ofAll(max(least, p.run.newest())))["round"]
	p.t.Logf("%5.1f s: all three work together in round %v of %d, after %v died", time.Since(p.began).Seconds(), round, p.rounds, names(victims))
}

func names(victims []int) string {
	var all []string
	for _, v := range victims {
		switch v {
		case theBootstrap:
			all = append(all, "the bootstrap")
		case theRequester:
			all = append(all, "the requester")
		default:
			all = append(all, fmt.Sprintf("provider %d", v))
		}
	}
	return strings.Join(all, ", ")
}

// goesOn waits until a provider that lives has committed more rounds than it had when others died, and its home says so, too.
func (p *play) goesOn(i int, w *process) {
	p.t.Helper()
	want := w.newest() + 2
	w.await("two more rounds", worked(want))
	out, errs, code := capanode(p.t, "job", "show", "e2e", "--home", p.homes[i], "-o", "json")
	if code != exitDone {
		p.t.Fatalf("job show: exit %d: %s", code, errs)
	}
	var run struct{ Round float64 }
	decode(p.t, out, &run)
	if run.Round < want {
		p.t.Errorf("provider %d: its home knows of %v rounds, want %v", i, run.Round, want)
	}
}

// comeBack starts the requester again, which must find its run, the leases and the receipts.
func (p *play) comeBack() {
	p.t.Helper()
	p.run = p.train(p.file, p.home, p.out)
	plan := p.run.await("the plan", typed("plan"))
	if plan["run"] != p.id || plan["resumed"] != true {
		p.t.Fatalf("the same command plans %v, want run %v continued", plan, p.id)
	}
	spent, seen := 0.0, map[any]bool{}
	for range 3 {
		l := p.run.await("a lease", func(e map[string]any) bool { return e["type"] == "lease" && !seen[e["lease"]] })
		if l["resumed"] != true {
			p.t.Errorf("lease %v is new; it must be taken up again", l)
		}
		seen[l["lease"]], spent = true, spent+l["spent"].(float64)
	}
	if spent <= 0 {
		p.t.Error("the receipts of the first process are forgotten")
	}
}

// curtain checks the end of the run: one model everywhere, books that agree and add up, and no process left behind.
func (p *play) curtain() {
	p.t.Helper()
	for n := p.run.newest(); n < float64(p.rounds); n = p.run.newest() { // however long that takes, as long as it goes on
		p.run.await("the next round or the end", func(e map[string]any) bool { return atRound(n+1)(e) || e["type"] == "done" })
		if p.run.newest() == n {
			break // the last rounds went by unseen
		}
	}
	done := p.finish(p.run, p.home, p.out, p.rounds)
	for i, home := range p.homes {
		out, errs, code := capanode(p.t, "job", "show", "e2e", "--home", home, "-o", "json")
		if code != exitDone {
			p.t.Fatalf("job show: exit %d: %s", code, errs)
		}
		var run struct {
			Run, Checkpoint string
			Round           int
		}
		decode(p.t, out, &run)
		if run.Run != p.id || run.Round != p.rounds || run.Checkpoint != done["checkpoint"] {
			p.t.Errorf("provider %d ends with %+v, the requester with model %v after %d rounds", i, run, done["checkpoint"], p.rounds)
		}
	}
	earned := p.total("provider:", p.homes...)
	if owed := p.total("provider:", p.home); owed != earned || fmt.Sprintf("%.6f", owed) != fmt.Sprintf("%.6f", done["spent"]) {
		p.t.Errorf("the providers earned %.6f, the requester booked %.6f and says that it spent %v", earned, owed, done["spent"])
	}
	p.t.Logf("%5.1f s: %d rounds, one model on three providers and the requester, %.6f credits paid", time.Since(p.began).Seconds(), p.rounds, earned)
	for _, w := range append(p.providers, p.bootstrap) {
		w.terminate()
	}
	sound(p.t, append(p.homes, p.home, p.meeting)...)
	if left := processesOf(filepath.Dir(p.home)); len(left) > 0 {
		p.t.Errorf("processes %v outlive the run", left)
	}
}

// total sums the balances of the accounts with a prefix, in whole micro-credits of the books of several homes.
func (p *play) total(prefix string, homes ...string) (sum float64) {
	p.t.Helper()
	micro := 0
	for _, home := range homes {
		for account, amount := range p.ledger(home) {
			if !strings.HasPrefix(account, prefix) {
				continue
			}
			credits, err := strconv.ParseFloat(amount, 64)
			if err != nil {
				p.t.Fatalf("%s: %v", account, err)
			}
			micro += int(credits*1e6 + 0.5)
		}
	}
	return float64(micro) / 1e6
}

// processesOf lists the processes with a path below dir on their command line.
func processesOf(dir string) (pids []string) {
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline") // the pattern is good
	for _, line := range lines {
		if b, err := os.ReadFile(line); err == nil && strings.Contains(string(b), dir+"/") {
			pids = append(pids, filepath.Base(filepath.Dir(line)))
		}
	}
	return pids
}

// No process is special: whichever of the five is killed, the others go on, and it comes back by the command that started
// it. CAPANODE_FAULT_LONG adds deaths of several at once, up to all five.
func TestNoProcessIsSpecial(t *testing.T) {
	if testing.Short() {
		t.Skip("real processes; the long form runs without -short")
	}
	strikes := [][]int{{theBootstrap}, {0}, {1}, {2}, {theRequester}}
	if os.Getenv("CAPANODE_FAULT_LONG") != "" {
		strikes = append(strikes, []int{theBootstrap, theRequester}, []int{0, 1}, []int{2, theRequester}, []int{0, 1, 2},
			[]int{0, 1, 2, theBootstrap, theRequester}, []int{theRequester})
	}
	p := newPlay(t, len(strikes))
	for _, victims := range strikes {
		p.strike(victims...)
	}
	p.curtain()
}
