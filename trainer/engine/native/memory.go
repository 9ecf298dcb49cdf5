package native

import (
	"fmt"
	"slices"

	"github.com/capacloud/capanode/trainer/engine"
)

// memory is what an executor holds, in elements of four bytes.
type memory struct {
	state   int64 // in bytes
	packs   int64
	tables  int64 // angles of rotary embeddings, and losses
	arena   int
	scratch int // of one worker
	workers int
}

// stateBytes is what the parameters take: weights, both moments and the gradient; of frozen ones the weights alone.
func stateBytes(trained, frozen []engine.Param) int64 {
	return 4 * (4*int64(engine.Elements(trained)) + int64(engine.Elements(frozen)))
}

func (m memory) bytes() int64 {
	return m.state + 4*(m.packs+m.tables+int64(m.arena)+int64(m.scratch)*int64(m.workers))
}

// Memory returns the bytes that an executor with these options holds once it has trained a batch of that shape: the state,
// the laid out weights, the tables, the arena and the scratch of its threads. It allocates none of them. Errors wrap
// [engine.ErrShape].
func Memory(p engine.Program, shape engine.Shape, opts Options) (int64, error) {
	trained, frozen, err := engine.Split(p.Params)
	if err != nil {
		return 0, fmt.Errorf("native: program %q: %w", p.Name, err)
	}
	opts = opts.defaults()
	w := newWeights(&engine.State{})
	g, err := compile(source{p, slices.Concat(trained, frozen), w, opts}, shape, training)
	if err != nil {
		return 0, fmt.Errorf("native: program %q: %w", p.Name, err)
	}
	need := memory{state: stateBytes(trained, frozen), packs: w.size(), tables: g.tables, arena: g.arena, scratch: g.scratch, workers: opts.Parallelism}
	return need.bytes(), nil
}
