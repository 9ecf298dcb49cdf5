package worker_test

import (
	"bytes"
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/p2p/memnet"
	"github.com/capacloud/capanode/p2p/wire"
	"github.com/capacloud/capanode/trainer/faultlab"
	"github.com/capacloud/capanode/trainer/worker"
)

// swarm is a run over the in-memory network.
type swarm struct {
	t     testing.TB
	net   *memnet.Net
	run   cid.Cid
	plan  worker.Plan
	data  worker.Data
	owner *worker.Observer

	mu      sync.Mutex
	reports map[string][]worker.Report
	watched []worker.Report
}

var testPlan = faultlab.Plan(6)

// newSwarm starts the owner, who names the members.
func newSwarm(t testing.TB, plan worker.Plan, members ...string) *swarm {
	s := &swarm{
		t: t, net: memnet.New(), run: wire.RecordCID([]byte("test run")), plan: plan, reports: map[string][]worker.Report{},
		data: faultlab.Numbers{Count: 8, Length: 40, Context: plan.Context},
	}
	owner := s.net.Node("owner")
	var err error
	s.owner, err = worker.Observe(worker.ObserveConfig{
		Run: s.run, Owner: owner.ID(), MostTokens: plan.MostTokens(), Net: owner,
		OnRound: func(r worker.Report) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.watched = append(s.watched, r)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	s.admit(members...)
	return s
}

func (s *swarm) id(name string) peer.ID { return s.net.Node(name).ID() }

func (s *swarm) admit(members ...string) {
	var ids []peer.ID
	for _, name := range members {
		ids = append(ids, s.id(name))
	}
	if err := s.owner.SetMembers(ids); err != nil {
		s.t.Fatal(err)
	}
}

// end closes the owner and all nodes.
func (s *swarm) end(names ...string) {
	s.owner.Close()
	for _, name := range append(names, "owner") {
		s.net.Node(name).Close()
	}
}

// kill ends a node as kill -9 does.
func (s *swarm) kill(name string) { s.net.Kill(s.id(name)) }

// config is the configuration of the named worker; tests change it before they start it.
func (s *swarm) config(name string) worker.Config {
	node := s.net.Node(name)
	level := slog.LevelWarn
	if testing.Verbose() {
		level = slog.LevelDebug
	}
	return worker.Config{
		Run: s.run, Owner: s.id("owner"), Plan: s.plan, Engine: faultlab.NewQuadratic(5000, pace(time.Second)), Numerics: "test",
		Net: node, Blobs: faultlab.NewBlobs(node), Data: s.data,
		Log: slog.New(slog.NewTextHandler(testWriter{s.t}, &slog.HandlerOptions{Level: level})).With("peer", name),
		Hooks: worker.Hooks{OnRound: func(r worker.Report) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.reports[name] = append(s.reports[name], r)
		}},
	}
}

// history logs every committed round of every worker.
func (s *swarm) history() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, reports := range s.reports {
		for _, r := range reports {
			s.t.Logf("%s: round %d: %s to %s, %d contributors, %d live, %d tokens of %d, compute %v, talk %v",
				name, r.Round, r.Parent.Short(), r.Next.Short(), len(r.Contributors), len(r.Live), r.Tokens, r.Total, r.Compute, r.Comm)
		}
	}
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(time.Now().Format("15:04:05.000"), string(bytes.TrimSpace(b)))
	return len(b), nil
}

// pace makes every optimiser step take that long.
func pace(d time.Duration) func(int) { return func(int) { time.Sleep(d) } }

// outcome is how a worker ended.
type outcome struct {
	worker.Result
	err error
}

func start(ctx context.Context, cfg worker.Config) <-chan outcome {
	done := make(chan outcome, 1)
	go func() {
		r, err := worker.Run(ctx, cfg)
		done <- outcome{r, err}
	}()
	return done
}

// finish waits for workers and checks that all ended with the same state after the plan's rounds.
func (s *swarm) finish(workers ...<-chan outcome) []outcome {
	s.t.Helper()
	var all []outcome
	for i, w := range workers {
		o := <-w
		if o.err != nil {
			s.t.Fatalf("worker %d: %v", i, o.err)
		}
		if o.State.Round != s.plan.Rounds {
			s.t.Errorf("worker %d ended after %d rounds, want %d", i, o.State.Round, s.plan.Rounds)
		}
		all = append(all, o)
		if o.State.Hash() != all[0].State.Hash() {
			s.t.Errorf("worker %d ended with state %s, worker 0 with %s", i, o.State.Hash().Short(), all[0].State.Hash().Short())
		}
	}
	return all
}

// virtual runs a test in a bubble with its own clock and a limit on virtual time.
func virtual(t *testing.T, limit time.Duration, f func(ctx context.Context, t *testing.T)) {
	t.Helper()
	faultlab.Virtual(t, limit, f)
}

// at runs f after some virtual time.
func at(d time.Duration, f func()) { time.AfterFunc(d, f) }
