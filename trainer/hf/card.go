package hf

import (
	_ "embed"
	"fmt"
	"io"
	"strings"
	"text/template"
	"unicode"
)

//go:embed card.tmpl
var cardText string

// writeCard writes the model card. Like every file of the folder it depends on the model alone.
func writeCard(w io.Writer, f format, m Model) error {
	card, err := template.New("card").Funcs(template.FuncMap{"plain": plain}).Parse(cardText)
	if err != nil {
		return fmt.Errorf("hf: model card template: %w", err)
	}
	tok := "none"
	if m.Tokenizer != nil {
		tok = m.Tokenizer.Name()
	}
	if err := card.Execute(w, struct {
		Model
		TokenizerName, Family, Label, Auto, Pipeline string
		Parameters                                   int
	}{m, tok, f.modelType, f.label, f.auto, f.pipeline, len(m.Weights)}); err != nil {
		return fmt.Errorf("hf: model card: %w", err)
	}
	return nil
}

// plain makes a name from a job file harmless in Markdown: one line of at most 80 letters, digits and simple marks.
func plain(name string) string {
	var b strings.Builder
	for i, r := range []rune(name) {
		if i == 80 {
			break
		}
		if !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune(" .-_+,:", r) {
			r = '-'
		}
		b.WriteRune(r)
	}
	if b.Len() == 0 {
		return "unnamed"
	}
	return b.String()
}
