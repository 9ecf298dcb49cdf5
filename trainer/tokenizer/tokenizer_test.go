package tokenizer

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"testing"
	"unicode/utf8"
)

var update = flag.Bool("update", false, "rewrite golden files")

func TestByteRoundTrip(t *testing.T) {
	every := make([]byte, 256)
	for i := range every {
		every[i] = byte(i)
	}
	tok := Byte{}
	ids := tok.Encode(nil, every)
	for i, id := range ids {
		if int(id) != i {
			t.Fatalf("byte %d encodes to %d", i, id)
		}
	}
	if got := tok.Decode(nil, ids); !bytes.Equal(got, every) {
		t.Fatalf("decoded % x", got)
	}
}

func TestByteDecodeDropsWhatIsNoText(t *testing.T) {
	got := Byte{}.Decode([]byte("> "), []int32{'a', 256, -1, 257, 1 << 30, 'b'})
	if string(got) != "> ab" {
		t.Fatalf("decoded %q", got)
	}
}

func TestSpelledOutSpecialStaysText(t *testing.T) {
	for _, id := range (Byte{}).Encode(nil, []byte("a"+EndOfTextSymbol+"b")) {
		if id == (Byte{}).EndOfText() {
			t.Fatal("a text ended its own document")
		}
	}
}

func TestOpenByName(t *testing.T) {
	tok, err := Open(t.Context(), "bytes", nil)
	if err != nil || tok.Vocab() != 257 {
		t.Fatalf("bytes: %v, %v", tok, err)
	}
	for _, name := range []string{"", "letters", "bpe", "bpe:1", "bpe:1:x", "bpe:01:bafkqaaa", "bpe:-1:bafkqaaa", "bpe:9999999999:bafkqaaa", "bytes:"} {
		if _, err := ParseName(name); !errors.Is(err, ErrUnknown) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestHuggingFaceGolden(t *testing.T) {
	files, err := HuggingFace(Byte{}, 128)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		path := filepath.Join("testdata", f.Name)
		if *update {
			if err := os.WriteFile(path, f.Data, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(f.Data, want) {
			t.Errorf("%s differs from its golden file; if that is meant, rerun with -update and with the Python check", f.Name)
		}
	}
}

func TestRecognizeByte(t *testing.T) {
	files, err := HuggingFace(Byte{}, 4096)
	if err != nil {
		t.Fatal(err)
	}
	if tok, err := Load(files[0].Data, files[1].Data); err != nil || tok.Name() != "bytes" {
		t.Errorf("own file: %v, %v", tok, err)
	}
	if tok, ok := recognizeByte(bytes.Replace(files[0].Data, []byte(`"!": 33`), []byte(`"!": 34`), 1)); ok {
		t.Errorf("another mapping passes as %s", tok.Name())
	}
}

// TestIDsEqualPython compares with IDs that the Python package tokenizers (0.23.3) gave for these texts when it had
// loaded testdata/tokenizer.json.
func TestIDsEqualPython(t *testing.T) {
	raw, err := os.ReadFile("testdata/python_ids.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases []struct {
		Text string  `json:"text"`
		IDs  []int32 `json:"ids"`
	}
	if err := json.Unmarshal(raw, &cases); err != nil {
		t.Fatal(err)
	}
	if len(cases) < 10 {
		t.Fatalf("only %d cases", len(cases))
	}
	for _, c := range cases {
		got := Byte{}.Encode(nil, []byte(c.Text))
		if len(got) != len(c.IDs) {
			t.Errorf("%q: %d IDs, Python has %d", c.Text, len(got), len(c.IDs))
			continue
		}
		for i := range got {
			if got[i] != c.IDs[i] {
				t.Errorf("%q: ID %d is %d, Python has %d", c.Text, i, got[i], c.IDs[i])
				break
			}
		}
	}
}

func FuzzByte(f *testing.F) {
	f.Add([]byte("package main\n"))
	f.Add([]byte{0xff, 0x00, 0xc3, 0x28})
	f.Fuzz(func(t *testing.T, text []byte) {
		ids := Byte{}.Encode(nil, text)
		if got := (Byte{}).Decode(nil, ids); !bytes.Equal(got, text) {
			t.Fatalf("round trip of %q gave %q (valid UTF-8: %v)", text, got, utf8.Valid(text))
		}
	})
}
