package query

import "strings"

type kind int

const (
	end      kind = iota
	plain         // field, keyword, number or word
	quoted        // text in quotes
	operator      // = != < <= > >=
	symbol        // ( ) [ ] ,
)

// token is one word of a query. from and to are byte offsets in the text; value is the text without quotes.
type token struct {
	kind        kind
	text, value string
	from, to    int
}

func (t token) describe() string {
	if t.kind == end {
		return "the end"
	}
	return `"` + t.text + `"`
}

// scan cuts the text into tokens and appends an end token.
func (p *parser) scan() error {
	for i := 0; i < len(p.text); {
		c := p.text[i]
		t := token{from: i, to: i + 1}
		switch {
		case c == ' ' || c == '\t' || c == '\n' || c == '\r':
			i++
			continue
		case strings.IndexByte("()[],", c) >= 0:
			t.kind = symbol
		case c == '"' || c == '\'':
			length := strings.IndexByte(p.text[i+1:], c)
			if length < 0 {
				return p.fail(t, "quote without an end", "")
			}
			t.kind, t.to = quoted, i+length+2
			t.value = p.text[i+1 : i+1+length]
		case strings.IndexByte("=<>!", c) >= 0:
			t.kind = operator
			if i+1 < len(p.text) && p.text[i+1] == '=' {
				t.to++
			}
			if p.text[i:t.to] == "!" {
				return p.fail(t, "lonely !", "write != or not")
			}
		default:
			t.kind = plain
			t.to = i + strings.IndexAny(p.text[i:]+" ", " \t\r\n()[],\"'=<>!")
			t.value = p.text[i:t.to]
		}
		t.text = p.text[t.from:t.to]
		if t.text == "==" {
			t.text = "="
		}
		p.tokens = append(p.tokens, t)
		i = t.to
	}
	p.tokens = append(p.tokens, token{kind: end, from: len(p.text), to: len(p.text)})
	return nil
}
