// Package page owns the report on a corpus as one HTML file that needs nothing else: no script, no font, no picture from
// elsewhere. It refuses to measure anything (package data).
package page

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"slices"
	"strings"

	"github.com/capacloud/capanode/trainer/data"
)

//go:embed page.tmpl
var text string

// Write writes the page. Everything in the report, such as lines of the corpus and names of files, may come from strangers and is
// escaped. Equal reports give equal pages.
func Write(w io.Writer, title string, r data.Inspection) error {
	t, err := template.New("page").Funcs(template.FuncMap{
		"percent": func(share float64) string { return fmt.Sprintf("%.1f %%", 100*share) },
		"width":   func(share float64) string { return fmt.Sprintf("%.2f%%", 100*min(max(share, 0), 1)) },
		"count":   count,
		"size":    size,
		"join":    func(all []string) string { return strings.Join(all, ", ") },
	}).Parse(text)
	if err != nil {
		return fmt.Errorf("page: %w", err)
	}
	hinted := slices.ContainsFunc(r.Personal, func(h data.Hints) bool { return h.Count > 0 })
	if err := t.Execute(w, struct {
		Title  string
		Hinted bool
		data.Inspection
	}{title, hinted, r}); err != nil {
		return fmt.Errorf("page: %w", err)
	}
	return nil
}

// count writes a number in groups of three digits.
func count(n int64) string {
	s := fmt.Sprint(n)
	for at := len(s) - 3; at > 0 && s[at-1] != '-'; at -= 3 {
		s = s[:at] + "\u202f" + s[at:]
	}
	return s
}

// size writes bytes with a binary unit.
func size(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	f, i := float64(n), 0
	for f >= 1024 && i < len(units)-1 {
		f, i = f/1024, i+1
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", f, units[i])
}
