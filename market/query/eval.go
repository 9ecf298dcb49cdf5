package query

import "slices"

// node is one part of a parsed query.
type node interface {
	// filter keeps the rows whose offers pass, in their order, in the same array, and charges the others to whatever part failed
	// first in the order written.
	filter(p *pass, rows []int32) []int32
	reason() Reason
}

// pass is one run of a query over a table.
type pass struct {
	table  *Table
	charge func(why node, failed []int32) // failed is valid during the call; nil where nobody asks
	failed []int32                        // room
}

// quiet is the same pass, in which nobody asks why.
func (p *pass) quiet() *pass { return &pass{table: p.table} }

// keep splits rows in place by a test.
func (p *pass) keep(why node, rows []int32, test func(row int32) bool) []int32 {
	kept, failed := rows[:0], p.failed[:0]
	for _, r := range rows {
		if test(r) {
			kept = append(kept, r)
		} else if p.charge != nil {
			failed = append(failed, r)
		}
	}
	p.blame(why, failed)
	return kept
}

func (p *pass) blame(why node, failed []int32) {
	if p.charge != nil && len(failed) > 0 {
		p.charge(why, failed)
	}
	p.failed = failed
}

// without removes rows, which are some of all, from all, in place; both ascend.
func without(all, rows []int32) []int32 {
	kept, i := all[:0], 0
	for _, r := range all {
		if i < len(rows) && rows[i] == r {
			i++
			continue
		}
		kept = append(kept, r)
	}
	return kept
}

// conj passes when all parts pass; the first that fails is to blame.
type conj []node

func (c conj) filter(p *pass, rows []int32) []int32 {
	for _, part := range c {
		rows = part.filter(p, rows)
	}
	return rows
}

func (c conj) reason() Reason { return c[0].reason() }

// disj passes when one part passes; else the whole is to blame.
type disj struct {
	parts []node
	text  string
}

func (d *disj) filter(p *pass, rows []int32) []int32 {
	failed, quiet := slices.Clone(rows), p.quiet()
	for _, part := range d.parts {
		failed = without(failed, part.filter(quiet, slices.Clone(failed)))
	}
	p.blame(d, failed)
	return without(rows, failed)
}

func (d *disj) reason() Reason { return Reason{Kind: Failed, Condition: d.text} }

// negation passes when its part fails.
type negation struct {
	part node
	text string
}

func (n *negation) filter(p *pass, rows []int32) []int32 {
	failed := n.part.filter(p.quiet(), slices.Clone(rows))
	p.blame(n, failed)
	return without(rows, failed)
}

func (n *negation) reason() Reason {
	r := Reason{Kind: Failed, Condition: n.text}
	if c, ok := n.part.(*condition); ok {
		r.Field = c.name
	}
	return r
}

// vacant passes offers with a free slot.
type vacant struct{}

func (vacant) reason() Reason { return Reason{Kind: NoSlots} }

func (v vacant) filter(p *pass, rows []int32) []int32 {
	free := p.table.free
	return p.keep(v, rows, func(r int32) bool { return free[r] > 0 })
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

func (c *condition) filter(p *pass, rows []int32) []int32 {
	if c.field.number != nil {
		return p.keep(c, rows, c.compare(p.table.numbers[c.field.column]))
	}
	want := c.op != "!="
	same := func(value string) bool {
		return slices.ContainsFunc(c.words, func(w string) bool { return c.field.same(value, w) }) == want
	}
	if c.field.word == nil {
		ids := p.table.ids
		return p.keep(c, rows, func(r int32) bool { return same(ids[r]) })
	}
	words := p.table.words[c.field.column]
	pass := make([]bool, len(p.table.lexica[c.field.column].words)) // by word: each is compared once
	for i, w := range p.table.lexica[c.field.column].words {
		pass[i] = same(w)
	}
	return p.keep(c, rows, func(r int32) bool { return pass[words[r]] })
}

// compare returns the test of a column of numbers.
func (c *condition) compare(column []uint64) func(row int32) bool {
	wanted := c.nums[0]
	switch c.op {
	case "<":
		return func(r int32) bool { return column[r] < wanted }
	case "<=":
		return func(r int32) bool { return column[r] <= wanted }
	case ">":
		return func(r int32) bool { return column[r] > wanted }
	case ">=":
		return func(r int32) bool { return column[r] >= wanted }
	case "!=":
		return func(r int32) bool { return column[r] != wanted }
	default: // "=" and "in"
		return func(r int32) bool { return slices.Contains(c.nums, column[r]) }
	}
}
