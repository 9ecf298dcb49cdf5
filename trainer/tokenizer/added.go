package tokenizer

import (
	"bytes"
	"sort"
)

// addedSet finds added tokens in a text, the leftmost first and of those that start together the longest.
type addedSet struct {
	tokens []addedJSON
	starts [256]bool
	nodes  []trieNode // the first is the root
}

// trieNode is a place in the trie of token contents.
type trieNode struct {
	token int // index of the token that ends here, -1 for none
	below []trieEdge
}

type trieEdge struct {
	b    byte
	node int32
}

// newAddedSet builds the trie. contents are what is searched for, one for each token: the content itself, or what the
// normaliser makes of it.
func newAddedSet(tokens []addedJSON, contents [][]byte) *addedSet {
	if len(tokens) == 0 {
		return nil
	}
	s := &addedSet{tokens: tokens, nodes: []trieNode{{token: -1}}}
	for i, content := range contents {
		if len(content) == 0 {
			continue
		}
		s.starts[content[0]] = true
		at := int32(0)
		for _, b := range content {
			below := s.nodes[at].below
			k := sort.Search(len(below), func(k int) bool { return below[k].b >= b })
			if k == len(below) || below[k].b != b {
				below = append(below, trieEdge{})
				copy(below[k+1:], below[k:])
				below[k] = trieEdge{b, int32(len(s.nodes))}
				s.nodes[at].below = below
				s.nodes = append(s.nodes, trieNode{token: -1})
			}
			at = below[k].node
		}
		if s.nodes[at].token < 0 {
			s.nodes[at].token = i
		}
	}
	return s
}

// find returns the next match from i on: the token and its place, or -1.
func (s *addedSet) find(text []byte, i int) (token, start, end int) {
	for ; i < len(text); i++ {
		if !s.starts[text[i]] {
			continue
		}
		token = -1
		at := int32(0)
		for j := i; j < len(text); j++ {
			below := s.nodes[at].below
			k := sort.Search(len(below), func(k int) bool { return below[k].b >= text[j] })
			if k == len(below) || below[k].b != text[j] {
				break
			}
			at = below[k].node
			if t := s.nodes[at].token; t >= 0 {
				token, end = t, j+1
			}
		}
		if token >= 0 {
			return token, i, end
		}
	}
	return -1, len(text), len(text)
}

// segment is a part of a text: an added token, or the text between two.
type segment struct {
	text []byte
	id   int32 // -1 for text
}

// split appends the segments of a text. special says whether special tokens that are spelled out count as tokens; where they
// do not, their spelling is stepped over and stays text. The rules are those of the Python package tokenizers.
func (s *addedSet) split(dst []segment, t *classTable, text []byte, special bool) []segment {
	if s == nil {
		return append(dst, segment{text, -1})
	}
	done := 0 // where the part begins that no segment has yet
	for i := 0; i < len(text); {
		k, start, end := s.find(text, i)
		if k < 0 {
			break
		}
		i = end
		token := &s.tokens[k]
		if token.Special && !special || token.SingleWord && !alone(t, text, start, end) {
			continue
		}
		if token.LStrip {
			start = max(done, len(trimRight(t, text[:start])))
		}
		if token.RStrip {
			end = t.run(text, end, space)
		}
		if done < start {
			dst = append(dst, segment{text[done:start], -1})
		}
		dst = append(dst, segment{text[start:end], token.ID})
		done = end
	}
	if done < len(text) {
		dst = append(dst, segment{text[done:], -1})
	}
	return dst
}

// alone reports whether neither neighbour of a match belongs to a word.
func alone(t *classTable, text []byte, start, end int) bool {
	left, _ := t.before(text[:start])
	right, _ := t.at(text[end:])
	return left&word == 0 && right&word == 0
}

func trimRight(t *classTable, text []byte) []byte {
	for {
		c, size := t.before(text)
		if c&space == 0 {
			return text
		}
		text = text[:len(text)-size]
	}
}

// spaced reports whether a content has ASCII white space beside other characters.
func spaced(content string) bool {
	b := []byte(content)
	return bytes.ContainsAny(b, " \t\r\n\v\f") && len(bytes.Trim(b, " \t\r\n\v\f")) > 0
}
