package data

import (
	"bytes"
	"context"
	"errors"
	"iter"
	"slices"
	"strings"
	"testing"

	"github.com/capacloud/capanode/storage/dataset"
	"github.com/capacloud/capanode/trainer/tokenizer"
)

// trainedOn returns a small BPE of texts.
func trainedOn(t testing.TB, texts iter.Seq2[[]byte, error]) *tokenizer.BPE {
	t.Helper()
	tok, _, err := tokenizer.Train(context.Background(), texts, tokenizer.TrainOptions{Vocab: 300})
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func TestBuildWithBPE(t *testing.T) {
	files := prose(60)
	files["long.txt"] = strings.Repeat("A line of many words, one after the other.\n\n  Indented;\n", 8000)
	o := options(write(t, files))
	tok := trainedOn(t, Texts(t.Context(), o))
	o.Tokenizer = tok
	store := memory(t)
	m, link, report, err := Build(t.Context(), o, store)
	if err != nil {
		t.Fatal(err)
	}
	if m.Tokenizer.Kind != tok.Name() || m.Tokenizer.Vocab != uint64(tok.Vocab()) || m.Dtype != dataset.U16 {
		t.Errorf("the manifest says %+v, %s", m.Tokenizer, m.Dtype)
	}
	if total := report.TrainTokens + report.ValTokens; 2*int64(total) > report.Bytes {
		t.Errorf("%d tokens for %d bytes", total, report.Bytes)
	}
	opened, err := tokenizer.Open(t.Context(), m.Tokenizer.Kind, store.ReadAll)
	if err != nil || opened.Name() != tok.Name() {
		t.Fatalf("from the store: %v, %v", opened, err)
	}
	if _, err := store.ReadAll(t.Context(), m.Tokenizer.Link.Cid, tokenizer.MaxFile); err != nil {
		t.Errorf("the manifest's link: %v", err)
	}
	// What the shards hold is the corpus, and the long text is cut where the IDs of the whole stay as they are.
	var ids []int32
	for i := range m.Shards {
		tokens, err := m.ReadShard(t.Context(), store.ReadAll, i)
		if err != nil {
			t.Fatal(err)
		}
		part := make([]int32, tokens.Len())
		tokens.Copy(part, 0)
		ids = append(ids, part...)
	}
	if got := len(opened.Decode(nil, ids)); int64(got) != report.Bytes {
		t.Errorf("the shards hold %d bytes of text, %d were read", got, report.Bytes)
	}
	whole := tok.Encode(nil, []byte(files["long.txt"]))
	var cut []int32
	err = eachSection(t.Context(), strings.NewReader(files["long.txt"]), tok, func(part []byte) error {
		cut = tok.Encode(cut, part)
		return nil
	})
	if err != nil || !slices.Equal(cut, whole) {
		t.Errorf("%d tokens in sections, %d of the whole: %v", len(cut), len(whole), err)
	}
	if again, second, _, err := Build(t.Context(), o, memory(t)); err != nil || second != link || again.Tokenizer != m.Tokenizer {
		t.Errorf("built again: %v, %v", second, err)
	}
}

func TestTextsLeaveOutWhatIsHeldOut(t *testing.T) {
	files := prose(100)
	o := options(write(t, files))
	store := memory(t)
	m, _, _, err := Build(t.Context(), o, store)
	if err != nil {
		t.Fatal(err)
	}
	var got []byte
	for part, err := range Texts(t.Context(), o) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, part...)
	}
	if want := strings.Join(documents(t, store, m, dataset.Train), ""); string(got) != want {
		t.Errorf("%d bytes of text, the training side has %d", len(got), len(want))
	}
	for _, text := range documents(t, store, m, dataset.Val) {
		if bytes.Contains(got, []byte(text)) {
			t.Fatalf("%.30q is held out and read", text)
		}
	}
	o.Paths = []string{write(t, map[string]string{"empty": ""})}
	for _, err := range Texts(t.Context(), o) {
		if !errors.Is(err, ErrEmpty) {
			t.Errorf("no text: %v", err)
		}
	}
}
