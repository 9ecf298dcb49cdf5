package tokenizer

import (
	"bytes"
	"slices"
)

// maskNames are the usual spellings of the token that stands for a masked one. A file of this program has the first that is no
// token of the vocabulary.
var maskNames = []string{"[MASK]", "<mask>", "<|mask|>"}

// Masked returns the ID that stands for masked tokens, and the number of IDs with it. A tokenizer that has a special token for
// that keeps it; any other gets one more ID, which no text encodes to.
func Masked(t Tokenizer) (mask int32, vocab int) {
	if b, ok := t.(*BPE); ok {
		for _, name := range maskNames {
			at := slices.IndexFunc(b.texts, func(text []byte) bool { return string(text) == name })
			if at >= 0 && b.special[at] {
				return int32(at), len(b.texts)
			}
		}
	}
	return int32(t.Vocab()), t.Vocab() + 1
}

// HuggingFaceMasked is [HuggingFace] for a model that fills gaps: the files name the mask token, which is added where the
// tokenizer has none.
func HuggingFaceMasked(t Tokenizer, maxLength int) ([]File, error) {
	files, err := HuggingFace(t, maxLength)
	if err != nil {
		return nil, err
	}
	mask, vocab := Masked(t)
	config := configJSON{Bos: EndOfTextSymbol, Eos: EndOfTextSymbol, Class: fastClass, MaxLength: maxLength}
	add := func(tokens []string) addedJSON {
		name := slices.IndexFunc(maskNames, func(name string) bool { return !slices.Contains(tokens, name) })
		return addedJSON{ID: mask, Content: maskNames[max(0, name)], Special: true}
	}
	switch b, ok := t.(*BPE); {
	case !ok:
		spec := byteSpec()
		more := add(spec.Model.Vocab)
		spec.Added = append(spec.Added, more)
		config.Mask = more.Content
		files[0].Data, err = marshal(spec)
	case vocab == t.Vocab():
		config = b.config
		config.MaxLength, config.Mask = maxLength, string(b.texts[mask])
	default:
		var s *spec
		if s, err = parse(b.file); err != nil {
			return nil, err
		}
		tokens := slices.Clone(s.vocab)
		for _, a := range s.added {
			tokens = append(tokens, a.Content)
		}
		more := add(tokens)
		s.added = append(s.added, more)
		config = b.config
		config.MaxLength, config.Mask = maxLength, more.Content
		files[0].Data, err = s.render()
	}
	if err != nil {
		return nil, err
	}
	files[1].Data, err = marshal(config)
	return files, err
}

// LoadMasked is [Load] for the folder of a model that fills gaps. Where [HuggingFaceMasked] added the mask token, the tokenizer
// without it is what comes back.
func LoadMasked(tokenizerJSON, configJSON []byte) (Tokenizer, error) {
	if written(Byte{}, tokenizerJSON) {
		return Byte{}, nil
	}
	whole, err := Load(tokenizerJSON, configJSON)
	if err != nil {
		return nil, err
	}
	s, err := parse(tokenizerJSON)
	if err != nil || len(s.added) == 0 {
		return whole, err
	}
	if last := s.added[len(s.added)-1]; !last.Special || int(last.ID) != whole.Vocab()-1 || !slices.Contains(maskNames, last.Content) {
		return whole, nil
	}
	s.added = s.added[:len(s.added)-1]
	config, err := parseConfig(configJSON)
	if err != nil {
		return nil, err
	}
	end, err := s.findEnd(config.Eos)
	if err != nil {
		return whole, nil
	}
	if base, err := s.build(end.ID, s.configFor(end)); err == nil && written(base, tokenizerJSON) {
		return base, nil
	}
	return whole, nil
}

// written tells whether a file is the one that this program writes for a tokenizer with a mask token.
func written(t Tokenizer, tokenizerJSON []byte) bool {
	files, err := HuggingFaceMasked(t, 1)
	return err == nil && bytes.Equal(files[0].Data, tokenizerJSON)
}
