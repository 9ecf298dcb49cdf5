package tokenizer

import "iter"

// Words cuts a text into pre-tokens as trained tokenizers do: as Llama 3 does. Together they are the text.
func Words(text []byte) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for next, table := llama3Split().next, classes(); len(text) > 0; {
			n := next(table, text)
			if !yield(text[:n]) {
				return
			}
			text = text[n:]
		}
	}
}
