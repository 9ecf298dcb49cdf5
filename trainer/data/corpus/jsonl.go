package corpus

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"
)

// patience is how many records may lack the field before a file is refused: the field's name is wrong, not the records.
const patience = 1000

// jsonl reads a file with one JSON object in each line.
func (r *reading) jsonl(in *bufio.Reader) error {
	decoded, err := r.decode(in)
	if err != nil {
		return err
	}
	path := strings.Split(r.o.Field, ".")
	var text []byte
	seen := fields{r: r}
	err = r.eachLine(decoded, func(line []byte) error {
		got, what, surrogates := jsonText(line, path, text[:0])
		r.counts.Surrogates += surrogates
		switch what {
		case badJSON:
			r.counts.BadRecords++
			return nil
		case noField:
			return seen.without(func() []string { return jsonKeys(line, 64) })
		case notText:
			seen.with = true
			r.counts.NoText++
			return nil
		}
		seen.with = true
		text = got
		return r.record(got)
	})
	if err != nil {
		return err
	}
	if r.counts.BadRecords == r.counts.Records && r.counts.Records > 0 {
		return fmt.Errorf("%w: no line is a JSON object", errDamaged)
	}
	return seen.end()
}

// fields notices that no record of a file has the text field.
type fields struct {
	r    *reading
	with bool     // some record has it
	lack int      // records without it
	keys []string // of the first record without
}

func (f *fields) without(keys func() []string) error {
	f.r.counts.NoField++
	if f.lack++; f.lack == 1 {
		f.keys = keys()
	}
	if !f.with && f.lack >= patience {
		return f.end()
	}
	return nil
}

// end reports a file whose every record lacks the field.
func (f *fields) end() error {
	if f.with || f.lack == 0 {
		return nil
	}
	return f.r.noField(f.keys)
}

// noField says which fields there are, and which was probably meant.
func (r *reading) noField(have []string) error {
	hint := "it has " + strings.Join(quoted(have[:min(len(have), 12)]), ", ")
	for _, usual := range []string{"content", "text", "body", "article", "document", "markdown", "raw_content", "story", "completion"} {
		at := slices.IndexFunc(have, func(k string) bool {
			return strings.EqualFold(k, usual) || strings.HasSuffix(strings.ToLower(k), "."+usual)
		})
		if at >= 0 {
			hint += fmt.Sprintf("; did you mean %q?", have[at])
			break
		}
	}
	return fmt.Errorf("corpus: %s: %w %q: %s", r.file.path, ErrField, r.o.Field, hint)
}

func quoted(words []string) []string {
	out := make([]string, len(words))
	for i, w := range words {
		out[i] = fmt.Sprintf("%.40q", w)
	}
	return out
}

// eachLine calls f for each line that is not blank, without its end, and counts them as records. A line is only valid during
// the call. Lines beyond [MaxRecord] are left out; memory follows the longest line that is kept.
func (r *reading) eachLine(in io.Reader, f func(line []byte) error) error {
	buffered := bufio.NewReaderSize(in, headBytes)
	var long []byte // a line that does not fit the buffer
	tooLong := false
	for n := 0; ; n++ {
		if n%1024 == 0 && r.ctx.Err() != nil {
			return r.ctx.Err()
		}
		part, err := buffered.ReadSlice('\n')
		if err == bufio.ErrBufferFull || (len(long) > 0 || tooLong) && (err == nil || err == io.EOF) {
			if tooLong = tooLong || len(long)+len(part) > MaxRecord; tooLong {
				long = long[:0]
			} else {
				long = append(long, part...)
			}
			if err == bufio.ErrBufferFull {
				continue
			}
			part = long
		}
		if err != nil && err != io.EOF {
			return err // the line is not whole
		}
		line := bytes.TrimSpace(part)
		switch {
		case tooLong:
			r.counts.Records++
			r.counts.TooLong++
		case len(line) > 0:
			r.counts.Records++
			if e := f(line); e != nil {
				return e
			}
		case len(part) > 0:
			r.counts.BlankLines++
		}
		if long = long[:0]; cap(long) > 1<<20 {
			long = nil
		}
		if tooLong = false; err == io.EOF {
			return nil
		}
	}
}
