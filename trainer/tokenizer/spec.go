package tokenizer

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/ipfs/go-cid"
	"golang.org/x/text/unicode/norm"

	"github.com/capacloud/capanode/storage/unixfs"
)

// spec is what tokenizer.json says, in the terms of this package. [Train] makes one, [Load] reads one.
type spec struct {
	vocab        []string // the model's, in ID order, in the alphabet of [byteSymbols]
	merges       []string // "left right", the lowest rank first
	ignoreMerges bool
	unknown      *string
	added        []addedJSON
	normalizers  []string
	steps        []step
	processors   []any
	front, back  []int32
}

// forms are the normalisers that the program applies, by the names in tokenizer.json.
var forms = map[string]norm.Form{"NFC": norm.NFC, "NFD": norm.NFD, "NFKC": norm.NFKC, "NFKD": norm.NFKD}

// render returns tokenizer.json. Equal specs give equal bytes.
func (s *spec) render() ([]byte, error) {
	file := specJSON{
		Version: "1.0", Added: s.added, Decoder: byteLevel{Type: typeByteLevel, AddPrefixSpace: true, TrimOffsets: true, UseRegex: true},
		Model: bpeJSON{Type: "BPE", Unknown: s.unknown, IgnoreMerges: s.ignoreMerges, Vocab: s.vocab, Merges: s.merges},
	}
	if file.Added == nil {
		file.Added = []addedJSON{}
	}
	var list []any
	for _, name := range s.normalizers {
		list = append(list, typed{name})
	}
	file.Normalizer = sequence(list, func(all []any) any { return normalizersJSON{typeSequence, all} })
	list = nil
	for _, st := range s.steps {
		list = append(list, st.spec)
	}
	file.PreTokenizer = sequence(list, func(all []any) any { return preTokenizersJSON{typeSequence, all} })
	file.PostProcessor = sequence(s.processors, func(all []any) any { return processorsJSON{typeSequence, all} })
	return marshal(file)
}

// sequence returns nothing, the only element, or a list of several in its JSON form.
func sequence(all []any, list func([]any) any) any {
	switch len(all) {
	case 0:
		return nil
	case 1:
		return all[0]
	}
	return list(all)
}

// build makes the tokenizer of a checked spec. end is the ID of the end-of-text token.
func (s *spec) build(end int32, config configJSON) (*BPE, error) {
	file, err := s.render()
	if err != nil {
		return nil, err
	}
	if len(file) > MaxFile {
		return nil, fmt.Errorf("tokenizer: tokenizer.json of %d bytes, limit %d: %w", len(file), MaxFile, ErrInvalid)
	}
	b := &BPE{file: file, end: end, steps: s.steps, front: s.front, back: s.back, config: config, idle: newIdle()}
	if b.cid, err = fileCID(file); err != nil {
		return nil, err
	}
	b.name = NameOf(end, b.cid)
	ids, err := s.ids()
	if err != nil {
		return nil, err
	}
	for _, name := range s.normalizers {
		b.normalize = append(b.normalize, forms[name])
	}
	if err := b.setVocab(s, ids); err != nil {
		return nil, err
	}
	if err := b.setMerges(s, ids); err != nil {
		return nil, err
	}
	b.setAdded(s)
	if s.ignoreMerges {
		b.whole = s.wholeWords(ids)
	}
	return b, nil
}

// ids maps the model's vocabulary to its IDs.
func (s *spec) ids() (map[string]int32, error) {
	ids := make(map[string]int32, len(s.vocab))
	for id, token := range s.vocab {
		if _, twice := ids[token]; twice {
			return nil, fmt.Errorf("tokenizer: token %.40q stands twice in the vocabulary: %w", token, ErrInvalid)
		}
		ids[token] = int32(id)
	}
	return ids, nil
}

// setVocab fills what each ID means.
func (b *BPE) setVocab(s *spec, ids map[string]int32) error {
	var of map[rune]byte
	b.bytes, of = [256]int32{}, make(map[rune]byte, 256)
	for i, r := range byteSymbols() {
		id, ok := ids[string(r)]
		if !ok {
			return fmt.Errorf("tokenizer: the vocabulary has no symbol for byte 0x%02x (%q), so texts would lose it: %w", i, r, ErrUnsupported)
		}
		b.bytes[i], of[r] = id, byte(i)
	}
	b.texts, b.special = make([][]byte, len(s.vocab)), make([]bool, len(s.vocab))
	for id, token := range s.vocab {
		b.texts[id] = textOf(token, of)
	}
	return nil
}

// textOf returns the bytes that a token of the vocabulary stands for; one that is not in the alphabet stands for itself.
func textOf(token string, of map[rune]byte) []byte {
	text := make([]byte, 0, len(token))
	for _, r := range token {
		b, ok := of[r]
		if !ok {
			return []byte(token)
		}
		text = append(text, b)
	}
	return text
}

// setMerges fills the table of merges.
func (b *BPE) setMerges(s *spec, ids map[string]int32) error {
	b.merges.table.reserve(len(s.merges))
	for rank, m := range s.merges {
		left, right, _ := strings.Cut(m, " ")
		l, ok := ids[left]
		r, ok2 := ids[right]
		product, ok3 := ids[left+right]
		if !ok || !ok2 || !ok3 || left == "" || right == "" {
			return fmt.Errorf("tokenizer: merge %d, %.80q, has a part or a product that is no token: %w", rank, m, ErrInvalid)
		}
		if _, isNew := b.merges.table.at(pairOf(l, r), uint64(rank)<<32|uint64(uint32(product))); !isNew {
			return fmt.Errorf("tokenizer: merge %d, %.80q, stands twice: %w", rank, m, ErrInvalid)
		}
	}
	return nil
}

// setAdded fills what added tokens mean and how they are searched.
func (b *BPE) setAdded(s *spec) {
	var raw, normal []addedJSON
	var rawText, normalText [][]byte
	rules := documentRules{plain: true, lines: true, words: true}
	for _, st := range s.steps {
		rules.lines = rules.lines && !st.space
	}
	for _, a := range s.added {
		if int(a.ID) == len(b.texts) {
			b.texts, b.special = append(b.texts, nil), append(b.special, false)
		}
		b.texts[a.ID], b.special[a.ID] = []byte(a.Content), a.Special
		if a.Normalized {
			normal, normalText = append(normal, a), append(normalText, slices.Clone(b.normalize.apply([]byte(a.Content))))
		} else {
			raw, rawText = append(raw, a), append(rawText, []byte(a.Content))
		}
		if !a.Special {
			rules.plain = false
		}
		if !a.Special && (a.LStrip || a.RStrip || spaced(a.Content)) {
			rules.lines, rules.words = false, false
		}
	}
	b.raw, b.normal, b.documents = newAddedSet(raw, rawText), newAddedSet(normal, normalText), rules
}

// wholeWords maps the text of tokens to IDs, for pre-tokens that are tokens whatever the merges say.
func (s *spec) wholeWords(ids map[string]int32) map[string]int32 {
	of := make(map[rune]byte, 256)
	for i, r := range byteSymbols() {
		of[r] = byte(i)
	}
	whole := make(map[string]int32, len(ids))
	for token, id := range ids {
		if inAlphabet(token, of) {
			whole[string(textOf(token, of))] = id
		}
	}
	return whole
}

func inAlphabet(token string, of map[rune]byte) bool {
	for _, r := range token {
		if _, ok := of[r]; !ok {
			return false
		}
	}
	return token != ""
}

// fileCID returns the CID under which a store keeps the bytes of a file.
func fileCID(file []byte) (cid.Cid, error) {
	var leaves []unixfs.Digest
	for rest := file; ; {
		n := min(len(rest), unixfs.BlockSize)
		leaves = append(leaves, sha256.Sum256(rest[:n]))
		if rest = rest[n:]; len(rest) == 0 {
			break
		}
	}
	l, err := unixfs.Build(leaves, int64(len(file)))
	if err != nil {
		return cid.Undef, fmt.Errorf("tokenizer: %w", err)
	}
	return l.Root, nil
}

// decodeStrict reads JSON into v and refuses keys that v does not have.
func decodeStrict(raw []byte, what string, v any) error {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		kind := ErrInvalid
		if strings.Contains(err.Error(), "unknown field") {
			kind = ErrUnsupported
		}
		return fmt.Errorf("tokenizer: %s: %w: %w", what, kind, err)
	}
	return nil
}
