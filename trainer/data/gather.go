package data

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"

	"github.com/capacloud/capanode/storage/dataset"
	"github.com/capacloud/capanode/trainer/data/quality"
)

const (
	// wholeBytes is the longest document that is held out whole or not at all. Of a longer one each section is judged
	// on its own, so that a corpus of one big file has held-out text too.
	wholeBytes = 256 << 10
	// pendingBytes is how much of a document's tokens waits in memory for its end.
	pendingBytes = 16 << 20
	// nearMemory bounds what the search for near duplicates remembers.
	nearMemory = 512 << 20
)

// gatherer joins pieces to documents, decides which stay, and hands their parts to the sorter. It works in reading order.
type gatherer struct {
	Options
	filters quality.Filters
	sorter  *sorter
	near    *quality.Near
	lines   *quality.Lines

	number   uint64 // of documents
	text     quality.Text
	sign     quality.Signature
	parts    []part // of the document under way
	room     []byte // their tokens, as far as they fit
	overflow *os.File
	spooled  int64 // bytes of tokens in overflow

	smallest, largest uint64 // keys
	short             uint64 // smallest key of a document that is held out whole or not at all
	classes           classes
	dropped           map[string]*Drop
}

func newGatherer(o Options, f quality.Filters, s *sorter) *gatherer {
	g := &gatherer{Options: o, filters: f, sorter: s, smallest: math.MaxUint64, short: math.MaxUint64,
		classes: classes{byKey: map[uint64]class{}, below: math.MaxUint64}, dropped: map[string]*Drop{}, sign: quality.NewSignature()}
	if f.Near() {
		g.near = quality.NewNear(nearMemory)
	}
	if f.Lines() {
		g.lines = quality.NewLines()
	}
	return g
}

func (g *gatherer) close() error {
	if g.overflow == nil {
		return nil
	}
	return errors.Join(g.overflow.Close(), os.Remove(g.overflow.Name()))
}

// add takes the next piece.
func (g *gatherer) add(w *worked) error {
	if err := g.keep(w); err != nil {
		return err
	}
	if w.measure != nil {
		g.text.Measure.Add(w.measure)
	}
	if g.lines != nil {
		g.text.Boilerplate += g.lines.Document(w.lines, nil)
	}
	if w.sign != nil {
		g.sign.Merge(w.sign)
	}
	if !w.piece.Last {
		return nil
	}
	err := g.finish()
	g.number++
	g.text, g.sign = quality.Text{}, quality.NewSignature()
	g.parts, g.room, g.spooled = g.parts[:0], g.room[:0], 0
	return err
}

// keep holds a part until its document's end.
func (g *gatherer) keep(w *worked) error {
	p := part{document: g.number, index: uint32(len(g.parts)), source: uint32(w.piece.Source), sum: w.sum, size: len(w.tokens), last: w.piece.Last}
	p.bytes = uint32(len(w.piece.Text) + 4*len(w.piece.Tokens))
	g.parts = append(g.parts, p)
	if len(g.room)+len(w.tokens) <= pendingBytes && g.spooled == 0 {
		g.room = append(g.room, w.tokens...)
		return nil
	}
	if g.overflow == nil {
		f, err := os.CreateTemp(g.sorter.dir, "document-*")
		if err != nil {
			return fmt.Errorf("data: long document: %w", err)
		}
		g.overflow = f
	}
	n, err := g.overflow.WriteAt(w.tokens, g.spooled)
	g.spooled += int64(n)
	if err != nil {
		return fmt.Errorf("data: long document: %w: free space in %s", err, g.sorter.dir)
	}
	return nil
}

// finish decides about a whole document.
func (g *gatherer) finish() error {
	total := 0
	for _, p := range g.parts {
		total += int(p.bytes)
	}
	if total == 0 {
		return nil
	}
	if reason := g.judge(); reason != "" {
		d := g.dropped[reason]
		if d == nil {
			d = &Drop{Reason: reason}
			g.dropped[reason] = d
		}
		d.Documents++
		d.Bytes += int64(total)
		return nil
	}
	sum := documentSum(g.parts)
	order := contentKey(g.Seed, sum[:])
	from := 0
	var buf []byte
	for i := range g.parts {
		p := &g.parts[i]
		p.key = order
		if total > wholeBytes {
			p.key = contentKey(g.Seed, p.sum[:])
		}
		p.sum, p.order = sum, order
		if p.tokens = nil; from+p.size <= len(g.room) {
			p.tokens = g.room[from : from+p.size]
		} else {
			buf = slices.Grow(buf[:0], p.size)[:p.size]
			if _, err := g.overflow.ReadAt(buf, int64(from-len(g.room))); err != nil {
				return fmt.Errorf("data: long document: %w", err)
			}
			p.tokens = buf
		}
		from += p.size
		g.smallest, g.largest = min(g.smallest, p.key), max(g.largest, p.key)
		g.classes.bytes += int64(p.bytes)
		if total > wholeBytes {
			g.classes.add(p.key, p.bytes)
		} else {
			g.short = min(g.short, p.key)
		}
		if err := g.sorter.add(p); err != nil {
			return err
		}
	}
	return nil
}

// judge returns why the document is dropped, or nothing.
func (g *gatherer) judge() string {
	if !g.filters.Any() || g.text.Bytes == 0 { // ready tokens are not judged
		return ""
	}
	if g.near != nil && g.filters.NeedsNear(&g.text) {
		g.text.Near = g.near.Seen(&g.sign)
	}
	return g.filters.Drop(&g.text)
}

// drops lists why documents were dropped, by name.
func (g *gatherer) drops() []Drop {
	out := []Drop{}
	for _, d := range g.dropped {
		out = append(out, *d)
	}
	slices.SortFunc(out, func(a, b Drop) int { return cmp.Compare(a.Reason, b.Reason) })
	return out
}

// documentSum is the hash of a text: of one section its own, of more the hash of theirs in order.
func documentSum(parts []part) [sha256.Size]byte {
	if len(parts) == 1 {
		return parts[0].sum
	}
	h := sha256.New()
	for i := range parts {
		h.Write(parts[i].sum[:])
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// contentKey turns a content hash into a number that is uniform over 64 bits and differs with the seed.
func contentKey(seed uint64, sum []byte) uint64 {
	var b [8 + sha256.Size]byte
	binary.LittleEndian.PutUint64(b[:], seed)
	copy(b[8:], sum)
	h := sha256.Sum256(b[:])
	return binary.BigEndian.Uint64(h[:])
}

// sideTotals counts what each side and source has.
type sideTotals struct {
	train, val uint64
	sources    []dataset.Source
	documents  int64
	bytes      int64
}

// eachSide calls f for the parts in dataset order, saying which are held out and which end a run of one document's parts on one
// side: an end-of-text token follows each run.
func eachSide(s *sorter, rule sides, tokens bool, f func(p *part, held, last bool) error) (duplicates int64, err error) {
	var held part // the part before: whether it ends its run is known with the next
	var raw []byte
	waiting := false
	flush := func(next *part) error {
		if !waiting {
			return nil
		}
		side := rule.held(held.key)
		same := next != nil && next.document == held.document && rule.held(next.key) == side
		return f(&held, side, !same)
	}
	duplicates, err = s.each(tokens, func(p *part) error {
		if err := flush(p); err != nil {
			return err
		}
		raw = append(raw[:0], p.tokens...)
		held, waiting = *p, true
		held.tokens = raw
		return nil
	})
	if err != nil {
		return duplicates, err
	}
	return duplicates, flush(nil)
}
