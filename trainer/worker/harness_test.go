package worker_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multihash"

	"github.com/capacloud/capanode/p2p"
	"github.com/capacloud/capanode/p2p/memnet"
	"github.com/capacloud/capanode/p2p/wire"
	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/outer"
	"github.com/capacloud/capanode/trainer/round"
	"github.com/capacloud/capanode/trainer/worker"
)

// quadratic is a tiny real engine: its loss is the squared distance to a point that every window shifts a little, so that
// different data give different gradients. Its optimiser is the program's own AdamW.
type quadratic struct {
	state *engine.State
	point []float32
	grads []float32
	pace  func(rows int) // called in each step: where a test makes a peer slow or kills it
}

func newQuadratic(n int, pace func(int)) *quadratic {
	params := []engine.Param{{Name: "w", Shape: []int{n}, Init: engine.Init{Std: 0.5}}}
	state, err := engine.NewState(params, 7)
	if err != nil {
		panic(err)
	}
	q := &quadratic{state: state, point: make([]float32, n), grads: make([]float32, n), pace: pace}
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range q.point {
		q.point[i] = float32(rng.NormFloat64())
	}
	return q
}

func (q *quadratic) Train(_ context.Context, batches []engine.Batch, step engine.Step) (float64, error) {
	if q.pace != nil {
		q.pace(batches[0].Rows)
	}
	clear(q.grads)
	var loss float64
	rows := 0
	for _, b := range batches {
		for r := range b.Rows {
			rng := rand.New(rand.NewPCG(uint64(b.Inputs[r*b.Context]), 9))
			shift := float32(rng.NormFloat64())
			for i, w := range q.state.Weights {
				d := w - q.point[i] + shift*q.point[(i+1)%len(q.point)]*0.3
				q.grads[i] += d
				loss += float64(d) * float64(d)
			}
			rows++
		}
	}
	_, err := q.state.Update(q.grads, int64(rows), step, 1)
	return loss / float64(rows*len(q.point)), err
}

func (q *quadratic) Evaluate(context.Context, engine.Batch) (float64, error) {
	var sum float64
	for i, w := range q.state.Weights {
		d := float64(w - q.point[i])
		sum += d * d
	}
	return sum / float64(len(q.point)), nil
}

func (q *quadratic) Logits(context.Context, engine.Batch) ([]float32, error) {
	return nil, errors.New("a quadratic has no logits")
}
func (q *quadratic) State() *engine.State { return q.state }
func (q *quadratic) Close() error         { return nil }

// testData is a data set of numbered windows: each token tells its shard and window.
type testData struct {
	shards  int
	windows uint64
	context int
}

func (d testData) Shards() int        { return d.shards }
func (d testData) Windows(int) uint64 { return d.windows }

func (d testData) Batch(_ context.Context, windows []round.Window) (engine.Batch, error) {
	b := engine.Batch{Rows: len(windows), Context: d.context}
	for _, w := range windows {
		for range d.context {
			b.Inputs = append(b.Inputs, int32(w.Shard*1000)+int32(w.Index))
			b.Targets = append(b.Targets, 0)
		}
	}
	return b, nil
}

// memBlobs is a content-addressed store that fetches over the network under test.
type memBlobs struct {
	net  p2p.Network
	mu   sync.Mutex
	data map[cid.Cid][]byte
}

const blobProtocol = "/capanode/test-blob/1.0.0"

func newBlobs(net p2p.Network) *memBlobs {
	b := &memBlobs{net: net, data: map[cid.Cid][]byte{}}
	net.Handle(blobProtocol, p2p.Limits{}, func(_ context.Context, s p2p.Stream) {
		raw, err := wire.ReadFrame(s, 128)
		if err != nil {
			s.Reset()
			return
		}
		_, c, err := cid.CidFromBytes(raw)
		b.mu.Lock()
		data, ok := b.data[c]
		b.mu.Unlock()
		if err != nil || !ok {
			s.Reset()
			return
		}
		wire.WriteFrame(s, data)
		s.Close()
	})
	return b
}

func (b *memBlobs) Put(_ context.Context, data []byte) (cid.Cid, error) {
	sum, err := multihash.Sum(data, multihash.SHA2_256, -1)
	if err != nil {
		return cid.Undef, err
	}
	c := cid.NewCidV1(cid.Raw, sum)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.data[c] = bytes.Clone(data)
	return c, nil
}

func (b *memBlobs) Get(ctx context.Context, c cid.Cid, from []peer.ID, limit int64) ([]byte, error) {
	b.mu.Lock()
	data, ok := b.data[c]
	b.mu.Unlock()
	if ok {
		return data, nil
	}
	var failed error
	for _, id := range from {
		data, err := b.get(ctx, c, id, limit)
		if err == nil {
			_, err = b.Put(ctx, data)
			return data, err
		}
		failed = errors.Join(failed, err)
	}
	return nil, fmt.Errorf("nobody has %s: %w", c, failed)
}

func (b *memBlobs) get(ctx context.Context, c cid.Cid, id peer.ID, limit int64) ([]byte, error) {
	s, err := b.net.Open(ctx, id, blobProtocol)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	stop := context.AfterFunc(ctx, func() { s.Reset() })
	defer stop()
	if err := wire.WriteFrame(s, c.Bytes()); err != nil {
		return nil, err
	}
	return wire.ReadFrame(s, int(limit))
}

func (b *memBlobs) Drop(_ context.Context, c cid.Cid) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.data, c)
}

func (b *memBlobs) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.data)
}

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

var testPlan = worker.Plan{
	Rounds: 6, LocalSteps: 4, BatchRows: 4, MicroRows: 2, Context: 8, Seed: 3, Codec: "int8",
	Outer: outer.Settings{LearningRate: 0.7, Momentum: 0.3},
	Inner: engine.Step{Beta1: 0.9, Beta2: 0.95, Epsilon: 1e-8, ClipNorm: 1},
	Schedule: worker.Schedule{
		Peak: 0.1, Floor: 0.01, Warmup: 2, Total: 24,
	},
}

// newSwarm starts the owner, who names the members.
func newSwarm(t testing.TB, plan worker.Plan, members ...string) *swarm {
	s := &swarm{
		t: t, net: memnet.New(), run: wire.RecordCID([]byte("test run")), plan: plan, reports: map[string][]worker.Report{},
		data: testData{shards: 8, windows: 40, context: plan.Context},
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
		Run: s.run, Owner: s.id("owner"), Plan: s.plan, Engine: newQuadratic(5000, pace(time.Second)), Numerics: "test",
		Net: node, Blobs: newBlobs(node), Data: s.data,
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
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		f(ctx, t)
	})
}

// at runs f after some virtual time.
func at(d time.Duration, f func()) { time.AfterFunc(d, f) }
