package query

import (
	"iter"
	"math"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/market/offer"
)

// Table holds offers by columns: what a query reads of one field lies together, words are numbered, and a query is a pass over
// the columns that it names. A Table holds at most one offer of a peer. It is not safe for concurrent use; offers in it
// must not be changed.
type Table struct {
	offers  []*offer.Offer // by row; nil where the row is empty
	dies    []int64        // last Unix millisecond at which the offer may be taken, by row; empty rows have died
	ids     []string       // peer IDs as text, by row
	free    []uint64       // free slots, by row
	numbers [][]uint64     // base units, by field and row
	words   [][]uint32     // numbers of the words, by field and row
	lexica  []lexicon      // by field
	row     map[peer.ID]int32
	empty   []int32
}

// NewTable returns a table of the offers. Of several of one peer it holds the last.
func NewTable(offers ...*offer.Offer) *Table {
	t := &Table{
		row: make(map[peer.ID]int32), numbers: make([][]uint64, len(numberFields)), words: make([][]uint32, len(wordFields)),
		lexica: make([]lexicon, len(wordFields)),
	}
	for _, o := range offers {
		t.Put(o)
	}
	return t
}

// Put adds an offer, in the place of the one that the peer had.
func (t *Table) Put(o *offer.Offer) {
	at, known := t.row[o.Peer]
	switch {
	case known:
		t.release(at)
	case len(t.empty) > 0:
		at = t.empty[len(t.empty)-1]
		t.empty = t.empty[:len(t.empty)-1]
		t.ids[at] = o.Peer.String()
	default:
		at = int32(len(t.offers))
		t.grow(o.Peer.String())
	}
	t.row[o.Peer] = at
	t.offers[at], t.free[at] = o, uint64(o.Beacon.Free)
	t.dies[at] = o.Beacon.Expires().Add(offer.Skew).UnixMilli()
	for i, f := range numberFields {
		t.numbers[i][at] = f.number(&o.Beacon)
	}
	for i, f := range wordFields {
		t.words[i][at] = t.lexica[i].take(f.word(&o.Beacon))
	}
}

// grow adds a row.
func (t *Table) grow(id string) {
	t.offers, t.dies, t.ids, t.free = append(t.offers, nil), append(t.dies, 0), append(t.ids, id), append(t.free, 0)
	for i := range t.numbers {
		t.numbers[i] = append(t.numbers[i], 0)
	}
	for i := range t.words {
		t.words[i] = append(t.words[i], 0)
	}
}

// release gives back what a row holds of the words.
func (t *Table) release(at int32) {
	for i := range t.words {
		t.lexica[i].drop(t.words[i][at])
	}
}

// Remove forgets the offer of a peer, if there is one.
func (t *Table) Remove(id peer.ID) {
	at, known := t.row[id]
	if !known {
		return
	}
	t.release(at)
	delete(t.row, id)
	t.offers[at], t.dies[at], t.ids[at] = nil, math.MinInt64, ""
	t.empty = append(t.empty, at)
}

// Get returns the offer of a peer, dead or alive; nil when there is none.
func (t *Table) Get(id peer.ID) *offer.Offer {
	at, known := t.row[id]
	if !known {
		return nil
	}
	return t.offers[at]
}

// Len is the number of offers, dead ones included.
func (t *Table) Len() int { return len(t.row) }

// All lists the offers that have not died by then, and those that have, as [offer.Dead] says.
func (t *Table) All(now time.Time, dead bool) iter.Seq[*offer.Offer] {
	at := instant(now)
	return func(yield func(*offer.Offer) bool) {
		for i, o := range t.offers {
			if o != nil && (t.dies[i] < at) == dead && !yield(o) {
				return
			}
		}
	}
}

// instant is the first whole millisecond that is not before a time: an offer lives as long as it dies no earlier.
func instant(now time.Time) int64 { return now.Add(time.Millisecond - 1).UnixMilli() }

// live lists the rows of offers that have not died, ascending.
func (t *Table) live(now time.Time) []int32 {
	at, rows := instant(now), make([]int32, 0, len(t.offers))
	for i, dies := range t.dies {
		if dies >= at && t.offers[i] != nil {
			rows = append(rows, int32(i))
		}
	}
	return rows
}

// lexicon numbers the words that are in use.
type lexicon struct {
	numbers map[string]uint32
	words   []string
	uses    []uint32
	spare   []uint32
}

// take returns the number of a word and counts its use.
func (l *lexicon) take(word string) uint32 {
	n, known := l.numbers[word]
	if !known {
		if len(l.spare) > 0 {
			n = l.spare[len(l.spare)-1]
			l.spare = l.spare[:len(l.spare)-1]
			l.words[n] = word
		} else {
			n = uint32(len(l.words))
			l.words, l.uses = append(l.words, word), append(l.uses, 0)
		}
		if l.numbers == nil {
			l.numbers = make(map[string]uint32)
		}
		l.numbers[word] = n
	}
	l.uses[n]++
	return n
}

// drop ends one use of a word; the number of one that nobody uses goes to the next new word.
func (l *lexicon) drop(n uint32) {
	if l.uses[n]--; l.uses[n] == 0 {
		delete(l.numbers, l.words[n])
		l.words[n] = ""
		l.spare = append(l.spare, n)
	}
}
