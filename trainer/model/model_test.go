package model

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/engine/enginetest"
	"github.com/capacloud/capanode/trainer/engine/native"
)

// The parameters that the authors of the published models, or transformers of their configurations, count.
var published = map[string]int64{
	"gpt2-124m": 124_439_808, "gpt2-355m": 354_823_168, "gpt2-774m": 774_030_080, "gpt2-1.6b": 1_557_611_200,
	"bert-110m": 109_514_298, "bert-335m": 335_174_458,
	"llama-135m": 134_515_008, "llama-360m": 361_821_120, "llama-1b": 1_100_048_384, "llama-7b": 6_738_415_616, "llama-8b": 8_030_261_248,
	// our own sizes
	"llama-tiny": 102_720, "llama-1m": 986_496, "llama-10m": 10_720_128, "llama-110m": 109_529_856,
	"gpt2-tiny": 120_576, "gpt2-1m": 1_040_768, "gpt2-10m": 10_844_160,
	"bert-tiny": 125_248, "bert-1m": 1_058_048, "bert-10m": 10_993_792,
}

func TestPresetsAreModels(t *testing.T) {
	if len(PresetNames()) != len(published) {
		t.Errorf("%d presets, %d counts", len(PresetNames()), len(published))
	}
	for _, name := range PresetNames() {
		s, err := Preset(name)
		if err != nil {
			t.Fatal(err)
		}
		n, err := s.Parameters()
		if err != nil || n != published[name] {
			t.Errorf("%s: %d parameters, error %v, want %d", name, n, err, published[name])
		}
		p, err := s.Program()
		if err != nil {
			t.Fatal(err)
		}
		if _, total, err := engine.Layout(p.Params); err != nil || int64(total) != n {
			t.Errorf("%s: the layout has %d elements, error %v, Parameters says %d", name, total, err, n)
		}
		flops, err := p.FLOPsPerToken(s.Context)
		if want := wantFLOPs(s, p.Params); err != nil || flops != want {
			t.Errorf("%s: %d operations per token, error %v, want %d", name, flops, err, want)
		}
		if reverse, err := Preset(strings.ToUpper(name)); err == nil {
			t.Errorf("%s passes as %+v", strings.ToUpper(name), reverse)
		}
	}
	if _, err := Preset("llama-9000b"); !errors.Is(err, ErrPreset) {
		t.Errorf("error %v, want ErrPreset", err)
	}
}

// wantFLOPs counts six operations for each weight of a matrix product and those of attention, from the parameters: tables that
// are looked up cost nothing, a tied one costs as an output layer, and of a BERT's head only the masked lines count.
func wantFLOPs(s Spec, params []engine.Param) int64 {
	layers, head := int64(0), int64(s.Vocab*s.Width) // the output layer, whatever its name
	for _, p := range params {
		switch {
		case len(p.Shape) < 2 || strings.Contains(p.Name, "embed") || strings.Contains(p.Name, ".wte.") || strings.Contains(p.Name, ".wpe.") ||
			p.Name == headName:
		case strings.HasPrefix(p.Name, bertHead):
			head += int64(p.Size())
		default:
			layers += int64(p.Size())
		}
	}
	context := int64(s.Context)
	forward := context*2*layers + 4*int64(s.Layers*s.Width)*context*context
	if s.Family == FamilyBERT {
		forward += int64(Masked(s.Context)) * 2 * head
	} else {
		forward += context * 2 * head
	}
	return 3 * forward / context
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
		"token_types":  func(s *Spec) { s.TokenTypes = 2 },
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

// What one family has, another refuses.
func TestValidateOtherFamilies(t *testing.T) {
	for name, c := range map[string]struct {
		preset, field string
		change        func(s *Spec)
	}{
		"rotary positions of a GPT-2": {"gpt2-tiny", "rope_theta", func(s *Spec) { s.RopeTheta = 10000 }},
		"grouped heads of a GPT-2":    {"gpt2-tiny", "kv_heads", func(s *Spec) { s.KVHeads = 2 }},
		"token types of a GPT-2":      {"gpt2-tiny", "token_types", func(s *Spec) { s.TokenTypes = 1 }},
		"heads of a GPT-2":            {"gpt2-tiny", "heads", func(s *Spec) { s.Heads, s.KVHeads = 3, 3 }},
		"no token types of a BERT":    {"bert-tiny", "token_types", func(s *Spec) { s.TokenTypes = 0 }},
		"many token types of a BERT":  {"bert-tiny", "token_types", func(s *Spec) { s.TokenTypes = MaxTokenTypes + 1 }},
		"rotary positions of a BERT":  {"bert-tiny", "rope_theta", func(s *Spec) { s.RopeTheta = math.NaN() }},
	} {
		s, err := Preset(c.preset)
		if err != nil {
			t.Fatal(err)
		}
		c.change(&s)
		var wrong *FieldError
		if err := s.Validate(); !errors.As(err, &wrong) || wrong.Field != c.field {
			t.Errorf("%s: %v", name, err)
		}
	}
	s, err := Preset("bert-tiny")
	if err != nil {
		t.Fatal(err)
	}
	for _, smoothing := range []float64{-0.1, 0.51, math.NaN()} {
		if _, err := s.Training(Objective{Smoothing: smoothing}); !errors.Is(err, ErrSpec) {
			t.Errorf("smoothing %v: %v", smoothing, err)
		}
	}
}

// Each family, tied and not, smoothed and not, means the same to the processors' executor as to the formulas in float64.
func TestFamiliesAgainstTheOracle(t *testing.T) {
	build := func(t *testing.T, p engine.Program, seed uint64, parallelism int) engine.Engine {
		e, err := native.New(p, native.Options{Seed: seed, Parallelism: parallelism})
		if err != nil {
			t.Fatal(err)
		}
		rng := rand.New(rand.NewPCG(seed, 0)) // fresh norms and biases hide what they do
		for i, w := range e.State().Weights {
			e.State().Weights[i] = w + float32(rng.NormFloat64()/4)
		}
		t.Cleanup(func() { _ = e.Close() })
		return e
	}
	for _, family := range []string{FamilyLlama, FamilyGPT2, FamilyBERT} {
		for _, tied := range []bool{true, false} {
			s := Defaults(family)
			s.Vocab, s.Width, s.Layers, s.Heads, s.KVHeads, s.FeedForward, s.Context, s.TieEmbeddings = 11, 12, 2, 3, 3, 14, 9, tied
			p, err := s.Training(Objective{Smoothing: 0.1})
			if err != nil {
				t.Fatal(err)
			}
			t.Run(fmt.Sprintf("%s tied=%v", family, tied), func(t *testing.T) {
				b, err := enginetest.BatchFor(rand.New(rand.NewPCG(1, 2)), p, p.Shape(2, 7))
				if err != nil {
					t.Fatal(err)
				}
				enginetest.CheckProgram(t, build, p, b)
			})
		}
	}
}

// Whatever a stranger's spec says, it is refused or becomes a program whose plan is consistent with it.
func FuzzSpec(f *testing.F) {
	f.Add(0, 256, 64, 2, 4, 2, 160, 64, 10000.0, 1e-5, true, 0)
	f.Add(0, 2, 2, 1, 1, 1, 1, 1, 1.0, 1e-12, false, 0)
	f.Add(0, MaxVocab, MaxWidth, MaxLayers, MaxHeads, 1, MaxFeedForward, MaxContext, 1e12, 0.1, false, 0)
	f.Add(0, -1, 1<<62, 1<<62, 0, 0, -1, math.MaxInt, math.NaN(), math.Inf(1), true, -1)
	f.Add(1, 256, 64, 2, 4, 4, 160, 64, 0.0, 1e-5, true, 0)
	f.Add(2, 256, 64, 2, 4, 4, 160, 64, 0.0, 1e-5, false, 2)
	f.Fuzz(func(t *testing.T, family, vocab, width, layers, heads, kvHeads, feedForward, context int, theta, eps float64, tie bool, types int) {
		families := []string{FamilyLlama, FamilyGPT2, FamilyBERT}
		s := Spec{families[uint(family)%3], vocab, width, layers, heads, kvHeads, feedForward, context, theta, eps, tie, types}
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
		plan, err := engine.NewPlan(p, p.Shape(1, s.Context))
		if errors.Is(err, engine.ErrShape) {
			return // counts beyond 2^63 at the full context
		}
		if err != nil || plan.Parameters != n {
			t.Fatalf("plan has %d parameters, error %v, the spec %d", plan.Parameters, err, n)
		}
	})
}
