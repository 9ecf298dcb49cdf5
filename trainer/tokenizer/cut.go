package tokenizer

// Cut returns the last place where a document may be cut without changing a single ID on either side, 0 where there is none:
// behind a line end between a character that is no white space and a letter or number, or before a space between two ASCII letters. With such
// cuts a document of any length can be encoded in pieces.
func Cut(t Tokenizer, text []byte) int {
	if b, ok := t.(*BPE); ok {
		return b.documents.cut(text)
	}
	return len(text)
}

// TrainedCut is [Cut] for every tokenizer that [Train] makes, known before it is made.
func TrainedCut(text []byte) int { return trainedRules.cut(text) }

// trainedRules are those of a tokenizer with Llama 3's pre-tokens and special tokens alone.
var trainedRules = documentRules{plain: true, lines: true, words: true}

func (r documentRules) cut(text []byte) int {
	table := classes()
	for i := len(text) - 1; i > 1; i-- {
		switch {
		case r.lines && text[i-1] == '\n':
			before, _ := table.before(text[:i-1])
			after, _ := table.at(text[i:])
			if before&space == 0 && after&(letter|number) != 0 {
				return i
			}
		case r.words && text[i] == ' ' && i+1 < len(text) && isLetter(text[i-1]) && isLetter(text[i+1]):
			return i
		}
	}
	return 0
}

func isLetter(b byte) bool { return b|0x20 >= 'a' && b|0x20 <= 'z' }
