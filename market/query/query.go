// Package query owns the language in which a researcher says which offers will do, such as
//
//	vram>=24GB price<0.4 class in [4090, 3090] not region=xx
//
// and the explanation of each offer that will not. docs/query.md holds the grammar. The package is pure: it reads a list
// of offers and refuses to know where they come from.
package query

import (
	"cmp"
	"fmt"
	"iter"
	"slices"
	"strings"

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

// Run applies the query to offers. It keeps only as many at a time as the limit asks for.
func (q Query) Run(offers iter.Seq[*offer.Offer]) Result {
	counts := make(map[Reason]int)
	var res Result
	var best []*offer.Offer
	for o := range offers {
		if why, ok := q.Match(o); !ok {
			counts[why]++
			continue
		}
		res.Matched++
		best = q.keep(best, o)
	}
	if q.limit == 0 {
		slices.SortFunc(best, q.compare)
	}
	for _, o := range best {
		res.Offers = append(res.Offers, *o)
	}
	for r, n := range counts {
		res.Rejected = append(res.Rejected, Count{r, n})
	}
	slices.SortFunc(res.Rejected, func(a, b Count) int {
		return cmp.Or(cmp.Compare(b.Offers, a.Offers), cmp.Compare(a.Reason.String(), b.Reason.String()))
	})
	return res
}

// keep adds a match: at the end without a limit, else in its place among the best so far.
func (q Query) keep(best []*offer.Offer, o *offer.Offer) []*offer.Offer {
	if q.limit == 0 {
		return append(best, o)
	}
	if len(best) == q.limit {
		if q.compare(o, best[len(best)-1]) >= 0 {
			return best
		}
		best = best[:len(best)-1]
	}
	at, _ := slices.BinarySearchFunc(best, o, q.compare)
	return slices.Insert(best, at, o)
}

// Match judges one offer. When it does not match, the reason is the first failing condition in the order written.
func (q Query) Match(o *offer.Offer) (Reason, bool) {
	if o.Beacon.Free == 0 {
		return Reason{Kind: NoSlots}, false
	}
	if q.where == nil {
		return Reason{}, true
	}
	failed := q.where.eval(o)
	if failed == nil {
		return Reason{}, true
	}
	return failed.reason(), false
}

// Explain lists every offer that does not match with its reason, in the order given.
func (q Query) Explain(offers iter.Seq[*offer.Offer]) []Rejection {
	var out []Rejection
	for o := range offers {
		if why, ok := q.Match(o); !ok {
			out = append(out, Rejection{*o, why})
		}
	}
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

func (q Query) compare(a, b *offer.Offer) int {
	if len(q.sort) == 0 {
		return cmp.Or(cmp.Compare(a.Beacon.Price, b.Beacon.Price), cmp.Compare(a.Peer, b.Peer))
	}
	for _, k := range q.sort {
		c := k.field.compare(a, b)
		if k.down {
			c = -c
		}
		if c != 0 {
			return c
		}
	}
	return cmp.Compare(a.Peer, b.Peer)
}
