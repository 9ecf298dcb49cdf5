package native

import (
	"context"
	"fmt"

	"github.com/capacloud/capanode/trainer/engine"
)

// decoder implements [engine.Decoder].
type decoder struct {
	e      *executor
	packed bool      // the packs hold the weights of this sequence
	past   int       // tokens seen
	caches []*tensor // keys and values of each attention in the order of the program: [Context, width]
	out    []float32 // the logits given last
	all    engine.Batch
}

// Decoder implements [engine.Decoding].
func (e *executor) Decoder() (engine.Decoder, error) {
	if e.broken != nil {
		return nil, e.broken
	}
	g, err := e.graph(decoding, engine.Shape{Rows: 1, Context: 1})
	if err != nil {
		return nil, fmt.Errorf("native: decode: %w", err)
	}
	d := &decoder{e: e}
	bytes := int64(0)
	for _, c := range g.caches {
		t := *c
		t.buffer = &buffer{name: c.name, size: t.lines*t.ld + slack}
		d.caches = append(d.caches, &t)
		bytes += 4 * int64(t.size)
	}
	if err := g.plan.CheckMemory(bytes, e.opts.MemoryLimit); err != nil {
		return nil, fmt.Errorf("native: decode: keys and values of %d tokens: %w", e.program.Context, err)
	}
	for _, t := range d.caches {
		t.data = make([]float32, t.size)
	}
	return d, nil
}

// Len implements [engine.Decoder].
func (d *decoder) Len() int { return d.past }

// Reset implements [engine.Decoder].
func (d *decoder) Reset() { d.past, d.packed = 0, false }

// Next implements [engine.Decoder].
func (d *decoder) Next(ctx context.Context, tokens []int32) ([]float32, error) {
	out, err := d.next(ctx, tokens)
	if err != nil {
		return nil, fmt.Errorf("native: decode: %w", err)
	}
	return out, nil
}

func (d *decoder) next(ctx context.Context, tokens []int32) ([]float32, error) {
	e := d.e
	if e.broken != nil {
		return nil, e.broken
	}
	if len(tokens) < 1 || len(tokens) > e.program.Context-d.past {
		return nil, fmt.Errorf("%d tokens after %d, the model takes %d: %w", len(tokens), d.past, e.program.Context, engine.ErrBatch)
	}
	d.all = engine.Batch{Rows: 1, Context: len(tokens), Inputs: tokens}
	if err := d.all.Check(e.program, engine.Needs{Inputs: true}, false); err != nil {
		return nil, err
	}
	g, err := e.graph(decoding, d.all.Shape())
	if err != nil {
		return nil, err
	}
	if !d.packed {
		if err := e.prepare(ctx, false); err != nil {
			return nil, err
		}
		d.packed = true
	}
	for i, t := range g.caches {
		t.buffer = d.caches[i].buffer
	}
	g.batch.past = d.past
	if err := e.compute(ctx, g, d.all); err != nil {
		return nil, err
	}
	d.past += len(tokens)
	d.out = append(d.out[:0], g.output.line(g.output.lines-1)...)
	return d.out, nil
}

// cache emits the copy of new keys or values behind those of earlier tokens and returns where all of them are.
func (c *compiler) cache(fresh *tensor) *tensor {
	t := &tensor{lines: c.program.Context, width: fresh.width, ld: leading(fresh.width)}
	t.buffer = &buffer{name: fresh.name, first: -1, last: -1} // the decoder's, not in the arena
	c.caches = append(c.caches, t)
	c.perLine(fresh.lines, func(_ *worker, low, high int) {
		for i := low; i < high; i++ {
			copy(t.line(c.batch.past+i), fresh.line(i))
		}
	}, fresh)
	return t
}
