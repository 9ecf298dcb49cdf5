package tokenizer

// step is one stage of cutting a text into pre-tokens. It cuts each piece of the stage before further.
type step struct {
	spec  preTokenizerJSON // as it is written in tokenizer.json
	space bool             // put a space in front of a piece that has none
	next  splitter         // nil cuts nothing
}

// cut calls f with every pre-token of a piece in order. A pre-token is valid during the call only.
func (e *encoder) cut(steps []step, piece []byte) {
	if len(piece) == 0 {
		return
	}
	if len(steps) == 0 {
		e.word(piece)
		return
	}
	s := &steps[0]
	if s.space && piece[0] != ' ' {
		piece = append(append(make([]byte, 0, len(piece)+1), ' '), piece...)
	}
	if s.next == nil {
		e.cut(steps[1:], piece)
		return
	}
	last := len(steps) == 1
	for len(piece) > 0 {
		n := s.next(e.classes, piece)
		if last {
			e.word(piece[:n])
		} else {
			e.cut(steps[1:], piece[:n])
		}
		piece = piece[n:]
	}
}
