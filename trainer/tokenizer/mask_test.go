package tokenizer

import (
	"bytes"
	"slices"
	"strings"
	"testing"
)

func TestMaskedFilesGiveTheTokenizerBack(t *testing.T) {
	grown := trained(t)
	if mask, vocab := Masked(Byte{}); mask != 257 || vocab != 258 {
		t.Errorf("bytes are masked with %d of %d", mask, vocab)
	}
	for _, tok := range []Tokenizer{Byte{}, grown} {
		files, err := HuggingFaceMasked(tok, 64)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(files[0].Data, []byte(`"[MASK]"`)) || !bytes.Contains(files[1].Data, []byte(`"mask_token": "[MASK]"`)) {
			t.Errorf("%s: the files do not name the mask:\n%s", tok.Name(), files[1].Data)
		}
		back, err := LoadMasked(files[0].Data, files[1].Data)
		if err != nil || back.Name() != tok.Name() {
			t.Errorf("%s came back as %v, %v", tok.Name(), back, err)
		}
		if plain, err := HuggingFace(tok, 64); err != nil {
			t.Error(err)
		} else if back, err := LoadMasked(plain[0].Data, plain[1].Data); err != nil || back.Name() != tok.Name() {
			t.Errorf("%s without a mask came back as %v, %v", tok.Name(), back, err)
		}
	}
}

// A tokenizer that has a mask of its own keeps it, and one whose vocabulary spells the usual one out takes another spelling.
func TestMaskOfItsOwn(t *testing.T) {
	base := trained(t)
	s, err := parse(base.file)
	if err != nil {
		t.Fatal(err)
	}
	s.added = append(s.added, addedJSON{ID: int32(base.Vocab()), Content: "<mask>", Special: true},
		addedJSON{ID: int32(base.Vocab() + 1), Content: "<more>", Special: true})
	own, err := s.build(base.end, base.config)
	if err != nil {
		t.Fatal(err)
	}
	if mask, vocab := Masked(own); int(mask) != base.Vocab() || vocab != base.Vocab()+2 {
		t.Errorf("masked with %d of %d", mask, vocab)
	}
	files, err := HuggingFaceMasked(own, 64)
	if err != nil || !bytes.Equal(files[0].Data, own.file) || !strings.Contains(string(files[1].Data), `"mask_token": "<mask>"`) {
		t.Errorf("%v\n%s", err, files[1].Data)
	}
	if back, err := LoadMasked(files[0].Data, files[1].Data); err != nil || back.Name() != own.Name() {
		t.Errorf("came back as %v, %v", back, err)
	}

	spelled, err := parse(base.file)
	if err != nil {
		t.Fatal(err)
	}
	spelled.added = append(spelled.added, addedJSON{ID: int32(base.Vocab()), Content: "[MASK]"}) // text, not special
	plain, err := spelled.build(base.end, base.config)
	if err != nil {
		t.Fatal(err)
	}
	files, err = HuggingFaceMasked(plain, 64)
	if err != nil || !strings.Contains(string(files[1].Data), `"mask_token": "<mask>"`) {
		t.Fatalf("%v\n%s", err, files[1].Data)
	}
	if back, err := LoadMasked(files[0].Data, files[1].Data); err != nil || back.Name() != plain.Name() {
		t.Errorf("came back as %v, %v", back, err)
	}
	if ids := plain.Encode(nil, []byte("a [MASK] b <mask> c")); slices.Contains(ids, int32(plain.Vocab())) {
		t.Errorf("a text encodes to the mask: %v", ids)
	}
}
