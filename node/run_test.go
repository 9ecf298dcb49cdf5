package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/capacloud/capanode/market/ledger"
	"github.com/capacloud/capanode/trainer/hf"
)

// localConfig is a configuration that stays on this machine.
func localConfig(t *testing.T, bootstrap ...string) Config {
	t.Helper()
	c, err := LoadConfig(filepath.Join(t.TempDir(), "none"), false, map[string]any{
		"network": "in-process", "mdns": false, "listen": []string{"/ip4/127.0.0.1/tcp/0"}, "bootstrap": bootstrap,
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// events gathers what a command emits.
type events struct {
	mu  sync.Mutex
	all []any
	new chan struct{}
}

func newEvents() *events { return &events{new: make(chan struct{}, 1)} }

func (e *events) emit(event any) {
	e.mu.Lock()
	e.all = append(e.all, event)
	e.mu.Unlock()
	select {
	case e.new <- struct{}{}:
	default:
	}
}

// of lists the events of one type.
func of[T any](e *events) (all []T) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, event := range e.all {
		if v, ok := event.(T); ok {
			all = append(all, v)
		}
	}
	return all
}

// await waits for an event.
func await[T any](t *testing.T, e *events, match func(T) bool) T {
	t.Helper()
	late := time.After(time.Minute)
	for {
		for _, v := range of[T](e) {
			if match(v) {
				return v
			}
		}
		select {
		case <-e.new:
		case <-late:
			e.mu.Lock()
			defer e.mu.Unlock()
			t.Fatalf("no such %T within a minute: %+v", *new(T), e.all[max(0, len(e.all)-8):])
		}
	}
}

// running starts a command in the background. It ends when the result is called, at the latest with the test.
func running(t *testing.T, f func(stop <-chan struct{}) error) (end func()) {
	t.Helper()
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- f(stop) }()
	end = sync.OnceFunc(func() {
		close(stop)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(end)
	return end
}

// testMarket is a meeting point and its providers inside this process.
type testMarket struct {
	t   *testing.T
	ctx context.Context
	cfg Config // of whoever joins
}

type testProvider struct {
	*events
	home string
	id   string
	end  func()
}

func newMarket(ctx context.Context, t *testing.T) *testMarket {
	t.Helper()
	meeting, home := newEvents(), t.TempDir()
	running(t, func(stop <-chan struct{}) error {
		return Bootstrap(ctx, BootstrapOptions{Home: home, Config: localConfig(t), Stop: stop, Emit: meeting.emit})
	})
	return &testMarket{t, ctx, localConfig(t, await(t, meeting, func(e BootstrapEvent) bool { return e.State == "ready" }).Join)}
}

// provider starts a provider with one slot and waits until it is ready.
func (m *testMarket) provider() *testProvider {
	m.t.Helper()
	p := &testProvider{events: newEvents(), home: m.t.TempDir()}
	p.end = running(m.t, func(stop <-chan struct{}) error {
		return Provide(m.ctx, ProvideOptions{Home: p.home, Config: m.cfg, Stop: stop, Emit: p.emit, Device: "cpu", Threads: 1,
			Price: 100_000, WorkRate: 1000, MaxLease: time.Hour})
	})
	p.id = await(m.t, p.events, func(e ProviderEvent) bool { return e.State == "ready" }).Peer
	return p
}

func testJob(t *testing.T, rounds int) string {
	t.Helper()
	dir := t.TempDir()
	for file := range 30 {
		var text strings.Builder
		for i := range 150 {
			fmt.Fprintf(&text, "line %d of the text %d that a small model can learn\n", i, file)
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%d.txt", file)), []byte(text.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "job.yaml")
	job := fmt.Sprintf("version: 1\nname: tiny\ntask: causal-lm\ndata: {paths: [.], include: [.txt], validation: 0.1}\nmodel: {preset: llama-tiny}\n"+
		"train: {rounds: %d, batch: 8, context: 32, warmup: 2}\nrounds: {pace: fixed, local_steps: 8}\nmarket: {peers: 2}\ncheckpoint: {every: 100}\neval: {windows: 4}\n", rounds)
	if err := os.WriteFile(path, []byte(job), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// A whole run inside this process: a meeting point, two providers, a requester. Then the end of it once more, as after a
// crash between taking in the model and writing it down.
func TestRunAndItsEndAgain(t *testing.T) {
	if testing.Short() {
		t.Skip("whole runs; the long form runs without -short")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel) // after the commands have been stopped
	m := newMarket(ctx, t)
	homes := []string{m.provider().home, m.provider().home}
	home, out := t.TempDir(), filepath.Join(t.TempDir(), "model")
	o := TrainOptions{JobPath: testJob(t, 3), Home: home, Config: m.cfg, Out: out}
	said := newEvents()
	o.Emit = said.emit
	if err := Train(ctx, o); err != nil {
		t.Fatal(err)
	}
	done := of[DoneEvent](said)[0]
	if done.Rounds != 3 || done.WorkUnits == 0 || done.Spent <= 0 || len(of[WarningEvent](said)) > 0 {
		t.Errorf("done %+v, warnings %+v", done, of[WarningEvent](said))
	}
	rounds := of[RoundEvent](said)
	model, err := hf.Read(out)
	if err != nil || model.Provenance.State != rounds[len(rounds)-1].State || model.Provenance.Head == "" {
		t.Errorf("the model says %+v, the last round %+v: %v", model.Provenance, rounds[len(rounds)-1], err)
	}
	if got := of[CheckpointEvent](said); len(got) != 1 || got[0].Peers != 2 {
		t.Errorf("checkpoints %+v, want one that both members named", got)
	}
	checkBooks(t, m.cfg, home, homes)
	for _, pin := range pinsOf(t, home, m.cfg) {
		if !strings.HasPrefix(pin, "checkpoint/"+done.Run) {
			t.Errorf("the run is done, and %s is still pinned", pin)
		}
	}
	if err := Train(ctx, o); !errors.Is(err, ErrUsage) || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("a second run over the first one's model: %v", err)
	}
	crashed := func() {
		runs := runs{filepath.Join(home, "runs")}
		run, err := runs.load(done.Run)
		if err != nil {
			t.Fatal(err)
		}
		run.State = RunTraining
		if err := runs.save(run); err != nil {
			t.Fatal(err)
		}
	}
	crashed() // after the export
	again := newEvents()
	o.Emit = again.emit
	if err := Train(ctx, o); err != nil {
		t.Fatal(err)
	}
	crashed() // before it
	if err := os.RemoveAll(out); err != nil {
		t.Fatal(err)
	}
	if err := Train(ctx, o); err != nil {
		t.Fatal(err)
	}
	if n := len(of[LeaseEvent](again)); n > 0 {
		t.Errorf("%d leases for a run whose model is here", n)
	}
	for _, e := range of[DoneEvent](again) {
		if e.Run != done.Run || e.Checkpoint != done.Checkpoint || e.WorkUnits != done.WorkUnits || e.Spent != done.Spent {
			t.Errorf("done again %+v, first %+v", e, done)
		}
	}
	if _, err := hf.Read(out); err != nil {
		t.Error(err)
	}
}

// A run in groups smaller than the run ends like any other: all members name one model, it is that of the last round that the
// requester saw, and the books agree. The third member has no place in the finale's grid.
func TestRunInGroups(t *testing.T) {
	if testing.Short() {
		t.Skip("whole runs; the long form runs without -short")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel) // after the commands have been stopped
	m := newMarket(ctx, t)
	homes := []string{m.provider().home, m.provider().home, m.provider().home}
	path := testJob(t, 3)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	grouped := strings.NewReplacer("local_steps: 8", "local_steps: 8, group: 2", "peers: 2", "peers: 3").Replace(string(text))
	if err := os.WriteFile(path, []byte(grouped), 0o600); err != nil {
		t.Fatal(err)
	}
	home, out, said := t.TempDir(), filepath.Join(t.TempDir(), "model"), newEvents()
	if err := Train(ctx, TrainOptions{JobPath: path, Home: home, Config: m.cfg, Out: out, Emit: said.emit}); err != nil {
		t.Fatal(err)
	}
	rounds := of[RoundEvent](said)
	last := rounds[len(rounds)-1]
	model, err := hf.Read(out)
	if err != nil || model.Provenance.State != last.State || last.Step != 24 {
		t.Errorf("the model says %+v, the last round %+v: %v", model.Provenance, last, err)
	}
	if got := of[CheckpointEvent](said); len(got) != 1 || got[0].Peers != 3 {
		t.Errorf("checkpoints %+v, want one that all three members named", got)
	}
	checkBooks(t, m.cfg, home, homes)
}

// The place of a member that left while nobody was there to take it is filled when somebody comes.
func TestEmptyPlaceIsFilledLater(t *testing.T) {
	if testing.Short() {
		t.Skip("whole runs; the long form runs without -short")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel) // after the commands have been stopped
	m := newMarket(ctx, t)
	first, second := m.provider(), m.provider()
	o := TrainOptions{JobPath: testJob(t, 100_000), Home: t.TempDir(), Config: m.cfg, Out: filepath.Join(t.TempDir(), "model")}
	said, stop, done := newEvents(), make(chan struct{}), make(chan error, 1)
	o.Emit, o.Stop = said.emit, stop
	go func() { done <- Train(ctx, o) }()
	await(t, said, func(e RoundEvent) bool { return e.Round >= 2 && e.Peers == 2 })
	second.end()
	await(t, said, func(e LeaseEvent) bool { return e.Peer == second.id && e.State == "closed" })
	third := m.provider()
	await(t, said, func(e LeaseEvent) bool { return e.Peer == third.id && e.State == "active" })
	await(t, third.events, func(e ProviderEvent) bool { return e.State == "round" && e.Tokens > 0 })
	close(stop)
	if err := <-done; !errors.Is(err, ErrInterrupted) {
		t.Errorf("a run that was asked to stop: %v", err)
	}
	for _, p := range []*testProvider{first, third} {
		await(t, p.events, func(e ProviderEvent) bool { return e.State == "closed" })
	}
}

// checkBooks compares the requester's ledger with those of the running providers.
func checkBooks(t *testing.T, cfg Config, home string, providers []string) {
	t.Helper()
	ctx := context.Background()
	ours, err := View[[]Balance](ctx, home, cfg, "ledger", nil)
	if err != nil {
		t.Fatal(err)
	}
	owed := map[string]string{}
	for _, b := range ours {
		owed[b.Account] = b.Credits
	}
	for _, p := range providers {
		s, err := View[Status](ctx, p, cfg, "status", nil)
		if err != nil || !s.Running {
			t.Errorf("status %+v, %v", s, err)
		}
		theirs, err := View[[]Balance](ctx, p, cfg, "ledger", nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range theirs {
			if strings.HasSuffix(b.Account, ":earned") && owed[b.Account] != b.Credits {
				t.Errorf("%s: the provider booked %s, the requester %s", b.Account, b.Credits, owed[b.Account])
			}
		}
		if _, err := View[ledger.Report](ctx, p, cfg, "verify", nil); err != nil {
			t.Error(err)
		}
	}
}
