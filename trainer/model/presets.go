package model

import (
	"errors"
	"fmt"
	"strings"
)

// ErrPreset reports a preset name that does not exist.
var ErrPreset = errors.New("unknown model preset")

// Preset returns a named Spec. Callers overwrite Vocab and Context to fit their tokenizer and job.
func Preset(name string) (Spec, error) {
	base := Spec{Family: FamilyLlama, Vocab: 256, RopeTheta: 10000, NormEps: 1e-5, TieEmbeddings: true}
	switch s := &base; name {
	case "llama-tiny": // 0.10 M parameters: tests
		s.Layers, s.Width, s.Heads, s.KVHeads, s.FeedForward, s.Context = 2, 64, 4, 2, 160, 64
	case "llama-1m": // 0.99 M parameters: demos on a CPU
		s.Layers, s.Width, s.Heads, s.KVHeads, s.FeedForward, s.Context = 5, 128, 4, 2, 368, 128
	case "llama-10m": // 10.7 M parameters: an evening on a CPU
		s.Layers, s.Width, s.Heads, s.KVHeads, s.FeedForward, s.Context = 6, 384, 6, 6, 1024, 256
	case "llama-110m": // 110 M parameters with its vocabulary of 32,000: about GPT-2 small, for one GPU
		s.Layers, s.Width, s.Heads, s.KVHeads, s.FeedForward, s.Context = 12, 768, 12, 12, 2048, 1024
		s.Vocab = 32000
	default:
		return Spec{}, fmt.Errorf("%.40q, known are %s: %w", name, strings.Join(PresetNames(), ", "), ErrPreset)
	}
	return base, nil
}

// PresetNames returns the names that Preset knows, smallest model first.
func PresetNames() []string {
	return []string{"llama-tiny", "llama-1m", "llama-10m", "llama-110m"}
}
