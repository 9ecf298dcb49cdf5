package chart

import (
	"encoding/xml"
	"errors"
	"io"
	"math"
	"strings"
	"testing"
)

// parse fails on text that is no XML and returns the numbers of elements by name.
func parse(t *testing.T, svg string) map[string]int {
	t.Helper()
	count, d := map[string]int{}, xml.NewDecoder(strings.NewReader(svg))
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return count
		}
		if err != nil {
			t.Fatalf("%v in\n%s", err, svg)
		}
		if e, ok := token.(xml.StartElement); ok {
			count[e.Name.Local]++
		}
	}
}

func TestSVG(t *testing.T) {
	c := Chart{Title: "Loss < bytes & tokens", X: Axis{Label: "bytes", Log: true}, Y: Axis{Label: "loss (nats)"}, Lines: []Line{
		{Name: "a", Points: [][2]float64{{10, 2}, {1000, 3}}, Dots: true, Strong: true},
		{Name: "b", Points: [][2]float64{{0, 2}, {math.NaN(), 1}, {20, 2.5}, {30, math.Inf(1)}}, Dots: true},
	}}
	got := c.SVG()
	if n := parse(t, got); n["svg"] != 1 || n["polyline"] != 1 || n["circle"] != 3 {
		t.Errorf("%v elements: what has no place on the axes is left out", n)
	}
	if got != c.SVG() || !strings.Contains(got, "prefers-color-scheme:dark") {
		t.Error("equal charts differ, or there is no dark style")
	}
	parse(t, Chart{}.SVG())
}

func TestTicks(t *testing.T) {
	for _, c := range []struct {
		log    bool
		values []float64
		want   string
	}{
		{false, []float64{2.05, 2.7}, "2 2.1 2.2 2.3 2.4 2.5 2.6 2.7"},
		{false, []float64{0, 409600}, "0 100 k 200 k 300 k 400 k 500 k"},
		{true, []float64{0.002, 1}, "0.001 0.01 0.1 1"},
		{true, []float64{5, -1}, "1 10"},
		{false, []float64{3, 3}, "3 3.2 3.4 3.6 3.8 4"},
	} {
		var got []string
		for _, v := range newScale(c.log, c.values).ticks {
			got = append(got, number(v))
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("%v: ticks %s, want %s", c.values, s, c.want)
		}
	}
}
