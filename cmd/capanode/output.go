package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"unicode"

	"github.com/capacloud/capanode/node"
)

// table is the form of data for people: a head and rows of cells.
type table struct {
	head []string
	rows [][]string
}

// print writes data in the format that -o asks for: a table for people, one JSON document, or one object per line.
func (a *app) print(data any, t table) error {
	switch a.format {
	case "json":
		e := json.NewEncoder(a.out)
		e.SetIndent("", "  ")
		return e.Encode(data)
	case "jsonl":
		return jsonLines(a.out, data)
	}
	w := tabwriter.NewWriter(a.out, 0, 4, 2, ' ', 0)
	if len(t.head) > 0 {
		fmt.Fprintln(w, strings.Join(t.head, "\t"))
	}
	for _, r := range t.rows {
		fmt.Fprintln(w, strings.Join(r, "\t"))
	}
	return w.Flush()
}

// jsonLines writes each element of a list as one line, and anything else as a single line.
func jsonLines(w io.Writer, data any) error {
	b, err := json.Marshal(data)
	if err != nil {
		return err
	}
	var list []json.RawMessage
	if json.Unmarshal(b, &list) != nil {
		list = []json.RawMessage{b}
	}
	for _, item := range list {
		if _, err := fmt.Fprintf(w, "%s\n", item); err != nil {
			return err
		}
	}
	return nil
}

// fail prints an error: one line for people, and an event for scripts that read a stream of them.
func (a *app) fail(err error) {
	text := oneLine(err.Error())
	if a.format == "jsonl" || a.format == "json" {
		_ = json.NewEncoder(a.out).Encode(map[string]any{"type": "error", "error": text, "exit_code": exitCode(err)})
	}
	fmt.Fprintf(a.err, "capanode: %s\n", text)
}

// oneLine joins the lines of a text, such as those of joined errors, and drops what could move a terminal's cursor.
func oneLine(text string) string {
	var parts []string
	for line := range strings.Lines(text) {
		line = strings.Map(func(r rune) rune {
			if unicode.IsControl(r) {
				return ' '
			}
			return r
		}, line)
		if line = strings.TrimPrefix(strings.TrimSpace(line), "* "); line != "" {
			parts = append(parts, line)
		}
	}
	return strings.Join(parts, "; ")
}

// size formats a count of bytes with a binary unit.
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

// count formats a number with a decimal unit: 1.2k, 3.4M.
func count(n int64) string {
	switch {
	case n >= 10_000_000_000:
		return fmt.Sprintf("%.1fG", float64(n)/1e9)
	case n >= 1_000_000:
		return fmt.Sprintf("%.1fM", float64(n)/1e6)
	case n >= 10_000:
		return fmt.Sprintf("%.1fk", float64(n)/1e3)
	}
	return fmt.Sprint(n)
}

// short abbreviates an identifier to its ends, for tables.
func short(id string) string {
	if len(id) <= 12 {
		return id
	}
	return id[:4] + "…" + id[len(id)-5:]
}

// verdictMark is the word in front of a doctor line.
func verdictMark(v node.Verdict) string { return fmt.Sprintf("%-4s", v) }
