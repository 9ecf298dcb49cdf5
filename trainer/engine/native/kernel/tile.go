package kernel

// The assembly keeps a tile of C in registers: a few rows of a few panels. Around it, a block of A of blockRows rows and
// blockSteps steps over k stays in the second-level cache while the panels of B pass by, and one tile's width of B
// stays in the first-level cache while the rows of A pass by. C carries the chains from one block of k to the next.
const (
	blockSteps = 256
	blockRows  = 240

	tileRowsAVX2, tilePanelsAVX2     = 6, 1
	tileRowsAVX512, tilePanelsAVX512 = 8, 3
)

// multiplyTiles computes a product, of at least one element and one step, on the assembly paths.
func (s Set) multiplyTiles(p *Product) {
	mostRows, mostPanels := tileRowsAVX2, tilePanelsAVX2
	if s.path == AVX512 {
		mostRows, mostPanels = tileRowsAVX512, tilePanelsAVX512
	}
	panels := (p.N + panel - 1) / panel
	for k := 0; k < p.K; k += blockSteps {
		steps := min(blockSteps, p.K-k)
		add := p.Add || k > 0
		for m0 := 0; m0 < p.M; m0 += blockRows {
			end := min(m0+blockRows, p.M)
			for n := 0; n < panels; {
				width := part(panels-n, mostPanels)
				b := &p.B[n*p.BPanel+k*p.BStep]
				for m := m0; m < end; {
					rows := part(end-m, mostRows)
					a := &p.A[m*p.ARow+k*p.AStep]
					if (n+width)*panel <= p.N {
						s.tile(rows, width, a, p.ARow, p.AStep, b, p.BStep, p.BPanel, &p.C[m*p.CRow+n*panel], p.CRow, steps, add)
					} else {
						s.lastTile(rows, width, p, a, b, p.C[m*p.CRow+n*panel:], p.N-n*panel, steps, add)
					}
					m += rows
				}
				n += width
			}
		}
	}
}

// part cuts the next piece off a rest so that all pieces are at most that large and differ by at most one.
func part(rest, most int) int {
	pieces := (rest + most - 1) / most
	return (rest + pieces - 1) / pieces
}

// lastTile computes a tile of C whose last panel is not full, by way of one that is.
func (s Set) lastTile(rows, width int, p *Product, a, b *float32, c []float32, columns, steps int, add bool) {
	const row = tilePanelsAVX512 * panel
	var full [tileRowsAVX512 * row]float32
	if add {
		for m := range rows {
			copy(full[m*row:], c[m*p.CRow:][:columns])
		}
	}
	s.tile(rows, width, a, p.ARow, p.AStep, b, p.BStep, p.BPanel, &full[0], row, steps, add)
	for m := range rows {
		copy(c[m*p.CRow:][:columns], full[m*row:])
	}
}

func (s Set) tile(rows, width int, a *float32, aRow, aStep int, b *float32, bStep, bPanel int, c *float32, cRow, steps int, add bool) {
	if s.path == AVX2 {
		switch rows {
		case 6:
			tile6x1AVX2(a, aRow, aStep, b, bStep, bPanel, c, cRow, steps, add)
		case 5:
			tile5x1AVX2(a, aRow, aStep, b, bStep, bPanel, c, cRow, steps, add)
		case 4:
			tile4x1AVX2(a, aRow, aStep, b, bStep, bPanel, c, cRow, steps, add)
		case 3:
			tile3x1AVX2(a, aRow, aStep, b, bStep, bPanel, c, cRow, steps, add)
		case 2:
			tile2x1AVX2(a, aRow, aStep, b, bStep, bPanel, c, cRow, steps, add)
		case 1:
			tile1x1AVX2(a, aRow, aStep, b, bStep, bPanel, c, cRow, steps, add)
		}
		return
	}
	switch width<<4 | rows {
	case 3<<4 | 8:
		tile8x3AVX512(a, aRow, aStep, b, bStep, bPanel, c, cRow, steps, add)
	case 3<<4 | 7:
		tile7x3AVX512(a, aRow, aStep, b, bStep, bPanel, c, cRow, steps, add)
	case 3<<4 | 6:
		tile6x3AVX512(a, aRow, aStep, b, bStep, bPanel, c, cRow, steps, add)
	case 3<<4 | 5:
		tile5x3AVX512(a, aRow, aStep, b, bStep, bPanel, c, cRow, steps, add)
	case 3<<4 | 4:
		tile4x3AVX512(a, aRow, aStep, b, bStep, bPanel, c, cRow, steps, add)
	case 3<<4 | 3:
		tile3x3AVX512(a, aRow, aStep, b, bStep, bPanel, c, cRow, steps, add)
	case 3<<4 | 2:
		tile2x3AVX512(a, aRow, aStep, b, bStep, bPanel, c, cRow, steps, add)
	case 3<<4 | 1:
		tile1x3AVX512(a, aRow, aStep, b, bStep, bPanel, c, cRow, steps, add)
	case 2<<4 | 8:
		tile8x2AVX512(a, aRow, aStep, b, bStep, bPanel, c, cRow, steps, add)
	case 2<<4 | 7:
		tile7x2AVX512(a, aRow, aStep, b, bStep, bPanel, c, cRow, steps, add)
	case 2<<4 | 6:
		tile6x2AVX512(a, aRow, aStep, b, bStep, bPanel, c, cRow, steps, add)
	case 2<<4 | 5:
		tile5x2AVX512(a, aRow, aStep, b, bStep, bPanel, c, cRow, steps, add)
	case 2<<4 | 4:
		tile4x2AVX512(a, aRow, aStep, b, bStep, bPanel, c, cRow, steps, add)
	case 2<<4 | 3:
		tile3x2AVX512(a, aRow, aStep, b, bStep, bPanel, c, cRow, steps, add)
	case 2<<4 | 2:
		tile2x2AVX512(a, aRow, aStep, b, bStep, bPanel, c, cRow, steps, add)
	case 2<<4 | 1:
		tile1x2AVX512(a, aRow, aStep, b, bStep, bPanel, c, cRow, steps, add)
	case 1<<4 | 8:
		tile8x1AVX512(a, aRow, aStep, b, bStep, bPanel, c, cRow, steps, add)
	case 1<<4 | 7:
		tile7x1AVX512(a, aRow, aStep, b, bStep, bPanel, c, cRow, steps, add)
	case 1<<4 | 6:
		tile6x1AVX512(a, aRow, aStep, b, bStep, bPanel, c, cRow, steps, add)
	case 1<<4 | 5:
		tile5x1AVX512(a, aRow, aStep, b, bStep, bPanel, c, cRow, steps, add)
	case 1<<4 | 4:
		tile4x1AVX512(a, aRow, aStep, b, bStep, bPanel, c, cRow, steps, add)
	case 1<<4 | 3:
		tile3x1AVX512(a, aRow, aStep, b, bStep, bPanel, c, cRow, steps, add)
	case 1<<4 | 2:
		tile2x1AVX512(a, aRow, aStep, b, bStep, bPanel, c, cRow, steps, add)
	case 1<<4 | 1:
		tile1x1AVX512(a, aRow, aStep, b, bStep, bPanel, c, cRow, steps, add)
	}
}
