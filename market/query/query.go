// Package query owns the language in which a researcher says which offers will do, such as
//
//	vram>=24GB price<0.4 class in [4090, 3090] not region=xx
//
// and the explanation of each offer that will not. docs/query.md holds the grammar. The package is pure: it reads a table
// of offers and refuses to know where they come from.
package query

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/capacloud/capanode/market/offer"
)

// Limits on the text of a query.
const (
	// MaxText is the longest query in bytes.
	MaxText = 4096
	// MaxDepth is the deepest nesting of parentheses and nots.
	MaxDepth = 32
)

// Query is a parsed query. The zero Query matches every offer with a free slot, cheapest first.
type Query struct {
	where node
	sort  []sortKey
	limit int
}

// Kind is the type of reason for which an offer was rejected.
type Kind string

const (
	// NoSlots rejects an offer without a free slot; conditions are not looked at.
	NoSlots Kind = "no free slots"
	// Failed rejects an offer on one condition of the query.
	Failed Kind = "condition"
)

// Reason says why an offer was rejected. It is comparable, so that equal reasons can be counted.
type Reason struct {
	Kind      Kind
	Field     string // field of the failed condition; empty for a group of alternatives
	Condition string // the part of the query that failed, as written there
}

// String is the reason in words.
func (r Reason) String() string {
	if r.Kind == NoSlots {
		return string(NoSlots)
	}
	return r.Condition
}

// Rejection is one offer that does not match.
type Rejection struct {
	Offer  offer.Offer
	Reason Reason
}

// Count is how many offers were rejected for one reason.
type Count struct {
	Reason Reason
	Offers int
}

// Result is the answer to a query. Matched plus all Rejected counts is always the number of offers looked at.
type Result struct {
	Offers   []offer.Offer // matches in the order asked for, cut at the limit
	Matched  int           // matches before the limit
	Rejected []Count       // most frequent first
}

// search keeps the rows of a table whose offers match, and charges the others to what they fail.
func (q Query) search(t *Table, now time.Time, charge func(why node, failed []int32)) []int32 {
	p := &pass{table: t, charge: charge}
	rows := vacant{}.filter(p, t.live(now))
	if q.where != nil {
		rows = q.where.filter(p, rows)
	}
	return rows
}

// Run applies the query to the offers that are alive.
func (q Query) Run(t *Table, now time.Time) Result {
	counts := make(map[node]int)
	rows := q.search(t, now, func(why node, failed []int32) { counts[why] += len(failed) })
	res := Result{Matched: len(rows), Rejected: tally(counts)}
	rows = q.order(t, rows)
	res.Offers = make([]offer.Offer, len(rows))
	for i, r := range rows {
		res.Offers[i] = *t.offers[r]
	}
	return res
}

// tally counts by reason: two parts of a query may be written alike.
func tally(counts map[node]int) []Count {
	reasons := make(map[Reason]int, len(counts))
	for why, n := range counts {
		reasons[why.reason()] += n
	}
	list := make([]Count, 0, len(reasons))
	for r, n := range reasons {
		list = append(list, Count{r, n})
	}
	slices.SortFunc(list, func(a, b Count) int {
		return cmp.Or(cmp.Compare(b.Offers, a.Offers), cmp.Compare(a.Reason.String(), b.Reason.String()))
	})
	return list
}

// Explain lists every offer that is alive and does not match, with its reason, in the order of peer IDs.
func (q Query) Explain(t *Table, now time.Time) []Rejection {
	var out []Rejection
	q.search(t, now, func(why node, failed []int32) {
		for _, r := range failed {
			out = append(out, Rejection{*t.offers[r], why.reason()})
		}
	})
	slices.SortFunc(out, func(a, b Rejection) int { return cmp.Compare(a.Offer.Peer, b.Offer.Peer) })
	return out
}

// Limit returns the query with a largest number of results; 0 means all.
func (q Query) Limit(n int) Query {
	q.limit = max(n, 0)
	return q
}

// SortBy returns the query with another order: field names separated by commas, each ascending, or descending with a
// trailing minus, as in "price,perf-". Ties are broken by peer ID.
func (q Query) SortBy(keys string) (Query, error) {
	q.sort = nil
	column := 1
	for _, word := range strings.Split(keys, ",") {
		name := strings.TrimSpace(word)
		key := sortKey{down: strings.HasSuffix(name, "-")}
		name = strings.TrimSuffix(name, "-")
		f, ok := fields[name]
		if !ok {
			return Query{}, &SyntaxError{Column: column, Problem: fmt.Sprintf("unknown sort field %q", name), Hint: suggest(name)}
		}
		key.field = f
		q.sort = append(q.sort, key)
		column += len(word) + 1
	}
	return q, nil
}

type sortKey struct {
	field field
	down  bool
}

// ranked is a row with what it is ordered by first, as a number that ascends.
type ranked struct {
	key uint64
	row int32
}

// order returns the rows in the order asked for, cut at the limit.
func (q Query) order(t *Table, rows []int32) []int32 {
	by := q.ranking(t)
	list := make([]ranked, 0, len(rows))
	for _, r := range rows {
		list = append(list, ranked{by.key(r), r})
	}
	if q.limit > 0 && q.limit < len(list) {
		list = by.first(list, q.limit)
	} else {
		slices.SortFunc(list, by.compare)
	}
	rows = rows[:len(list)]
	for i, r := range list {
		rows[i] = r.row
	}
	return rows
}

// ranking is an order of the rows of a table. What comes first in it is compared as bare numbers; only ties look further.
type ranking struct {
	table *Table
	keys  []sortKey
}

func (q Query) ranking(t *Table) ranking {
	if len(q.sort) == 0 {
		return ranking{t, []sortKey{{field: fields["price"]}}}
	}
	return ranking{t, q.sort}
}

func (r ranking) key(row int32) uint64 {
	switch first := r.keys[0]; {
	case first.field.number == nil:
		return 0
	case first.down:
		return ^r.table.numbers[first.field.column][row]
	default:
		return r.table.numbers[first.field.column][row]
	}
}

func (r ranking) compare(a, b ranked) int {
	if a.key != b.key {
		return cmp.Compare(a.key, b.key)
	}
	for _, k := range r.keys {
		c := k.field.compare(r.table, a.row, b.row)
		if k.down {
			c = -c
		}
		if c != 0 {
			return c
		}
	}
	return cmp.Compare(r.table.offers[a.row].Peer, r.table.offers[b.row].Peer)
}

// first moves the first n of a list, in order, to its front and returns them.
func (r ranking) first(list []ranked, n int) []ranked {
	best := list[:n]
	slices.SortFunc(best, r.compare)
	for _, next := range list[n:] {
		if r.compare(next, best[n-1]) < 0 {
			at, _ := slices.BinarySearchFunc(best[:n-1], next, r.compare)
			copy(best[at+1:], best[at:n-1])
			best[at] = next
		}
	}
	return best
}
