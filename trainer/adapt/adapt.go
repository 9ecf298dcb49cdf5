// Package adapt owns which parameters of a model a run trains: all of them, all but some that stay as they are, or low-rank
// adapters beside a frozen trunk (LoRA; Hu et al., 2021). It changes a program, whatever its family, by reading how it uses
// its parameters. It refuses to know how programs are executed, and where models and adapters are stored.
package adapt

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"path"
	"slices"
	"strings"

	"github.com/capacloud/capanode/trainer/engine"
)

// ErrAdapter reports an adapter, or a choice of what is frozen, that does not fit the model.
var ErrAdapter = errors.New("adapter does not fit the model")

// AllLinear as the only target stands for every matrix that the model multiplies with, but for its output layer.
const AllLinear = "all-linear"

// Limits of a LoRA.
const (
	MaxRank    = 1024
	MaxTargets = 64
)

// LoRA is a low-rank change of some of a model's matrices: x·Wᵀ becomes x·Wᵀ + (alpha/rank)·x·Aᵀ·Bᵀ for A [rank, in] and
// B [out, rank]. A starts random and B as zero, so that training starts at the trunk.
type LoRA struct {
	Rank    int      // 1 to MaxRank
	Alpha   float64  // above 0
	Targets []string // names of modules, such as q_proj, or their ends, such as mlp.up_proj; or [AllLinear] alone
}

// Scale is what the change is multiplied by.
func (l LoRA) Scale() float64 { return l.Alpha / float64(l.Rank) }

// Check returns an error that wraps [ErrAdapter] unless every field is in range.
func (l LoRA) Check() error {
	switch {
	case l.Rank < 1 || l.Rank > MaxRank:
		return fmt.Errorf("adapt: rank %d, allowed are 1 to %d: %w", l.Rank, MaxRank, ErrAdapter)
	case !(l.Alpha > 0 && l.Alpha <= 1e6):
		return fmt.Errorf("adapt: alpha %v, allowed are above 0 to 1e6: %w", l.Alpha, ErrAdapter)
	case len(l.Targets) < 1 || len(l.Targets) > MaxTargets:
		return fmt.Errorf("adapt: %d targets, allowed are 1 to %d: %w", len(l.Targets), MaxTargets, ErrAdapter)
	}
	for _, t := range l.Targets {
		if t == "" || len(t) > 200 || t == AllLinear && len(l.Targets) > 1 {
			return fmt.Errorf("adapt: target %.40q: write names of modules, or %s alone: %w", t, AllLinear, ErrAdapter)
		}
	}
	return nil
}

// weight is the end of the name of a module's matrix.
const weight = ".weight"

// peft is what the PEFT package puts before the names of a model's modules in the files of adapters.
const peft = "base_model.model."

// down and up name the two matrices of an adapter as PEFT's files do.
func down(module string) string { return peft + module + ".lora_A" + weight }
func up(module string) string   { return peft + module + ".lora_B" + weight }

// Pair is one adapter of a program.
type Pair struct {
	Weight   string // the trunk's matrix that it changes
	Down, Up string // A and B
}

// Modules returns the adapters that a LoRA has on a program, by the name of their matrix. A target that fits no matrix, and one
// that the program uses for more than products, such as an embedding, is [ErrAdapter].
func (l LoRA) Modules(p engine.Program) ([]Pair, error) {
	if err := l.Check(); err != nil {
		return nil, err
	}
	uses, err := scan(p)
	if err != nil {
		return nil, err
	}
	var pairs []Pair
	found := make([]bool, len(l.Targets))
	for _, q := range p.Params {
		module, isWeight := strings.CutSuffix(q.Name, weight)
		if !isWeight || len(q.Shape) != 2 {
			continue
		}
		for i, t := range l.Targets {
			named := module == t || strings.HasSuffix(module, "."+t)
			all := t == AllLinear && uses.linear[q.Name] && !uses.other[q.Name] && !uses.output[q.Name]
			if !named && !all {
				continue
			}
			if !uses.linear[q.Name] || uses.other[q.Name] {
				return nil, fmt.Errorf("adapt: target %s is %s, which is more than a linear layer: %w", t, q.Name, ErrAdapter)
			}
			found[i] = true
			pairs = append(pairs, Pair{q.Name, down(module), up(module)})
			break
		}
	}
	if i := slices.Index(found, false); i >= 0 {
		return nil, fmt.Errorf("adapt: no linear layer is named %.60q; this model has %s: %w", l.Targets[i], strings.Join(uses.names(p), ", "), ErrAdapter)
	}
	slices.SortFunc(pairs, func(a, b Pair) int { return cmp.Compare(a.Weight, b.Weight) })
	return pairs, nil
}

// Apply returns the program with adapters: its own parameters are frozen, those of the adapters are trained.
func (l LoRA) Apply(p engine.Program) (engine.Program, error) {
	pairs, err := l.Modules(p)
	if err != nil {
		return engine.Program{}, err
	}
	params := slices.Clone(p.Params)
	byWeight := make(map[string]Pair, len(pairs))
	for i := range params {
		params[i].Frozen = true
	}
	for _, pair := range pairs {
		byWeight[pair.Weight] = pair
		shape := params[slices.IndexFunc(params, func(q engine.Param) bool { return q.Name == pair.Weight })].Shape
		params = append(params,
			// The variance of PEFT's default, a uniform distribution of ±1/√in.
			engine.Param{Name: pair.Down, Shape: []int{l.Rank, shape[1]}, Init: engine.Init{Std: 1 / math.Sqrt(3*float64(shape[1]))}, Decay: true},
			engine.Param{Name: pair.Up, Shape: []int{shape[0], l.Rank}, Decay: true})
	}
	q := p
	q.Name = fmt.Sprintf("%s, adapters of rank %d", p.Name, l.Rank)
	q.Params = params
	with := func(f func(engine.Graph) engine.Value) func(engine.Graph) engine.Value {
		return func(g engine.Graph) engine.Value {
			return f(&adapted{Graph: g, pairs: byWeight, scale: l.Scale(), names: map[engine.Value]string{}})
		}
	}
	q.Logits, q.Loss = with(p.Logits), with(p.Loss)
	return q, nil
}

// adapted is a graph whose products with some parameters have adapters.
type adapted struct {
	engine.Graph
	pairs map[string]Pair
	scale float64
	names map[engine.Value]string // parameters with an adapter
}

// Param implements [engine.Graph].
func (a *adapted) Param(name string) engine.Value {
	v := a.Graph.Param(name)
	if _, ok := a.pairs[name]; ok {
		a.names[v] = name
	}
	return v
}

// Linear implements [engine.Graph].
func (a *adapted) Linear(x, w engine.Value) engine.Value {
	name, ok := a.names[w]
	if !ok {
		return a.Graph.Linear(x, w)
	}
	pair := a.pairs[name]
	return engine.LowRank(a.Graph, x, w, a.Graph.Param(pair.Down), a.Graph.Param(pair.Up), a.scale)
}

// Freeze returns the program with every parameter frozen whose name fits one of the patterns, where * stands for any letters and
// ? for one. A pattern that fits nothing, and patterns that leave nothing to train, are [ErrAdapter].
func Freeze(p engine.Program, patterns []string) (engine.Program, error) {
	params := slices.Clone(p.Params)
	left := len(params)
	for _, pattern := range patterns {
		fits := false
		for i := range params {
			ok, err := path.Match(pattern, params[i].Name)
			if err != nil {
				return engine.Program{}, fmt.Errorf("adapt: pattern %.60q: %w: %w", pattern, ErrAdapter, err)
			}
			if ok && !params[i].Frozen {
				params[i].Frozen = true
				left--
			}
			fits = fits || ok
		}
		if !fits {
			return engine.Program{}, fmt.Errorf("adapt: pattern %.60q fits no parameter, the first is %s: %w", pattern, params[0].Name, ErrAdapter)
		}
	}
	if left == 0 {
		return engine.Program{}, fmt.Errorf("adapt: the patterns freeze every parameter: %w", ErrAdapter)
	}
	p.Params = params
	return p, nil
}

// Merge adds the adapters to the trunk's weights: W + scale·B·A, each element computed in float64 and rounded once. params and
// weights are the trunk's; adapters and values those of the pairs. The weights change in place.
func (l LoRA) Merge(pairs []Pair, params []engine.Param, weights []float32, adapters []engine.Param, values []float32) error {
	view := func(params []engine.Param, flat []float32, name string) ([]float32, []int) {
		i := slices.IndexFunc(params, func(p engine.Param) bool { return p.Name == name })
		if i < 0 {
			return nil, nil
		}
		p := params[i]
		return flat[p.Offset : p.Offset+p.Size()], p.Shape
	}
	for _, pair := range pairs {
		w, shape := view(params, weights, pair.Weight)
		a, _ := view(adapters, values, pair.Down)
		b, _ := view(adapters, values, pair.Up)
		if len(shape) != 2 || len(a) != l.Rank*shape[1] || len(b) != shape[0]*l.Rank {
			return fmt.Errorf("adapt: %s %v with %d and %d elements of its adapter of rank %d: %w", pair.Weight, shape, len(a), len(b), l.Rank, ErrAdapter)
		}
		row := make([]float64, shape[1])
		for o := range shape[0] {
			clear(row)
			for r := range l.Rank {
				f := float64(b[o*l.Rank+r])
				for i, v := range a[r*shape[1] : (r+1)*shape[1]] {
					row[i] += float64(f * float64(v)) // rounded before the sum on every machine
				}
			}
			line := w[o*shape[1] : (o+1)*shape[1]]
			for i, v := range row {
				line[i] = float32(float64(line[i]) + float64(l.Scale()*v))
			}
		}
	}
	return nil
}
