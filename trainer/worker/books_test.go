package worker

import (
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/trainer/codec"
	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/outer"
	"github.com/capacloud/capanode/trainer/round"
)

// still is an engine that only has a state.
type still struct {
	engine.Engine
	state *engine.State
}

func (e still) State() *engine.State { return e.state }

// A process that starts again with its clock set back is heard all the same: its heartbeats' numbers go on from the snapshot.
func TestHeartbeatsOutliveTheClock(t *testing.T) {
	saved := testSnapshot(3)
	n := len(saved.state.Weights)
	dir := t.TempDir()
	born := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	first := &worker{cfg: Config{SnapshotDir: dir, Plan: Plan{Rounds: 9, LocalSteps: 1}}, state: saved.state, log: slog.New(slog.DiscardHandler)}
	first.cfg.Engine = still{state: &engine.State{Weights: make([]float32, n), M: make([]float32, n), V: make([]float32, n)}}
	first.feedback, first.board = outer.NewFeedback(n, 0), newBoard(saved.state.Run, "self", "owner")
	first.count(born)
	first.snapshot(0, n)
	first.count(born.Add(time.Hour)) // said after the snapshot
	again := &worker{cfg: first.cfg, state: saved.state, feedback: outer.NewFeedback(n, 0), log: first.log}
	if err := again.restore(); err != nil {
		t.Fatal(err)
	}
	again.count(born.Add(-1000 * time.Hour))
	if again.seq <= first.seq {
		t.Errorf("the first heartbeat after the restart has number %d, the last before it %d", again.seq, first.seq)
	}
}

// What is left unsaid stays when a state is taken over that came about from the own one, less what of the last update went in.
func TestResidualSurvivesAHeal(t *testing.T) {
	pending, said := []float32{4, 8}, []float32{3, 8}
	decoded := func() codec.Source {
		blob := make([]byte, codec.FP32{}.Bound(2))
		size, err := codec.FP32{}.Encode(blob, said)
		if err != nil {
			t.Fatal(err)
		}
		src, err := codec.FP32{}.Open(blob[:size], 2)
		if err != nil {
			t.Fatal(err)
		}
		return src
	}
	mine, next, other := round.Ancestor{State: round.Hash{1}, Tokens: 10}, round.Hash{2}, round.Hash{3}
	update := round.Signed{Header: round.Header{Tokens: 5}, ID: round.Hash{7}}
	for name, c := range map[string]struct {
		lineage round.Lineage
		set     []round.Hash
		ledger  bool
		want    []float32
	}{
		"went in":         {round.Lineage{mine, {State: next, Tokens: 20}}, []round.Hash{update.ID}, false, []float32{1, 0}},
		"left out":        {round.Lineage{mine, {State: next, Tokens: 20}}, []round.Hash{{8}}, false, []float32{0.5, 0.5}},
		"another went in": {round.Lineage{mine, {State: other, Tokens: 20}}, []round.Hash{update.ID}, false, []float32{0.5, 0.5}},
		"of another fork": {round.Lineage{{State: other, Tokens: 20}}, []round.Hash{{8}}, false, []float32{0, 0}},
		"a ledger of one": {round.Lineage{{State: other, Tokens: 20}}, []round.Hash{{8}}, true, []float32{0.5, 0.5}},
	} {
		w := &worker{
			self: "self", state: &round.State{Round: 4, Tokens: mine.Tokens}, hash: mine.State, feedback: outer.NewFeedback(2, 0),
			board: newBoard(testSnapshot(1).state.Run, "self", "owner"), own: &own{Signed: update, decoded: decoded()},
		}
		copy(w.feedback.Residual(), []float32{0.5, 0.5})
		if _, err := w.feedback.Pending(pending); err != nil {
			t.Fatal(err)
		}
		w.board.roster.Members = []peer.ID{"mate"}
		w.board.members["mate"] = &member{commits: []round.Commit{{Round: 4, Parent: mine.State, Set: c.set, Next: next}}}
		if err := w.settleFeedback(handed{lineage: c.lineage, ledger: c.ledger}); err != nil {
			t.Fatal(err)
		}
		if got := w.feedback.Residual(); !slices.Equal(got, c.want) {
			t.Errorf("%s: residual %v, want %v", name, got, c.want)
		}
	}
}
