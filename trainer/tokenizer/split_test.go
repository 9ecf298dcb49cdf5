package tokenizer

import (
	"math/rand/v2"
	"slices"
	"testing"
)

func TestSplittersEqualTheirExpressions(t *testing.T) {
	rng := rand.New(rand.NewPCG(11, 12))
	rounds := 3000
	if testing.Short() {
		rounds = 300
	}
	for _, k := range knownSplits() {
		slow := compileSlow(k.regex)
		for range rounds {
			text := randomText(rng, 30)
			if rng.IntN(4) == 0 { // invalid UTF-8 too
				text = append(text, byte(rng.IntN(256)), byte(rng.IntN(256)))
			}
			if got, want := cutLengths(k.next, text), cutSlow(slow, text); !slices.Equal(got, want) {
				t.Fatalf("%s cuts %q into %v, the expression into %v", k.regex, text, got, want)
			}
		}
	}
}

// TestClassesAreUnicode16 pins the tables by numbers of the Unicode standard: how many letters, numbers and so on it has.
func TestClassesAreUnicode16(t *testing.T) {
	count := map[class]int{}
	for r := rune(0); r <= 0x10ffff; r++ {
		c := classes().of(r)
		for _, k := range []class{letter, upper, lower, uncased, mark, number, space} {
			if c&k != 0 {
				count[k]++
			}
		}
	}
	want := map[class]int{letter: 141028, upper: 1858 + 31, lower: 2258, uncased: 404 + 136477, mark: 2501, number: 1911, space: 25}
	for k, n := range want {
		if count[k] != n {
			t.Errorf("class %b has %d code points, want %d", k, count[k], n)
		}
	}
}

func TestDigitsOfUnicode17(t *testing.T) {
	for text, want := range map[string][2][]int{
		"ab12½c":                {{2, 1, 1, 1, 1}, {2, 3, 1}},
		"\U00011de0\U00011de9x": {{1, 1, 1}, {2, 1}},
		"\U00016ff4\U00016ff7":  {{1, 1}, {1, 1}},
		"no\xff":                {{3}, {3}},
	} {
		for i, each := range []bool{true, false} {
			next := func(t *classTable, text []byte) int { return splitDigits(t, text, each) }
			if got := cutLengths(next, []byte(text)); !slices.Equal(got, want[i]) {
				t.Errorf("%+q, each %v: %v, want %v", text, each, got, want[i])
			}
		}
	}
}

func FuzzSplit(f *testing.F) {
	f.Add([]byte("Don't stop: 12345 ſ 'ſ\r\n\n  x"))
	f.Add([]byte("\u0301A\u0301b \xff\xfe/\n/"))
	var slow []matcher
	for _, k := range knownSplits() {
		slow = append(slow, compileSlow(k.regex))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if len(text) > 200 { // the slow matcher takes a while
			text = text[:200]
		}
		for i, k := range knownSplits() {
			if got, want := cutLengths(k.next, text), cutSlow(slow[i], text); !slices.Equal(got, want) {
				t.Fatalf("%s cuts %q into %v, the expression into %v", k.regex, text, got, want)
			}
		}
	})
}
