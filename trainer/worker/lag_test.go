package worker

import (
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/p2p/wire"
	"github.com/capacloud/capanode/trainer/round"
)

// A peer waits as much longer for headers as most of its training mates began later, within the time that a death costs.
func TestLag(t *testing.T) {
	run, now := wire.RecordCID([]byte("run")), time.Now()
	for name, c := range map[string]struct {
		began  []time.Duration // by the mates, after this peer
		listen bool
		want   time.Duration
	}{
		"alone":             {},
		"together":          {began: []time.Duration{0, -time.Second}},
		"one late of two":   {began: []time.Duration{2 * time.Second, 0}, want: 2 * time.Second},
		"one late of three": {began: []time.Duration{2 * time.Second, 0, 0}},
		"all late":          {began: []time.Duration{2 * time.Second, 2500 * time.Millisecond, time.Second}, want: 2 * time.Second},
		"far too late":      {began: []time.Duration{9 * time.Second}, want: round.Silence},
		"a listener":        {began: []time.Duration{2 * time.Second}, listen: true},
	} {
		w := &worker{
			self: "self", board: newBoard(run, "self", "owner"), state: &round.State{Round: 4}, hash: round.Hash{1},
			began: now.Add(-20 * time.Second), listen: c.listen,
		}
		beat := func(id string, state round.Hash, phase round.Phase, began time.Duration) {
			const age = 700 * time.Millisecond // of the heartbeat
			w.board.roster.Members = append(w.board.roster.Members, peer.ID(id))
			w.board.members[peer.ID(id)] = &member{beatAt: now.Add(-age), beat: round.Heartbeat{
				Round: 4, State: state, Phase: phase, Elapsed: uint64((20*time.Second - began - age).Milliseconds()),
			}}
		}
		for i, began := range c.began {
			beat(string(rune('a'+i)), w.hash, round.PhaseTraining, began)
		}
		beat("other state", round.Hash{2}, round.PhaseTraining, time.Second)
		beat("done training", w.hash, round.PhaseExchanging, time.Second)
		if got := w.lag(now); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}
