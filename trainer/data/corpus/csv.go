package corpus

import (
	"bufio"
	"bytes"
	"io"
	"slices"
)

// csv reads a table with a header. Fields may be quoted as in RFC 4180; a quote within an unquoted field stands for itself.
func (r *reading) csv(in *bufio.Reader) error {
	decoded, err := r.decode(in)
	if err != nil {
		return err
	}
	rows := rowReader{in: bufio.NewReaderSize(decoded, headBytes)}
	head, err := rows.in.Peek(headBytes)
	if err != nil && err != io.EOF && len(head) == 0 {
		return err
	}
	rows.comma = delimiter(head)
	header, _, err := rows.next()
	if err != nil && err != io.EOF {
		return err
	}
	names := make([]string, len(header))
	for i, h := range header {
		names[i] = string(bytes.TrimSpace(h))
	}
	column := slices.Index(names, r.o.Field)
	if column < 0 {
		return r.noField(names)
	}
	for n := 0; ; n++ {
		if n%1024 == 0 && r.ctx.Err() != nil {
			return r.ctx.Err()
		}
		row, what, err := rows.next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if what == blankRow {
			r.counts.BlankLines++
			continue
		}
		r.counts.Records++
		switch {
		case what == longRow:
			r.counts.TooLong++
			continue
		case what == openRow:
			r.counts.BadRecords++
			r.counts.problem(r.file.path, "a quoted field of the last row does not end")
			continue
		case len(row) != len(header):
			r.counts.Ragged++
		}
		if column >= len(row) {
			r.counts.NoField++
			continue
		}
		if err := r.record(row[column]); err != nil {
			return err
		}
	}
}

// delimiter takes whichever of the usual delimiters the header line has most of, the comma in doubt.
func delimiter(head []byte) byte {
	if end := bytes.IndexByte(head, '\n'); end >= 0 {
		head = head[:end]
	}
	best, most := byte(','), bytes.Count(head, []byte{','})
	for _, c := range []byte("\t;|") {
		if n := bytes.Count(head, []byte{c}); n > most {
			best, most = c, n
		}
	}
	return best
}

type rowKind int

const (
	wholeRow rowKind = iota
	blankRow
	longRow // beyond MaxRecord; its fields are lost
	openRow // the file ends within quotes
)

// rowReader cuts a stream into rows and fields. Memory follows the longest row, at most [MaxRecord].
type rowReader struct {
	in    *bufio.Reader
	comma byte
	text  []byte // of the row, unquoted
	ends  []int  // of its fields in text
	row   [][]byte
}

// next returns the fields of the next row, valid until the call after.
func (r *rowReader) next() ([][]byte, rowKind, error) {
	r.text, r.ends, r.row = r.text[:0], r.ends[:0], r.row[:0]
	if cap(r.text) > 1<<20 {
		r.text = nil
	}
	kind, err := r.fill()
	if err != nil {
		return nil, kind, err
	}
	from := 0
	for _, end := range append(r.ends, len(r.text)) {
		r.row = append(r.row, r.text[from:end:end])
		from = end
	}
	if len(r.row) == 1 && len(r.text) == 0 && kind == wholeRow {
		kind = blankRow
	}
	return r.row, kind, nil
}

// fill reads one row into text and ends.
func (r *rowReader) fill() (kind rowKind, err error) {
	quoted, start, any := false, true, false // within quotes, at a field's start, something was read
	for {
		c, err := r.in.ReadByte()
		if err != nil {
			if err == io.EOF && any {
				if quoted {
					return openRow, nil
				}
				return kind, nil
			}
			return kind, err
		}
		any = true
		switch {
		case quoted && c == '"':
			if next, err := r.in.Peek(1); err == nil && next[0] == '"' {
				_, _ = r.in.Discard(1)
				r.text = append(r.text, '"')
			} else {
				quoted = false
			}
			continue
		case quoted:
		case c == '"' && start:
			quoted, start = true, false
			continue
		case c == r.comma:
			r.ends, start = append(r.ends, len(r.text)), true
			continue
		case c == '\n':
			if n := len(r.text); n > 0 && r.text[n-1] == '\r' && (len(r.ends) == 0 || r.ends[len(r.ends)-1] < n) {
				r.text = r.text[:n-1]
			}
			return kind, nil
		}
		start = false
		if kind != longRow {
			r.text = append(r.text, c)
		}
		if len(r.text)+8*len(r.ends) > MaxRecord {
			// a quote that was never closed swallows everything: go on with the next line
			kind, quoted, r.text, r.ends = longRow, false, r.text[:0], r.ends[:0]
		}
	}
}
