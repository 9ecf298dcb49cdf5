package worker_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/p2p"
	"github.com/capacloud/capanode/p2p/wire"
	"github.com/capacloud/capanode/trainer/round"
)

// A member that announces the last round all by itself, over an update of its own: neither the end of the run nor pay may
// follow from it, whether it speaks before the others have shown up or in the middle of the run.
func TestObserverBelievesNoLoneMember(t *testing.T) {
	for _, when := range []time.Duration{time.Millisecond, 15 * time.Second} {
		t.Run(when.String(), func(t *testing.T) {
			virtual(t, 10*time.Minute, func(ctx context.Context, t *testing.T) {
				s := newSwarm(t, testPlan, "a", "b", "liar")
				defer s.end("a", "b", "liar")
				lies, stop := context.WithCancel(ctx)
				lied := make(chan struct{})
				go func() {
					defer close(lied)
					s.lie(lies, when)
				}()
				ends := s.finish(start(ctx, s.config("a")), start(ctx, s.config("b")))
				stop()
				<-lied
				synctest.Wait()
				if got := s.owner.State(); got.State != ends[0].State.Hash() {
					t.Errorf("observer is at %+v, the honest members at %s", got, ends[0].State.Hash())
				}
				for number, w := range s.owner.Work() {
					if w[s.id("liar")] != 0 {
						t.Errorf("round %d: the liar is credited with %d tokens", number, w[s.id("liar")])
					}
				}
			})
		})
	}
}

// lie announces, again and again, that the member named liar committed the last round alone.
func (s *swarm) lie(ctx context.Context, when time.Duration) {
	node := s.net.Node("liar")
	topic, err := node.Join(round.Topic(s.run), func(_ peer.ID, _ []byte) p2p.Verdict { return p2p.Accept })
	if err != nil {
		s.t.Error(err)
		return
	}
	defer topic.Close()
	run, last := wire.Link{Cid: s.run}, s.plan.Rounds-1
	header := round.Header{
		Version: round.Version, Run: run, Round: last, Parent: round.Hash{1}, Codec: "int8", Blob: run, Size: 1,
		Ranges: []round.Range{{From: 0, To: 4}}, Steps: 1, Tokens: s.plan.RoundTokens(), Fragments: 1,
	}
	raw, err := round.Seal(node.Key(), header)
	if err != nil {
		s.t.Error(err)
		return
	}
	m, err := round.Open(s.run, raw)
	if err != nil {
		s.t.Error(err)
		return
	}
	commit := round.Commit{
		Version: round.Version, Run: run, Round: last, Parent: round.Hash{1}, Set: []round.Hash{m.Hash}, Next: round.Hash{2}, Total: 1 << 60, Steps: s.plan.TotalSteps(),
	}
	time.Sleep(when)
	for seq := uint32(1); ctx.Err() == nil; seq++ {
		beat := round.Heartbeat{Version: round.Version, Run: run, Seq: uint64(seq), Round: last + 1, State: round.Hash{2}, Tokens: 1 << 60, Steps: s.plan.TotalSteps(), Phase: round.PhaseDone}
		for _, rec := range []round.Record{beat, header, commit} {
			raw, err := round.Seal(node.Key(), rec)
			if err == nil {
				err = topic.Publish(ctx, round.Salt(raw, seq))
			}
			if err != nil && ctx.Err() == nil {
				s.t.Error(err)
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(round.HeartbeatInterval):
		}
	}
}
