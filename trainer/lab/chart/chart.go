// Package chart owns one kind of picture: lines over two axes, as an SVG text that reads well on light and on dark pages. It
// refuses to know what is drawn. Equal charts give equal bytes.
package chart

import (
	"fmt"
	"html"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Chart is a picture of lines.
type Chart struct {
	Title string `json:"title"`
	X     Axis   `json:"x"`
	Y     Axis   `json:"y"`
	Lines []Line `json:"lines"`
}

// Axis is a direction with its label, which names the unit.
type Axis struct {
	Label string `json:"label"`
	Log   bool   `json:"log,omitempty"` // logarithmic to base 10; values of 0 and less are left out
}

// Line is a series of points, joined in their order.
type Line struct {
	Name   string       `json:"name"`
	Points [][2]float64 `json:"points"`           // x, y
	Strong bool         `json:"strong,omitempty"` // drawn thick
	Dots   bool         `json:"dots,omitempty"`   // each point is marked
	Dashed bool         `json:"dashed,omitempty"`
}

const (
	width, height            = 830, 440
	left, right, top, bottom = 66, 260, 44, 52 // margins; the legend stands on the right
	plotWidth, plotHeight    = width - left - right, height - top - bottom
)

// colours are told apart by people who see red and green alike, and stand out on white and on near-black (after Wong, Nature
// Methods 2011, brightened).
var colours = []string{"#d55e00", "#1f83c4", "#009e73", "#cc79a7", "#b8860b", "#56a4d9", "#8a6fd1", "#7f7f7f", "#a0522d", "#3b8686"}

const style = `<style>
text{font:12px system-ui,sans-serif;fill:#24292f}.title{font-size:14px;font-weight:600}.grid{stroke:#d0d7de;stroke-width:1}
.frame{stroke:#57606a;stroke-width:1;fill:none}.back{fill:#ffffff}
@media (prefers-color-scheme:dark){text{fill:#e6edf3}.grid{stroke:#30363d}.frame{stroke:#8b949e}.back{fill:#0d1117}}
</style>`

// SVG draws the chart.
func (c Chart) SVG() string {
	var w strings.Builder
	fmt.Fprintf(&w, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" role="img" aria-label="%s">`+"\n%s\n",
		width, height, width, height, html.EscapeString(c.Title), style)
	fmt.Fprintf(&w, `<rect class="back" width="%d" height="%d"/>`+"\n", width, height)
	fmt.Fprintf(&w, `<text class="title" x="%d" y="24">%s</text>`+"\n", left, html.EscapeString(c.Title))
	x, y := c.scales()
	for _, v := range x.ticks {
		at := left + x.place(v)*plotWidth
		fmt.Fprintf(&w, `<line class="grid" x1="%.1f" y1="%d" x2="%.1f" y2="%d"/><text x="%.1f" y="%d" text-anchor="middle">%s</text>`+"\n",
			at, top, at, top+plotHeight, at, top+plotHeight+18, number(v))
	}
	for _, v := range y.ticks {
		at := top + (1-y.place(v))*plotHeight
		fmt.Fprintf(&w, `<line class="grid" x1="%d" y1="%.1f" x2="%d" y2="%.1f"/><text x="%d" y="%.1f" text-anchor="end">%s</text>`+"\n",
			left, at, left+plotWidth, at, left-8, at+4, number(v))
	}
	fmt.Fprintf(&w, `<rect class="frame" x="%d" y="%d" width="%d" height="%d"/>`+"\n", left, top, plotWidth, plotHeight)
	fmt.Fprintf(&w, `<text x="%d" y="%d" text-anchor="middle">%s</text>`+"\n", left+plotWidth/2, height-12, html.EscapeString(c.X.Label))
	fmt.Fprintf(&w, `<text transform="translate(16 %d) rotate(-90)" text-anchor="middle">%s</text>`+"\n", top+plotHeight/2, html.EscapeString(c.Y.Label))
	for i, l := range c.Lines {
		c.line(&w, i, l, x, y)
	}
	w.WriteString("</svg>\n")
	return w.String()
}

// line draws one series and its entry in the legend.
func (c Chart) line(w *strings.Builder, i int, l Line, x, y scale) {
	colour, thick, dash := colours[i%len(colours)], 1.6, ""
	if l.Strong {
		thick = 3
	}
	if l.Dashed {
		dash = ` stroke-dasharray="6 4"`
	}
	var path []string
	for _, p := range l.Points {
		if !x.shows(p[0]) || !y.shows(p[1]) {
			continue
		}
		px, py := left+x.place(p[0])*plotWidth, top+(1-y.place(p[1]))*plotHeight
		path = append(path, fmt.Sprintf("%.1f,%.1f", px, py))
		if l.Dots {
			fmt.Fprintf(w, `<circle cx="%.1f" cy="%.1f" r="%.1f" fill="%s"/>`+"\n", px, py, thick+1.4, colour)
		}
	}
	if len(path) > 1 {
		fmt.Fprintf(w, `<polyline points="%s" fill="none" stroke="%s" stroke-width="%.1f"%s/>`+"\n", strings.Join(path, " "), colour, thick, dash)
	}
	at := top + 8 + 20*i
	fmt.Fprintf(w, `<line x1="%d" y1="%d" x2="%d" y2="%d" stroke="%s" stroke-width="%.1f"%s/><text x="%d" y="%d">%s</text>`+"\n",
		left+plotWidth+12, at, left+plotWidth+36, at, colour, thick, dash, left+plotWidth+42, at+4, html.EscapeString(l.Name))
}

// scale maps values to 0 to 1.
type scale struct {
	log       bool
	low, high float64 // of the values, or of their logarithms
	ticks     []float64
}

func (s scale) shows(v float64) bool {
	return !math.IsNaN(v) && !math.IsInf(v, 0) && (!s.log || v > 0)
}

func (s scale) place(v float64) float64 {
	if s.log {
		v = math.Log10(v)
	}
	return (v - s.low) / (s.high - s.low)
}

func (c Chart) scales() (x, y scale) {
	var xs, ys []float64
	for _, l := range c.Lines {
		for _, p := range l.Points {
			xs, ys = append(xs, p[0]), append(ys, p[1])
		}
	}
	return newScale(c.X.Log, xs), newScale(c.Y.Log, ys)
}

func newScale(log bool, values []float64) scale {
	s := scale{log: log}
	values = slices.DeleteFunc(values, func(v float64) bool { return !s.shows(v) })
	if len(values) == 0 {
		values = []float64{1, 10}
	}
	low, high := slices.Min(values), slices.Max(values)
	if log {
		s.low, s.high = math.Floor(math.Log10(low)+1e-9), math.Ceil(math.Log10(high)-1e-9)
		if s.high <= s.low {
			s.high = s.low + 1
		}
		for e := s.low; e <= s.high; e++ {
			s.ticks = append(s.ticks, math.Pow(10, e))
		}
		return s
	}
	if high <= low {
		high = low + 1
	}
	step := math.Pow(10, math.Floor(math.Log10((high-low)/4)))
	for _, f := range []float64{5, 2} {
		if (high-low)/(f*step) >= 4 {
			step *= f
			break
		}
	}
	s.low, s.high = math.Floor(low/step)*step, math.Ceil(high/step)*step
	for i := 0; s.low+float64(i)*step <= s.high+step/2; i++ {
		s.ticks = append(s.ticks, s.low+float64(i)*step)
	}
	return s
}

// number writes a tick: 0.001, 25, 1.5 M.
func number(v float64) string {
	unit := ""
	switch a := math.Abs(v); {
	case a >= 1e9:
		v, unit = v/1e9, " G"
	case a >= 1e6:
		v, unit = v/1e6, " M"
	case a >= 1e4:
		v, unit = v/1e3, " k"
	}
	return strconv.FormatFloat(v, 'g', 4, 64) + unit
}
