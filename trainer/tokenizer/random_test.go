package tokenizer

import (
	"bytes"
	"iter"
	"math/rand/v2"
	"unicode/utf8"
)

// palette holds what texts for tests are made of: what splitters, normalisers and added tokens tell apart.
var palette = []string{
	"a", "the", "Word", "word", "ABC", "aBc", "don't", "I'LL", "x'ſ", "'re", "'", "1", "23", "4567", "½", "Ⅷ", "٣", " ", "  ", "   ", "\n", "\n\n", "\r\n", "\t",
	"\u00a0", "\u2003", "\u3000", "\u0085", "\v", "\x1c", "\x00", "!", "...", "/", "-", "_", "(", "€", "ß", "é", "é", "Ǆ", "ǅ", "ʰ", "日本", "ひ", "한국", "한", "ไทย", "हिन्दी",
	"\u0301", "\u0316", "\u0334", "🙂", "👩‍🚀", "\U0001e900", "\U0001e922", "\ufeff", "ﬁ", "Å", "\U000e0041", "<|endoftext|>", "<mask>", "[tool]", "<|a|>", "<|b|>", "é!", " x ", "<s>", "</s>",
	"<|begin_of_text|>",
}

// randomText returns up to n pieces of the palette and of random characters.
func randomText(rng *rand.Rand, n int) []byte {
	var text []byte
	for range rng.IntN(n) + 1 {
		if rng.IntN(8) == 0 {
			text = utf8.AppendRune(text, randomRune(rng))
			continue
		}
		text = append(text, palette[rng.IntN(len(palette))]...)
	}
	return text
}

func randomRune(rng *rand.Rand) rune {
	for {
		limit := []int{0x80, 0x800, 0x3000, 0x10000, utf8.MaxRune + 1}[rng.IntN(5)]
		if r := rune(rng.IntN(limit)); r > 0 && utf8.ValidRune(r) {
			return r
		}
	}
}

// randomMarks returns characters that compose, decompose and are put in order.
func randomMarks(rng *rand.Rand, n int) []byte {
	var text []byte
	for range rng.IntN(n) + 1 {
		switch rng.IntN(6) {
		case 0:
			text = utf8.AppendRune(text, rune(0x300+rng.IntN(0x70)))
		case 1:
			text = utf8.AppendRune(text, []rune("aeiouAEIOUqKÅ가각각")[rng.IntN(18)])
		case 2:
			text = utf8.AppendRune(text, rune(0x1100+rng.IntN(0x100)))
		case 3:
			text = utf8.AppendRune(text, rune(0x1e00+rng.IntN(0x200)))
		case 4:
			text = utf8.AppendRune(text, randomActor(rng))
		default:
			text = utf8.AppendRune(text, randomRune(rng))
		}
	}
	return text
}

// randomActor draws one of the characters that take part in normalisation.
func randomActor(rng *rand.Rand) rune {
	var ranges [][2]rune
	eachRange(actorsText, func(from, to rune, _ string) { ranges = append(ranges, [2]rune{from, to}) })
	span := ranges[rng.IntN(len(ranges))]
	return span[0] + rune(rng.IntN(int(span[1]-span[0])+1))
}

// linesOf is a corpus of lines.
func linesOf(text []byte) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for line := range bytes.Lines(text) {
			if !yield(line, nil) {
				return
			}
		}
	}
}
