package data

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"

	"github.com/capacloud/capanode/storage/dataset"
	"github.com/capacloud/capanode/trainer/tokenizer"
)

func TestShardPlan(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := Options{
			Tokenizer:   tokenizer.Byte{},
			ShardTokens: rapid.SampledFrom([]uint64{0, 0, 1, 1000, 1 << 20, 1 << 40}).Draw(t, "shard tokens"),
			Context:     rapid.IntRange(1, 4096).Draw(t, "context"),
			Peers:       rapid.IntRange(1, 64).Draw(t, "peers"),
		}
		train := rapid.Uint64Range(0, 1<<38).Draw(t, "train") >> rapid.IntRange(0, 38).Draw(t, "shift")
		val := train / 20
		count, valCount, err := shardCounts(o, train, val)
		if err != nil {
			if most := uint64(o.Peers) * uint64(leastWindows*o.Context+1); train >= most {
				t.Fatalf("%d tokens refused: %v", train, err)
			}
			return
		}
		if count < o.Peers || (val > 0) != (valCount > 0) {
			t.Fatalf("%d and %d shards", count, valCount)
		}
		least := uint64(o.Context + 1)
		if o.ShardTokens == 0 {
			least = uint64(leastWindows*o.Context + 1)
			if train >= 32*least && count < 24 {
				t.Fatalf("%d tokens give %d shards", train, count)
			}
		}
		sum := uint64(0)
		for i := range count {
			size := shardSize(train, count, i)
			if size < least || size > dataset.MaxShardBytes/2 {
				t.Fatalf("shard %d of %d has %d tokens", i, count, size)
			}
			sum += size
		}
		if sum != train {
			t.Fatalf("shards hold %d of %d tokens", sum, train)
		}
	})
}

func TestHeldOutThreshold(t *testing.T) {
	one := func(keys ...uint64) []document {
		var d []document
		for _, k := range keys {
			d = append(d, document{sections: []section{{key: k}}})
		}
		return d
	}
	for name, c := range map[string]struct {
		documents []document
		fraction  float64
		held      int
	}{
		"none wanted":      {one(1, 2, 3), 0, 0},
		"a single one":     {one(1), 0.5, 0},
		"nothing":          {nil, 0.5, 0},
		"too rare":         {one(1<<63, 1<<63+1, 1<<63+2), 1e-9, 1},
		"too many":         {one(1, 2, 3), 0.999, 2},
		"half of the keys": {one(1, 1<<62, 1<<63+1, 1<<63+5), 0.5, 2},
	} {
		threshold := heldOut(c.documents, c.fraction)
		held := 0
		for _, d := range c.documents {
			if d.sections[0].key < threshold {
				held++
			}
		}
		if held != c.held {
			t.Errorf("%s: %d held out, want %d", name, held, c.held)
		}
	}
}

// FuzzSections holds the cutter to losing nothing, keeping the limit, and cutting no valid character.
func FuzzSections(f *testing.F) {
	f.Add([]byte("short\n"), 1)
	f.Add([]byte("line\n"), 40000)
	f.Add([]byte("日本語"), 20000)
	f.Add([]byte{0xff, 0xf0, 0x80}, 30000)
	f.Add([]byte("two words\n\n"), 20000)
	bpe := trainedOn(f, func(yield func([]byte, error) bool) { yield([]byte("two words and two words"), nil) })
	f.Fuzz(func(t *testing.T, piece []byte, times int) {
		text := bytes.Repeat(piece, max(0, min(times, 300_000/max(1, len(piece)))))
		var joined []byte
		tok := []tokenizer.Tokenizer{tokenizer.Byte{}, bpe}[len(text)%2]
		err := eachSection(context.Background(), bytes.NewReader(text), tok, func(part []byte) error {
			if len(part) == 0 || len(part) > sectionBytes {
				t.Fatalf("section of %d bytes", len(part))
			}
			if utf8.Valid(text) && !utf8.Valid(part) {
				t.Fatal("a character was cut in two")
			}
			joined = append(joined, part...)
			return nil
		})
		if err != nil || !bytes.Equal(joined, text) {
			t.Fatalf("%d of %d bytes, %v", len(joined), len(text), err)
		}
	})
}

func TestInvalidBytesAndBinary(t *testing.T) {
	for text, want := range map[string]int64{"plain": 0, "caf\xe9": 1, "\xff\xfe": 2, "日本": 0, "\xe6\x97": 2} {
		if got := invalidBytes([]byte(text)); got != want {
			t.Errorf("%q: %d", text, got)
		}
	}
	for text, want := range map[string]bool{
		"plain":                               false,
		"\x7fELF\x02\x01\x01\x00\x00\x00":     true,
		strings.Repeat("x", 1000) + "\x00":    false,
		strings.Repeat("caf\xe9 ", 10):        false,
		strings.Repeat("\xff\xd8\xff\xe0", 9): true,
	} {
		if got := binaryText([]byte(text), invalidBytes([]byte(text))); got != want {
			t.Errorf("%.20q: %v", text, got)
		}
	}
}
