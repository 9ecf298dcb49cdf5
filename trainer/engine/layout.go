package engine

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
)

// ErrShape reports parameters or operations whose shapes do not fit together, or a size that overflows.
var ErrShape = errors.New("shapes do not fit")

// maxElements bounds the parameters of one model: 2^40 elements are 4 TiB of float32 per view.
const maxElements = 1 << 40

// Layout returns the parameters in canonical order (sorted by name, bytewise) with their offsets set, and the total
// number of elements. Errors wrap [ErrShape]: a duplicate or empty name, a dimension below one, too many elements.
func Layout(params []Param) ([]Param, int, error) {
	sorted := slices.Clone(params)
	slices.SortFunc(sorted, func(a, b Param) int { return strings.Compare(a.Name, b.Name) })
	total := int64(0)
	for i := range sorted {
		p := &sorted[i]
		if p.Name == "" {
			return nil, 0, fmt.Errorf("parameter without a name, shape %v: %w", p.Shape, ErrShape)
		}
		if i > 0 && sorted[i-1].Name == p.Name {
			return nil, 0, fmt.Errorf("parameter %q appears twice: %w", p.Name, ErrShape)
		}
		size, err := product(p.Shape...)
		if err != nil {
			return nil, 0, fmt.Errorf("parameter %q, shape %v: %w", p.Name, p.Shape, err)
		}
		p.Offset = int(total)
		if total += size; total > maxElements || total > math.MaxInt {
			return nil, 0, fmt.Errorf("parameters up to %q exceed %d elements: %w", p.Name, int64(maxElements), ErrShape)
		}
	}
	return sorted, int(total), nil
}

// Split parts the parameters of a program into those that are trained and those that are frozen, each laid out like
// [Layout] for views of its own.
func Split(params []Param) (trained, frozen []Param, err error) {
	all, _, err := Layout(params)
	if err != nil {
		return nil, nil, err
	}
	for _, p := range all {
		to := &trained
		if p.Frozen {
			to = &frozen
		}
		p.Offset = Elements(*to)
		*to = append(*to, p)
	}
	return trained, frozen, nil
}

// Elements returns the length of the view that laid out parameters point into.
func Elements(params []Param) int {
	if len(params) == 0 {
		return 0
	}
	last := params[len(params)-1]
	return last.Offset + last.Size()
}

// product multiplies dimensions, each at least one, refusing results above maxElements.
func product(dims ...int) (int64, error) {
	n := int64(1)
	for _, d := range dims {
		if d < 1 {
			return 0, fmt.Errorf("dimension %d is below 1: %w", d, ErrShape)
		}
		if int64(d) > maxElements/n {
			return 0, fmt.Errorf("more than %d elements: %w", int64(maxElements), ErrShape)
		}
		n *= int64(d)
	}
	return n, nil
}
