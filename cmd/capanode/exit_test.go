package main

import (
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// documentedKinds reads the second table of docs/exit-codes.md: the words of each kind of error, and its code.
func documentedKinds(t *testing.T) map[string]int {
	t.Helper()
	page, err := os.ReadFile("../../docs/exit-codes.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, found := strings.Cut(string(page), "| words | code |")
	if !found {
		t.Fatal("docs/exit-codes.md has no table of words and codes")
	}
	row := regexp.MustCompile(`(?m)^\| (.+) \| (\d+) \|$`)
	kinds := map[string]int{}
	for _, m := range row.FindAllStringSubmatch(table, -1) {
		kinds[m[1]], _ = strconv.Atoi(m[2])
	}
	return kinds
}

// kindWords is how the page names a kind of error: the sentinel's own words, or what a typed error is about.
func kindWords(kind error) string {
	switch fmt.Sprintf("%T", kind) {
	case "*data.TooSmallError":
		return "the corpus has … training tokens, … need at least …"
	case "*query.SyntaxError":
		return "query: column …"
	}
	return kind.Error()
}

func TestEachKindOfErrorHasItsDocumentedCode(t *testing.T) {
	documented := documentedKinds(t)
	for _, r := range exitRules {
		words := kindWords(r.kind)
		code, found := documented[words]
		if !found {
			t.Errorf("docs/exit-codes.md does not list %q, code %d", words, r.code)
			continue
		}
		delete(documented, words)
		wrapped := fmt.Errorf("try this on that: %w; do so", r.kind)
		if got := exitCode(wrapped); got != code || got != r.code {
			t.Errorf("%q has code %d, documented is %d, its rule says %d", words, got, code, r.code)
		}
	}
	for words, code := range documented {
		t.Errorf("docs/exit-codes.md lists %q, code %d, which no error has", words, code)
	}
}

func TestExitCodeOfOtherErrors(t *testing.T) {
	for _, c := range []struct {
		err  error
		want int
	}{
		{nil, exitDone},
		{fmt.Errorf("anything else"), exitFailed},
		{&fs.PathError{Op: "open", Path: "x", Err: fs.ErrNotExist}, exitNoSuchThing},
		{&fs.PathError{Op: "open", Path: "x", Err: fs.ErrPermission}, exitNotAllowed},
	} {
		if got := exitCode(c.err); got != c.want {
			t.Errorf("%v: code %d, want %d", c.err, got, c.want)
		}
	}
}

func TestErrorsArePrintedOnOneLine(t *testing.T) {
	for in, want := range map[string]string{
		"plain":                                "plain",
		"one\ntwo":                             "one; two",
		"dial failed:\n  * [/ip4/1] no\n\n x ": "dial failed:; [/ip4/1] no; x",
		"a\r\nb\x1b[2Jc\td":                    "a; b [2Jc d",
		"":                                     "",
	} {
		if got := oneLine(in); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
}
