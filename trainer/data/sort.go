package data

import (
	"bufio"
	"bytes"
	"cmp"
	"container/heap"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
)

const (
	defaultMemory = 64 << 20
	maxRuns       = 64 // sorted runs that are merged at once
	runBuffer     = 256 << 10
	headerBytes   = 8 + sha256.Size + 8 + 4 + 8 + 4 + 4 + 1 + 4
)

// part is one section of a document as tokens, with all that decides its place in the dataset. Parts are sorted by order, text,
// document and index: equal documents become neighbours, whatever the size of the corpus.
type part struct {
	order    uint64            // documents are written in this order, a shuffle by content
	sum      [sha256.Size]byte // of the document's text
	document uint64            // its number in reading order
	index    uint32            // of the part in its document
	key      uint64            // decides by content whether the part is held out
	source   uint32
	bytes    uint32 // of text
	last     bool   // of its document
	size     int    // bytes of tokens
	tokens   []byte // in the dataset's type
}

func (p *part) appendTo(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, p.order) // big-endian: the order of the bytes is that of the parts
	b = append(b, p.sum[:]...)
	b = binary.BigEndian.AppendUint64(b, p.document)
	b = binary.BigEndian.AppendUint32(b, p.index)
	b = binary.BigEndian.AppendUint64(b, p.key)
	b = binary.BigEndian.AppendUint32(b, p.source)
	b = binary.BigEndian.AppendUint32(b, p.bytes)
	last := byte(0)
	if p.last {
		last = 1
	}
	b = append(b, last)
	b = binary.BigEndian.AppendUint32(b, uint32(len(p.tokens)))
	return append(b, p.tokens...)
}

// decode reads the head of a part; size bytes of tokens follow.
func (p *part) decode(b []byte) {
	p.order = binary.BigEndian.Uint64(b)
	copy(p.sum[:], b[8:])
	b = b[8+sha256.Size:]
	p.document = binary.BigEndian.Uint64(b)
	p.index = binary.BigEndian.Uint32(b[8:])
	p.key = binary.BigEndian.Uint64(b[12:])
	p.source = binary.BigEndian.Uint32(b[20:])
	p.bytes = binary.BigEndian.Uint32(b[24:])
	p.last = b[28] != 0
	p.size = int(binary.BigEndian.Uint32(b[29:]))
}

// sortKey is the prefix of an encoded part by which parts are sorted.
const sortKey = 8 + sha256.Size + 8 + 4

// sorter sorts parts in bounded memory: an arena that is sorted and written out as a run whenever it is full, and a merge of
// all runs. Its files are temporary: what is lost with them is read again.
type sorter struct {
	dir    string
	limit  int64
	arena  []byte
	places []place
	runs   []string // files of sorted parts
	made   int
	bytes  int64 // written out
}

// place is an encoded part in the arena and the beginning of its key, which decides most comparisons.
type place struct {
	order    uint64
	from, to int
}

func newSorter(tempDir string, limit int64) (*sorter, error) {
	dir, err := os.MkdirTemp(tempDir, "capanode-data-*")
	if err != nil {
		return nil, fmt.Errorf("data: folder for waiting documents: %w", err)
	}
	return &sorter{dir: dir, limit: limit}, nil
}

func (s *sorter) close() error { return os.RemoveAll(s.dir) }

func (s *sorter) add(p *part) error {
	if need := headerBytes + len(p.tokens); len(s.arena) > 0 && int64(len(s.arena)+need) > s.limit {
		if err := s.spill(); err != nil {
			return err
		}
	}
	from := len(s.arena)
	s.arena = p.appendTo(s.arena)
	s.places = append(s.places, place{p.order, from, len(s.arena)})
	return nil
}

func (s *sorter) sortArena() {
	slices.SortFunc(s.places, func(a, b place) int {
		if a.order != b.order {
			return cmp.Compare(a.order, b.order)
		}
		return bytes.Compare(s.arena[a.from:a.from+sortKey], s.arena[b.from:b.from+sortKey])
	})
}

// spill writes the arena out as a sorted run, and joins runs before there are too many.
func (s *sorter) spill() error {
	s.sortArena()
	err := s.newRun(func(w *bufio.Writer) error {
		for _, p := range s.places {
			if _, err := w.Write(s.arena[p.from:p.to]); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	s.bytes += int64(len(s.arena))
	s.arena, s.places = s.arena[:0], s.places[:0]
	if len(s.runs) < maxRuns {
		return nil
	}
	old := s.runs
	s.runs = nil
	err = s.newRun(func(w *bufio.Writer) error {
		var b []byte
		return merge(old, false, func(p *part) error {
			b = p.appendTo(b[:0])
			_, err := w.Write(b)
			return err
		})
	})
	for _, name := range old {
		err = errors.Join(err, os.Remove(name))
	}
	return err
}

func (s *sorter) newRun(write func(*bufio.Writer) error) (err error) {
	name := fmt.Sprintf("%s/run-%06d", s.dir, s.made)
	s.made++
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("data: waiting documents: %w", err)
	}
	w := bufio.NewWriterSize(f, runBuffer)
	if err = write(w); err == nil {
		err = w.Flush()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("data: waiting documents: %w: free space in %s, or name another folder", err, s.dir)
	}
	s.runs = append(s.runs, name)
	return nil
}

// finish must be called once, after the last add.
func (s *sorter) finish() error {
	if len(s.runs) == 0 {
		s.sortArena()
		return nil
	}
	if len(s.places) > 0 {
		if err := s.spill(); err != nil {
			return err
		}
	}
	s.arena, s.places = nil, nil
	return nil
}

// each calls f for every part in order, with duplicates of a document left out; the part is only valid during the call.
// Without tokens they are passed over. It may be called again.
func (s *sorter) each(tokens bool, f func(*part) error) (duplicates int64, err error) {
	var sum [sha256.Size]byte
	var order, document uint64
	first := true
	one := func(p *part) error {
		if first || p.order != order || p.sum != sum {
			first, order, sum, document = false, p.order, p.sum, p.document
		}
		if p.document != document {
			if p.index == 0 {
				duplicates++
			}
			return nil
		}
		return f(p)
	}
	if len(s.runs) > 0 {
		err = merge(s.runs, !tokens, one)
		return duplicates, err
	}
	var p part
	for _, at := range s.places {
		b := s.arena[at.from:at.to]
		p.decode(b)
		p.tokens = b[headerBytes:]
		if err := one(&p); err != nil {
			return duplicates, err
		}
	}
	return duplicates, nil
}

// run is a sorted file on its way through a merge.
type run struct {
	in   *bufio.Reader
	head [headerBytes]byte
	part part
	buf  []byte
}

// next reads the head of the next part.
func (r *run) next() error {
	if _, err := io.ReadFull(r.in, r.head[:]); err != nil {
		return err // io.EOF at the end
	}
	r.part.decode(r.head[:])
	return nil
}

// load reads the tokens of the part, or passes them over.
func (r *run) load(skip bool) error {
	if skip {
		_, err := r.in.Discard(r.part.size)
		return err
	}
	if cap(r.buf) < r.part.size {
		r.buf = make([]byte, r.part.size)
	}
	r.part.tokens = r.buf[:r.part.size]
	_, err := io.ReadFull(r.in, r.part.tokens)
	return err
}

type runHeap []*run

func (h runHeap) Len() int { return len(h) }
func (h runHeap) Less(i, j int) bool {
	return bytes.Compare(h[i].head[:sortKey], h[j].head[:sortKey]) < 0
}
func (h runHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *runHeap) Push(x any)   { *h = append(*h, x.(*run)) }
func (h *runHeap) Pop() any {
	old := *h
	x := old[len(old)-1]
	*h = old[:len(old)-1]
	return x
}

// merge calls f for the parts of sorted files in order.
func merge(names []string, skip bool, f func(*part) error) (err error) {
	var h runHeap
	for _, name := range names {
		file, err := os.Open(name)
		if err != nil {
			return fmt.Errorf("data: waiting documents: %w", err)
		}
		defer file.Close()
		r := &run{in: bufio.NewReaderSize(file, runBuffer)}
		if err := r.next(); err == nil {
			h = append(h, r)
		} else if err != io.EOF {
			return fmt.Errorf("data: waiting documents: %w", err)
		}
	}
	for heap.Init(&h); len(h) > 0; {
		r := h[0]
		err := r.load(skip)
		if err == nil {
			if err := f(&r.part); err != nil {
				return err
			}
			if err = r.next(); err == nil {
				heap.Fix(&h, 0)
				continue
			}
			if err == io.EOF {
				heap.Pop(&h)
				continue
			}
		}
		return fmt.Errorf("data: waiting documents: %w", err)
	}
	return nil
}
