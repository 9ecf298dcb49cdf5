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

// Run applies the query to a list of offers. The list is not changed.
func (q Query) Run(offers []offer.Offer) Result {
	counts := make(map[Reason]int)
	var res Result
	for i := range offers {
		if why, ok := q.Match(&offers[i]); !ok {
			counts[why]++
			continue
		}
		res.Offers = append(res.Offers, offers[i])
	}
	res.Matched = len(res.Offers)
	slices.SortFunc(res.Offers, q.compare)
	if q.limit > 0 && len(res.Offers) > q.limit {
		res.Offers = res.Offers[:q.limit]
	}
	for r, n := range counts {
		res.Rejected = append(res.Rejected, Count{r, n})
	}
	slices.SortFunc(res.Rejected, func(a, b Count) int {
		return cmp.Or(cmp.Compare(b.Offers, a.Offers), cmp.Compare(a.Reason.String(), b.Reason.String()))
	})
	return res
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

// Explain lists every offer that does not match with its reason, in the order of the list.
func (q Query) Explain(offers []offer.Offer) []Rejection {
	var out []Rejection
	for i := range offers {
		if why, ok := q.Match(&offers[i]); !ok {
			out = append(out, Rejection{offers[i], why})
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

func (q Query) compare(a, b offer.Offer) int {
	keys := q.sort
	if len(keys) == 0 {
		keys = []sortKey{{field: fields["price"]}}
	}
	for _, k := range keys {
		c := k.field.compare(&a, &b)
		if k.down {
			c = -c
		}
		if c != 0 {
			return c
		}
	}
	return cmp.Compare(a.Peer, b.Peer)
}
