package engine

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"testing"
)

func TestLayoutSortsAndOffsets(t *testing.T) {
	params, total, err := Layout([]Param{{Name: "b", Shape: []int{2, 3}}, {Name: "a.10", Shape: []int{4}}, {Name: "a.2", Shape: []int{5}}})
	if err != nil || total != 15 {
		t.Fatalf("total %d, error %v", total, err)
	}
	for i, want := range []struct {
		name   string
		offset int
	}{{"a.10", 0}, {"a.2", 4}, {"b", 9}} {
		if params[i].Name != want.name || params[i].Offset != want.offset {
			t.Errorf("parameter %d is %s at %d, want %s at %d", i, params[i].Name, params[i].Offset, want.name, want.offset)
		}
	}
}

func TestLayoutRefuses(t *testing.T) {
	big := 1 << 21
	for name, params := range map[string][]Param{
		"duplicate": {{Name: "a", Shape: []int{1}}, {Name: "a", Shape: []int{2}}},
		"nameless":  {{Shape: []int{1}}},
		"zero":      {{Name: "a", Shape: []int{3, 0}}},
		"negative":  {{Name: "a", Shape: []int{-3, -3}}},
		"overflow":  {{Name: "a", Shape: []int{big, big, big, 4}}},
		"too large": {{Name: "a", Shape: []int{1 << 20, 1 << 20}}, {Name: "b", Shape: []int{1}}},
	} {
		if _, _, err := Layout(params); !errors.Is(err, ErrShape) {
			t.Errorf("%s: error %v, want ErrShape", name, err)
		}
	}
}

func TestInitialValues(t *testing.T) {
	params := []Param{
		{Name: "w", Shape: []int{300, 400}, Init: Init{Std: 0.02}},
		{Name: "norm", Shape: []int{7}, Init: Init{Fill: 1}},
	}
	s, err := NewState(params, 42)
	if err != nil {
		t.Fatal(err)
	}
	sum, squares := 0.0, 0.0
	for _, w := range s.Weights[7:] {
		sum += float64(w)
		squares += float64(w) * float64(w)
	}
	n := float64(300 * 400)
	if mean, std := sum/n, math.Sqrt(squares/n); math.Abs(mean) > 2e-4 || math.Abs(std-0.02) > 2e-4 {
		t.Errorf("mean %g, deviation %g, want 0 and 0.02", mean, std)
	}
	if s.Weights[0] != 1 || s.Weights[6] != 1 {
		t.Errorf("norm starts at %g, want 1", s.Weights[0])
	}

	// Pinned, because a job's header promises that everyone starts from the same weights.
	h := sha256.New()
	for _, w := range s.Weights {
		h.Write(binary.LittleEndian.AppendUint32(nil, math.Float32bits(w)))
	}
	const want = "4ad65a80269ef0ae401823238182962e"
	if got := fmt.Sprintf("%x", h.Sum(nil)[:16]); got != want {
		t.Errorf("initial weights hash to %s, want %s", got, want)
	}

	alone, err := NewState(params[:1], 42)
	if err != nil {
		t.Fatal(err)
	}
	if alone.Weights[0] != s.Weights[7] || alone.Weights[n1] != s.Weights[7+n1] {
		t.Error("initial values of a parameter depend on the other parameters")
	}
	if other, _ := NewState(params, 43); other.Weights[7] == s.Weights[7] {
		t.Error("two seeds start with the same weight")
	}
}

const n1 = 300*400 - 1

// slowAdamW is the textbook in float64.
func slowAdamW(w, m, v, g float64, t int, s Step, decay bool) (float64, float64, float64) {
	m = s.Beta1*m + (1-s.Beta1)*g
	v = s.Beta2*v + (1-s.Beta2)*g*g
	mh := m / (1 - math.Pow(s.Beta1, float64(t)))
	vh := v / (1 - math.Pow(s.Beta2, float64(t)))
	if decay {
		w -= s.LearningRate * s.WeightDecay * w
	}
	return w - s.LearningRate*mh/(math.Sqrt(vh)+s.Epsilon), m, v
}

func TestUpdateIsAdamW(t *testing.T) {
	const n = 3*updateChunk + 17
	params := []Param{{Name: "a", Shape: []int{n}, Init: Init{Std: 1}, Decay: true}, {Name: "b", Shape: []int{5}, Init: Init{Std: 1}}}
	step := Step{LearningRate: 0.01, Beta1: 0.9, Beta2: 0.99, Epsilon: 1e-8, WeightDecay: 0.1, ClipNorm: 1}
	var first *State
	for _, workers := range []int{1, 2, 7} {
		s, err := NewState(params, 1)
		if err != nil {
			t.Fatal(err)
		}
		w, m, v := float64(s.Weights[3]), 0.0, 0.0
		wb, mb, vb := float64(s.Weights[n]), 0.0, 0.0
		for i := 1; i <= 4; i++ {
			grads := make([]float32, n+5)
			squares := 0.0
			for j := range grads {
				grads[j] = float32(math.Sin(float64(j*i))) * 3
				squares += float64(grads[j]) * float64(grads[j])
			}
			norm, err := s.Update(grads, 3, step, workers)
			if err != nil {
				t.Fatal(err)
			}
			want := math.Sqrt(squares) / 3
			if math.Abs(norm-want) > 1e-9*want {
				t.Fatalf("norm %g, want %g", norm, want)
			}
			w, m, v = slowAdamW(w, m, v, float64(grads[3])/3/want, i, step, true)
			wb, mb, vb = slowAdamW(wb, mb, vb, float64(grads[n])/3/want, i, step, false)
		}
		if math.Abs(float64(s.Weights[3])-w) > 1e-6 || math.Abs(float64(s.Weights[n])-wb) > 1e-6 {
			t.Errorf("weights %g and %g, want %g and %g", s.Weights[3], s.Weights[n], w, wb)
		}
		if first == nil {
			first = s
			continue
		}
		for i := range s.Weights {
			if s.Weights[i] != first.Weights[i] || s.V[i] != first.V[i] {
				t.Fatalf("%d workers changed element %d", workers, i)
			}
		}
	}
}

func TestUpdateRefuses(t *testing.T) {
	s, err := NewState([]Param{{Name: "a", Shape: []int{4}, Init: Init{Fill: 1}}}, 1)
	if err != nil {
		t.Fatal(err)
	}
	good := Step{LearningRate: 0.1, Beta1: 0.9, Beta2: 0.9, Epsilon: 1e-8}
	for name, c := range map[string]struct {
		grads []float32
		want  error
	}{
		"NaN":      {[]float32{0, float32(math.NaN()), 0, 0}, ErrNumerics},
		"infinity": {[]float32{0, float32(math.Inf(-1)), 0, 0}, ErrNumerics},
		"huge":     {[]float32{0, 3e38, 0, 0}, ErrNumerics},
		"short":    {[]float32{1}, ErrShape},
	} {
		if _, err := s.Update(c.grads, 1, good, 1); !errors.Is(err, c.want) {
			t.Errorf("%s: error %v, want %v", name, err, c.want)
		}
	}
	for _, bad := range []Step{
		{LearningRate: -1, Epsilon: 1e-8}, {LearningRate: math.Inf(1), Epsilon: 1e-8}, {Beta1: 1, Epsilon: 1e-8},
		{Beta2: math.NaN(), Epsilon: 1e-8}, {}, {Epsilon: 1e-8, ClipNorm: -1},
	} {
		if _, err := s.Update(make([]float32, 4), 1, bad, 1); !errors.Is(err, ErrStep) {
			t.Errorf("%+v: error %v, want ErrStep", bad, err)
		}
	}
	if s.Steps != 0 || s.Weights[0] != 1 || s.V[0] != 0 {
		t.Error("a refused update changed the state")
	}
}

// twoLayers is a program whose costs are easily counted by hand.
func twoLayers(g Graph) Value {
	x := g.Embedding(g.Param("embed"))
	x = g.Attention(x, x, x, 4, Causal)
	return g.Linear(x, g.Param("head"))
}

func program(logits func(Graph) Value) Program {
	return Program{
		Name: "test", Vocab: 10, Context: 16, Logits: logits,
		Params: []Param{{Name: "embed", Shape: []int{10, 8}}, {Name: "head", Shape: []int{10, 8}}, {Name: "norm", Shape: []int{8}}},
		Loss:   func(g Graph) Value { return g.CrossEntropy(logits(g)) },
	}
}

func TestPlanCounts(t *testing.T) {
	p := program(twoLayers)
	flops, err := p.FLOPsPerToken(6)
	if want := int64(3 * (2*8*10 + 4*6*8)); err != nil || flops != want {
		t.Errorf("%d operations per token, error %v, want %d", flops, err, want)
	}
	plan, err := NewPlan(p, Shape{Rows: 2, Context: 6})
	if err != nil {
		t.Fatal(err)
	}
	// 12 tokens: embedding 8, attention 8 and scores 2·6, linear 10, cross-entropy 10 and one per token
	if want := int64(4 * 12 * (8 + 8 + 12 + 10 + 10 + 1)); plan.ActivationBytes != want {
		t.Errorf("%d bytes of activations, want %d", plan.ActivationBytes, want)
	}
	if plan.Parameters != 168 || len(plan.Tensors) != 7 || plan.Tensors[0].Name != "attention 3" {
		t.Errorf("plan %+v", plan)
	}
}

func TestPlanRefusesShapesThatDoNotFit(t *testing.T) {
	embed := func(g Graph) Value { return g.Embedding(g.Param("embed")) }
	for name, logits := range map[string]func(Graph) Value{
		"unknown parameter":   func(g Graph) Value { return g.Embedding(g.Param("nothing")) },
		"norm as a matrix":    func(g Graph) Value { return g.Linear(embed(g), g.Param("norm")) },
		"matrix as a norm":    func(g Graph) Value { return g.RMSNorm(embed(g), g.Param("head"), 0) },
		"parameter as input":  func(g Graph) Value { return g.Linear(g.Param("head"), g.Param("head")) },
		"input as parameter":  func(g Graph) Value { return g.Linear(embed(g), embed(g)) },
		"widths differ":       func(g Graph) Value { return g.Add(embed(g), g.Linear(embed(g), g.Param("head"))) },
		"heads do not divide": func(g Graph) Value { return g.Attention(embed(g), embed(g), embed(g), 3, Causal) },
		"odd rotary":          func(g Graph) Value { return g.Rotary(embed(g), 1, 10) },
		"theta NaN":           func(g Graph) Value { return g.Rotary(embed(g), 2, math.NaN()) },
		"logits too narrow":   embed,
		"no value":            func(Graph) Value { return 0 },
		"foreign value":       func(Graph) Value { return 99 },
	} {
		if _, err := NewPlan(program(logits), Shape{Rows: 1, Context: 4}); !errors.Is(err, ErrShape) {
			t.Errorf("%s: error %v, want ErrShape", name, err)
		}
	}
	for _, shape := range [][2]int{{0, 1}, {1, 0}, {1, 17}, {-1, 4}, {math.MaxInt, 16}} {
		if _, err := NewPlan(program(twoLayers), Shape{Rows: shape[0], Context: shape[1]}); !errors.Is(err, ErrShape) {
			t.Errorf("%d rows × %d: error %v, want ErrShape", shape[0], shape[1], err)
		}
	}
}
