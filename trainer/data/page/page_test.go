package page_test

import (
	"bytes"
	"regexp"
	"strings"
	"testing"

	"github.com/capacloud/capanode/trainer/data"
	"github.com/capacloud/capanode/trainer/data/page"
	"github.com/capacloud/capanode/trainer/data/quality"
)

const evil = `</code><script>alert(1)</script><img src=x onerror="alert(2)">`

// Whatever a corpus says of itself stays text, the page asks nobody for anything, and the figures are on it.
func TestPageIsSafeAndWhole(t *testing.T) {
	r := data.Inspection{
		Documents: 1234567, Bytes: 3 << 20, Warnings: []string{evil},
		Languages: []data.Share{{Name: evil, Share: 0.25, Language: evil}}, Sources: []data.Share{{Name: evil, Share: 7}},
		Boilerplate: data.Boilerplate{Share: 0.125, Lines: []quality.CommonText{{Text: evil, Documents: 9}}},
		Personal:    []data.Hints{{Kind: "email", Count: 3, Documents: 2, Samples: []string{evil}}},
		Rules:       []data.Broken{{Rule: evil, Documents: 5, Share: 0.5}}, Dropped: []data.Drop{{Reason: evil}},
		Tokens: &data.Vocabulary{Tokenizer: evil}, Leakage: data.Leakage{Grams: 1, Share: 0.5, Length: 13},
	}
	var one, two bytes.Buffer
	if err := page.Write(&one, evil, r); err != nil {
		t.Fatal(err)
	}
	if err := page.Write(&two, evil, r); err != nil || !bytes.Equal(one.Bytes(), two.Bytes()) {
		t.Errorf("two pages of one report differ, %v", err)
	}
	html := one.String()
	if strings.Contains(html, "<script") || strings.Contains(html, "<img") || strings.Contains(html, "ZgotmplZ") {
		t.Error("text of the corpus became part of the page")
	}
	if got := regexp.MustCompile(`(?i)(https?:|//|url\(|@import|src=|href=)`).FindAllString(strings.ReplaceAll(html, "src=x", ""), -1); len(got) > 0 {
		t.Errorf("the page asks for %q", got)
	}
	for _, want := range []string{"1\u202f234\u202f567 documents", "3.0 MiB", "12.5 %", "width: 25.00%", "width: 100.00%", "prefers-color-scheme: dark", `name="viewport"`} {
		if !strings.Contains(html, want) {
			t.Errorf("%q is not on the page", want)
		}
	}
	if err := page.Write(&one, "empty", data.Inspection{}); err != nil {
		t.Error(err)
	}
}
