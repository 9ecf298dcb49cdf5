package query

import (
	"slices"

	"github.com/capacloud/capanode/market/offer"
)

// node is one part of a parsed query. eval returns nil when the offer passes, else the part to blame.
type node interface {
	eval(*offer.Offer) node
	reason() Reason
}

// conj passes when all parts pass; the first that fails is to blame.
type conj []node

func (c conj) eval(o *offer.Offer) node {
	for _, part := range c {
		if failed := part.eval(o); failed != nil {
			return failed
		}
	}
	return nil
}

func (c conj) reason() Reason { return c[0].reason() }

// disj passes when one part passes; else the whole is to blame.
type disj struct {
	parts []node
	text  string
}

func (d *disj) eval(o *offer.Offer) node {
	for _, part := range d.parts {
		if part.eval(o) == nil {
			return nil
		}
	}
	return d
}

func (d *disj) reason() Reason { return Reason{Kind: Failed, Condition: d.text} }

// negation passes when its part fails.
type negation struct {
	part node
	text string
}

func (n *negation) eval(o *offer.Offer) node {
	if n.part.eval(o) == nil {
		return n
	}
	return nil
}

func (n *negation) reason() Reason {
	r := Reason{Kind: Failed, Condition: n.text}
	if c, ok := n.part.(*condition); ok {
		r.Field = c.name
	}
	return r
}

// condition compares one field with one value, or with several for "in".
type condition struct {
	field field
	name  string
	text  string
	op    string
	nums  []uint64
	words []string
}

func (c *condition) reason() Reason { return Reason{Kind: Failed, Field: c.name, Condition: c.text} }

func (c *condition) eval(o *offer.Offer) node {
	if c.holds(o) {
		return nil
	}
	return c
}

func (c *condition) holds(o *offer.Offer) bool {
	if c.field.num == nil {
		value := c.field.text(o)
		found := slices.ContainsFunc(c.words, func(w string) bool { return c.field.same(value, w) })
		return found == (c.op != "!=")
	}
	value := c.field.num(o)
	switch c.op {
	case "<":
		return value < c.nums[0]
	case "<=":
		return value <= c.nums[0]
	case ">":
		return value > c.nums[0]
	case ">=":
		return value >= c.nums[0]
	case "!=":
		return value != c.nums[0]
	default: // "=" and "in"
		return slices.Contains(c.nums, value)
	}
}
