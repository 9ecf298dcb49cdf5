package tokenizer

import (
	"bytes"
	"context"
	"errors"
	"hash/maphash"
	"iter"
	"math/rand/v2"
	"slices"
	"testing"
)

// texts is a corpus of given texts.
func texts(all [][]byte) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for _, text := range all {
			if !yield(text, nil) {
				return
			}
		}
	}
}

func TestTrainEqualsTheTextbook(t *testing.T) {
	for seed := range uint64(12) {
		rng := rand.New(rand.NewPCG(seed, 1))
		var all [][]byte
		for range 30 {
			all = append(all, randomText(rng, 40))
		}
		all = append(all, bytes.Repeat([]byte("a"), 37), bytes.Repeat([]byte("ab"), 20), bytes.Repeat([]byte("=-"), 30))
		least := int64(1 + rng.IntN(3))
		tok, report, err := Train(t.Context(), texts(all), TrainOptions{Vocab: 257 + 150, MinFrequency: least})
		if err != nil {
			t.Fatal(err)
		}
		want := trainSlow(all, 257+150, least)
		s, err := parse(tok.file)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(s.merges, want) || report.Merges != len(want) {
			t.Fatalf("seed %d: %d merges %q, the textbook has %d %q", seed, len(s.merges), s.merges, len(want), want)
		}
		for range 50 {
			text := randomText(rng, 20)
			if got, want := tok.Encode(nil, text), encodeSlow(s, compileSlow(regexLlama3), text); !slices.Equal(got, want) {
				t.Fatalf("seed %d: %q has IDs %v, slowly %v", seed, text, got, want)
			}
		}
	}
}

// TestTrainIsTheSameOnAnyNumberOfCores with a corpus of more than one block and more words than are kept.
func TestTrainIsTheSameOnAnyNumberOfCores(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	var line []byte
	for range 200 {
		line = append(line, randomText(rng, 50)...)
	}
	size := blockBytes + blockBytes/4
	if testing.Short() {
		size = blockBytes / 32
	}
	corpus := make([]byte, 0, size+len(line))
	for len(corpus) < size {
		corpus = append(corpus, line...)
		corpus = append(corpus, byte('a'+rng.IntN(26)), byte('a'+rng.IntN(26)), byte('a'+rng.IntN(26)), byte('a'+rng.IntN(26)), '\n')
	}
	var first *BPE
	for _, workers := range []int{1, 3, 8} {
		tok, report, err := Train(t.Context(), texts([][]byte{corpus}), TrainOptions{Vocab: 700, Words: 300, Workers: workers})
		if err != nil {
			t.Fatal(err)
		}
		if report.Dropped == 0 {
			t.Fatal("no word was dropped, the rule is not tested")
		}
		if first == nil {
			first = tok
		}
		if tok.Name() != first.Name() || !bytes.Equal(tok.file, first.file) {
			t.Fatalf("%d workers give %s, one gives %s", workers, tok.Name(), first.Name())
		}
	}
}

func TestTrainKeepsTheFrequent(t *testing.T) {
	c := newWordCounts(maphash.MakeSeed())
	for w, n := range map[string]int64{"x": 1, "aa": 3, "b": 2, "y": 1, "zz": 1} {
		c.add([]byte(w), uint64(len(w)), n)
	}
	c.keep(3)
	var kept []string
	for i := range c.words {
		kept = append(kept, string(c.bytes(&c.words[i])))
	}
	if !slices.Equal(kept, []string{"aa", "b", "x"}) {
		t.Errorf("kept %q", kept)
	}
}

func TestTrainRefuses(t *testing.T) {
	none := texts(nil)
	for _, o := range []TrainOptions{{Vocab: 256}, {Vocab: maxVocab + 1}, {Vocab: 300, MinFrequency: -1}, {Vocab: 300, Special: []string{"<a>", "<a>"}}, {Vocab: 300, Words: 1}} {
		if _, _, err := Train(t.Context(), none, o); !errors.Is(err, ErrInvalid) {
			t.Errorf("%+v: %v", o, err)
		}
	}
	broken := errors.New("broken")
	if _, _, err := Train(t.Context(), func(yield func([]byte, error) bool) { yield(nil, broken) }, TrainOptions{Vocab: 300}); !errors.Is(err, broken) {
		t.Errorf("an error of the texts: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := Train(ctx, none, TrainOptions{Vocab: 300}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	tok, _, err := Train(t.Context(), none, TrainOptions{Vocab: 300})
	if err != nil || tok.Vocab() != 257 {
		t.Errorf("no text: %v, %v", tok, err)
	}
}
