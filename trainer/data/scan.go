package data

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"unicode/utf8"

	"github.com/capacloud/capanode/trainer/tokenizer"
)

const (
	// sectionBytes is the most text that is encoded at once. Long documents are cut at line ends into sections.
	sectionBytes = 64 << 10
	// wholeBytes is the longest document that is held out whole or not at all. Of a longer one each section is judged
	// on its own, so that a corpus of one big file has held-out text too.
	wholeBytes = 256 << 10
)

// document is one text of the corpus as the first pass saw it: enough to read it again and to know where its parts go.
type document struct {
	path     string
	source   int               // which of the given paths it was found under
	sum      [sha256.Size]byte // of the text
	order    uint64            // documents are written in this order, a shuffle by content
	sections []section
}

// section is a run of text that is encoded at once.
type section struct {
	bytes  int
	tokens int
	key    uint64 // decides by content whether the section is held out
}

// scan reads the whole corpus once and returns its documents in path order, without keeping any text.
func scan(ctx context.Context, o Options, report *Report) ([]document, error) {
	files, err := expand(o.Paths, o.Include, report)
	if err != nil {
		return nil, err
	}
	s := scanner{Options: o, report: report, left: o.MaxBytes, seen: map[[sha256.Size]byte]bool{}}
	if s.left == 0 {
		s.left = math.MaxInt64
	}
	for _, f := range files {
		if s.left == 0 {
			break
		}
		if err := s.file(ctx, f); err != nil {
			return nil, err
		}
	}
	report.Capped = s.left == 0
	return s.documents, nil
}

type scanner struct {
	Options
	report    *Report
	left      int64 // bytes of text that still fit under the cap
	seen      map[[sha256.Size]byte]bool
	documents []document
	ids       []int32
}

// file reads one file and keeps it as a document unless it is empty, binary or known.
func (s *scanner) file(ctx context.Context, f corpusFile) error {
	s.report.Files++
	text, err := open(f.path)
	if err != nil {
		return err
	}
	defer text.Close()
	doc := document{path: f.path, source: f.source}
	whole := sha256.New()
	limited := &io.LimitedReader{R: text, N: s.left}
	var size, invalid int64
	err = eachSection(ctx, limited, s.Tokenizer, func(part []byte) error {
		bad := invalidBytes(part)
		if size == 0 && binaryText(part, bad) {
			return errBinary
		}
		size += int64(len(part))
		invalid += bad
		whole.Write(part)
		s.ids = s.Tokenizer.Encode(s.ids[:0], part)
		sum := sha256.Sum256(part)
		doc.sections = append(doc.sections, section{len(part), len(s.ids), s.key(sum[:])})
		return nil
	})
	switch {
	case errors.Is(err, errBinary):
		s.report.Binary++
		return nil
	case err != nil:
		return fmt.Errorf("data: read %s: %w", f.path, err)
	case size == 0:
		s.report.Empty++
		return nil
	}
	whole.Sum(doc.sum[:0])
	if s.seen[doc.sum] {
		s.report.Duplicates++
		return nil
	}
	s.seen[doc.sum] = true
	doc.order = s.key(doc.sum[:])
	if size <= wholeBytes {
		for i := range doc.sections {
			doc.sections[i].key = doc.order
		}
	}
	s.left -= size
	s.report.Kept++
	s.report.Bytes += size
	s.report.InvalidUTF8 += invalid
	s.documents = append(s.documents, doc)
	return nil
}

// key turns a content hash into a number that is uniform over 64 bits and differs with the seed.
func (s *scanner) key(sum []byte) uint64 {
	h := sha256.New()
	var seed [8]byte
	binary.LittleEndian.PutUint64(seed[:], s.Seed)
	h.Write(seed[:])
	h.Write(sum)
	return binary.BigEndian.Uint64(h.Sum(nil))
}

var errBinary = errors.New("binary")

// eachSection calls f with consecutive pieces of at most [sectionBytes], each ending where a cut changes no token or after a
// line end, where its second half has such a place, else between characters. The piece is only valid during the call.
func eachSection(ctx context.Context, r io.Reader, t tokenizer.Tokenizer, f func(part []byte) error) error {
	buf := make([]byte, sectionBytes)
	have := 0
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := io.ReadFull(r, buf[have:])
		have += n
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			if have == 0 {
				return nil
			}
			return f(buf[:have])
		}
		if err != nil {
			return err
		}
		cut := sectionEnd(buf, t)
		if err := f(buf[:cut]); err != nil {
			return err
		}
		have = copy(buf, buf[cut:])
	}
}

// sectionEnd returns where to cut a full buffer.
func sectionEnd(buf []byte, t tokenizer.Tokenizer) int {
	if at := tokenizer.Cut(t, buf); at >= len(buf)/2 && at < len(buf) {
		return at
	}
	if line := bytes.LastIndexByte(buf, '\n') + 1; line >= len(buf)/2 {
		return line
	}
	for back := 1; back < utf8.UTFMax; back++ { // a character cut in two would count as invalid twice
		if tail := buf[len(buf)-back:]; utf8.RuneStart(tail[0]) {
			if !utf8.FullRune(tail) {
				return len(buf) - back
			}
			break
		}
	}
	return len(buf)
}

// invalidBytes counts the bytes that belong to no valid UTF-8 character.
func invalidBytes(text []byte) int64 {
	if utf8.Valid(text) {
		return 0
	}
	var n int64
	for len(text) > 0 {
		r, size := utf8.DecodeRune(text)
		if r == utf8.RuneError && size == 1 {
			n++
		}
		text = text[size:]
	}
	return n
}

// binaryText judges the first section of a file: text has next to no NUL bytes, and even a text in an old 8-bit code
// page is mostly ASCII.
func binaryText(first []byte, invalid int64) bool {
	n := len(first)
	return bytes.Count(first, []byte{0}) > n/512 || invalid > int64(n)*3/10
}
