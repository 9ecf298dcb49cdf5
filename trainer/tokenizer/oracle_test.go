package tokenizer

import (
	"slices"
	"sort"
	"strings"
	"unicode"
	"unicode/utf8"
)

// This file has the slow forms that the fast code is held to: a backtracking matcher for the splitters' expressions, merging
// by looking through all merges, and training by counting everything anew for each merge.

// matcher matches at the start of a text, calls then with each length that it can take, preferred first, and reports
// whether then accepted one.
type matcher func(text []byte, then func(n int) bool) bool

// regexParser reads the subset of regular expressions that splitters are written in.
type regexParser struct {
	rest string
	fold bool
}

// compileSlow returns the matcher of an expression.
func compileSlow(regex string) matcher {
	p := &regexParser{rest: regex}
	m := p.alternatives()
	if p.rest != "" {
		panic("regex: " + p.rest)
	}
	return m
}

func (p *regexParser) eat(s string) bool {
	if !strings.HasPrefix(p.rest, s) {
		return false
	}
	p.rest = p.rest[len(s):]
	return true
}

func (p *regexParser) alternatives() matcher {
	all := []matcher{p.sequence()}
	for p.eat("|") {
		all = append(all, p.sequence())
	}
	return func(text []byte, then func(int) bool) bool {
		for _, m := range all {
			if m(text, then) {
				return true
			}
		}
		return false
	}
}

func (p *regexParser) sequence() matcher {
	m := matcher(func(_ []byte, then func(int) bool) bool { return then(0) })
	for p.rest != "" && p.rest[0] != '|' && p.rest[0] != ')' {
		before, after := m, p.quantified()
		m = func(text []byte, then func(int) bool) bool {
			return before(text, func(n int) bool {
				return after(text[n:], func(k int) bool { return then(n + k) })
			})
		}
	}
	return m
}

func (p *regexParser) quantified() matcher {
	m := p.atom()
	switch {
	case p.eat("?"):
		return repeat(m, 0, 1)
	case p.eat("*"):
		return repeat(m, 0, 1<<30)
	case p.eat("+"):
		return repeat(m, 1, 1<<30)
	case p.eat("{1,3}"):
		return repeat(m, 1, 3)
	}
	return m
}

func repeat(m matcher, least, most int) matcher {
	return func(text []byte, then func(int) bool) bool {
		var more func(done, times int) bool
		more = func(done, times int) bool {
			if times < most && m(text[done:], func(n int) bool { return n > 0 && more(done+n, times+1) }) {
				return true
			}
			return times >= least && then(done)
		}
		return more(0, 0)
	}
}

func (p *regexParser) atom() matcher {
	switch {
	case p.eat("(?i:"):
		p.fold = true
		m := p.alternatives()
		p.fold = false
		p.eat(")")
		return m
	case p.eat(`(?!\S)`):
		return func(text []byte, then func(int) bool) bool {
			c, _ := classes().at(text)
			return (len(text) == 0 || c&space != 0) && then(0)
		}
	}
	return one(p.set(p.fold))
}

// one matches one character of a set.
func one(in func(r rune, c class) bool) matcher {
	return func(text []byte, then func(int) bool) bool {
		c, n := classes().at(text)
		if n == 0 {
			return false
		}
		r, _ := utf8.DecodeRune(text)
		return in(r, c) && then(n)
	}
}

// set reads a character, a class or a bracket of them.
func (p *regexParser) set(fold bool) func(rune, class) bool {
	if p.eat("[^") {
		in := p.bracket()
		return func(r rune, c class) bool { return !in(r, c) }
	}
	if p.eat("[") {
		return p.bracket()
	}
	for _, k := range []struct {
		spelling string
		is       func(r rune, c class) bool
	}{
		{`\p{L}`, func(_ rune, c class) bool { return c&letter != 0 }}, {`\p{N}`, func(_ rune, c class) bool { return c&number != 0 }},
		{`\p{M}`, func(_ rune, c class) bool { return c&mark != 0 }}, {`\s`, func(_ rune, c class) bool { return c&space != 0 }},
		{`\p{Lu}`, func(_ rune, c class) bool { return c&upper != 0 }}, {`\p{Lt}`, func(_ rune, c class) bool { return c&upper != 0 }},
		{`\p{Ll}`, func(_ rune, c class) bool { return c&lower != 0 }}, {`\p{Lm}`, func(_ rune, c class) bool { return c&uncased != 0 }},
		{`\p{Lo}`, func(_ rune, c class) bool { return c&uncased != 0 }}, {`\r`, func(r rune, _ class) bool { return r == '\r' }},
		{`\n`, func(r rune, _ class) bool { return r == '\n' }}, {`0-9`, func(r rune, _ class) bool { return r >= '0' && r <= '9' }},
	} {
		if p.eat(k.spelling) {
			return k.is
		}
	}
	want, n := utf8.DecodeRuneInString(p.rest)
	p.rest = p.rest[n:]
	return func(r rune, _ class) bool {
		for f := r; fold; {
			if f = unicode.SimpleFold(f); f == want || f == r {
				return f == want || r == want
			}
		}
		return r == want
	}
}

func (p *regexParser) bracket() func(rune, class) bool {
	var all []func(rune, class) bool
	for !p.eat("]") {
		all = append(all, p.set(false))
	}
	return func(r rune, c class) bool {
		return slices.ContainsFunc(all, func(in func(rune, class) bool) bool { return in(r, c) })
	}
}

// cutSlow cuts a text as a Split that isolates matches does.
func cutSlow(m matcher, text []byte) []int {
	out := []int{}
	between := 0 // characters since the last match
	for len(text) > 0 {
		n := 0
		if !m(text, func(k int) bool { n = k; return k > 0 }) {
			_, size := classes().at(text)
			text, between = text[size:], between+1
			continue
		}
		if between > 0 {
			out, between = append(out, between), 0
		}
		out = append(out, utf8.RuneCount(text[:n]))
		text = text[n:]
	}
	if between > 0 {
		out = append(out, between)
	}
	return out
}

// mergeSlow merges symbols by going through the merges in the order of their ranks.
func mergeSlow(merges []string, symbols []string) []string {
	for {
		best, at := len(merges), -1
		for i := 1; i < len(symbols); i++ {
			if rank := slices.Index(merges, symbols[i-1]+" "+symbols[i]); rank >= 0 && rank < best {
				best, at = rank, i-1
			}
		}
		if at < 0 {
			return symbols
		}
		symbols = slices.Concat(symbols[:at], []string{symbols[at] + symbols[at+1]}, symbols[at+2:])
	}
}

// encodeSlow returns the IDs of a text by [mergeSlow] and [cutSlow].
func encodeSlow(s *spec, m matcher, text []byte) []int32 {
	var ids []int32
	for len(text) > 0 {
		n := 0
		m(text, func(k int) bool { n = k; return k > 0 })
		var symbols []string
		for _, b := range text[:n] {
			symbols = append(symbols, string(byteSymbols()[b]))
		}
		for _, symbol := range mergeSlow(s.merges, symbols) {
			ids = append(ids, int32(slices.Index(s.vocab, symbol)))
		}
		text = text[n:]
	}
	return ids
}

// trainSlow is the textbook: count all pairs of all words, merge the best everywhere, begin again.
func trainSlow(texts [][]byte, vocab int, least int64) []string {
	counts := map[string]int64{}
	next := llama3Split().next
	for _, text := range texts {
		for len(text) > 0 {
			n := next(classes(), text)
			counts[string(text[:n])]++
			text = text[n:]
		}
	}
	s := newSpec([]string{EndOfTextSymbol})
	ids := map[string]int{}
	for id, token := range s.vocab {
		ids[token] = id
	}
	words := map[string][]string{}
	for w := range counts {
		for _, b := range []byte(w) {
			words[w] = append(words[w], string(byteSymbols()[b]))
		}
	}
	for len(s.vocab) < vocab {
		type pair struct{ a, b string }
		pairs := map[pair]int64{}
		for w, symbols := range words {
			for i := 1; i < len(symbols); i++ {
				pairs[pair{symbols[i-1], symbols[i]}] += counts[w]
			}
		}
		var all []pair
		for p, n := range pairs {
			if n >= least {
				all = append(all, p)
			}
		}
		if len(all) == 0 {
			break
		}
		sort.Slice(all, func(i, j int) bool {
			p, q := all[i], all[j]
			if pairs[p] != pairs[q] {
				return pairs[p] > pairs[q]
			}
			return ids[p.a] < ids[q.a] || ids[p.a] == ids[q.a] && ids[p.b] < ids[q.b]
		})
		best := all[0]
		s.merges = append(s.merges, best.a+" "+best.b)
		ids[best.a+best.b] = len(s.vocab)
		s.vocab = append(s.vocab, best.a+best.b)
		for w, symbols := range words {
			var merged []string
			for i := 0; i < len(symbols); i++ {
				if i+1 < len(symbols) && symbols[i] == best.a && symbols[i+1] == best.b {
					merged = append(merged, best.a+best.b)
					i++
				} else {
					merged = append(merged, symbols[i])
				}
			}
			words[w] = merged
		}
	}
	return s.merges
}
