package enginetest

import (
	"math"

	"github.com/capacloud/capanode/trainer/engine"
)

// Positions implements [engine.Graph].
func (o *oracle) Positions(x, table engine.Value) engine.Value {
	a, w := o.get(x), o.get(table)
	each := a.lines() / o.batch.Rows
	return o.result(a.lines(), a.width, func(t int, row []float64) {
		for i := range row {
			row[i] = a.row(t)[i] + w.row(t % each)[i]
		}
	})
}

// Types implements [engine.Graph].
func (o *oracle) Types(x, table engine.Value) engine.Value {
	a, w := o.get(x), o.get(table)
	return o.result(a.lines(), a.width, func(t int, row []float64) {
		kind := 0
		if o.batch.Types != nil {
			kind = int(o.batch.Types[t])
		}
		for i := range row {
			row[i] = a.row(t)[i] + w.row(kind)[i]
		}
	})
}

// Features implements [engine.Graph].
func (o *oracle) Features(width int) engine.Value {
	return o.result(o.batch.Rows*o.batch.Context, width, func(t int, row []float64) {
		for i := range row {
			row[i] = float64(o.batch.Features[t*width+i])
		}
	})
}

// Patches implements [engine.Graph].
func (o *oracle) Patches(m engine.Image) engine.Value {
	count, elements := m.Patches()
	across := m.Width / m.Patch
	return o.result(o.batch.Rows*count, elements, func(t int, row []float64) {
		top, left := t%count/across*m.Patch, t%count%across*m.Patch
		for c := range m.Channels {
			for y := range m.Patch {
				for x := range m.Patch {
					pixel := ((t/count*m.Channels+c)*m.Height+top+y)*m.Width + left + x
					row[(c*m.Patch+y)*m.Patch+x] = float64(o.batch.Features[pixel])
				}
			}
		}
	})
}

// Bias implements [engine.Graph].
func (o *oracle) Bias(x, bias engine.Value) engine.Value {
	a, w := o.get(x), o.get(bias)
	return o.result(a.lines(), a.width, func(t int, row []float64) {
		for i := range row {
			row[i] = a.row(t)[i] + w.data[i]
		}
	})
}

// LayerNorm implements [engine.Graph].
func (o *oracle) LayerNorm(x, weight, bias engine.Value, eps float64) engine.Value {
	a, w, b := o.get(x), o.get(weight), o.get(bias)
	return o.result(a.lines(), a.width, func(t int, row []float64) {
		mean, square := 0.0, 0.0
		for _, v := range a.row(t) {
			mean += v / float64(a.width)
		}
		for _, v := range a.row(t) {
			square += (v - mean) * (v - mean) / float64(a.width)
		}
		for i, v := range a.row(t) {
			row[i] = w.data[i]*(v-mean)/math.Sqrt(square+eps) + b.data[i]
		}
	})
}

// GELU implements [engine.Graph].
func (o *oracle) GELU(x engine.Value) engine.Value {
	return o.each(x, func(v float64) float64 { return v * (1 + math.Erf(v/math.Sqrt2)) / 2 })
}

// GELUTanh implements [engine.Graph].
func (o *oracle) GELUTanh(x engine.Value) engine.Value {
	return o.each(x, func(v float64) float64 {
		return v * (1 + math.Tanh(math.Sqrt(2/math.Pi)*(v+0.044715*v*v*v))) / 2
	})
}

// Scale implements [engine.Graph].
func (o *oracle) Scale(x engine.Value, factor float64) engine.Value {
	return o.each(x, func(v float64) float64 { return v * factor })
}

func (o *oracle) each(x engine.Value, f func(float64) float64) engine.Value {
	a := o.get(x)
	return o.result(a.lines(), a.width, func(t int, row []float64) {
		for i, v := range a.row(t) {
			row[i] = f(v)
		}
	})
}

// Pool implements [engine.Graph].
func (o *oracle) Pool(x engine.Value, mask engine.Mask) engine.Value {
	a := o.get(x)
	each := a.lines() / o.batch.Rows
	return o.result(o.batch.Rows, a.width, func(r int, row []float64) {
		n := o.seen(r*each, each, mask)
		for t := range n {
			for i := range row {
				row[i] += a.row(r*each + t)[i] / float64(n)
			}
		}
	})
}

// Gather implements [engine.Graph].
func (o *oracle) Gather(x engine.Value) engine.Value {
	a := o.get(x)
	each, picks := a.lines()/o.batch.Rows, len(o.batch.Picks)/o.batch.Rows
	return o.result(len(o.batch.Picks), a.width, func(i int, row []float64) {
		copy(row, a.row(i/picks*each+int(o.batch.Picks[i])))
	})
}

// Scatter implements [engine.Graph].
func (o *oracle) Scatter(x, fill, like engine.Value) engine.Value {
	a, w, l := o.get(x), o.get(fill), o.get(like)
	each, picks := l.lines()/o.batch.Rows, len(o.batch.Picks)/o.batch.Rows
	return o.result(l.lines(), a.width, func(t int, row []float64) {
		copy(row, w.data)
		for i, pick := range o.batch.Picks {
			if i/picks*each+int(pick) == t {
				copy(row, a.row(i))
			}
		}
	})
}

// Layer implements [engine.Graph].
func (o *oracle) Layer(x engine.Value) engine.Value { return x }

// SquaredError implements [engine.Graph].
func (o *oracle) SquaredError(x, want engine.Value) engine.Value {
	a, b := o.get(x), o.get(want)
	sum := 0.0
	for t, target := range o.batch.Targets {
		if target == engine.Ignore {
			continue
		}
		for i, v := range a.row(t) {
			sum += (v - b.row(t)[i]) * (v - b.row(t)[i]) / float64(a.width)
		}
	}
	return o.add(matrix{1, []float64{sum}})
}

// Contrastive implements [engine.Graph].
func (o *oracle) Contrastive(a, b, scale engine.Value) engine.Value {
	x, y, factor := o.get(a), o.get(b), math.Exp(o.get(scale).data[0])
	rows := x.lines()
	s := make([][]float64, 2*rows) // rows of the scores, then columns
	for i := range s {
		s[i] = make([]float64, rows)
	}
	for i := range rows {
		for j := range rows {
			u, v := x.row(i), y.row(j)
			s[i][j] = factor * dot(u, v) / math.Sqrt(dot(u, u)*dot(v, v))
			s[rows+j][i] = s[i][j]
		}
	}
	sum := 0.0
	for i := range rows {
		sum += (logSumExp(s[i]) - s[i][i] + logSumExp(s[rows+i]) - s[i][i]) / 2
	}
	return o.add(matrix{1, []float64{sum}})
}
