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

// span is a range of rows, panels or steps.
type span struct{ at, n int }

// multiplyTiles computes a product, of at least one element and one step, on the assembly paths.
func (s Set) multiplyTiles(p *Product) {
	mostRows, mostPanels := tileRowsAVX2, tilePanelsAVX2
	if s.path == AVX512 {
		mostRows, mostPanels = tileRowsAVX512, tilePanelsAVX512
	}
	panels := (p.N + panel - 1) / panel
	for k := 0; k < p.K; k += blockSteps {
		steps := min(blockSteps, p.K-k)
		for m := 0; m < p.M; m += blockRows {
			rows := min(blockRows, p.M-m)
			for n, width := 0, 0; n < panels; n += width {
				width = part(panels-n, mostPanels)
				s.multiplyColumns(p, span{k, steps}, span{m, rows}, span{n, width}, mostRows)
			}
		}
	}
}

// multiplyColumns carries a tile's width of C, for a block of rows, through a block of k.
func (s Set) multiplyColumns(p *Product, k, rows, panels span, mostRows int) {
	columns := min(panels.n*panel, p.N-panels.at*panel)
	tiles := (rows.n + mostRows - 1) / mostRows
	t := tile{
		panels: panels.n,
		aRow:   p.ARow, aStep: p.AStep,
		b: &p.B[panels.at*p.BPanel+k.at*p.BStep], bStep: p.BStep, bPanel: p.BPanel,
		steps: k.n, add: p.Add || k.at > 0,
	}
	for i, m := 0, rows.at; i < tiles; i++ {
		t.rows = part(rows.at+rows.n-m, mostRows)
		t.a = &p.A[m*p.ARow+k.at*p.AStep]
		t.ahead, t.aheadBytes = p.ahead(k, panels, i, tiles)
		c := p.C[m*p.CRow+panels.at*panel:]
		if columns == panels.n*panel {
			t.c, t.cRow = &c[0], p.CRow
			s.multiplyTile(&t)
		} else {
			s.multiplyPart(t, columns, c, p.CRow)
		}
		m += t.rows
	}
}

// ahead returns what the i-th of some tiles asks for while it computes, and how many bytes it moves on at each step, so
// that all tiles together bring in what comes next: the next panels if they are packed, else the next steps over k.
func (p *Product) ahead(k, panels span, i, tiles int) (*float32, int) {
	next, step := len(p.B), 0
	switch {
	case p.BStep == panel:
		each := panels.n * panel * k.n / tiles
		at := i * each
		next = (panels.at+panels.n+at/(panel*k.n))*p.BPanel + k.at*p.BStep + at%(panel*k.n)
		step = (4*each + k.n - 1) / k.n
	case i < panels.n:
		next = (panels.at+i)*p.BPanel + (k.at+k.n)*p.BStep
		step = 4 * p.BStep
	case p.ARow == 1:
		line := panels.at/panels.n*(tiles-panels.n) + i - panels.n
		if at := (k.at+k.n)*p.AStep + line*panel; line*panel < p.M && at < len(p.A) {
			return &p.A[at], 4 * p.AStep
		}
	}
	if next < len(p.B) {
		return &p.B[next], step
	}
	return &p.B[0], 0
}

// part cuts the next piece off a rest so that all pieces are at most that large and differ by at most one.
func part(rest, most int) int {
	pieces := (rest + most - 1) / most
	return (rest + pieces - 1) / pieces
}

// tile is what one call of the assembly does.
type tile struct {
	rows, panels  int
	a             *float32
	aRow, aStep   int
	b             *float32
	bStep, bPanel int
	c             *float32
	cRow          int
	ahead         *float32 // a line to bring into the cache at each step, aheadBytes after the last
	aheadBytes    int
	steps         int
	add           bool
}

// multiplyPart computes a tile of C whose last panel is not full, by way of one that is.
func (s Set) multiplyPart(t tile, columns int, c []float32, cRow int) {
	const row = tilePanelsAVX512 * panel
	var full [tileRowsAVX512 * row]float32
	if t.add {
		for m := range t.rows {
			copy(full[m*row:], c[m*cRow:][:columns])
		}
	}
	t.c, t.cRow = &full[0], row
	s.multiplyTile(&t)
	for m := range t.rows {
		copy(c[m*cRow:][:columns], full[m*row:])
	}
}

func (s Set) multiplyTile(t *tile) {
	if s.path == AVX2 {
		switch t.rows {
		case 6:
			tile6x1AVX2(t.a, t.aRow, t.aStep, t.b, t.bStep, t.bPanel, t.c, t.cRow, t.ahead, t.aheadBytes, t.steps, t.add)
		case 5:
			tile5x1AVX2(t.a, t.aRow, t.aStep, t.b, t.bStep, t.bPanel, t.c, t.cRow, t.ahead, t.aheadBytes, t.steps, t.add)
		case 4:
			tile4x1AVX2(t.a, t.aRow, t.aStep, t.b, t.bStep, t.bPanel, t.c, t.cRow, t.ahead, t.aheadBytes, t.steps, t.add)
		case 3:
			tile3x1AVX2(t.a, t.aRow, t.aStep, t.b, t.bStep, t.bPanel, t.c, t.cRow, t.ahead, t.aheadBytes, t.steps, t.add)
		case 2:
			tile2x1AVX2(t.a, t.aRow, t.aStep, t.b, t.bStep, t.bPanel, t.c, t.cRow, t.ahead, t.aheadBytes, t.steps, t.add)
		case 1:
			tile1x1AVX2(t.a, t.aRow, t.aStep, t.b, t.bStep, t.bPanel, t.c, t.cRow, t.ahead, t.aheadBytes, t.steps, t.add)
		}
		return
	}
	switch t.panels<<4 | t.rows {
	case 3<<4 | 8:
		tile8x3AVX512(t.a, t.aRow, t.aStep, t.b, t.bStep, t.bPanel, t.c, t.cRow, t.ahead, t.aheadBytes, t.steps, t.add)
	case 3<<4 | 7:
		tile7x3AVX512(t.a, t.aRow, t.aStep, t.b, t.bStep, t.bPanel, t.c, t.cRow, t.ahead, t.aheadBytes, t.steps, t.add)
	case 3<<4 | 6:
		tile6x3AVX512(t.a, t.aRow, t.aStep, t.b, t.bStep, t.bPanel, t.c, t.cRow, t.ahead, t.aheadBytes, t.steps, t.add)
	case 3<<4 | 5:
		tile5x3AVX512(t.a, t.aRow, t.aStep, t.b, t.bStep, t.bPanel, t.c, t.cRow, t.ahead, t.aheadBytes, t.steps, t.add)
	case 3<<4 | 4:
		tile4x3AVX512(t.a, t.aRow, t.aStep, t.b, t.bStep, t.bPanel, t.c, t.cRow, t.ahead, t.aheadBytes, t.steps, t.add)
	case 3<<4 | 3:
		tile3x3AVX512(t.a, t.aRow, t.aStep, t.b, t.bStep, t.bPanel, t.c, t.cRow, t.ahead, t.aheadBytes, t.steps, t.add)
	case 3<<4 | 2:
		tile2x3AVX512(t.a, t.aRow, t.aStep, t.b, t.bStep, t.bPanel, t.c, t.cRow, t.ahead, t.aheadBytes, t.steps, t.add)
	case 3<<4 | 1:
		tile1x3AVX512(t.a, t.aRow, t.aStep, t.b, t.bStep, t.bPanel, t.c, t.cRow, t.ahead, t.aheadBytes, t.steps, t.add)
	case 2<<4 | 8:
		tile8x2AVX512(t.a, t.aRow, t.aStep, t.b, t.bStep, t.bPanel, t.c, t.cRow, t.ahead, t.aheadBytes, t.steps, t.add)
	case 2<<4 | 7:
		tile7x2AVX512(t.a, t.aRow, t.aStep, t.b, t.bStep, t.bPanel, t.c, t.cRow, t.ahead, t.aheadBytes, t.steps, t.add)
	case 2<<4 | 6:
		tile6x2AVX512(t.a, t.aRow, t.aStep, t.b, t.bStep, t.bPanel, t.c, t.cRow, t.ahead, t.aheadBytes, t.steps, t.add)
	case 2<<4 | 5:
		tile5x2AVX512(t.a, t.aRow, t.aStep, t.b, t.bStep, t.bPanel, t.c, t.cRow, t.ahead, t.aheadBytes, t.steps, t.add)
	case 2<<4 | 4:
		tile4x2AVX512(t.a, t.aRow, t.aStep, t.b, t.bStep, t.bPanel, t.c, t.cRow, t.ahead, t.aheadBytes, t.steps, t.add)
	case 2<<4 | 3:
		tile3x2AVX512(t.a, t.aRow, t.aStep, t.b, t.bStep, t.bPanel, t.c, t.cRow, t.ahead, t.aheadBytes, t.steps, t.add)
	case 2<<4 | 2:
		tile2x2AVX512(t.a, t.aRow, t.aStep, t.b, t.bStep, t.bPanel, t.c, t.cRow, t.ahead, t.aheadBytes, t.steps, t.add)
	case 2<<4 | 1:
		tile1x2AVX512(t.a, t.aRow, t.aStep, t.b, t.bStep, t.bPanel, t.c, t.cRow, t.ahead, t.aheadBytes, t.steps, t.add)
	case 1<<4 | 8:
		tile8x1AVX512(t.a, t.aRow, t.aStep, t.b, t.bStep, t.bPanel, t.c, t.cRow, t.ahead, t.aheadBytes, t.steps, t.add)
	case 1<<4 | 7:
		tile7x1AVX512(t.a, t.aRow, t.aStep, t.b, t.bStep, t.bPanel, t.c, t.cRow, t.ahead, t.aheadBytes, t.steps, t.add)
	case 1<<4 | 6:
		tile6x1AVX512(t.a, t.aRow, t.aStep, t.b, t.bStep, t.bPanel, t.c, t.cRow, t.ahead, t.aheadBytes, t.steps, t.add)
	case 1<<4 | 5:
		tile5x1AVX512(t.a, t.aRow, t.aStep, t.b, t.bStep, t.bPanel, t.c, t.cRow, t.ahead, t.aheadBytes, t.steps, t.add)
	case 1<<4 | 4:
		tile4x1AVX512(t.a, t.aRow, t.aStep, t.b, t.bStep, t.bPanel, t.c, t.cRow, t.ahead, t.aheadBytes, t.steps, t.add)
	case 1<<4 | 3:
		tile3x1AVX512(t.a, t.aRow, t.aStep, t.b, t.bStep, t.bPanel, t.c, t.cRow, t.ahead, t.aheadBytes, t.steps, t.add)
	case 1<<4 | 2:
		tile2x1AVX512(t.a, t.aRow, t.aStep, t.b, t.bStep, t.bPanel, t.c, t.cRow, t.ahead, t.aheadBytes, t.steps, t.add)
	case 1<<4 | 1:
		tile1x1AVX512(t.a, t.aRow, t.aStep, t.b, t.bStep, t.bPanel, t.c, t.cRow, t.ahead, t.aheadBytes, t.steps, t.add)
	}
}
