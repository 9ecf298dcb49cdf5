package faultlab

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/p2p/memnet"
	"github.com/capacloud/capanode/p2p/wire"
	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/round"
	"github.com/capacloud/capanode/trainer/worker"
)

// Virtual runs a test in a bubble with its own clock. The context ends when more than limit of virtual time passes: a worker
// that hangs then fails the test.
func Virtual(t *testing.T, limit time.Duration, f func(ctx context.Context, t *testing.T)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		f(ctx, t)
	})
}

// Options describes a laboratory. Plan is needed.
type Options struct {
	Plan      worker.Plan
	Data      worker.Data                   // nil means 64 shards of 4,096 [Numbers]
	Engine    func() (engine.Engine, error) // makes a freshly seeded engine; nil means a [Quadratic] of 256
	Pace      time.Duration                 // virtual time of a local step; 0 means 1 s
	Link      memnet.Link                   // of the whole network
	Snapshots string                        // folder under which each peer keeps its snapshots; "" means none
	Forget    bool                          // remember no reports and no ledger, so that nothing grows with the run
	Log       slog.Leveler                  // what workers log goes to the test's log from this level on; nil discards
}

// Lab is one run of workers that can be broken. Make it with [New] and end it with Close.
type Lab struct {
	Net    *memnet.Net
	Ledger *Ledger // nil when Options.Forget

	t       testing.TB
	ctx     context.Context
	options Options
	run     cid.Cid

	scripting sync.Mutex // held while the script runs
	script    func(Event)

	mu      sync.Mutex
	owner   *worker.Observer
	members []string
	bodies  map[string]*body // the newest life of each peer
	coming  map[string]int   // restarts under way
	lives   []*body
	watched []worker.Report
}

// New starts the owner, who admits the members. Nobody trains yet.
func New(ctx context.Context, t testing.TB, o Options, members ...string) *Lab {
	if o.Data == nil {
		o.Data = Numbers{Count: 64, Length: 4096, Context: o.Plan.Context}
	}
	if o.Engine == nil {
		o.Engine = func() (engine.Engine, error) { return NewQuadratic(defaultParams, nil), nil }
	}
	if o.Pace == 0 {
		o.Pace = time.Second
	}
	l := &Lab{
		Net: memnet.New(), Ledger: NewLedger(), t: t, ctx: ctx, options: o, run: wire.RecordCID([]byte("faultlab run")),
		members: members, bodies: map[string]*body{}, coming: map[string]int{},
	}
	if o.Forget {
		l.Ledger = nil
	}
	l.Net.Shape(o.Link)
	l.StartOwner()
	return l
}

// Script sets what is called at every point that a peer reaches, in that peer's goroutine. It must not wait. Calls do not
// overlap. Set it before the peers start.
func (l *Lab) Script(f func(Event)) { l.script = f }

// ID returns the ID of the peer or owner of that name.
func (l *Lab) ID(name string) peer.ID { return l.Net.Node(name).ID() }

// name returns the name of a peer that was started.
func (l *Lab) name(id peer.ID) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	for name, b := range l.bodies {
		if b.node.ID() == id {
			return name
		}
	}
	return ""
}

// StartOwner starts the run's owner, who publishes the roster. New has done it once.
func (l *Lab) StartOwner() {
	node := l.Net.Node("owner")
	owner, err := worker.Observe(worker.ObserveConfig{
		Run: l.run, Owner: node.ID(), MostTokens: l.options.Plan.MostTokens(), Net: node, OnRound: l.watch,
	})
	if err != nil {
		l.t.Fatal(err)
	}
	l.mu.Lock()
	l.owner = owner
	members := l.members
	l.mu.Unlock()
	l.Admit(members...)
}

func (l *Lab) watch(r worker.Report) {
	if l.options.Forget {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.watched = append(l.watched, r)
}

// KillOwner ends the owner as kill -9 does.
func (l *Lab) KillOwner() {
	l.mu.Lock()
	owner := l.owner
	l.owner = nil
	l.mu.Unlock()
	l.Net.Kill(l.ID("owner"))
	if owner != nil {
		_ = owner.Close()
	}
}

// Owner returns the running owner, nil when it was killed.
func (l *Lab) Owner() *worker.Observer {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.owner
}

// Admit has the owner name the members of the run.
func (l *Lab) Admit(members ...string) {
	var ids []peer.ID
	for _, name := range members {
		ids = append(ids, l.ID(name))
	}
	l.mu.Lock()
	owner := l.owner
	l.members = slices.Clone(members)
	l.mu.Unlock()
	if err := owner.SetMembers(ids); err != nil {
		l.t.Error(err)
	}
}

// stagger is how much slower each peer's steps are than those of the one started before it. When two peers act at the same
// instant, chance decides who is first, and the run cannot be had again.
const stagger = 1370 * time.Microsecond

// Start starts a peer, or starts it again with the disk that it had when it was killed. change may alter its configuration.
func (l *Lab) Start(name string, change ...func(*worker.Config)) {
	made, err := l.options.Engine()
	if err != nil {
		l.t.Fatal(err)
	}
	eng, ok := made.(engine.Differentiating)
	if !ok {
		l.t.Fatal("faultlab: the engine gives no gradients")
	}
	ctx, cancel := context.WithCancel(l.ctx)
	b := &body{
		cancel: cancel, lab: l, name: name, node: l.Net.Node(name), pace: l.options.Pace, born: time.Now(),
		gone: make(chan struct{}), done: make(chan struct{}), log: l.logger(name),
	}
	if b.log != nil {
		b.log.Info("starts")
	}
	l.mu.Lock()
	if old := l.bodies[name]; old != nil {
		if !old.dead() && !old.over() {
			l.t.Errorf("faultlab: %s is started twice", name)
		}
		b.dir, b.pace = old.disk(), old.pace
	} else {
		b.pace += time.Duration(len(l.bodies)) * stagger
		if l.options.Snapshots != "" {
			b.dir = filepath.Join(l.options.Snapshots, name, "0")
		}
	}
	l.bodies[name] = b
	l.lives = append(l.lives, b)
	l.mu.Unlock()
	net := &tapped{b.node, b}
	cfg := worker.Config{
		Run: l.run, Owner: l.Net.Node("owner").ID(), Plan: l.options.Plan, Engine: paced{eng, b}, Numerics: "faultlab",
		Net: net, Blobs: newBlobs(net, func(p Point, mate peer.ID) { b.at(p, b.round(), l.name(mate)) }), Data: l.options.Data,
		SnapshotDir: b.dir, Hooks: worker.Hooks{OnRound: b.committed, OnStep: b.stepped, OnWarning: b.warned}, Log: b.log,
	}
	for _, f := range change {
		f(&cfg)
	}
	go func() {
		defer close(b.done)
		b.result, b.err = worker.Run(ctx, cfg)
		_ = eng.Close()
	}()
}

func (l *Lab) logger(name string) *slog.Logger {
	if l.options.Log == nil {
		return nil
	}
	return slog.New(slog.NewTextHandler(testWriter{l.t}, &slog.HandlerOptions{Level: l.options.Log})).With("peer", name)
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(time.Now().Format("15:04:05.000"), string(bytes.TrimSpace(b)))
	return len(b), nil
}

// Kill ends a peer as kill -9 does: from now on it says nothing and writes nothing. It may be called from the script, by the
// dying peer too. Killing who is dead or was never started does nothing.
func (l *Lab) Kill(name string) {
	l.mu.Lock()
	b := l.bodies[name]
	l.mu.Unlock()
	if b == nil || !b.die() {
		return
	}
	l.Net.Kill(b.node.ID())
	b.cancel()
}

// Crash kills a peer and starts it again after some time. Await and Finish then wait for that life.
func (l *Lab) Crash(name string, away time.Duration) {
	l.mu.Lock()
	l.coming[name]++
	l.mu.Unlock()
	l.Kill(name)
	time.AfterFunc(away, func() {
		if l.ctx.Err() == nil {
			l.Start(name)
		}
		l.mu.Lock()
		l.coming[name]--
		l.mu.Unlock()
	})
}

// Alive lists the peers that were started and neither killed nor finished, in alphabetical order.
func (l *Lab) Alive() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var names []string
	for _, name := range slices.Sorted(maps.Keys(l.bodies)) {
		if b := l.bodies[name]; !b.dead() && !b.over() {
			names = append(names, name)
		}
	}
	return names
}

// Survivors lists the peers whose newest life was not ended by a kill, in alphabetical order.
func (l *Lab) Survivors() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var names []string
	for _, name := range slices.Sorted(maps.Keys(l.bodies)) {
		if !l.bodies[name].dead() {
			names = append(names, name)
		}
	}
	return names
}

// Cut cuts the network into the groups; the owner and who is not named form one more.
func (l *Lab) Cut(groups ...[]string) {
	var sides [][]peer.ID
	for _, g := range groups {
		var ids []peer.ID
		for _, name := range g {
			ids = append(ids, l.ID(name))
		}
		sides = append(sides, ids)
	}
	l.Net.Partition(sides...)
}

// Heal ends all cuts and mutes.
func (l *Lab) Heal() {
	l.Net.Heal()
	l.Net.UnshapeLinks()
}

// Mute loses what the peer says to those mates from now on; streams still work.
func (l *Lab) Mute(name string, mates ...string) {
	lossy := l.options.Link
	lossy.Loss = 1
	for _, mate := range mates {
		l.Net.ShapeLink(l.ID(name), l.ID(mate), lossy)
	}
}

// Slow changes the virtual time of the peer's local steps.
func (l *Lab) Slow(name string, pace time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.bodies[name].pace = pace
}

// Outcome is how a peer's last life ended.
type Outcome struct {
	worker.Result
	Err error
}

// Await waits for peers and returns how they ended.
func (l *Lab) Await(names ...string) []Outcome {
	var all []Outcome
	for _, name := range names {
		b := l.last(name)
		all = append(all, Outcome{b.result, b.err})
	}
	return all
}

// last waits for the end of a peer's last life.
func (l *Lab) last(name string) *body {
	for {
		l.mu.Lock()
		b, coming := l.bodies[name], l.coming[name]
		l.mu.Unlock()
		<-b.done
		l.mu.Lock()
		same := l.bodies[name] == b && coming == 0 && l.coming[name] == 0
		l.mu.Unlock()
		if same {
			return b
		}
		time.Sleep(round.HeartbeatInterval / 10) // virtual
	}
}

// Finish waits for peers and checks that all ended without an error, after the plan's steps, with the same state, and that
// the state follows from what was said.
func (l *Lab) Finish(names ...string) []Outcome {
	l.t.Helper()
	all := l.Await(names...)
	for i, o := range all {
		if o.Err != nil {
			l.t.Fatalf("%s: %v", names[i], o.Err)
		}
		if steps := l.options.Plan.TotalSteps(); o.State.Steps != steps || o.State.Apart {
			l.t.Errorf("%s ended after %d steps, want %d (apart: %v)", names[i], o.State.Steps, steps, o.State.Apart)
		}
		if o.State.Hash() != all[0].State.Hash() {
			l.t.Errorf("%s ended with state %s, %s with %s", names[i], o.State.Hash().Short(), names[0], all[0].State.Hash().Short())
		}
	}
	l.Conserved(all[0].State)
	return all
}

// Conserved checks that the state follows, round by round, from the headers and commits that were said.
func (l *Lab) Conserved(s *round.State) []Link {
	l.t.Helper()
	links, err := l.Ledger.Chain(s.Hash(), s.Round)
	if err != nil {
		l.t.Errorf("the state of round %d does not follow from its past: %v", s.Round, err)
		return nil
	}
	if last := links[len(links)-1].Total; last != s.Tokens {
		l.t.Errorf("the state holds %d tokens, the updates applied sum to %d", s.Tokens, last)
	}
	return links
}

// Watched returns what the owner reported.
func (l *Lab) Watched() []worker.Report {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.watched)
}

// Best returns the state with the most tokens that anybody committed, and its number of rounds.
func (l *Lab) Best() (state round.Hash, rounds uint64) {
	l.Ledger.mu.Lock()
	defer l.Ledger.mu.Unlock()
	var best round.Claim
	for _, c := range l.Ledger.commits {
		claim := round.Claim{Round: c.Round + 1, Tokens: c.Total, State: c.Next}
		if claim.Beats(best) {
			best = claim
		}
	}
	return best.State, best.Round
}

// Close ends all peers and the owner.
func (l *Lab) Close() {
	l.mu.Lock()
	lives := slices.Clone(l.lives)
	owner := l.owner
	l.mu.Unlock()
	for _, b := range lives {
		b.cancel()
		<-b.done
	}
	if owner != nil {
		_ = owner.Close()
	}
	for _, b := range lives {
		_ = b.node.Close()
	}
	_ = l.Net.Node("owner").Close()
}

// Alone returns a function that peers may call at the same time and that calls f one at a time.
func (l *Lab) Alone(f func(*round.State) error) func(*round.State) error {
	var mu sync.Mutex
	return func(s *round.State) error {
		mu.Lock()
		defer mu.Unlock()
		return f(s)
	}
}

// Names returns a, b, c and so on.
func Names(count int) []string {
	var names []string
	for i := range count {
		name := string(rune('a' + i%26))
		if i >= 26 {
			name = fmt.Sprintf("%s%d", name, i/26)
		}
		names = append(names, name)
	}
	return names
}

// copyDisk copies a peer's folder as it is at this instant.
func copyDisk(from, to string) error {
	if _, err := os.Stat(from); os.IsNotExist(err) {
		return nil
	}
	return os.CopyFS(to, os.DirFS(from))
}
