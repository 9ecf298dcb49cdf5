package tokenizer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/ipfs/go-cid"
)

// testContext is for what tests share.
var testContext = context.Background()

func TestWrittenFileIsReadBack(t *testing.T) {
	tok := trained(t)
	files, err := HuggingFace(tok, 128)
	if err != nil {
		t.Fatal(err)
	}
	back, err := Load(files[0].Data, files[1].Data)
	if err != nil || back.Name() != tok.Name() {
		t.Fatalf("%v, %v; want %s", back, err, tok.Name())
	}
	read := func(_ context.Context, c cid.Cid, limit int64) ([]byte, error) {
		if c != tok.cid || limit < int64(len(tok.file)) {
			return nil, fmt.Errorf("asked for %s of %d bytes", c, limit)
		}
		return tok.file, nil
	}
	opened, err := Open(t.Context(), tok.Name(), read)
	if err != nil || opened.Name() != tok.Name() {
		t.Fatalf("by name: %v, %v", opened, err)
	}
	loose := func(context.Context, cid.Cid, int64) ([]byte, error) { return append(bytes.Clone(tok.file), '\n'), nil }
	if _, err := Open(t.Context(), NameOf(256, tok.cid), loose); err != nil {
		t.Errorf("white space at the end: %v", err) // the same file once it is written anew
	}
	if _, err := Open(t.Context(), NameOf(255, tok.cid), read); !errors.Is(err, ErrInvalid) {
		t.Errorf("texts that end with a byte: %v", err)
	}
	other, err := fileCID([]byte("other"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), NameOf(256, other), loose); !errors.Is(err, ErrInvalid) {
		t.Errorf("a file of another CID: %v", err)
	}
}

// edit returns the trained tokenizer's file with one part of its JSON replaced.
func edit(t testing.TB, change func(file map[string]any)) []byte {
	t.Helper()
	var file map[string]any
	if err := json.Unmarshal(trained(t).file, &file); err != nil {
		t.Fatal(err)
	}
	change(file)
	raw, err := json.Marshal(file)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestLoadRefuses(t *testing.T) {
	model := func(key string, v any) func(map[string]any) {
		return func(f map[string]any) { f["model"].(map[string]any)[key] = v }
	}
	vocab := func(token string, id int) func(map[string]any) {
		return func(f map[string]any) { f["model"].(map[string]any)["vocab"].(map[string]any)[token] = id }
	}
	top := func(key string, v any) func(map[string]any) { return func(f map[string]any) { f[key] = v } }
	added := func(tokens ...addedJSON) func(map[string]any) {
		end := addedJSON{ID: 256, Content: EndOfTextSymbol, Special: true}
		return func(f map[string]any) { f["added_tokens"] = append([]addedJSON{end}, tokens...) }
	}
	split := func(regex, behavior string) any {
		return map[string]any{"type": "Sequence", "pretokenizers": []any{
			map[string]any{"type": "Split", "pattern": map[string]any{"Regex": regex}, "behavior": behavior, "invert": false},
			map[string]any{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
		}}
	}
	for name, c := range map[string]struct {
		change func(map[string]any)
		want   error
		says   string
	}{
		"gap":                {vocab("zz", 600), ErrInvalid, "without gaps"},
		"same ID":            {vocab("zz", 5), ErrInvalid, "have ID 5"},
		"negative ID":        {vocab("zz", -1), ErrInvalid, "ID -1"},
		"huge ID":            {vocab("zz", 1<<40), ErrInvalid, ""},
		"no vocabulary":      {model("vocab", map[string]int{}), ErrInvalid, "no vocabulary"},
		"list as vocabulary": {model("vocab", []int{1}), ErrInvalid, "vocab"},
		"unknown merge":      {model("merges", []string{"qq zz"}), ErrInvalid, "no token"},
		"merge twice":        {model("merges", []string{"t h", "t h"}), ErrInvalid, ""},
		"three parts":        {model("merges", []string{"t h e"}), ErrInvalid, "pair"},
		"empty part":         {model("merges", []string{" t"}), ErrInvalid, ""},
		"number as merge":    {model("merges", []int{1}), ErrInvalid, "pair"},
		"unigram":            {model("type", "Unigram"), ErrUnsupported, "Unigram"},
		"dropout":            {model("dropout", 0.1), ErrUnsupported, "dropout"},
		"byte fallback":      {model("byte_fallback", true), ErrUnsupported, "byte_fallback"},
		"prefix":             {model("continuing_subword_prefix", "##"), ErrUnsupported, "continuing_subword_prefix"},
		"new model key":      {model("novelty", 1), ErrUnsupported, "novelty"},
		"truncation":         {top("truncation", map[string]any{"max_length": 5}), ErrUnsupported, "truncation"},
		"normalizer":         {top("normalizer", map[string]any{"type": "Lowercase"}), ErrUnsupported, "Lowercase"},
		"decoder":            {top("decoder", map[string]any{"type": "WordPiece"}), ErrUnsupported, "WordPiece"},
		"no decoder":         {top("decoder", nil), ErrUnsupported, "decoder"},
		"no pre-tokenizer":   {top("pre_tokenizer", nil), ErrUnsupported, "ByteLevel"},
		"splitter":           {top("pre_tokenizer", split(`\w+`, "Isolated")), ErrUnsupported, `\\w+`},
		"behaviour":          {top("pre_tokenizer", split(regexGPT2, "MergedWithNext")), ErrUnsupported, "MergedWithNext"},
		"removed":            {top("pre_tokenizer", split(regexNumber, "Removed")), ErrUnsupported, "Removed"},
		"metaspace":          {top("pre_tokenizer", map[string]any{"type": "Metaspace"}), ErrUnsupported, "Metaspace"},
		"processor":          {top("post_processor", map[string]any{"type": "Novel"}), ErrUnsupported, "Novel"},
		"roberta":            {top("post_processor", map[string]any{"type": "RobertaProcessing", "sep": []any{"x", 9999}, "cls": []any{"x", 1}}), ErrInvalid, "9999"},
		"added gap":          {added(addedJSON{ID: 600, Content: "<x>"}), ErrInvalid, "without gaps"},
		"added twice":        {added(addedJSON{ID: 512, Content: "<x>"}, addedJSON{ID: 513, Content: "<x>"}), ErrInvalid, "twice"},
		"added empty":        {added(addedJSON{ID: 512}), ErrInvalid, "empty"},
		"no end of text":     {top("added_tokens", []any{}), ErrUnsupported, "eos_token"},
	} {
		_, err := Load(edit(t, c.change), nil)
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v; want %v with %q", name, err, c.want, c.says)
		}
	}
	for name, raw := range map[string]string{"empty": "", "null": "null", "no JSON": "{", "not UTF-8": "{\"\xff\":1}", "list": "[]"} {
		if _, err := Load([]byte(raw), nil); !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Load(make([]byte, MaxFile+1), nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("too large: %v", err)
	}
	if _, err := Load(edit(t, added()), []byte(`{"eos_token": {"content": "<none>"}}`)); !errors.Is(err, ErrUnsupported) {
		t.Errorf("eos_token that is no token: %v", err)
	}
}

// TestLostBytesAreRefused: a vocabulary without a symbol for a byte would lose it from texts.
func TestLostBytesAreRefused(t *testing.T) {
	s, err := parse(trained(t).file)
	if err != nil {
		t.Fatal(err)
	}
	s.vocab[3], s.merges = "qqqq", nil
	if _, err := s.build(256, configJSON{}); !errors.Is(err, ErrUnsupported) {
		t.Errorf("a byte without a symbol: %v", err)
	}
}

func FuzzLoad(f *testing.F) {
	tok := trained(f)
	f.Add(tok.file)
	for _, part := range []string{`"merges":["a b"]`, `"vocab":{"a":0,"b":1,"ab":2}`} {
		f.Add([]byte(`{"model":{"type":"BPE",` + part + `},"pre_tokenizer":{"type":"ByteLevel"},"decoder":{"type":"ByteLevel"}}`))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		got, err := Load(raw, nil)
		if err != nil {
			if !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrUnsupported) {
				t.Fatalf("an untyped error: %v", err)
			}
			return
		}
		b, ok := got.(*BPE)
		if !ok {
			return
		}
		again, err := Load(b.file, nil)
		if err != nil || !bytes.Equal(again.(*BPE).file, b.file) {
			t.Fatalf("what was read is written as something else: %v", err)
		}
		text := []byte("The node doesn't <|endoftext|> 日本\xff")
		for _, id := range got.Encode(nil, text) {
			if id < 0 || int(id) >= got.Vocab() {
				t.Fatalf("ID %d, the vocabulary ends at %d", id, got.Vocab())
			}
		}
	})
}
