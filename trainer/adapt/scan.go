package adapt

import (
	"fmt"
	"slices"
	"strings"

	"github.com/capacloud/capanode/trainer/engine"
)

// uses is what a program does with its parameters, by name.
type uses struct {
	linear map[string]bool // multiplies with them
	other  map[string]bool // looks lines up in them
	output map[string]bool // multiplies with them last: the output layer
}

// scan reads a program's logits and loss.
func scan(p engine.Program) (uses, error) {
	u := uses{map[string]bool{}, map[string]bool{}, map[string]bool{}}
	watched := p
	watched.Loss = func(g engine.Graph) engine.Value {
		r := &watch{g, u, map[engine.Value]string{}, map[engine.Value]string{}}
		if name, ok := r.products[p.Logits(r)]; ok {
			u.output[name] = true
		}
		return p.Loss(r)
	}
	if _, err := engine.NewPlan(watched, engine.Shape{Rows: 1, Context: 1, Picks: 1}); err != nil {
		return u, fmt.Errorf("adapt: %w", err)
	}
	return u, nil
}

// names lists the last words of the linear layers' names, for people.
func (u uses) names(p engine.Program) (all []string) {
	for _, q := range p.Params {
		module, ok := strings.CutSuffix(q.Name, weight)
		if !ok || !u.linear[q.Name] || u.other[q.Name] || u.output[q.Name] {
			continue
		}
		if short := module[strings.LastIndexByte(module, '.')+1:]; !slices.Contains(all, short) {
			all = append(all, short)
		}
	}
	return all
}

// watch is a graph that notes how matrices of parameters are used.
type watch struct {
	engine.Graph
	uses
	params   map[engine.Value]string // parameters
	products map[engine.Value]string // results of products, by the parameter
}

// Param implements [engine.Graph].
func (w *watch) Param(name string) engine.Value {
	v := w.Graph.Param(name)
	w.params[v] = name
	return v
}

// Linear implements [engine.Graph].
func (w *watch) Linear(x, weight engine.Value) engine.Value {
	v := w.Graph.Linear(x, weight)
	w.linear[w.params[weight]] = true
	w.products[v] = w.params[weight]
	return v
}

// Embedding implements [engine.Graph].
func (w *watch) Embedding(table engine.Value) engine.Value {
	w.other[w.params[table]] = true
	return w.Graph.Embedding(table)
}

// Positions implements [engine.Graph].
func (w *watch) Positions(x, table engine.Value) engine.Value {
	w.other[w.params[table]] = true
	return w.Graph.Positions(x, table)
}
