package gomlx

import (
	"fmt"

	"github.com/gomlx/compute"
	"github.com/gomlx/compute/shapes"

	"github.com/capacloud/capanode/trainer/engine"
)

// needs remembers what a program reads at the batch shapes seen, for its loss and for its output alone.
type needs map[shape]engine.Needs

func (n needs) of(p engine.Program, s engine.Shape, k kind) (engine.Needs, error) {
	key := shape{evaluation, s} // training reads the same
	if k == inference {
		key.kind = inference
	}
	if have, ok := n[key]; ok {
		return have, nil
	}
	plan, err := newPlan(p, shape{k, s})
	if err != nil {
		return engine.Needs{}, err
	}
	if len(n) >= maxGraphs {
		clear(n)
	}
	n[key] = plan.Needs
	return plan.Needs, nil
}

// newPlan plans what a graph computes.
func newPlan(p engine.Program, s shape) (engine.Plan, error) {
	if s.kind == inference {
		return engine.NewOutputPlan(p, s.batch)
	}
	return engine.NewPlan(p, s.batch)
}

// check refuses a batch that the program cannot take.
func (n needs) check(p engine.Program, b engine.Batch, withTargets bool) error {
	k := evaluation
	if !withTargets {
		k = inference
	}
	have, err := n.of(p, b.Shape(), k)
	if err != nil {
		return fmt.Errorf("%w: %w", engine.ErrBatch, err)
	}
	return b.Check(p, have, withTargets)
}

// column is one thing that an execution reads of its batch.
type column struct {
	name  string
	shape shapes.Shape
	flat  func(b engine.Batch) any
}

// columns lists what the graph of a program reads at a batch shape, in the order of its inputs.
func columns(needs engine.Needs, s engine.Shape, k kind) []column {
	var all []column
	if needs.Inputs {
		all = append(all, column{"inputs", int32s(s.Rows*s.Context, 1), func(b engine.Batch) any { return b.Inputs }})
	}
	if needs.Features > 0 {
		all = append(all, column{"features", float32s(s.Rows, needs.Features), func(b engine.Batch) any { return b.Features }})
	}
	if needs.Types > 0 {
		all = append(all, column{"types", int32s(s.Rows*s.Context, 1), types})
	}
	if needs.Lengths {
		all = append(all, column{"lengths", int32s(s.Rows, 1), lengths})
	}
	if needs.Picks > 0 {
		all = append(all, column{"picks", int32s(s.Rows*s.Picks, 1), func(b engine.Batch) any { return picked(b, needs.Picks) }})
	}
	if k != inference {
		all = append(all,
			column{"targets", int32s(s.Rows*needs.Targets, 2), targetPlaces},
			column{"wanted", float32s(s.Rows*needs.Targets, 1), wanted})
	}
	return all
}

// upload puts a batch on a device, in the order of columns.
func upload(to compute.Backend, all []column, b engine.Batch) ([]compute.Buffer, error) {
	var buffers []compute.Buffer
	for _, c := range all {
		buffer, err := to.BufferFromFlatData(0, c.flat(b), c.shape)
		if err != nil {
			return nil, err
		}
		buffers = append(buffers, buffer)
	}
	return buffers, nil
}

func types(b engine.Batch) any {
	if b.Types != nil {
		return b.Types
	}
	return make([]int32, b.Rows*b.Context)
}

func lengths(b engine.Batch) any {
	if b.Lengths != nil {
		return b.Lengths
	}
	all := make([]int32, b.Rows)
	for i := range all {
		all[i] = int32(b.Context)
	}
	return all
}

// picked returns the picks as lines of the whole batch, whose rows have so many lines each.
func picked(b engine.Batch, lines int) []int32 {
	flat, each := make([]int32, len(b.Picks)), len(b.Picks)/b.Rows
	for i, p := range b.Picks {
		flat[i] = int32(i/each*lines) + p
	}
	return flat
}

// targetPlaces returns (line, target) for each line, the target 0 where it is ignored.
func targetPlaces(b engine.Batch) any {
	places := make([]int32, 2*len(b.Targets))
	for i, id := range b.Targets {
		places[2*i] = int32(i)
		if id != engine.Ignore {
			places[2*i+1] = id
		}
	}
	return places
}

// wanted returns 1 for each line whose target counts, else 0.
func wanted(b engine.Batch) any {
	flags := make([]float32, len(b.Targets))
	for i, id := range b.Targets {
		if id != engine.Ignore {
			flags[i] = 1
		}
	}
	return flags
}

// rowsOf returns the rows [from, to) of a batch.
func rowsOf(b engine.Batch, from, to int) engine.Batch {
	cut := engine.Batch{Rows: to - from, Context: b.Context}
	cut.Inputs, cut.Features = part(b.Inputs, b.Rows, from, to), part(b.Features, b.Rows, from, to)
	cut.Lengths, cut.Picks = part(b.Lengths, b.Rows, from, to), part(b.Picks, b.Rows, from, to)
	cut.Types = part(b.Types, b.Rows, from, to)
	cut.Targets = part(b.Targets, b.Rows, from, to)
	return cut
}

func part[T any](all []T, rows, from, to int) []T {
	if all == nil {
		return nil
	}
	each := len(all) / rows
	return all[from*each : to*each]
}
