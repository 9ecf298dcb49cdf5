package worker_test

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/goleak"

	"github.com/capacloud/capanode/p2p/wire"
	"github.com/capacloud/capanode/trainer/faultlab"
	"github.com/capacloud/capanode/trainer/round"
	"github.com/capacloud/capanode/trainer/worker"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestThreePeersAgree(t *testing.T) {
	virtual(t, 10*time.Minute, func(ctx context.Context, t *testing.T) {
		s := newSwarm(t, testPlan, "a", "b", "c")
		defer s.end("a", "b", "c")
		a, b, c := start(ctx, s.config("a")), start(ctx, s.config("b")), start(ctx, s.config("c"))
		all := s.finish(a, b, c)
		for i, o := range all {
			if o.Contributed != s.plan.Rounds || o.Healed != 0 {
				t.Errorf("worker %d contributed to %d rounds and healed %d times, want %d and 0", i, o.Contributed, o.Healed, s.plan.Rounds)
			}
		}
		if want := 3 * s.plan.Rounds * s.plan.RoundTokens(); all[0].State.Tokens != want {
			t.Errorf("%d tokens committed, want %d", all[0].State.Tokens, want)
		}
		first, last := s.reports["a"][0], s.reports["a"][len(s.reports["a"])-1]
		if !(last.Loss < first.Loss/2) {
			t.Errorf("loss went from %g to %g", first.Loss, last.Loss)
		}
		if last.Compute < 4*time.Second || last.Comm > 2*time.Second {
			t.Errorf("a round took %v of computing and %v of talking", last.Compute, last.Comm)
		}
	})
}

// A peer that dies in the middle of its local steps, and one that dies right after its header: the others go on.
func TestDeathMidRound(t *testing.T) {
	for _, when := range []time.Duration{
		2 * time.Second,         // first round, local steps
		6500 * time.Millisecond, // second round, local steps
		8001 * time.Millisecond, // around the second exchange
	} {
		t.Run(when.String(), func(t *testing.T) {
			virtual(t, 10*time.Minute, func(ctx context.Context, t *testing.T) {
				s := newSwarm(t, testPlan, "a", "b", "c")
				defer s.end("a", "b", "c")
				dying, cancel := context.WithCancel(ctx)
				a, b, c := start(ctx, s.config("a")), start(ctx, s.config("b")), start(dying, s.config("c"))
				at(when, func() { s.kill("c"); cancel() })
				s.finish(a, b)
				<-c
			})
		})
	}
}

func TestLonePeerTrainsAlone(t *testing.T) {
	virtual(t, 10*time.Minute, func(ctx context.Context, t *testing.T) {
		s := newSwarm(t, testPlan, "a", "b", "c")
		defer s.end("a")
		o := s.finish(start(ctx, s.config("a")))[0]
		if o.Contributed != s.plan.Rounds {
			t.Errorf("contributed to %d rounds, want %d", o.Contributed, s.plan.Rounds)
		}
	})
}

// Killing every peer at once and starting them again from their folders continues the run and repeats no committed sample.
func TestResumeAfterKillingAll(t *testing.T) {
	virtual(t, 20*time.Minute, func(ctx context.Context, t *testing.T) {
		s := newSwarm(t, testPlan, "a", "b", "c")
		defer s.end("a", "b", "c")
		dirs := map[string]string{"a": t.TempDir(), "b": t.TempDir(), "c": t.TempDir()}
		var all []<-chan outcome
		dying, cancel := context.WithCancel(ctx)
		for name, dir := range dirs {
			cfg := s.config(name)
			cfg.SnapshotDir = dir
			all = append(all, start(dying, cfg))
		}
		time.Sleep(14 * time.Second) // three rounds of four seconds are committed
		for name := range dirs {
			s.kill(name)
		}
		cancel()
		for _, w := range all {
			<-w
		}
		all = nil
		for name, dir := range dirs {
			cfg := s.config(name)
			cfg.SnapshotDir = dir
			all = append(all, start(ctx, cfg))
		}
		ends := s.finish(all...)
		for _, o := range ends {
			if o.Rounds >= s.plan.Rounds || o.Rounds == 0 {
				t.Errorf("%d rounds after the restart, want some but not all of %d", o.Rounds, s.plan.Rounds)
			}
		}
		if want := 3 * s.plan.Rounds * s.plan.RoundTokens(); ends[0].State.Tokens != want {
			t.Errorf("%d tokens committed, want %d", ends[0].State.Tokens, want)
			s.history()
		}
	})
}

func TestJoinerMidRun(t *testing.T) {
	virtual(t, 20*time.Minute, func(ctx context.Context, t *testing.T) {
		plan := testPlan
		plan.Rounds = 10
		s := newSwarm(t, plan, "a", "b")
		defer s.end("a", "b", "c")
		a, b := start(ctx, s.config("a")), start(ctx, s.config("b"))
		time.Sleep(15 * time.Second)
		s.admit("a", "b", "c")
		c := start(ctx, s.config("c"))
		ends := s.finish(a, b, c)
		// The mates may commit while the joiner fetches, so that it fetches once more, and the round in which the shards are dealt
		// anew may miss the update of a mate that saw the joiner later than the other did.
		if h := ends[2].Healed; h < 1 || h > 2 || ends[2].Contributed < 3 {
			t.Errorf("the joiner healed %d times and contributed to %d rounds", ends[2].Healed, ends[2].Contributed)
		}
		if ends[0].Healed+ends[1].Healed != 0 || ends[0].Contributed+ends[1].Contributed < 2*plan.Rounds-1 {
			t.Errorf("the join disturbed its mates: %+v, %+v", ends[0].Result, ends[1].Result)
		}
		for _, r := range s.reports["a"] {
			if r.Comm > 2*time.Second {
				t.Errorf("round %d: mates waited %v for the joiner", r.Round, r.Comm)
			}
		}
	})
}

func TestPartitionHeals(t *testing.T) {
	virtual(t, 30*time.Minute, func(ctx context.Context, t *testing.T) {
		plan := testPlan
		plan.Rounds = 16
		s := newSwarm(t, plan, "a", "b", "c", "d")
		defer s.end("a", "b", "c", "d")
		var all []<-chan outcome
		for _, name := range []string{"a", "b", "c", "d"} {
			all = append(all, start(ctx, s.config(name)))
		}
		time.Sleep(10 * time.Second)
		s.net.Partition([]peer.ID{s.id("a"), s.id("b")}, []peer.ID{s.id("c"), s.id("d"), s.id("owner")})
		time.Sleep(25 * time.Second)
		s.net.Heal()
		ends := s.finish(all...)
		var healed uint64
		for _, o := range ends {
			healed += o.Healed
		}
		if healed == 0 || healed > 4 {
			t.Errorf("%d heals, want those of the losing side", healed)
		}
		ok := false
		for _, r := range s.reports["a"] {
			ok = ok || r.Round > 4 && r.Round < 13 && len(r.Contributors) == 4
		}
		if !ok {
			t.Error("the sides never trained together again")
			s.history()
		}
		// Both sides trained six rounds; what the losers did is merged once, as tokens of the run and as weights.
		var merged, times uint64
		for _, r := range s.reports["a"] {
			if r.Merged > 0 {
				merged, times = merged+r.Merged, times+1
			}
		}
		if least := 5 * 2 * plan.RoundTokens(); times != 1 || merged < least {
			t.Errorf("%d tokens merged in %d rounds, want at least %d in one", merged, times, least)
			s.history()
		}
		if total := ends[0].State.Tokens; total < 4*plan.RoundTokens()*plan.Rounds-10*plan.RoundTokens() {
			t.Errorf("%d tokens at the end: more was lost than the rounds in which sides listen", total)
		}
	})
}

// Slow peers do not lose their work as long as the adaptive deadlines cover them, and nobody stalls for a stopped one.
func TestUnequalSpeeds(t *testing.T) {
	virtual(t, 30*time.Minute, func(ctx context.Context, t *testing.T) {
		s := newSwarm(t, testPlan, "a", "b", "c")
		defer s.end("a", "b", "c")
		slow := s.config("c")
		slow.Engine = faultlab.NewQuadratic(5000, pace(2*time.Second))
		ends := s.finish(start(ctx, s.config("a")), start(ctx, s.config("b")), start(ctx, slow))
		if ends[2].Contributed < s.plan.Rounds-1 {
			t.Errorf("a peer of half the speed contributed to %d of %d rounds", ends[2].Contributed, s.plan.Rounds)
		}
	})
}

func TestGarbageOnTheTopic(t *testing.T) {
	virtual(t, 10*time.Minute, func(ctx context.Context, t *testing.T) {
		s := newSwarm(t, testPlan, "a", "b", "evil")
		defer s.end("a", "b", "evil", "stranger")
		a, b := start(ctx, s.config("a")), start(ctx, s.config("b"))
		s.pollute(ctx, "evil", true)
		s.pollute(ctx, "stranger", false)
		ends := s.finish(a, b)
		for _, o := range ends {
			if o.Contributed != s.plan.Rounds {
				t.Errorf("contributed to %d rounds, want %d", o.Contributed, s.plan.Rounds)
			}
		}
		for _, x := range ends[0].State.Weights {
			if math.Abs(float64(x)) > 100 {
				t.Fatalf("a weight of %g", x)
			}
		}
	})
}

// pollute publishes malformed and malicious messages every few hundred milliseconds: noise, and validly signed lies of a
// member about states, headers and votes.
func (s *swarm) pollute(ctx context.Context, name string, member bool) {
	node := s.net.Node(name)
	faultlab.NewBlobs(node)
	topic, err := node.Join(round.Topic(s.run), nil)
	if err != nil {
		s.t.Fatal(err)
	}
	run, rng := wire.Link{Cid: s.run}, rand.New(rand.NewPCG(5, 5))
	hash := func() (h round.Hash) {
		for i := range h {
			h[i] = byte(rng.Uint32())
		}
		return h
	}
	send := func(r round.Record) {
		raw, err := round.Seal(node.Key(), r)
		if err != nil {
			s.t.Error(err)
			return
		}
		topic.Publish(ctx, raw)
	}
	var seq, number uint64
	var parent round.Hash
	go func() {
		for {
			m, err := topic.Next(ctx)
			if err != nil {
				return
			}
			if m, err := round.Open(s.run, m.Data); err == nil && m.Kind == round.KindHeartbeat {
				s.mu.Lock()
				number, parent = m.Heartbeat.Round, m.Heartbeat.State
				s.mu.Unlock()
			}
		}
	}()
	var again func()
	again = func() {
		s.mu.Lock()
		n, p := number, parent
		s.mu.Unlock()
		seq++
		noise := make([]byte, 200)
		for i := range noise {
			noise[i] = byte(rng.Uint32())
		}
		topic.Publish(ctx, noise)
		send(round.Heartbeat{Version: round.Version, Run: run, Seq: uint64(time.Now().UnixNano()), Round: n + seq%3, State: hash(), Tokens: 1 << 50, Steps: 4 * (n + seq%3), Phase: round.PhaseTraining})
		send(round.Seen{Version: round.Version, Run: run, Round: n, Parent: p, Headers: []round.Hash{hash()}})
		send(round.Header{
			Version: round.Version, Run: run, Round: n, Parent: p, Codec: "int8/1", Blob: wire.Link{Cid: wire.RecordCID(noise)}, Size: 16 + 8 + 1024 + 5000,
			Ranges: []round.Range{{Shard: uint32(seq % 8), From: seq % 40, To: seq%40 + 16}}, Steps: 4, Tokens: 128, Precision: "x", Fragments: 1,
		})
		send(round.Commit{Version: round.Version, Run: run, Round: n, Parent: p, Set: []round.Hash{hash()}, Next: hash(), Total: 1 << 50})
		if !member {
			send(round.Roster{Version: round.Version, Run: run, Epoch: 1 << 60, Members: []peer.ID{node.ID()}})
		}
		if ctx.Err() == nil {
			time.AfterFunc(300*time.Millisecond, again)
		}
	}
	again()
}

func TestCancelAndDrain(t *testing.T) {
	virtual(t, 10*time.Minute, func(ctx context.Context, t *testing.T) {
		s := newSwarm(t, testPlan, "a", "b", "c")
		defer s.end("a", "b", "c")
		stopped, stop := context.WithCancel(ctx)
		drain := make(chan struct{})
		draining := s.config("c")
		draining.Drain = drain
		a, b, c := start(ctx, s.config("a")), start(stopped, s.config("b")), start(ctx, draining)
		time.Sleep(7 * time.Second) // in the second round
		stop()
		if o := <-b; !errors.Is(o.err, context.Canceled) || o.State == nil || o.State.Round != 1 {
			t.Errorf("cancelled worker ended with %v", o.err)
		}
		close(drain)
		if o := <-c; o.err != nil || o.State.Round != 2 || o.Contributed != 2 {
			t.Errorf("drained worker ended at %+v: %v", o.Result, o.err)
		}
		s.finish(a)
	})
}

func TestObserverSeesTheWork(t *testing.T) {
	virtual(t, 10*time.Minute, func(ctx context.Context, t *testing.T) {
		s := newSwarm(t, testPlan, "a", "b", "c")
		defer s.end("a", "b", "c")
		ends := s.finish(start(ctx, s.config("a")), start(ctx, s.config("b")), start(ctx, s.config("c")))
		synctest.Wait()
		if got := s.owner.State(); got.State != ends[0].State.Hash() || got.Tokens != ends[0].State.Tokens {
			t.Errorf("observer is at %+v", got)
		}
		work := s.owner.Work()
		if len(work) != int(s.plan.Rounds) || len(s.watched) != int(s.plan.Rounds) {
			t.Fatalf("observer saw %d rounds and reported %d, want %d", len(work), len(s.watched), s.plan.Rounds)
		}
		for n, w := range work {
			for _, name := range []string{"a", "b", "c"} {
				if w[s.id(name)] != s.plan.RoundTokens() {
					t.Errorf("round %d: %s did %d tokens", n, name, w[s.id(name)])
				}
			}
		}
		if m := s.owner.Members(); len(m) != 3 {
			t.Errorf("members %+v", m)
		}
	})
}

// A donor that dies while the joiner fetches is followed by the next, and a member that lies about a state is passed over.
func TestDonorDies(t *testing.T) {
	virtual(t, 20*time.Minute, func(ctx context.Context, t *testing.T) {
		plan := testPlan
		plan.Rounds = 12
		s := newSwarm(t, plan, "a", "b", "c", "d")
		defer s.end("a", "b", "c", "d")
		var others []<-chan outcome
		for _, name := range []string{"a", "b", "c"} {
			others = append(others, start(ctx, s.config(name)))
		}
		time.Sleep(25 * time.Second)
		joiner := s.config("d")
		var once sync.Once
		joiner.Blobs = &interruptedBlobs{joiner.Blobs.(*faultlab.Blobs), func(from []peer.ID) {
			once.Do(func() { s.net.Kill(from[0]) })
		}}
		d := start(ctx, joiner)
		var ends []outcome
		for _, w := range append(others, d) {
			if o := <-w; o.err == nil && o.State.Round == plan.Rounds {
				ends = append(ends, o)
			}
		}
		same := 0
		for _, o := range ends {
			if o.State.Hash() == ends[len(ends)-1].State.Hash() {
				same++
			}
		}
		if same < 3 {
			t.Errorf("%d of the three survivors ended with the joiner's state", same)
		}
		if o := ends[len(ends)-1]; o.Healed == 0 || o.Contributed == 0 {
			t.Errorf("the joiner healed %d times and contributed to %d rounds", o.Healed, o.Contributed)
		}
	})
}

// interruptedBlobs lets a test act when a fetch of a large object begins.
type interruptedBlobs struct {
	*faultlab.Blobs
	before func(from []peer.ID)
}

func (b *interruptedBlobs) Get(ctx context.Context, c cid.Cid, from []peer.ID, limit int64) ([]byte, error) {
	if limit > 4*5000 { // a state, not an update
		b.before(from)
	}
	return b.Blobs.Get(ctx, c, from, limit)
}

// What the store holds for a run stays bounded however long the run is, and is gone in the end.
func TestBlobsAreDropped(t *testing.T) {
	virtual(t, 20*time.Minute, func(ctx context.Context, t *testing.T) {
		plan := testPlan
		plan.Rounds = 12
		s := newSwarm(t, plan, "a", "b")
		defer s.end("a", "b")
		cfg := s.config("a")
		blobs := cfg.Blobs.(*faultlab.Blobs)
		most := 0
		cfg.Hooks.OnRound = func(worker.Report) { most = max(most, blobs.Count()) }
		s.finish(start(ctx, cfg), start(ctx, s.config("b")))
		if most > 2*5 || most < 2*4 || blobs.Count() != 0 {
			t.Errorf("at most %d blobs during the run, want four rounds of two peers; %d after it", most, blobs.Count())
		}
	})
}
