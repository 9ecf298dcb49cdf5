package tokenizer

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// What is read of a file from outside at most.
const (
	// MaxFile is the largest tokenizer.json in bytes that is read.
	MaxFile   = 64 << 20
	maxVocab  = 1 << 20 // IDs
	maxMerges = 1 << 22
	maxToken  = 1 << 12 // bytes of one token, as it is spelled in the file
	maxAdded  = 1 << 16 // added tokens
	maxSteps  = 16      // normalisers, pre-tokenisers and post-processors, each
)

// endNames are the usual spellings of the end-of-text token, where no tokenizer_config.json names one.
var endNames = []string{EndOfTextSymbol, "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "<|return|>"}

// Load reads the tokenizer of a Hugging Face folder: tokenizer.json and, where there is one, tokenizer_config.json, which
// names the end-of-text token in eos_token. Without that name the token is the first of some usual ones.
//
// Read are byte-level BPE tokenizers whose parts this program applies exactly as the Python package tokenizers does
// (docs/models.md lists them). The files are taken for hostile: sizes are checked before anything is allocated for them.
// Anything malformed or contradictory is [ErrInvalid]; what is well-formed but not done here, such as another splitter or
// normaliser, is [ErrUnsupported] and named.
func Load(tokenizerJSON, configJSON []byte) (Tokenizer, error) {
	if t, ok := recognizeByte(tokenizerJSON); ok {
		return t, nil
	}
	s, err := parse(tokenizerJSON)
	if err != nil {
		return nil, err
	}
	config, err := parseConfig(configJSON)
	if err != nil {
		return nil, err
	}
	end, err := s.findEnd(config.Eos)
	if err != nil {
		return nil, err
	}
	return s.build(end.ID, s.configFor(end))
}

// loadCanonical reads what this program wrote, for a known end-of-text token.
func loadCanonical(file []byte, end int32) (*BPE, error) {
	s, err := parse(file)
	if err != nil {
		return nil, err
	}
	for _, a := range s.added {
		if a.ID == end && a.Special {
			return s.build(end, s.configFor(a))
		}
	}
	return nil, fmt.Errorf("tokenizer: token %d is to end texts and is no special token: %w", end, ErrInvalid)
}

// configFor describes the special tokens for tokenizer_config.json.
func (s *spec) configFor(end addedJSON) configJSON {
	c := configJSON{Bos: end.Content, Eos: end.Content, Class: fastClass}
	for _, a := range s.added {
		if len(s.front) > 0 && a.ID == s.front[0] {
			c.Bos = a.Content
		}
	}
	for _, st := range s.steps {
		c.AddPrefixSpace = c.AddPrefixSpace || st.space
	}
	return c
}

// findEnd returns the special token that ends texts.
func (s *spec) findEnd(name string) (addedJSON, error) {
	names := endNames
	if name != "" {
		names = []string{name}
	}
	for _, name := range names {
		for _, a := range s.added {
			if a.Content == name && a.Special {
				return a, nil
			}
		}
	}
	return addedJSON{}, fmt.Errorf("tokenizer: no special token %.40q to end texts with: %w: name one as eos_token in tokenizer_config.json beside tokenizer.json",
		names, ErrUnsupported)
}

// parseConfig reads what matters of tokenizer_config.json: the rest is free-form.
func parseConfig(raw []byte) (configJSON, error) {
	var in struct {
		Eos json.RawMessage `json:"eos_token"`
	}
	if len(raw) == 0 {
		return configJSON{}, nil
	}
	if err := json.Unmarshal(raw, &in); err != nil {
		return configJSON{}, fmt.Errorf("tokenizer: tokenizer_config.json: %w: %w", ErrInvalid, err)
	}
	var c configJSON
	var object struct {
		Content string `json:"content"`
	}
	if json.Unmarshal(in.Eos, &c.Eos) != nil && json.Unmarshal(in.Eos, &object) == nil {
		c.Eos = object.Content
	}
	return c, nil
}

// fileIn is tokenizer.json as it is read.
type fileIn struct {
	Version       string          `json:"version"`
	Truncation    json.RawMessage `json:"truncation"`
	Padding       json.RawMessage `json:"padding"`
	Added         addedIn         `json:"added_tokens"`
	Normalizer    json.RawMessage `json:"normalizer"`
	PreTokenizer  json.RawMessage `json:"pre_tokenizer"`
	PostProcessor json.RawMessage `json:"post_processor"`
	Decoder       json.RawMessage `json:"decoder"`
	Model         modelIn         `json:"model"`
}

type modelIn struct {
	Type         string   `json:"type"`
	Dropout      *float64 `json:"dropout"`
	Unknown      *string  `json:"unk_token"`
	Prefix       *string  `json:"continuing_subword_prefix"`
	Suffix       *string  `json:"end_of_word_suffix"`
	FuseUnknown  bool     `json:"fuse_unk"`
	ByteFallback bool     `json:"byte_fallback"`
	IgnoreMerges bool     `json:"ignore_merges"`
	Vocab        vocabIn  `json:"vocab"`
	Merges       mergesIn `json:"merges"`
}

// parse reads tokenizer.json into a spec whose parts this program can apply.
func parse(raw []byte) (*spec, error) {
	if len(raw) > MaxFile {
		return nil, fmt.Errorf("tokenizer: tokenizer.json of %d bytes, limit %d: %w", len(raw), MaxFile, ErrInvalid)
	}
	if !utf8.Valid(raw) {
		return nil, fmt.Errorf("tokenizer: tokenizer.json is not UTF-8: %w", ErrInvalid)
	}
	var in fileIn
	if err := decodeStrict(raw, "tokenizer.json", &in); err != nil {
		return nil, err
	}
	if err := in.refuse(); err != nil {
		return nil, err
	}
	s := &spec{ignoreMerges: in.Model.IgnoreMerges, unknown: in.Model.Unknown, merges: in.Model.Merges}
	if s.vocab = in.Model.Vocab; len(s.vocab) == 0 {
		return nil, fmt.Errorf("tokenizer: no vocabulary: %w", ErrInvalid)
	}
	if err := s.setAdded(in.Added); err != nil {
		return nil, err
	}
	if err := s.parseNormalizer(in.Normalizer, 0); err != nil {
		return nil, err
	}
	if err := s.parsePreTokenizer(in.PreTokenizer, 0); err != nil {
		return nil, err
	}
	if n := len(s.steps); n == 0 || s.steps[n-1].spec.Type != typeByteLevel {
		return nil, fmt.Errorf("tokenizer: pre_tokenizer does not end in ByteLevel: %w", ErrUnsupported)
	}
	return s, s.parseProcessor(in.PostProcessor, 0)
}

// refuse names what changes IDs and is not done here.
func (in *fileIn) refuse() error {
	m := &in.Model
	var decoder struct {
		Type string `json:"type"`
	}
	if !null(in.Decoder) && json.Unmarshal(in.Decoder, &decoder) != nil {
		return fmt.Errorf("tokenizer: decoder: %w", ErrInvalid)
	}
	for _, r := range []struct {
		bad  bool
		what string
	}{
		{m.Type != "BPE" && m.Type != "", fmt.Sprintf("model %.40q, only BPE is", m.Type)},
		{m.Dropout != nil && *m.Dropout != 0, "dropout"},
		{m.Prefix != nil && *m.Prefix != "", "continuing_subword_prefix"},
		{m.Suffix != nil && *m.Suffix != "", "end_of_word_suffix"},
		{m.ByteFallback, "byte_fallback"},
		{!null(in.Truncation), "truncation; set it to null"},
		{!null(in.Padding), "padding; set it to null"},
		{decoder.Type != typeByteLevel, fmt.Sprintf("decoder %.40q, only ByteLevel is", decoder.Type)},
	} {
		if r.bad {
			return fmt.Errorf("tokenizer: not done here: %s: %w", r.what, ErrUnsupported)
		}
	}
	return nil
}

func null(raw json.RawMessage) bool { return len(raw) == 0 || string(raw) == "null" }

// setAdded takes the added tokens whose IDs are those that the Python package gives them: that of the vocabulary for a
// token that is in it, else the next free one.
func (s *spec) setAdded(added []addedJSON) error {
	vocab := make(map[string]int32, len(s.vocab))
	for id, token := range s.vocab {
		vocab[token] = int32(id)
	}
	next, seen := int32(len(s.vocab)), map[string]bool{}
	for _, a := range added {
		id, known := vocab[a.Content]
		if !known {
			id = next
			next++
		}
		switch {
		case a.Content == "" || len(a.Content) > maxToken || seen[a.Content]:
			return fmt.Errorf("tokenizer: added token %.40q is empty, longer than %d bytes or there twice: %w", a.Content, maxToken, ErrInvalid)
		case a.ID != id:
			return fmt.Errorf("tokenizer: added token %.40q has ID %d, it must have %d: IDs follow each other without gaps: %w", a.Content, a.ID, id, ErrInvalid)
		case next > maxVocab:
			return fmt.Errorf("tokenizer: more than %d tokens: %w", maxVocab, ErrInvalid)
		}
		seen[a.Content] = true
	}
	s.added = added
	return nil
}

// vocabIn reads the vocabulary into ID order, without a map of the library's choice.
type vocabIn []string

// UnmarshalJSON implements [json.Unmarshaler].
func (v *vocabIn) UnmarshalJSON(raw []byte) error {
	type entry struct {
		token string
		id    int32
	}
	var all []entry
	dec := json.NewDecoder(bytes.NewReader(raw))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return fmt.Errorf("vocab is no object: %w", ErrInvalid)
	}
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return err
		}
		token, _ := key.(string)
		var id int32
		if err := dec.Decode(&id); err != nil {
			return fmt.Errorf("ID of %.40q: %w", token, err)
		}
		if len(all) == maxVocab || token == "" || len(token) > maxToken {
			return fmt.Errorf("token %d, %.40q: at most %d tokens of 1 to %d bytes: %w", len(all), token, maxVocab, maxToken, ErrInvalid)
		}
		all = append(all, entry{token, id})
	}
	out, filled := make([]string, len(all)), make([]bool, len(all))
	for _, e := range all {
		if e.id < 0 || int(e.id) >= len(all) {
			return fmt.Errorf("token %.40q has ID %d, %d tokens have 0 to %d: IDs follow each other without gaps: %w", e.token, e.id, len(all), len(all)-1, ErrInvalid)
		}
		if filled[e.id] {
			return fmt.Errorf("tokens %.40q and %.40q have ID %d: %w", out[e.id], e.token, e.id, ErrInvalid)
		}
		out[e.id], filled[e.id] = e.token, true
	}
	*v = out
	return nil
}

// mergesIn reads merges in both spellings: "left right" and ["left", "right"].
type mergesIn []string

// UnmarshalJSON implements [json.Unmarshaler].
func (m *mergesIn) UnmarshalJSON(raw []byte) error {
	dec := json.NewDecoder(bytes.NewReader(raw))
	if t, err := dec.Token(); err != nil || t != json.Delim('[') {
		return fmt.Errorf("merges are no list: %w", ErrInvalid)
	}
	var out []string
	for dec.More() {
		var one mergeIn
		if err := dec.Decode(&one); err != nil {
			return err
		}
		if len(out) == maxMerges {
			return fmt.Errorf("more than %d merges: %w", maxMerges, ErrInvalid)
		}
		out = append(out, string(one))
	}
	*m = out
	return nil
}

type mergeIn string

// UnmarshalJSON implements [json.Unmarshaler].
func (m *mergeIn) UnmarshalJSON(raw []byte) error {
	var text string
	if json.Unmarshal(raw, &text) != nil {
		var pair []string
		if err := json.Unmarshal(raw, &pair); err != nil || len(pair) != 2 || strings.ContainsRune(pair[0]+pair[1], ' ') {
			return fmt.Errorf("merge %.80s is no pair of tokens without spaces: %w", raw, ErrInvalid)
		}
		text = pair[0] + " " + pair[1]
	}
	if len(text) > 2*maxToken || strings.Count(text, " ") != 1 {
		return fmt.Errorf("merge %.80q is no pair of tokens without spaces: %w", text, ErrInvalid)
	}
	*m = mergeIn(text)
	return nil
}

// addedIn reads added tokens up to their limit.
type addedIn []addedJSON

// UnmarshalJSON implements [json.Unmarshaler].
func (a *addedIn) UnmarshalJSON(raw []byte) error {
	if bytes.Count(raw, []byte("{")) > 2*maxAdded { // contents may have a brace of their own
		return fmt.Errorf("more than %d added tokens: %w", maxAdded, ErrInvalid)
	}
	var all []addedJSON
	if err := json.Unmarshal(raw, &all); err != nil {
		return err
	}
	if len(all) > maxAdded {
		return fmt.Errorf("%d added tokens, limit %d: %w", len(all), maxAdded, ErrInvalid)
	}
	*a = slices.Clip(all)
	return nil
}
