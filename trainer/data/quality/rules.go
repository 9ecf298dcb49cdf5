package quality

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// ErrRule reports a filter that does not exist or whose limit is no number.
var ErrRule = errors.New("invalid filter")

// Text is what rules judge: a document's measure, and what only the documents before it tell.
type Text struct {
	Measure
	Near        bool  // it resembles an earlier document
	Boilerplate int64 // bytes in lines of many documents
}

// rule is one measure with a limit.
type rule struct {
	name  string
	most  bool // the value may be at most the limit, else at least
	value func(t *Text) float64
	doc   string
}

func share(a, b int64) float64 {
	if b == 0 {
		return 0
	}
	return float64(a) / float64(b)
}

// rules lists the measures that a filter may limit.
var rules = []rule{
	{"min_bytes", false, func(t *Text) float64 { return float64(t.Bytes) }, "bytes of text"},
	{"max_bytes", true, func(t *Text) float64 { return float64(t.Bytes) }, "bytes of text"},
	{"min_words", false, func(t *Text) float64 { return float64(t.Words) }, "words"},
	{"max_words", true, func(t *Text) float64 { return float64(t.Words) }, "words"},
	{"min_word_length", false, func(t *Text) float64 { return share(t.WordChars, t.Words) }, "mean characters of a word"},
	{"max_word_length", true, func(t *Text) float64 { return share(t.WordChars, t.Words) }, "mean characters of a word"},
	{"max_symbols", true, func(t *Text) float64 { return share(t.Hashes, t.Words) }, "hash signs and ellipses for each word"},
	{"max_bullets", true, func(t *Text) float64 { return share(t.BulletLines, t.Lines) }, "share of lines that begin with a bullet"},
	{"max_ellipses", true, func(t *Text) float64 { return share(t.EllipsisLines, t.Lines) }, "share of lines that end with an ellipsis"},
	{"min_alpha_words", false, func(t *Text) float64 { return share(t.AlphaWords, t.Words) }, "share of words with a letter"},
	{"min_stop_words", false, func(t *Text) float64 { return float64(onesIn(t.StopKinds)) }, "of the eight words the, be, to, of, and, that, have, with: how many occur"},
	{"max_repeated_lines", true, func(t *Text) float64 { return share(t.RepeatedLines, t.Lines) }, "share of lines that repeat an earlier one"},
	{"max_repeated_line_bytes", true, func(t *Text) float64 { return share(t.RepeatedLineBytes, t.Bytes) }, "share of bytes in such lines"},
	{"max_top_2gram", true, func(t *Text) float64 { return share(t.Top2, t.RepeatedWords) }, "share of the most frequent pair of words"},
	{"max_top_3gram", true, func(t *Text) float64 { return share(t.Top3, t.RepeatedWords) }, "share of the most frequent three words"},
	{"max_top_4gram", true, func(t *Text) float64 { return share(t.Top4, t.RepeatedWords) }, "share of the most frequent four words"},
	{"max_repeated_5grams", true, func(t *Text) float64 { return share(t.Repeated5, t.RepeatedWords) }, "share of words in five words that occurred before"},
	{"min_sentences", false, func(t *Text) float64 { return float64(t.Sentences) }, "ends of sentences"},
	{"min_ended_lines", false, func(t *Text) float64 { return share(t.EndedLines, t.Lines) }, "share of lines that end a sentence"},
	{"max_curly_brackets", true, func(t *Text) float64 { return float64(t.Curly) }, "curly brackets"},
	{"max_lorem_ipsum", true, func(t *Text) float64 { return float64(t.LoremIpsum) }, "places with lorem ipsum"},
	{"max_digits", true, func(t *Text) float64 { return share(t.Digits, t.Chars) }, "share of digits"},
	{"max_control", true, func(t *Text) float64 { return share(t.Control, t.Chars) }, "share of control characters and invalid bytes"},
	{"max_boilerplate", true, func(t *Text) float64 { return share(t.Boilerplate, t.Bytes) }, "share of bytes in lines that many documents have"},
	{"max_personal", true, func(t *Text) float64 { return float64(t.hints(Email, Phone, IPAddress, CreditCard, IBAN)) }, "hints of personal data"},
	{"max_keys", true, func(t *Text) float64 { return float64(t.hints(PrivateKey, APIKey)) }, "private keys and keys of services"},
}

func (m *Measure) hints(kinds ...Personal) (n int64) {
	for _, k := range kinds {
		n += m.Personal[k]
	}
	return n
}

func onesIn(b uint8) (n int) {
	for ; b != 0; b &= b - 1 {
		n++
	}
	return n
}

// presets are rules of published corpora. gopher: Rae et al. 2021, appendix A1.1 and table A1 (its English stop words included;
// repetition within pieces of 64 KiB). c4: Raffel et al. 2020, section 2.2, the rules that judge whole pages.
var presets = map[string][]string{
	"gopher": {"min_words=50", "max_words=100000", "min_word_length=3", "max_word_length=10", "max_symbols=0.1", "max_bullets=0.9", "max_ellipses=0.3",
		"min_alpha_words=0.8", "min_stop_words=2", "max_repeated_lines=0.3", "max_repeated_line_bytes=0.2", "max_top_2gram=0.2", "max_top_3gram=0.18",
		"max_top_4gram=0.16", "max_repeated_5grams=0.15"},
	"c4": {"min_sentences=5", "max_curly_brackets=0", "max_lorem_ipsum=0"},
}

// PresetRules lists the rules of all presets, each once.
func PresetRules() []string { return append(slices.Clone(presets["gopher"]), presets["c4"]...) }

// PresetFilters is each rule of [PresetRules] as a filter of its own.
func PresetFilters() ([]Filters, error) {
	var all []Filters
	for _, rule := range PresetRules() {
		f, err := ParseFilters([]string{rule})
		if err != nil {
			return nil, err
		}
		all = append(all, f)
	}
	return all, nil
}

// nearRule and languageRule are the filters that are no limit of a number.
const (
	nearRule     = "near_duplicates"
	languageRule = "language"
)

// Filters decides which documents a corpus keeps.
type Filters struct {
	limits    []limit
	languages []string
	near      bool
	lines     bool
}

type limit struct {
	rule
	limit float64
}

// ParseFilters reads filters: a preset (gopher, c4), near_duplicates, language=en+de, or a rule with its limit such as
// min_words=20. A later limit of a rule replaces an earlier one. Errors: [ErrRule], with what was probably meant.
func ParseFilters(words []string) (f Filters, err error) {
	for _, w := range words {
		name, value, _ := strings.Cut(strings.TrimSpace(w), "=")
		switch {
		case presets[name] != nil && value == "":
			for _, each := range presets[name] {
				if err := f.set(each); err != nil {
					return f, err
				}
			}
		case name == nearRule && value == "":
			f.near = true
		case name == languageRule && value != "":
			f.languages = strings.Split(value, "+")
		default:
			if err := f.set(w); err != nil {
				return f, err
			}
		}
	}
	return f, nil
}

func (f *Filters) set(w string) error {
	name, value, _ := strings.Cut(strings.TrimSpace(w), "=")
	at := slices.IndexFunc(rules, func(r rule) bool { return r.name == name })
	if at < 0 {
		return fmt.Errorf("%w %.64q: %s", ErrRule, w, suggest(name))
	}
	n, err := strconv.ParseFloat(value, 64)
	if err != nil || !(n >= 0) {
		return fmt.Errorf("%w %.64q: write %s=NUMBER, the limit of: %s", ErrRule, w, name, rules[at].doc)
	}
	f.lines = f.lines || name == "max_boilerplate"
	l := limit{rules[at], n}
	if old := slices.IndexFunc(f.limits, func(l limit) bool { return l.name == name }); old >= 0 {
		f.limits[old] = l
	} else {
		f.limits = append(f.limits, l)
	}
	return nil
}

// suggest names the filters that begin alike, or all.
func suggest(name string) string {
	all := FilterNames()
	var near []string
	for length := len(name); length >= 2 && len(near) == 0; length-- {
		for _, n := range all {
			if strings.HasPrefix(n, name[:length]) {
				near = append(near, n)
			}
		}
	}
	if len(near) > 0 && len(near) < 6 {
		return "did you mean " + strings.Join(near, " or ") + "?"
	}
	return "the filters are " + strings.Join(all, ", ")
}

// FilterNames lists what [ParseFilters] knows.
func FilterNames() []string {
	names := []string{"gopher", "c4", nearRule, languageRule}
	for _, r := range rules {
		names = append(names, r.name)
	}
	return names
}

// FilterDocs lists each rule with what it limits.
func FilterDocs() [][2]string {
	var docs [][2]string
	for _, r := range rules {
		docs = append(docs, [2]string{r.name, r.doc})
	}
	return docs
}

// Any reports whether any filter is set, so that documents must be measured.
func (f *Filters) Any() bool { return len(f.limits) > 0 || len(f.languages) > 0 || f.near }

// Near reports whether near duplicates are dropped.
func (f *Filters) Near() bool { return f.near }

// Lines reports whether lines must be counted over documents.
func (f *Filters) Lines() bool { return f.lines }

// Drop returns why a document is dropped, the first reason in the order of the filters, or nothing.
func (f *Filters) Drop(t *Text) string {
	for _, l := range f.limits {
		if v := l.value(t); l.most && v > l.limit || !l.most && v < l.limit {
			return l.name
		}
	}
	if len(f.languages) > 0 && !slices.Contains(f.languages, t.Language()) {
		return languageRule
	}
	if f.near && t.Near {
		return nearRule
	}
	return ""
}

// NeedsNear reports whether the document passes all that is judged before near duplicates, so that only texts that stay are
// remembered.
func (f *Filters) NeedsNear(t *Text) bool {
	return f.near && f.Drop(&Text{Measure: t.Measure, Boilerplate: t.Boilerplate}) == ""
}
