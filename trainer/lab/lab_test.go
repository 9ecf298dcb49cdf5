package lab

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/capacloud/capanode/trainer/model"
	"github.com/capacloud/capanode/trainer/outer"
	"github.com/capacloud/capanode/trainer/round"
	"github.com/capacloud/capanode/trainer/tempo"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// speech is a text whose next byte can be learnt.
func speech(bytes int) Text {
	words := []string{"gossip ", "average ", "peer ", "round ", "update ", "weights ", "momentum\n"}
	rng := rand.New(rand.NewPCG(1, 2))
	var w strings.Builder
	for w.Len() < bytes {
		w.WriteString(words[rng.IntN(len(words))])
	}
	return Split([]byte(w.String()))
}

func setup(peers, steps int) Setup {
	return Setup{
		Model: model.Spec{Family: model.FamilyLlama, Vocab: 256, Width: 32, Layers: 2, Heads: 2, KVHeads: 1, FeedForward: 64, Context: 16,
			RopeTheta: 10000, NormEps: 1e-5, TieEmbeddings: true},
		Text: speech(20_000), Peers: peers, Rows: 4, Steps: steps, Seed: 1, Rate: 6e-3, Windows: 32,
	}
}

func steady(h int, codec string, rate, momentum float32) func(uint64) tempo.Beat {
	return func(uint64) tempo.Beat {
		return tempo.Beat{LocalSteps: h, Codec: codec, Outer: outer.Settings{LearningRate: rate, Momentum: momentum}}
	}
}

func methods() []Method {
	o := outer.Settings{LearningRate: 0.7, Momentum: 0.3}
	return []Method{
		Parallel{}, Alone{}, Apart{}, Apart{Average: true}, DiLoCo{5, o}, Streaming{Every: 6, Overlap: 2, Alpha: 0.5, Outer: o},
		NoLoCo{5, 0.5, 0.7, 0.7}, DeMo{Keep: 256, Decay: 0.95}, Relay{Codec: "top512", Decay: 0.95},
		Gather{Label: "gather", Pace: steady(5, "int8", 0.7, 0.3)},
		Gossip{Label: "gossip", Pace: steady(5, "int8", 0.7, 0.3), Size: 2, Heal: 2, Rate: 1, Codec: "int8", Finale: "int8"},
		Gossip{Label: "weights", Pace: steady(5, "int8", 0.7, 0.5), Size: 2, Weights: true},
	}
}

// Every method learns, and gives the same digits on any number of cores.
func TestMethodsLearnAndRepeat(t *testing.T) {
	steps, most := 16, 4.6
	if testing.Short() {
		steps, most = 4, 6
	}
	for _, m := range methods() {
		results := map[string]bool{}
		for _, cores := range []int{1, 3} {
			old := runtime.GOMAXPROCS(cores)
			r, err := Run(t.Context(), setup(4, steps), m)
			runtime.GOMAXPROCS(old)
			if err != nil {
				t.Fatal(err)
			}
			if r.Loss > most {
				t.Errorf("%s: loss %g; guessing gives 5.5", m.Name(), r.Loss)
			}
			results[fmt.Sprintf("%v %v", math.Float64bits(r.Loss), r.Bytes)] = true
		}
		if len(results) != 1 {
			t.Errorf("%s: other digits on other numbers of cores", m.Name())
		}
	}
}

// Bytes follow from the settings alone.
func TestBytes(t *testing.T) {
	for _, c := range []struct {
		peers  int
		m      Method
		bits   float64 // per parameter and step
		rounds int
	}{
		{4, Parallel{}, 48, 10}, {2, Parallel{}, 32, 10}, {4, Alone{}, 0, 0}, {4, Apart{Average: true}, 4.8, 1},
		{4, DiLoCo{5, outer.Settings{LearningRate: 1}}, 9.6, 2}, {4, DiLoCo{4, outer.Settings{LearningRate: 1}}, 14.4, 3},
		{4, NoLoCo{5, 0.5, 0.7, 0.7}, 12.8, 2},
		{4, Streaming{Every: 1, Outer: outer.Settings{LearningRate: 1}}, 1.5 * (4 + 16.0/256), 30},
		{4, Gather{Pace: steady(5, "fp32", 1, 0)}, 2 * 3 * 32.0 / 10, 2},
		{4, Gossip{Pace: steady(5, "fp32", 1, 0), Size: 2}, 2 * 32.0 / 10, 2},
	} {
		r, err := Run(t.Context(), setup(c.peers, 10), c.m)
		if err != nil {
			t.Fatal(err)
		}
		if math.Abs(r.Bits-c.bits) > 0.01*c.bits || r.Rounds != c.rounds {
			t.Errorf("%d peers, %s: %.4f bits in %d exchanges, want %.4f in %d", c.peers, c.m.Name(), r.Bits, r.Rounds, c.bits, c.rounds)
		}
	}
}

// In groups, what a peer downloads does not grow with the run.
func TestDownloadsStayFlat(t *testing.T) {
	var first float64
	for _, peers := range []int{8, 16, 32} {
		s := setup(peers, 4)
		s.Rows, s.Windows = 1, 1
		r, err := Run(t.Context(), s, Gossip{Pace: steady(1, "top512", 1, 0), Size: 4, Heal: 4, Rate: 1, Codec: "int4"})
		if err != nil {
			t.Fatal(err)
		}
		if first == 0 {
			first = r.Bytes
		}
		if r.Bytes < 0.98*first || r.Bytes > 1.02*first {
			t.Errorf("%d peers download %.0f bytes each, eight %.0f", peers, r.Bytes, first)
		}
	}
}

// With nothing lost and nothing added, the methods fall together: one peer's averages change nothing, and the program's own
// method over float32 is exact DiLoCo.
func TestMethodsAgreeWhereTheyMust(t *testing.T) {
	loss := func(peers int, m Method) float64 {
		r, err := Run(t.Context(), setup(peers, 12), m)
		if err != nil {
			t.Fatal(err)
		}
		return r.Loss
	}
	for name, pair := range map[string][2]float64{
		"a lone peer":          {loss(1, Alone{}), loss(1, DiLoCo{3, outer.Settings{LearningRate: 1}})},
		"a lone data-parallel": {loss(1, Alone{}), loss(1, Parallel{})},
		"float32 gather": {loss(4, DiLoCo{3, outer.Settings{LearningRate: 0.7, Momentum: 0.5}}),
			loss(4, Gather{Pace: steady(3, "fp32", 0.7, 0.5), Plain: true})},
		"groups of all": {loss(4, Gather{Pace: steady(3, "int8", 0.7, 0.5)}), loss(4, Gossip{Pace: steady(3, "int8", 0.7, 0.5)})},
		"a stream without overlap in one fragment": {loss(4, Apart{Average: true}), loss(4, DiLoCo{12, outer.Settings{LearningRate: 1}})},
	} {
		if math.Abs(pair[0]-pair[1]) > 1e-4 {
			t.Errorf("%s: losses %g and %g", name, pair[0], pair[1])
		}
	}
}

// After the finale all peers hold the same bits.
func TestFinaleMakesEqual(t *testing.T) {
	for _, peers := range []int{4, 5} {
		s, err := newSwarm(setup(peers, 6))
		if err != nil {
			t.Fatal(err)
		}
		defer s.close()
		trial, err := Gossip{Pace: steady(2, "int8", 0.7, 0.3), Size: 2, Finale: "int8"}.Begin(s)
		if err != nil {
			t.Fatal(err)
		}
		for step := range 6 {
			if step == 5 && slices.Equal(trial.Shared(0), trial.Shared(1)) {
				t.Error("peers that met different mates have equal weights")
			}
			if err := trial.Step(t.Context(), step); err != nil {
				t.Fatal(err)
			}
		}
		for p := range peers {
			if !slices.Equal(trial.Shared(p), trial.Shared(0)) {
				t.Errorf("%d peers: peer %d ends with other weights", peers, p)
			}
		}
	}
}

// What a coarse codec drops stays with its peer: an exchange moves the mean of the fast weights by nothing.
func TestNothingIsLostToTheCodec(t *testing.T) {
	s, err := newSwarm(setup(3, 4))
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	trial, err := Gather{Pace: steady(1, "top64", 1, 0), Plain: true}.Begin(s)
	if err != nil {
		t.Fatal(err)
	}
	g := trial.(*gather)
	g.beat = g.Pace(0)
	before, after := make([]float32, s.Parameters()), make([]float32, s.Parameters())
	for step := range 4 {
		if err := s.Local(t.Context(), step); err != nil {
			t.Fatal(err)
		}
		s.meanFast(before)
		updates := make([]outer.Update, s.Peers)
		for p := range updates {
			if updates[p], err = g.encode(p); err != nil {
				t.Fatal(err)
			}
		}
		if err := g.apply(updates); err != nil {
			t.Fatal(err)
		}
		s.meanFast(after)
		for i := range before {
			if math.Abs(float64(before[i]-after[i])) > 1e-6 {
				t.Fatalf("step %d, element %d: the mean of the peers was %g, the exchange made it %g", step, i, before[i], after[i])
			}
		}
	}
}

// Data-parallel peers together read each training window once an epoch.
func TestSamplesAreDealtOnce(t *testing.T) {
	s, err := newSwarm(setup(3, 4))
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	n := int(s.Text.windows(s.Model.Context))
	seen := map[string]int{}
	for i := range n {
		seen[fmt.Sprint(round.Permute(s.Seed, uint64(n), uint64(i)))]++
	}
	if len(seen) != n {
		t.Errorf("%d of %d windows in an epoch", len(seen), n)
	}
	if a, b := s.batch(0, 0), s.batch(1, 0); slices.Equal(a.Inputs, b.Inputs) {
		t.Error("two peers read the same")
	}
}

func TestFourBitFloats(t *testing.T) {
	x := []float32{8, -7, 5, 0.125, 0.05, 0, -2.9, 3.1}
	e3m0(x)
	if want := []float32{8, -8, 4, 0.125, 0, 0, -2, 4}; !slices.Equal(x, want) {
		t.Errorf("%v, want %v", x, want)
	}
}

func TestRefusals(t *testing.T) {
	bad := setup(3, 2)
	bad.Peers = 0
	small := setup(2, 2)
	small.Text.Train = small.Text.Train[:100]
	for name, c := range map[string]struct {
		s Setup
		m Method
	}{
		"no peers": {bad, Alone{}}, "short text": {small, Alone{}}, "odd pairs": {setup(3, 2), NoLoCo{Every: 1}},
		"no rounds": {setup(2, 2), DiLoCo{}}, "no schedule": {setup(2, 2), Gather{}}, "overlap": {setup(2, 2), Streaming{Every: 2, Overlap: 2}},
	} {
		if _, err := Run(t.Context(), c.s, c.m); !errors.Is(err, ErrSetup) {
			t.Errorf("%s: %v", name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Run(ctx, setup(2, 2), Parallel{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
