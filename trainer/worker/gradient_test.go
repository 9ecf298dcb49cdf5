package worker

import (
	"bytes"
	"errors"
	"log/slog"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"pgregory.net/rapid"

	"github.com/capacloud/capanode/p2p/memnet"
	"github.com/capacloud/capanode/p2p/wire"
	"github.com/capacloud/capanode/trainer/codec"
	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/outer"
	"github.com/capacloud/capanode/trainer/round"
	"github.com/capacloud/capanode/trainer/tempo"
)

// plain is an engine that holds a state and gives no gradients.
type plain struct {
	engine.Engine
	state *engine.State
}

func (e plain) State() *engine.State { return e.state }

// halves is a codec that drops every other element, and loses nothing of the rest.
type halves []float32

func (h halves) Len() int { return len(h) }
func (h halves) Block(dst []float32, i int) int {
	clear(dst)
	h.Add(dst, i, 1)
	return min(len(dst), len(h))
}

func (h halves) Add(acc []float32, _ int, f float32) {
	for j := 0; j < len(h); j += 2 {
		acc[j] += float32(f * h[j])
	}
}

// holder is a worker of which only the books are used.
func holder(t interface{ Fatal(...any) }, n int) *worker {
	state, err := engine.NewState([]engine.Param{{Name: "w", Shape: []int{n}, Init: engine.Init{Std: 1}}}, 1)
	if err != nil {
		t.Fatal(err)
	}
	w := &worker{
		state: round.NewState(wire.RecordCID([]byte("run")), 1, slices.Clone(state.Weights)), feedback: outer.NewFeedback(n, 0),
		log: slog.New(slog.DiscardHandler), cfg: Config{Engine: plain{state: state}},
	}
	w.limit = normLimit(w.state.Weights)
	return w
}

// Whatever the order of rounds of both kinds, of commits, of aborts and of restarts from a snapshot: the residual is what its kind's
// rule says of the updates committed since the kind last changed, and fast weights carry it exactly when it is of weights.
func TestBooksOverSwitches(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const n = 6
		w := holder(t, n)
		want, gradients := make([]float32, n), false // the model
		for range rapid.IntRange(1, 30).Draw(t, "rounds") {
			p := pace{gradients: rapid.Bool().Draw(t, "gradients"), decay: rapid.SampledFrom([]float32{0.5, 0.96}).Draw(t, "decay")}
			w.hold(p)
			if p.gradients != gradients {
				clear(want)
				gradients = p.gradients
			}
			for i, start := range w.cfg.Engine.State().Weights {
				base := w.state.Weights[i]
				if !gradients {
					base += want[i]
				}
				if !p.gradients && start != base {
					t.Fatalf("local steps start at %g, want %g", start, base)
				}
			}
			update, decay := rapid.SliceOfN(rapid.Float32Range(-4, 4), n, n).Draw(t, "update"), float32(0)
			if gradients {
				decay = p.decay
			}
			pending, err := w.feedback.Pending(update)
			if err != nil {
				t.Fatal(err)
			}
			switch rapid.SampledFrom([]string{"commit", "abort", "restart"}).Draw(t, "end") {
			case "commit":
				if err := w.feedback.Commit(halves(slices.Clone(pending))); err != nil {
					t.Fatal(err)
				}
				for i := range want {
					want[i] = update[i] + float32(decay*want[i])
					if i%2 == 0 {
						want[i] -= want[i]
					}
				}
			case "abort":
				w.feedback.Abort()
			case "restart":
				w = restarted(t, w, n)
			}
			w.rewind()
			if got := w.feedback.Residual(); !slices.Equal(got, want) || w.components != gradients {
				t.Fatalf("residual %v of gradients %v, want %v of %v", got, w.components, want, gradients)
			}
		}
	})
}

// restarted returns the worker that a process makes of the snapshot of another.
func restarted(t *rapid.T, w *worker, n int) *worker {
	var b bytes.Buffer
	inner := w.cfg.Engine.State()
	s := snapshot{state: w.state, m: inner.M, v: inner.V, residual: w.feedback.Residual(), components: w.components}
	if err := s.write(&b); err != nil {
		t.Fatal(err)
	}
	back, err := decodeSnapshot("test", b.Bytes(), w.state.Shape())
	if err != nil {
		t.Fatal(err)
	}
	again := holder(t, n)
	again.state, again.components = back.state, back.components
	copy(again.feedback.Residual(), back.residual)
	return again
}

// An update of the other kind is refused with an error that says so, as are samples that no gradient has.
func TestKindsAreTold(t *testing.T) {
	plan := Plan{
		Rounds: 100, LocalSteps: 1, BatchRows: 4, Context: 8, Params: 6, Schedule: Schedule{Peak: 1, Total: 100},
		Tempo: &tempo.Plan{Steps: 100, Mates: 3, Gradients: true},
	}
	for _, gradients := range []bool{true, false} {
		w := holder(t, 6)
		w.self, w.board, w.windows = "self", newBoard(w.state.Run, "self", "owner"), []uint64{64}
		w.cfg.Plan = plan
		if !gradients {
			w.state.Pulse.Least = 2
		}
		p := w.pace()
		if p.gradients != gradients {
			t.Fatalf("with links that take %d steps: gradients %v", w.state.Pulse.Least, p.gradients)
		}
		header := func(change func(*round.Header)) round.Signed {
			h := w.fill(round.Header{Role: p.role(), Ranges: []round.Range{{To: 4}}, Steps: 1, Tokens: 32, Size: 30}, p)
			change(&h)
			return round.Signed{Header: h}
		}
		if err := w.trained(header(func(*round.Header) {})); err != nil {
			t.Errorf("gradients %v: own header refused: %v", gradients, err)
		}
		for _, role := range []round.Role{round.RoleTrained, round.RoleGradient, round.RoleWeights} {
			err := w.trained(header(func(h *round.Header) { h.Role = role }))
			if (role != p.role()) != errors.Is(err, ErrKind) {
				t.Errorf("gradients %v: role %d: %v", gradients, role, err)
			}
		}
		most := header(func(h *round.Header) { h.Ranges[0].To, h.Tokens = 16, 128 })
		if err := w.trained(most); (err == nil) != gradients {
			t.Errorf("gradients %v: four times the samples in one step: %v", gradients, err)
		}
		if err := w.trained(header(func(h *round.Header) { h.Ranges[0].To, h.Tokens = 17, 136 })); err == nil {
			t.Errorf("gradients %v: a gradient of more than four times the samples passed", gradients)
		}
		if err := w.trained(header(func(h *round.Header) { h.Tokens = 1 << 40 })); err == nil {
			t.Errorf("gradients %v: tokens that were not trained passed", gradients)
		}
	}
}

// A worker whose engine gives no gradients refuses a plan that needs them, rather than computing something else.
func TestEngineWithoutGradients(t *testing.T) {
	net := memnet.New().Node("a")
	defer net.Close()
	w := holder(t, 6)
	cfg := Config{
		Run: w.state.Run, Owner: "owner", Engine: w.cfg.Engine, Net: net, Blobs: noBlobs{}, Data: noData{},
		Plan: Plan{Rounds: 10, LocalSteps: 1, BatchRows: 1, Context: 1, Params: 6, Tempo: &tempo.Plan{Steps: 10, Mates: 3, Gradients: true}},
	}
	if _, err := Run(t.Context(), cfg); !errors.Is(err, ErrConfig) {
		t.Errorf("%v, want ErrConfig", err)
	}
	cfg.Plan.Tempo = &tempo.Plan{Steps: 10, Mates: 3}
	if err := cfg.check(); err != nil {
		t.Errorf("without gradients: %v", err)
	}
}

type noBlobs struct{ Blobs }
type noData struct{ Data }

func (noData) Shards() int { return 1 }

// However long gradients of the same sign add up, what is sent stays within the norm that mates accept.
func TestMomentumStaysAcceptable(t *testing.T) {
	const n = 512
	for _, clip := range []float64{0, 1, 1e9} {
		w := holder(t, n)
		w.cfg.Plan.Inner.ClipNorm = clip
		p := pace{gradients: true, decay: 0.96}
		w.hold(p)
		signs := outer.NewSigns(w.cfg.Engine.State().Params)
		c, blob := codec.Top{K: 64}, make([]byte, codec.Top{K: 64}.Bound(n))
		for step := range 200 {
			g := make([]float32, n)
			for i := range g {
				g[i] = 1e6 * float32(1+math.Sin(float64(i*i+step)))
			}
			if err := signs.Components(g, 1, w.clip(p)); err != nil {
				t.Fatal(err)
			}
			pending, err := w.feedback.Pending(g)
			if err != nil {
				t.Fatal(err)
			}
			_, src, err := pack(c, blob, pending)
			if err != nil {
				t.Fatal(err)
			}
			if norm := outer.Norm(src); !(norm <= w.limit) {
				t.Fatalf("clip %g, step %d: an update of norm %g, mates accept %g", clip, step, norm, w.limit)
			}
			if step%3 > 0 { // some are not committed
				if err := w.feedback.Commit(src); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

// A live mate that stays behind makes rounds longer; one that is in step, or gone, does not.
func TestRoundsWaitForWhoIsBehind(t *testing.T) {
	w := holder(t, 2)
	w.board = newBoard(w.state.Run, "self", "owner")
	w.board.roster.Members = []peer.ID{"mate"}
	hear := func(at uint64, ago time.Duration) {
		w.board.members["mate"] = &member{beat: round.Heartbeat{Round: at}, beatAt: time.Now().Add(-ago)}
	}
	for _, c := range []struct {
		round, behind uint64
		want          bool
	}{
		{1, 0, false}, {2, 1, false}, {20, 15, false}, {21, 16, false}, {27, 20, false}, {28, 21, true}, {29, 1, false}, {30, 10, false}, {38, 10, true},
	} {
		w.state.Round = c.round
		hear(c.round-c.behind, 0)
		if got := w.leavesBehind(); got != c.want {
			t.Errorf("round %d, a mate is %d behind: %v, want %v", c.round, c.behind, got, c.want)
		}
	}
	hear(0, time.Hour)
	if w.leavesBehind() || len(w.behind) > 0 {
		t.Error("rounds wait for a dead mate")
	}
}
