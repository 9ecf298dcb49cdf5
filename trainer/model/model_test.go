package model

import (
	"errors"
	"math"
	"slices"
	"testing"

	"github.com/capacloud/capanode/trainer/engine"
)

func TestPresetsAreModels(t *testing.T) {
	sizes := map[string]int64{"llama-tiny": 102_720, "llama-1m": 986_496, "llama-10m": 10_720_128, "llama-110m": 109_529_856}
	for _, name := range PresetNames() {
		s, err := Preset(name)
		if err != nil {
			t.Fatal(err)
		}
		n, err := s.Parameters()
		if err != nil || n != sizes[name] {
			t.Errorf("%s: %d parameters, error %v, want %d", name, n, err, sizes[name])
		}
		p, err := s.Program()
		if err != nil {
			t.Fatal(err)
		}
		if _, total, err := engine.Layout(p.Params); err != nil || int64(total) != n {
			t.Errorf("%s: the layout has %d elements, error %v, Parameters says %d", name, total, err, n)
		}
		flops, err := p.FLOPsPerToken(s.Context)
		embeddings := int64(s.Vocab+(2*s.Layers+1)) * int64(s.Width) // gathered or scaled, not multiplied
		if s.TieEmbeddings {
			embeddings -= int64(s.Vocab * s.Width) // the output layer multiplies the table after all
		}
		if want := 6*(n-embeddings) + 12*int64(s.Layers*s.Width*s.Context); err != nil || flops != want {
			t.Errorf("%s: %d operations per token, error %v, want %d", name, flops, err, want)
		}
	}
	if _, err := Preset("llama-9000b"); !errors.Is(err, ErrPreset) {
		t.Errorf("error %v, want ErrPreset", err)
	}
}

func TestTensorNamesAreHuggingFace(t *testing.T) {
	s, err := Preset("llama-tiny")
	if err != nil {
		t.Fatal(err)
	}
	s.Layers, s.TieEmbeddings = 1, false
	p, err := s.Program()
	if err != nil {
		t.Fatal(err)
	}
	params, _, err := engine.Layout(p.Params)
	if err != nil {
		t.Fatal(err)
	}
	want := []struct {
		name  string
		shape []int
	}{
		{"lm_head.weight", []int{256, 64}},
		{"model.embed_tokens.weight", []int{256, 64}},
		{"model.layers.0.input_layernorm.weight", []int{64}},
		{"model.layers.0.mlp.down_proj.weight", []int{64, 160}},
		{"model.layers.0.mlp.gate_proj.weight", []int{160, 64}},
		{"model.layers.0.mlp.up_proj.weight", []int{160, 64}},
		{"model.layers.0.post_attention_layernorm.weight", []int{64}},
		{"model.layers.0.self_attn.k_proj.weight", []int{32, 64}},
		{"model.layers.0.self_attn.o_proj.weight", []int{64, 64}},
		{"model.layers.0.self_attn.q_proj.weight", []int{64, 64}},
		{"model.layers.0.self_attn.v_proj.weight", []int{32, 64}},
		{"model.norm.weight", []int{64}},
	}
	if len(params) != len(want) {
		t.Fatalf("%d parameters, want %d", len(params), len(want))
	}
	for i, w := range want {
		if params[i].Name != w.name || !slices.Equal(params[i].Shape, w.shape) {
			t.Errorf("parameter %d is %s %v, want %s %v", i, params[i].Name, params[i].Shape, w.name, w.shape)
		}
	}
}

func TestValidateNamesTheField(t *testing.T) {
	good, err := Preset("llama-tiny")
	if err != nil {
		t.Fatal(err)
	}
	for field, change := range map[string]func(s *Spec){
		"family":       func(s *Spec) { s.Family = "mamba" },
		"vocab":        func(s *Spec) { s.Vocab = MaxVocab + 1 },
		"width":        func(s *Spec) { s.Width = math.MaxInt },
		"layers":       func(s *Spec) { s.Layers = 0 },
		"heads":        func(s *Spec) { s.Heads = 3 },
		"kv_heads":     func(s *Spec) { s.KVHeads = 3 },
		"feed_forward": func(s *Spec) { s.FeedForward = -1 },
		"context":      func(s *Spec) { s.Context = math.MinInt },
		"rope_theta":   func(s *Spec) { s.RopeTheta = math.NaN() },
		"norm_eps":     func(s *Spec) { s.NormEps = math.Inf(1) },
	} {
		s := good
		change(&s)
		err := s.Validate()
		var wrong *FieldError
		if !errors.As(err, &wrong) || wrong.Field != field || !errors.Is(err, ErrSpec) {
			t.Errorf("%s: error %v", field, err)
		}
		if _, err := s.Program(); err == nil {
			t.Errorf("%s: an invalid model became a program", field)
		}
	}
	huge := good
	huge.Layers, huge.Width, huge.Heads, huge.KVHeads, huge.FeedForward = MaxLayers, MaxWidth, 512, 512, MaxFeedForward
	if err := huge.Validate(); !errors.Is(err, ErrSpec) {
		t.Errorf("every field at its limit: error %v, want ErrSpec", err)
	}
}

// Whatever a stranger's spec says, it is refused or becomes a program whose plan is consistent with it.
func FuzzSpec(f *testing.F) {
	f.Add(256, 64, 2, 4, 2, 160, 64, 10000.0, 1e-5, true)
	f.Add(2, 2, 1, 1, 1, 1, 1, 1.0, 1e-12, false)
	f.Add(MaxVocab, MaxWidth, MaxLayers, MaxHeads, 1, MaxFeedForward, MaxContext, 1e12, 0.1, false)
	f.Add(-1, 1<<62, 1<<62, 0, 0, -1, math.MaxInt, math.NaN(), math.Inf(1), true)
	f.Fuzz(func(t *testing.T, vocab, width, layers, heads, kvHeads, feedForward, context int, theta, eps float64, tie bool) {
		s := Spec{FamilyLlama, vocab, width, layers, heads, kvHeads, feedForward, context, theta, eps, tie}
		p, err := s.Program()
		if err != nil {
			if !errors.Is(err, ErrSpec) {
				t.Fatalf("error %v, want ErrSpec", err)
			}
			return
		}
		n, err := s.Parameters()
		if err != nil {
			t.Fatal(err)
		}
		plan, err := engine.NewPlan(p, engine.Shape{Rows: 1, Context: s.Context})
		if errors.Is(err, engine.ErrShape) {
			return // counts beyond 2^63 at the full context
		}
		if err != nil || plan.Parameters != n {
			t.Fatalf("plan has %d parameters, error %v, the spec %d", plan.Parameters, err, n)
		}
	})
}
