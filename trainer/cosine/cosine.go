// Package cosine owns the discrete cosine transform of a model's tensors: each is cut into tiles of at most 64×64 elements, and a
// tile is replaced by its orthonormal two-dimensional DCT-II, or the other way round. A gradient is sparse there: few components
// hold most of it. The package refuses to know which components travel, and how.
//
// The results have the same bits on every machine and any number of cores: the order of operations is fixed, every product is
// rounded to float32 by an explicit conversion, and the constants come from a series that no compiler may fuse.
package cosine

import (
	"sync"

	"github.com/capacloud/capanode/trainer/codec"
	"github.com/capacloud/capanode/trainer/engine"
)

// Side is the most rows and columns of a tile.
const Side = 64

// Tile is a part of one tensor in the flat view: Rows lines of Columns elements, Stride apart, the first at Offset.
type Tile struct{ Offset, Stride, Rows, Columns int }

// Tiles covers every element of a model once.
type Tiles []Tile

// Of cuts tensors into tiles. A tensor of more than two dimensions counts as a matrix with as many columns as its last one.
func Of(params []engine.Param) (tiles Tiles) {
	for _, p := range params {
		rows, columns := 1, 1
		if n := len(p.Shape); n > 0 {
			columns = p.Shape[n-1]
		}
		if columns > 0 {
			rows = p.Size() / columns
		}
		for r := 0; r < rows; r += Side {
			for c := 0; c < columns; c += Side {
				tiles = append(tiles, Tile{p.Offset + r*columns + c, columns, min(Side, rows-r), min(Side, columns-c)})
			}
		}
	}
	return tiles
}

// Forward replaces every tile of x by its components. x is the flat view that the tiles were made for.
func (t Tiles) Forward(x []float32) { t.each(x, Tile.Forward) }

// Inverse undoes [Tiles.Forward] up to rounding.
func (t Tiles) Inverse(x []float32) { t.each(x, Tile.Inverse) }

// each works on all cores.
func (t Tiles) each(x []float32, f func(Tile, []float32)) {
	codec.ForEach(len(t), func(i int) { f(t[i], x) })
}

// square is the room of one tile, and as much again for the steps between.
type square struct{ a, b [Side * Side]float32 }

var squares = sync.Pool{New: func() any { return new(square) }}

// Forward replaces one tile of x by its components.
func (t Tile) Forward(x []float32) { t.transform(x, forward) }

// Inverse undoes [Tile.Forward] up to rounding.
func (t Tile) Inverse(x []float32) { t.transform(x, backward) }

// transform goes along the columns of the tile, turns it, and goes along what were its rows. All lines of a direction are
// transformed side by side, so that the innermost loops run over neighbours in memory.
func (t Tile) transform(x []float32, along func(x, room []float32, n, lanes int)) {
	s := squares.Get().(*square)
	defer squares.Put(s)
	size := t.Rows * t.Columns
	a, b := s.a[:size], s.b[:size]
	for r := range t.Rows {
		copy(a[r*t.Columns:], x[t.Offset+r*t.Stride:][:t.Columns])
	}
	along(a, b, t.Rows, t.Columns)
	for r := range t.Rows {
		for c, v := range a[r*t.Columns:][:t.Columns] {
			b[c*t.Rows+r] = v
		}
	}
	along(b, a, t.Columns, t.Rows)
	for r := range t.Rows {
		line := x[t.Offset+r*t.Stride:][:t.Columns]
		for c := range line {
			line[c] = b[c*t.Rows+r]
		}
	}
}
