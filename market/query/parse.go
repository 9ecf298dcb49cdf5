package query

import (
	"fmt"
	"math/bits"
	"strconv"
	"strings"
	"unicode/utf8"
)

// SyntaxError says where a query went wrong and what would be right.
type SyntaxError struct {
	Column  int // first column of the problem, counted in characters from 1
	Problem string
	Hint    string
}

// Error is the problem with its column and the hint.
func (e *SyntaxError) Error() string {
	if e.Hint == "" {
		return fmt.Sprintf("query: column %d: %s", e.Column, e.Problem)
	}
	return fmt.Sprintf("query: column %d: %s; %s", e.Column, e.Problem, e.Hint)
}

// Parse reads a query. Empty text matches every offer with a free slot. The error is a [*SyntaxError].
func Parse(text string) (Query, error) {
	p := &parser{text: text}
	if len(text) > MaxText {
		return Query{}, &SyntaxError{Column: 1, Problem: fmt.Sprintf("%d bytes, at most %d", len(text), MaxText)}
	}
	if !utf8.ValidString(text) {
		return Query{}, &SyntaxError{Column: 1, Problem: "not valid UTF-8"}
	}
	if err := p.scan(); err != nil {
		return Query{}, err
	}
	if p.peek().kind == end {
		return Query{}, nil
	}
	where, err := p.or(0)
	if err != nil {
		return Query{}, err
	}
	if t := p.peek(); t.kind != end {
		return Query{}, p.fail(t, fmt.Sprintf("unexpected %q", t.text), "combine conditions with and, or, not")
	}
	return Query{where: where}, nil
}

type parser struct {
	text   string
	tokens []token
	next   int
}

func (p *parser) peek() token { return p.tokens[p.next] }

func (p *parser) take() token {
	t := p.tokens[p.next]
	if t.kind != end {
		p.next++
	}
	return t
}

// word takes the next token if it is the given keyword.
func (p *parser) word(keyword string) bool {
	t := p.peek()
	if t.kind == plain && strings.EqualFold(t.text, keyword) {
		p.next++
		return true
	}
	return false
}

// since is the text from a token up to the last taken one.
func (p *parser) since(t token) string { return p.text[t.from:p.tokens[p.next-1].to] }

func (p *parser) fail(t token, problem, hint string) error {
	return &SyntaxError{Column: utf8.RuneCountInString(p.text[:t.from]) + 1, Problem: problem, Hint: hint}
}

func (p *parser) or(depth int) (node, error) {
	first := p.peek()
	left, err := p.and(depth)
	if err != nil {
		return nil, err
	}
	parts := []node{left}
	for p.word("or") {
		part, err := p.and(depth)
		if err != nil {
			return nil, err
		}
		parts = append(parts, part)
	}
	if len(parts) == 1 {
		return left, nil
	}
	return &disj{parts, p.since(first)}, nil
}

func (p *parser) and(depth int) (node, error) {
	var parts conj
	for {
		part, err := p.not(depth)
		if err != nil {
			return nil, err
		}
		parts = append(parts, part)
		explicit := p.word("and")
		t := p.peek()
		if !explicit && (t.kind == end || t.text == ")" && t.kind == symbol || t.kind == plain && strings.EqualFold(t.text, "or")) {
			break
		}
	}
	if len(parts) == 1 {
		return parts[0], nil
	}
	return parts, nil
}

func (p *parser) not(depth int) (node, error) {
	first := p.peek()
	if depth > MaxDepth {
		return nil, p.fail(first, fmt.Sprintf("nested deeper than %d", MaxDepth), "")
	}
	if p.word("not") {
		part, err := p.not(depth + 1)
		if err != nil {
			return nil, err
		}
		return &negation{part, p.since(first)}, nil
	}
	if first.kind != symbol || first.text != "(" {
		return p.condition()
	}
	p.take()
	inner, err := p.or(depth + 1)
	if err != nil {
		return nil, err
	}
	if t := p.take(); t.kind != symbol || t.text != ")" {
		return nil, p.fail(t, "missing )", "close the ( of column "+strconv.Itoa(first.from+1))
	}
	return inner, nil
}

func (p *parser) condition() (node, error) {
	first := p.take()
	if first.kind != plain {
		return nil, p.fail(first, "want a field, found "+first.describe(), "as in vram>=24")
	}
	name := strings.ToLower(first.text)
	f, ok := fields[name]
	if !ok {
		return nil, p.fail(first, fmt.Sprintf("unknown field %q", first.text), suggest(first.text))
	}
	c := &condition{field: f, name: name}
	negated := p.word("not")
	if p.word("in") {
		c.op = "in"
		if err := p.list(c); err != nil {
			return nil, err
		}
	} else {
		op := p.take()
		if negated || op.kind != operator {
			return nil, p.fail(op, "want an operator after "+name+", found "+op.describe(), "operators are = != < <= > >= in, not in")
		}
		c.op = op.text
		if f.number == nil && c.op != "=" && c.op != "!=" {
			return nil, p.fail(op, fmt.Sprintf("%s is text and has no %s", name, c.op), "use =, != or in")
		}
		if err := p.value(c); err != nil {
			return nil, err
		}
	}
	c.text = p.since(first)
	if negated {
		return &negation{c, c.text}, nil
	}
	return c, nil
}

func (p *parser) list(c *condition) error {
	if t := p.take(); t.kind != symbol || t.text != "[" {
		return p.fail(t, "want [ after in, found "+t.describe(), "as in class in [4090, 3090]")
	}
	for {
		if err := p.value(c); err != nil {
			return err
		}
		t := p.take()
		if t.kind == symbol && t.text == "]" {
			return nil
		}
		if t.kind != symbol || t.text != "," {
			return p.fail(t, "want , or ] in the list, found "+t.describe(), "")
		}
	}
}

func (p *parser) value(c *condition) error {
	t := p.take()
	if t.kind != plain && t.kind != quoted {
		return p.fail(t, "want a value, found "+t.describe(), "quote text with spaces")
	}
	if c.field.number == nil {
		c.words = append(c.words, t.value)
		return nil
	}
	n, problem := number(t.value, c.field.units)
	if problem != "" {
		return p.fail(t, fmt.Sprintf("%s %q: %s", c.name, t.value, problem), "")
	}
	c.nums = append(c.nums, n)
	return nil
}

// number reads a decimal with a unit as an exact count of base units.
func number(text string, units map[string]uint64) (n uint64, problem string) {
	cut := strings.IndexFunc(text, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
	if cut < 0 {
		cut = len(text)
	}
	per, ok := units[strings.ToLower(text[cut:])]
	if !ok || cut == 0 {
		return 0, "not a number with a known unit"
	}
	whole, frac, _ := strings.Cut(text[:cut], ".")
	frac = strings.TrimRight(frac, "0")
	if len(frac) > 12 {
		return 0, "too many decimals"
	}
	scale := uint64(1)
	for range frac {
		scale *= 10
	}
	digits, err := strconv.ParseUint(whole+frac, 10, 64)
	if err != nil {
		return 0, "not a number in range"
	}
	hi, lo := bits.Mul64(digits, per)
	if hi >= scale {
		return 0, "number too large"
	}
	n, rest := bits.Div64(hi, lo, scale)
	if rest != 0 {
		return 0, "finer than the smallest unit"
	}
	return n, ""
}
