package tokenizer

import (
	"encoding/json"
	"fmt"
)

// Types of the parts of tokenizer.json.
const (
	typeByteLevel = "ByteLevel"
	typeSequence  = "Sequence"
	typeSplit     = "Split"
	typeDigits    = "Digits"
	typeTemplate  = "TemplateProcessing"
	typeRoberta   = "RobertaProcessing"
	typeBert      = "BertProcessing"
)

type typed struct {
	Type string `json:"type"`
}

// typeOf returns the type of a part.
func typeOf(raw json.RawMessage, what string) (string, error) {
	var t typed
	if err := json.Unmarshal(raw, &t); err != nil {
		return "", fmt.Errorf("tokenizer: %s: %w: %w", what, ErrInvalid, err)
	}
	return t.Type, nil
}

// tooMany refuses lists that no real file has.
func tooMany(n, depth int, what string) error {
	if n >= maxSteps || depth > 1 {
		return fmt.Errorf("tokenizer: %s has more than %d parts, or lists in lists: %w", what, maxSteps, ErrUnsupported)
	}
	return nil
}

type normalizersJSON struct {
	Type string `json:"type"`
	List []any  `json:"normalizers"`
}

// parseNormalizer reads a normaliser or a list of them.
func (s *spec) parseNormalizer(raw json.RawMessage, depth int) error {
	if null(raw) {
		return nil
	}
	kind, err := typeOf(raw, "normalizer")
	if err != nil {
		return err
	}
	if err := tooMany(len(s.normalizers), depth, "normalizer"); err != nil {
		return err
	}
	if kind == typeSequence {
		var list struct {
			Type string            `json:"type"`
			List []json.RawMessage `json:"normalizers"`
		}
		if err := decodeStrict(raw, "normalizer", &list); err != nil {
			return err
		}
		for _, one := range list.List {
			if err := s.parseNormalizer(one, depth+1); err != nil {
				return err
			}
		}
		return nil
	}
	if _, ok := forms[kind]; !ok {
		return fmt.Errorf("tokenizer: not done here: normalizer %.40q, only NFC, NFD, NFKC and NFKD are: %w", kind, ErrUnsupported)
	}
	s.normalizers = append(s.normalizers, kind)
	return decodeStrict(raw, "normalizer "+kind, &typed{})
}

// preTokenizerJSON is one pre-tokeniser; which keys there are depends on the type.
type preTokenizerJSON struct {
	Type       string       `json:"type"`
	Pattern    *patternJSON `json:"pattern,omitempty"`
	Behavior   string       `json:"behavior,omitempty"`
	Invert     *bool        `json:"invert,omitempty"`
	Individual *bool        `json:"individual_digits,omitempty"`
	Prefix     *bool        `json:"add_prefix_space,omitempty"`
	Trim       *bool        `json:"trim_offsets,omitempty"`
	UseRegex   *bool        `json:"use_regex,omitempty"`
}

type patternJSON struct {
	Regex  string  `json:"Regex,omitempty"`
	String *string `json:"String,omitempty"`
}

type preTokenizersJSON struct {
	Type string `json:"type"`
	List []any  `json:"pretokenizers"`
}

// Behaviours of a Split that come to the same for an expression that matches everywhere.
const (
	isolated = "Isolated"
	removed  = "Removed"
)

// splitStep returns the step that isolates the matches of an expression.
func splitStep(k knownSplit) step {
	no := false
	return step{preTokenizerJSON{Type: typeSplit, Pattern: &patternJSON{Regex: k.regex}, Behavior: isolated, Invert: &no}, false, k.next}
}

// byteLevelStep returns the step that makes bytes of text, as it is written.
func byteLevelStep(space, trim, regex bool) step {
	st := step{preTokenizerJSON{Type: typeByteLevel, Prefix: &space, Trim: &trim, UseRegex: &regex}, space, nil}
	if regex {
		st.next = splitGPT2
	}
	return st
}

// parsePreTokenizer reads a pre-tokeniser or a list of them.
func (s *spec) parsePreTokenizer(raw json.RawMessage, depth int) error {
	if null(raw) {
		return nil
	}
	kind, err := typeOf(raw, "pre_tokenizer")
	if err != nil {
		return err
	}
	if err := tooMany(len(s.steps), depth, "pre_tokenizer"); err != nil {
		return err
	}
	if kind == typeSequence {
		var list struct {
			Type string            `json:"type"`
			List []json.RawMessage `json:"pretokenizers"`
		}
		if err := decodeStrict(raw, "pre_tokenizer", &list); err != nil {
			return err
		}
		for _, one := range list.List {
			if err := s.parsePreTokenizer(one, depth+1); err != nil {
				return err
			}
		}
		return nil
	}
	var p preTokenizerJSON
	if err := decodeStrict(raw, "pre_tokenizer "+kind, &p); err != nil {
		return err
	}
	if n := len(s.steps); n > 0 && s.steps[n-1].spec.Type == typeByteLevel {
		return fmt.Errorf("tokenizer: not done here: pre_tokenizer %.40q after ByteLevel: %w", kind, ErrUnsupported)
	}
	st, err := p.step()
	s.steps = append(s.steps, st)
	return err
}

// step returns what a pre-tokeniser does.
func (p preTokenizerJSON) step() (step, error) {
	set := func(b *bool, missing bool) bool {
		if b == nil {
			return missing
		}
		return *b
	}
	switch p.Type {
	case typeByteLevel:
		return byteLevelStep(set(p.Prefix, true), set(p.Trim, true), set(p.UseRegex, true)), nil
	case typeDigits:
		each := set(p.Individual, false)
		next := func(t *classTable, text []byte) int { return splitDigits(t, text, each) }
		return step{preTokenizerJSON{Type: typeDigits, Individual: &each}, false, next}, nil
	case typeSplit:
		if p.Pattern == nil || p.Pattern.String != nil {
			return step{}, fmt.Errorf("tokenizer: not done here: a Split by a plain text: %w", ErrUnsupported)
		}
		for _, k := range knownSplits() {
			if k.regex != p.Pattern.Regex {
				continue
			}
			invert := set(p.Invert, false)
			if p.Behavior == isolated && !invert || p.Behavior == removed && invert && k.everywhere() {
				return splitStep(k), nil
			}
			return step{}, fmt.Errorf("tokenizer: not done here: a Split with behaviour %.40q, invert %v: %w", p.Behavior, invert, ErrUnsupported)
		}
		return step{}, fmt.Errorf("tokenizer: not done here: the splitter %.400q: %w", p.Pattern.Regex, ErrUnsupported)
	}
	return step{}, fmt.Errorf("tokenizer: not done here: pre_tokenizer %.40q: %w", p.Type, ErrUnsupported)
}

type processorsJSON struct {
	Type string `json:"type"`
	List []any  `json:"processors"`
}

// namedID is a token with its ID, a list of two in the file.
type namedID struct {
	Token string
	ID    int32
}

// MarshalJSON implements [json.Marshaler].
func (n namedID) MarshalJSON() ([]byte, error) { return json.Marshal([]any{n.Token, n.ID}) }

// UnmarshalJSON implements [json.Unmarshaler].
func (n *namedID) UnmarshalJSON(raw []byte) error {
	pair := []any{&n.Token, &n.ID}
	if err := json.Unmarshal(raw, &pair); err != nil || len(pair) != 2 {
		return fmt.Errorf("want a token and its ID: %w", ErrInvalid)
	}
	return nil
}

// aroundJSON is RobertaProcessing, BertProcessing or ByteLevel, depending on the type.
type aroundJSON struct {
	Type     string   `json:"type"`
	Sep      *namedID `json:"sep,omitempty"`
	Cls      *namedID `json:"cls,omitempty"`
	Trim     *bool    `json:"trim_offsets,omitempty"`
	Prefix   *bool    `json:"add_prefix_space,omitempty"`
	UseRegex *bool    `json:"use_regex,omitempty"`
}

type templateJSON struct {
	Type   string                `json:"type"`
	Single []pieceJSON           `json:"single"`
	Pair   []pieceJSON           `json:"pair"`
	Tokens map[string]specialsID `json:"special_tokens"`
}

type pieceJSON struct {
	Special  *pieceID `json:"SpecialToken,omitempty"`
	Sequence *pieceID `json:"Sequence,omitempty"`
}

type pieceID struct {
	ID   string `json:"id"`
	Type int    `json:"type_id"`
}

type specialsID struct {
	ID     string   `json:"id"`
	IDs    []int32  `json:"ids"`
	Tokens []string `json:"tokens"`
}

// parseProcessor reads what puts tokens around a text, or a list of such.
func (s *spec) parseProcessor(raw json.RawMessage, depth int) error {
	if null(raw) {
		return nil
	}
	kind, err := typeOf(raw, "post_processor")
	if err != nil {
		return err
	}
	if err := tooMany(len(s.processors), depth, "post_processor"); err != nil {
		return err
	}
	switch kind {
	case typeSequence:
		var list struct {
			Type string            `json:"type"`
			List []json.RawMessage `json:"processors"`
		}
		if err := decodeStrict(raw, "post_processor", &list); err != nil {
			return err
		}
		for _, one := range list.List {
			if err := s.parseProcessor(one, depth+1); err != nil {
				return err
			}
		}
		return nil
	case typeByteLevel, typeRoberta, typeBert:
		var p aroundJSON
		if err := decodeStrict(raw, "post_processor "+kind, &p); err != nil {
			return err
		}
		s.processors = append(s.processors, p)
		if kind == typeByteLevel {
			return nil
		}
		if p.Sep == nil || p.Cls == nil {
			return fmt.Errorf("tokenizer: post_processor %s without sep or cls: %w", kind, ErrInvalid)
		}
		return s.surround([]int32{p.Cls.ID}, []int32{p.Sep.ID})
	case typeTemplate:
		var p templateJSON
		if err := decodeStrict(raw, "post_processor "+kind, &p); err != nil {
			return err
		}
		s.processors = append(s.processors, p)
		return s.template(p)
	}
	return fmt.Errorf("tokenizer: not done here: post_processor %.40q: %w", kind, ErrUnsupported)
}

// template takes the tokens of a template for one text.
func (s *spec) template(p templateJSON) error {
	var front, back []int32
	side, texts := &front, 0
	for _, piece := range p.Single {
		switch {
		case piece.Sequence != nil && piece.Special == nil && piece.Sequence.ID == "A":
			side, texts = &back, texts+1
		case piece.Special != nil && piece.Sequence == nil:
			special, ok := p.Tokens[piece.Special.ID]
			if !ok {
				return fmt.Errorf("tokenizer: template token %.40q is not listed: %w", piece.Special.ID, ErrInvalid)
			}
			*side = append(*side, special.IDs...)
		default:
			return fmt.Errorf("tokenizer: template for one text: %w", ErrInvalid)
		}
	}
	if texts != 1 {
		return fmt.Errorf("tokenizer: the template for one text has %d texts: %w", texts, ErrInvalid)
	}
	return s.surround(front, back)
}

// surround puts tokens around what there is so far.
func (s *spec) surround(front, back []int32) error {
	total := len(s.vocab)
	for _, a := range s.added {
		total = max(total, int(a.ID)+1)
	}
	for _, id := range append(append([]int32{}, front...), back...) {
		if id < 0 || int(id) >= total {
			return fmt.Errorf("tokenizer: post_processor adds token %d, the vocabulary ends at %d: %w", id, total, ErrInvalid)
		}
	}
	s.front = append(front, s.front...)
	s.back = append(s.back, back...)
	if len(s.front)+len(s.back) > maxSteps {
		return fmt.Errorf("tokenizer: post_processor adds %d tokens, limit %d: %w", len(s.front)+len(s.back), maxSteps, ErrUnsupported)
	}
	return nil
}
