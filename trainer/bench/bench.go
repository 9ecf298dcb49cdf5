// Package bench owns the measurements of averaging: how fast updates are encoded and averaged, and what averaging costs in
// loss against one peer that sees the same tokens. It measures the program's own code paths and prints nothing.
package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multihash"

	"github.com/capacloud/capanode/p2p/memnet"
	"github.com/capacloud/capanode/p2p/wire"
	"github.com/capacloud/capanode/trainer/codec"
	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/outer"
	"github.com/capacloud/capanode/trainer/worker"
)

// Options say what to measure.
type Options struct {
	Megabytes int // of float32 in each update, in units of 10^6 bytes; 0 means 64
	Repeat    int // timings are the best of so many; 0 means 3
	Training  *Training
}

func (o Options) defaults() Options {
	if o.Megabytes == 0 {
		o.Megabytes = 64
	}
	if o.Repeat == 0 {
		o.Repeat = 3
	}
	return o
}

// Training compares three peers with one at equal tokens. Leaving it out leaves the losses out.
type Training struct {
	Plan       worker.Plan // of the three peers; the single peer runs three times the rounds
	Engine     func() (engine.Engine, error)
	Numerics   string
	Data       worker.Data
	Validation []engine.Batch
}

// Figures are the results. Rates are in 10^6 bytes of float32 per second.
type Figures struct {
	Averaging float64 // int8, two peers: encode the own update, decode and average both; all cores
	Sparse    float64 // the same with top64
	Copy      float64 // of as many bytes in memory, one core
	Cores     int

	TokensThree, TokensOne   uint64  // committed; on a busy machine the three may leave out an update that came late
	LossThree, LossOne       float64 // validation loss in nats per token
	SecondsThree, SecondsOne float64
	Up, Down                 float64 // bytes of updates that all three peers together sent and fetched
}

// Averaging runs the measurements.
func Averaging(ctx context.Context, o Options) (Figures, error) {
	f := Figures{Cores: runtime.GOMAXPROCS(0)}
	o = o.defaults()
	if err := f.rates(ctx, o); err != nil {
		return f, err
	}
	if o.Training == nil {
		return f, nil
	}
	three, one := o.Training.Plan, o.Training.Plan
	one.Rounds *= 3
	one.Schedule.Warmup *= 3
	one.Schedule.Total *= 3
	many, err := o.Training.run(ctx, three, 3)
	if err != nil {
		return f, fmt.Errorf("bench: three peers: %w", err)
	}
	single, err := o.Training.run(ctx, one, 1)
	if err != nil {
		return f, fmt.Errorf("bench: one peer: %w", err)
	}
	if many.tokens < single.tokens-single.tokens/10 {
		return f, fmt.Errorf("bench: three peers committed %d tokens, one peer %d: too many updates came late, the losses do not compare; repeat on a less busy machine", many.tokens, single.tokens)
	}
	f.TokensThree, f.TokensOne, f.Up, f.Down = many.tokens, single.tokens, many.up, many.down
	f.LossThree, f.LossOne, f.SecondsThree, f.SecondsOne = many.loss, single.loss, many.seconds, single.seconds
	return f, nil
}

// rates measures the average of two peers, dense and sparse.
func (f *Figures) rates(ctx context.Context, o Options) (err error) {
	x := normal(o.Megabytes * 1e6 / 4)
	mean := make([]float32, len(x))
	if f.Averaging, err = average(ctx, o, codec.Int8{}, x, mean); err != nil {
		return err
	}
	if f.Sparse, err = average(ctx, o, codec.Top{K: 64}, x, mean); err != nil {
		return err
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	f.Copy, err = fastest(ctx, o, func() error { copy(mean, x); return nil })
	return err
}

// average measures what two peers do with their updates in a round, all of it on this machine.
func average(ctx context.Context, o Options, c codec.Codec, x, mean []float32) (float64, error) {
	own, mate := make([]byte, c.Bound(len(x))), make([]byte, c.Bound(len(x)))
	size, err := c.Encode(mate, x)
	if err != nil {
		return 0, fmt.Errorf("bench: %w", err)
	}
	return fastest(ctx, o, func() error {
		mine, err := c.Encode(own, x)
		if err != nil {
			return err
		}
		a, err := c.Open(own[:mine], len(x))
		if err != nil {
			return err
		}
		b, err := c.Open(mate[:size], len(x))
		if err != nil {
			return err
		}
		return outer.Mean(mean, []outer.Update{{Delta: a, Tokens: 1}, {Delta: b, Tokens: 1}})
	})
}

// fastest returns the best rate of the repetitions.
func fastest(ctx context.Context, o Options, f func() error) (float64, error) {
	var best float64
	for range o.Repeat {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		began := time.Now()
		if err := f(); err != nil {
			return 0, fmt.Errorf("bench: %w", err)
		}
		best = max(best, float64(o.Megabytes)/time.Since(began).Seconds())
	}
	return best, nil
}

// outcome is what one run gave.
type outcome struct {
	loss, seconds float64
	tokens        uint64  // committed
	up, down      float64 // bytes of all peers
}

// run trains with so many peers over the in-memory network.
func (t *Training) run(ctx context.Context, plan worker.Plan, peers int) (out outcome, err error) {
	net, run := memnet.New(), wire.RecordCID(fmt.Appendf(nil, "benchmark with %d peers", peers))
	owner := net.Node("owner")
	defer owner.Close()
	watch, err := worker.Observe(worker.ObserveConfig{Run: run, Owner: owner.ID(), MostTokens: plan.MostTokens(), Net: owner})
	if err != nil {
		return out, err
	}
	defer watch.Close()
	store := &store{data: map[cid.Cid][]byte{}}
	results, errs := make([]worker.Result, peers), make([]error, peers)
	configs := make([]worker.Config, peers)
	var members []peer.ID
	for i := range configs {
		node := net.Node(fmt.Sprint("peer ", i))
		defer node.Close()
		eng, err := t.Engine()
		if err != nil {
			return out, err
		}
		defer eng.Close()
		members = append(members, node.ID())
		configs[i] = worker.Config{
			Run: run, Owner: owner.ID(), Plan: plan, Engine: eng, Numerics: t.Numerics, Net: node, Blobs: store, Data: t.Data,
		}
	}
	if err := watch.SetMembers(members); err != nil {
		return out, err
	}
	began := time.Now()
	var work sync.WaitGroup
	for i := range configs {
		work.Go(func() { results[i], errs[i] = worker.Run(ctx, configs[i]) })
	}
	work.Wait()
	out.seconds = time.Since(began).Seconds()
	if err := errors.Join(errs...); err != nil {
		return out, err
	}
	eng, state := configs[0].Engine, results[0].State
	copy(eng.State().Weights, state.Weights)
	for _, b := range t.Validation {
		l, err := eng.Evaluate(ctx, b)
		if err != nil {
			return out, err
		}
		out.loss += l / float64(len(t.Validation))
	}
	for _, r := range results {
		out.up, out.down = out.up+float64(r.Up), out.down+float64(r.Down)
	}
	out.tokens = state.Tokens
	return out, nil
}

// store is a store that all peers of a measurement share.
type store struct {
	mu   sync.Mutex
	data map[cid.Cid][]byte
}

func (s *store) Put(_ context.Context, data []byte) (cid.Cid, error) {
	sum, err := multihash.Sum(data, multihash.SHA2_256, -1)
	if err != nil {
		return cid.Undef, fmt.Errorf("bench: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c := cid.NewCidV1(cid.Raw, sum)
	s.data[c] = bytes.Clone(data)
	return c, nil
}

func (s *store) Get(_ context.Context, c cid.Cid, _ []peer.ID, limit int64) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	data, ok := s.data[c]
	if !ok || int64(len(data)) > limit {
		return nil, fmt.Errorf("bench: no object %s of at most %d bytes", c, limit)
	}
	return data, nil
}

func (s *store) Drop(_ context.Context, c cid.Cid) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.data, c)
}
