package model

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ErrPreset reports a preset name that does not exist.
var ErrPreset = errors.New("unknown model preset")

// preset is a named size of a family.
type preset struct {
	name                                            string
	layers, width, heads, kv, inner, context, vocab int
}

// The presets, smallest first. Those with a vocabulary other than 256 are published models: GPT-2 small to XL, BERT base and
// large, SmolLM 135M and 360M, TinyLlama 1.1B, Llama 2 7B, Llama 3 8B.
var (
	llamas = []preset{
		{"llama-tiny", 2, 64, 4, 2, 160, 64, 256},          // 0.10 M parameters: tests
		{"llama-1m", 5, 128, 4, 2, 368, 128, 256},          // 0.99 M: demos on a CPU
		{"llama-10m", 6, 384, 6, 6, 1024, 256, 256},        // 10.7 M: an evening on a CPU
		{"llama-110m", 12, 768, 12, 12, 2048, 1024, 32000}, // about GPT-2 small, for one GPU
		{"llama-135m", 30, 576, 9, 3, 1536, 2048, 49152},
		{"llama-360m", 32, 960, 15, 5, 2560, 2048, 49152},
		{"llama-1b", 22, 2048, 32, 4, 5632, 2048, 32000},
		{"llama-7b", 32, 4096, 32, 32, 11008, 4096, 32000},
		{"llama-8b", 32, 4096, 32, 8, 14336, 8192, 128256},
	}
	gpts = []preset{
		{"gpt2-tiny", 2, 64, 4, 4, 256, 64, 256},
		{"gpt2-1m", 5, 128, 4, 4, 512, 128, 256},
		{"gpt2-10m", 6, 384, 6, 6, 1536, 256, 256},
		{"gpt2-124m", 12, 768, 12, 12, 3072, 1024, 50257},
		{"gpt2-355m", 24, 1024, 16, 16, 4096, 1024, 50257},
		{"gpt2-774m", 36, 1280, 20, 20, 5120, 1024, 50257},
		{"gpt2-1.6b", 48, 1600, 25, 25, 6400, 1024, 50257},
	}
	berts = []preset{
		{"bert-tiny", 2, 64, 4, 4, 256, 64, 256},
		{"bert-1m", 5, 128, 4, 4, 512, 128, 256},
		{"bert-10m", 6, 384, 6, 6, 1536, 256, 256},
		{"bert-110m", 12, 768, 12, 12, 3072, 512, 30522},
		{"bert-335m", 24, 1024, 16, 16, 4096, 512, 30522},
	}
)

// Defaults returns what a Spec of a family has where nothing else is said: everything but its sizes.
func Defaults(family string) Spec {
	s := Spec{Family: family, NormEps: 1e-5, TieEmbeddings: true}
	switch family {
	case FamilyLlama:
		s.RopeTheta = 10000
	case FamilyBERT:
		s.NormEps, s.TokenTypes = 1e-12, 2
	}
	return s
}

// Preset returns a named Spec. Callers overwrite Vocab and Context to fit their tokenizer and job.
func Preset(name string) (Spec, error) {
	for _, f := range []struct {
		family string
		sizes  []preset
	}{{FamilyLlama, llamas}, {FamilyGPT2, gpts}, {FamilyBERT, berts}} {
		at := slices.IndexFunc(f.sizes, func(p preset) bool { return p.name == name })
		if at < 0 {
			continue
		}
		p, s := f.sizes[at], Defaults(f.family)
		s.Layers, s.Width, s.Heads, s.KVHeads, s.FeedForward, s.Context, s.Vocab = p.layers, p.width, p.heads, p.kv, p.inner, p.context, p.vocab
		switch name {
		case "llama-1b", "llama-7b":
			s.TieEmbeddings = false
		case "llama-8b":
			s.TieEmbeddings, s.RopeTheta = false, 500000
		}
		return s, nil
	}
	return Spec{}, fmt.Errorf("%.40q, known are %s: %w", name, strings.Join(PresetNames(), ", "), ErrPreset)
}

// PresetNames returns the names that Preset knows, family by family, smallest model first.
func PresetNames() []string {
	var names []string
	for _, p := range slices.Concat(llamas, gpts, berts) {
		names = append(names, p.name)
	}
	return names
}
