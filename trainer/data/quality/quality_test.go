package quality

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"unicode/utf8"
)

func measure(text string) *Measure {
	var a Analyzer
	var m Measure
	a.Measure(&m, []byte(text))
	return &m
}

func TestMeasureCountsCharactersAndWords(t *testing.T) {
	text := "Grüße, Welt! 日本語 42 +\n- item…\n- item…\n"
	m := measure(text)
	for name, x := range map[string][2]int64{
		"bytes": {m.Bytes, int64(len(text))}, "chars": {m.Chars, 38}, "letters": {m.Letters, 20}, "digits": {m.Digits, 2}, "spaces": {m.Spaces, 9},
		"punctuation": {m.Punctuation, 6}, "symbols": {m.Symbols, 1}, "upper": {m.Upper, 2}, "words": {m.Words, 8}, "alpha": {m.AlphaWords, 7},
		"lines": {m.Lines, 3}, "bullets": {m.BulletLines, 2}, "ellipses": {m.EllipsisLines, 2}, "repeated": {m.RepeatedLines, 1}, "han": {m.Scripts[Han], 3},
	} {
		if x[0] != x[1] {
			t.Errorf("%s: %d, want %d", name, x[0], x[1])
		}
	}
}

// A text measured in pieces that end at line ends has the measure of the whole, but for repetitions across pieces.
func TestMeasuresAddUp(t *testing.T) {
	first, second := "One sentence about the sea. And # another!\n", "Zwei Sätze über das Meer. {x}\nmail me: jo@example.org\n"
	whole, sum := measure(first+second), *measure(first)
	sum.Add(measure(second))
	if sum != *whole {
		t.Errorf("sum   %+v\nwhole %+v", sum, *whole)
	}
}

func TestRepetition(t *testing.T) {
	words := make([]string, 0, 100)
	for i := range 50 {
		words = append(words, fmt.Sprintf("w%02d", i))
	}
	unique := strings.Join(words, " ")
	if m := measure(unique); m.Repeated5 != 0 || m.Top2 != 0 {
		t.Errorf("unique words: %d repeated, top pair %d", m.Repeated5, m.Top2)
	}
	twice := measure(unique + " " + unique)
	if share(twice.Repeated5, twice.RepeatedWords) != 0.5 || twice.Top2 != 12 {
		t.Errorf("twice: %d of %d bytes repeated, top pair %d", twice.Repeated5, twice.RepeatedWords, twice.Top2)
	}
	if again := measure(strings.Repeat("spam ", 100)); share(again.Top2, again.RepeatedWords) < 1 {
		t.Errorf("spam: top pair %d of %d", again.Top2, again.RepeatedWords)
	}
}

// The sentences are of one kind: plain statements about weather and trade, written for this test.
func TestLanguage(t *testing.T) {
	for want, text := range map[string]string{
		"en": "The weather in the north was cold, but the traders had not been able to wait for it to change.",
		"de": "Das Wetter im Norden war kalt, aber die Händler konnten nicht warten, bis es sich ändert.",
		"fr": "Le temps dans le nord était froid, mais les marchands ne pouvaient pas attendre qu'il change.",
		"es": "El tiempo en el norte era frío, pero los comerciantes no podían esperar a que cambiara.",
		"it": "Il tempo nel nord era freddo, ma i mercanti non potevano aspettare che cambiasse.",
		"pt": "O tempo no norte era frio, mas os comerciantes não podiam esperar que ele mudasse.",
		"nl": "Het weer in het noorden was koud, maar de handelaren konden niet wachten tot het veranderde.",
		"sv": "Vädret i norr var kallt, men handelsmännen kunde inte vänta på att det skulle ändras.",
		"da": "Vejret i nord var koldt, men købmændene kunne ikke vente på, at det blev bedre efter dem.",
		"pl": "Pogoda na północy była zimna, ale kupcy nie mogli czekać, aż się zmieni, i tak to jest.",
		"cs": "Počasí na severu bylo chladné, ale obchodníci nemohli čekat, až se změní, a to je vše.",
		"fi": "Sää oli pohjoisessa kylmä, mutta kauppiaat eivät voineet odottaa, että se olisi ollut parempi.",
		"hu": "Az idő északon hideg volt, de a kereskedők nem tudtak várni, hogy ez egy kicsit változzon.",
		"tr": "Kuzeyde hava soğuktu ama tüccarlar bir değişiklik için daha çok bekleyemezdi ve bu kadar.",
		"ro": "Vremea din nord era rece, dar negustorii nu au putut să aștepte până când se schimbă.",
		"id": "Cuaca di utara dingin, tetapi para pedagang tidak dapat menunggu untuk itu dan akan pergi.",
		"vi": "Thời tiết ở miền bắc lạnh, nhưng các thương nhân không thể chờ cho đến khi nó thay đổi.",
		"ru": "Погода на севере была холодной, но торговцы не могли ждать, когда она изменится.",
		"uk": "Погода на півночі була холодною, але торговці не могли чекати, коли вона зміниться.",
		"bg": "Времето на север беше студено, но търговците не можеха да чакат то да се промени.",
		"el": "Ο καιρός στον βορρά ήταν κρύος", "he": "מזג האוויר בצפון היה קר", "ko": "북쪽의 날씨는 추웠다", "th": "อากาศทางเหนือหนาว",
		"ja": "北の天気は寒かったが、商人は待てなかった。", "zh": "北方的天气很冷，但商人等不及了。",
		"und-Arab": "كان الطقس في الشمال باردا", "und": "12345 67890 +++", "und-Latn": "zxq wvb kjh",
		Code: "func add(a, b int) int {\n\treturn a + b // sum\n}\n\nfor i := 0; i < 10; i++ { fmt.Println(i) }\n",
	} {
		if got := measure(text).Language(); got != want {
			t.Errorf("%.40q: %s, want %s", text, got, want)
		}
	}
}

func TestPersonal(t *testing.T) {
	for text, want := range map[string]string{
		"write to jo.doe+x@mail.example.org.": "email jo.doe+x@mail.example.org", "a@b": "", "x @ y.com": "", "user@host..com": "", "@decorator.name": "",
		"call +49 30 1234567 now": "phone +49 30 1234567", "(030) 123 456 789": "phone 123 456 789", "555-123-4567 is mine": "phone 555-123-4567",
		"on 2024-01-31 12:00": "", "31-01-2024": "", "version 1.2.3.4": "", "from 93.184.216.34:80": "ip_address 93.184.216.34", "10.0.0.1": "", "192.168.1.77": "",
		"300.1.2.3": "", "card 4111 1111 1111 1111": "credit_card 4111 1111 1111 1111", "4111111111111112": "", "5500005555555559": "credit_card 5500005555555559",
		"IBAN DE89 3704 0044 0532 0130 00 please": "iban DE89 3704 0044 0532 0130 00", "GB82WEST12345698765432": "iban GB82WEST12345698765432", "DE88370400440532013000": "",
		"-----BEGIN RSA PRIVATE KEY-----\nMII": "private_key -----BEGIN RSA PRIVATE KEY-----", "-----BEGIN CERTIFICATE-----": "",
		"key = AKIAABCDEFGHIJKLMNOP;": "api_key AKIAABCDEFGHIJKLMNOP", "ghp_" + strings.Repeat("a1", 18) + " ": "api_key ghp_" + strings.Repeat("a1", 18), "ghp_short": "",
		"pi is 3.14159265358979323846": "", "order 12345678901234567890123": "", "1 000 000 000 people": "phone 1 000 000 000",
	} {
		got := ""
		FindPersonal([]byte(text), func(k Personal, found []byte) { got += k.String() + " " + string(found) })
		if got != want {
			t.Errorf("%q: found %q, want %q", text, got, want)
		}
	}
	if got := Mask([]byte("jo.doe@example.org")); got != "jo.***@*******.*rg" && got != "jo.***@*******.rg" {
		t.Errorf("masked as %q", got)
	}
}

func FuzzMeasure(f *testing.F) {
	for _, s := range []string{"plain text", "a@b.co +1 234 567 890 1.2.3.4", "\xff\xfe日本", "DE89 3704", "-----BEGIN", "{{{}}}\n\n- x\n…", "4111 1111 1111 1111"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var a Analyzer
		var m Measure
		a.Measure(&m, text)
		sum := m.Letters + m.Digits + m.Spaces + m.Punctuation + m.Symbols + m.Control
		if sum != m.Chars || m.Chars != int64(utf8.RuneCount(text)) || m.Bytes != int64(len(text)) {
			t.Fatalf("%d characters in classes, %d in all, %d runes", sum, m.Chars, utf8.RuneCount(text))
		}
		if m.Repeated5 > m.RepeatedWords || m.RepeatedLineBytes > m.Bytes || m.AlphaWords > m.Words {
			t.Fatalf("parts exceed the whole: %+v", m)
		}
		m.Language()
		FindPersonal(text, func(_ Personal, found []byte) {
			if len(found) == 0 || Mask(found) == string(found) && len(found) > 6 && alnum(found[3]) {
				t.Fatalf("%q is not masked", found)
			}
		})
	})
}

// shingles is the exact set that signatures stand for.
func shingles(words []string) map[string]bool {
	set := map[string]bool{}
	for i := 0; i+shingle <= len(words); i++ {
		set[strings.Join(words[i:i+shingle], " ")] = true
	}
	return set
}

func signature(text string) *Signature {
	var a Analyzer
	var m Measure
	a.Measure(&m, []byte(text))
	s := NewSignature()
	a.Signature(&s)
	return &s
}

// Signatures estimate the Jaccard index of the sets that a slow computation finds, also of short texts whose places must be
// filled from others.
func TestSignaturesEstimateJaccard(t *testing.T) {
	if testing.Short() {
		t.Skip("one goroutine and much arithmetic; the long form runs without -short")
	}
	r := rand.New(rand.NewPCG(3, 4))
	for _, n := range []int{12, 60, 2000} {
		for _, edits := range []int{0, n / 60, n / 20, n / 6, n} {
			var errors float64
			const tries = 20
			for range tries {
				words := make([]string, n)
				for i := range words {
					words[i] = fmt.Sprint("w", r.IntN(100_000))
				}
				other := append([]string(nil), words...)
				for range edits {
					other[r.IntN(n)] = fmt.Sprint("x", r.IntN(100_000))
				}
				a, b := shingles(words), shingles(other)
				both := 0
				for s := range a {
					if b[s] {
						both++
					}
				}
				exact := float64(both) / float64(len(a)+len(b)-both)
				errors += signature(strings.Join(words, " ")).Similarity(signature(strings.Join(other, " "))) - exact
			}
			if bias := errors / tries; math.Abs(bias) > 0.06 { // four standard errors of the mean at 128 places
				t.Errorf("%d words, %d edits: bias %.3f", n, edits, bias)
			}
		}
	}
}

func TestNearDuplicates(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	text := func() []string {
		words := make([]string, 300)
		for i := range words {
			words[i] = fmt.Sprint("w", r.IntN(50_000))
		}
		return words
	}
	n := NewNear(1 << 20)
	found, false_ := 0, 0
	for range 200 {
		words := text()
		if n.Seen(signature(strings.Join(words, " "))) {
			false_++
		}
		words[r.IntN(len(words))] = "edited" // the Jaccard index is at least 290/301
		if n.Seen(signature(strings.Join(words, " "))) {
			found++
		}
	}
	if found < 198 || false_ > 0 {
		t.Errorf("%d of 200 near duplicates found, %d false", found, false_)
	}
	for range 2 {
		if n.Seen(signature("")) {
			t.Error("an empty text resembles another")
		}
	}
}

// Memory does not grow beyond its bound, and what was seen within the window is still known.
func TestNearForgetsTheOldest(t *testing.T) {
	if testing.Short() {
		t.Skip("one goroutine and much arithmetic; the long form runs without -short")
	}
	n := NewNear(1) // the least: 2 × 4,096 slots
	one := func(i int) *Signature {
		return signature(fmt.Sprintf("a%d b%d c%d d%d e%d f%d g%d", i, i, i, i, i, i, i))
	}
	window := int(n.Window())
	for i := range 4 * window {
		if n.Seen(one(i)) {
			t.Fatalf("text %d resembles an earlier one", i)
		}
		if back := i - window + 1; back >= 0 && i%7 == 0 && !n.Seen(one(back)) {
			t.Fatalf("text %d is forgotten at %d, window %d", back, i, window)
		}
	}
	if len(n.young.slots) > 4096 || len(n.old.slots) > 4096 || !n.Forgot() {
		t.Errorf("%d and %d slots, forgot %v", len(n.young.slots), len(n.old.slots), n.Forgot())
	}
	e := NewExact(1)
	for i := range uint64(20_000) {
		if e.Seen(mix(i)) || i > 2000 && !e.Seen(mix(i-2000)) {
			t.Fatalf("hash %d", i)
		}
	}
}

func TestBoilerplate(t *testing.T) {
	l := NewLines()
	var a Analyzer
	const foot = "Copyright by nobody, all rights reversed"
	for i := range 20 {
		text := []byte(fmt.Sprintf("  %s\nText number %d of a series.\n%s\n}\n", foot, i, foot))
		bytes := l.Document(a.LineHashes(nil, text), text)
		want := int64(0)
		if i+1 >= CommonLine {
			want = int64(len(foot)) // once, although it stands twice in the document
		}
		if bytes != want {
			t.Errorf("document %d: %d bytes of boilerplate, want %d", i, bytes, want)
		}
	}
	if got := l.Common(5); len(got) != 1 || got[0] != (CommonText{foot, 20}) {
		t.Errorf("%+v", got)
	}
}

// The estimate is exact as long as everything fits, and close when only a sample does.
func TestOverlap(t *testing.T) {
	for _, each := range []uint64{1000, maxGrams} {
		o := NewOverlap()
		var train, held []uint64
		for i := range each {
			train = append(train, mix(i))
			held = append(held, mix(i+each*3/4)) // a quarter of it is in the training text
		}
		o.Add(held, true)
		o.Add(train, false)
		got, n := o.Share()
		if math.Abs(got-0.25) > 0.005 || n == 0 || len(o.sides) > maxGrams {
			t.Errorf("%d n-grams: share %.4f of %d", each, got, n)
		}
	}
	if got, n := NewOverlap().Share(); got != 0 || n != 0 {
		t.Error("an empty estimate")
	}
}

func TestFilters(t *testing.T) {
	prose := strings.Repeat("The owner of the house said that they have to be there with the others in time for dinner.\nNobody knew which of them would come, and so it went on. ", 1)
	var long strings.Builder
	r := rand.New(rand.NewPCG(1, 2))
	for range 12 {
		fmt.Fprintf(&long, "The %d guests of the house said that room %d should be kept with care, and nobody had to leave before noon.\n", r.IntN(9999), r.IntN(9999))
	}
	for name, x := range map[string]struct {
		filters []string
		text    string
		want    string
	}{
		"no filter":       {nil, "x", ""},
		"short":           {[]string{"gopher"}, "too short", "min_words"},
		"prose":           {[]string{"min_words=20", "language=en+de", "max_personal=0"}, prose, ""},
		"language":        {[]string{"language=de"}, prose, "language"},
		"overridden":      {[]string{"gopher", "min_words=1", "min_stop_words=0"}, "just a few words here", ""},
		"spam":            {[]string{"max_top_2gram=0.2"}, strings.Repeat("buy now ", 50), "max_top_2gram"},
		"repeated lines":  {[]string{"max_repeated_lines=0.3"}, strings.Repeat("the same line\n", 10), "max_repeated_lines"},
		"curly":           {[]string{"c4"}, strings.Repeat("A sentence. ", 6) + "{", "max_curly_brackets"},
		"lorem":           {[]string{"max_lorem_ipsum=0"}, "Lorem ipsum dolor", "max_lorem_ipsum"},
		"secret":          {[]string{"max_keys=0"}, "key AKIAABCDEFGHIJKLMNOP end", "max_keys"},
		"gopher on prose": {[]string{"gopher", "max_repeated_5grams=1", "max_top_4gram=1", "max_top_3gram=1", "max_top_2gram=1"}, long.String(), ""},
	} {
		f, err := ParseFilters(x.filters)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := f.Drop(&Text{Measure: *measure(x.text)}); got != x.want {
			t.Errorf("%s: dropped by %q, want %q", name, got, x.want)
		}
	}
	for _, bad := range []string{"gofer", "min_words", "min_words=many", "max_words=-1", "max_words=NaN", "language=", "near_duplicates=2", ""} {
		if _, err := ParseFilters([]string{bad}); !errors.Is(err, ErrRule) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := ParseFilters([]string{"min_word=3"}); err == nil || !strings.Contains(err.Error(), "did you mean") {
		t.Errorf("no suggestion: %v", err)
	}
	for _, rule := range PresetRules() {
		if _, err := ParseFilters([]string{rule}); err != nil {
			t.Error(err)
		}
	}
	f, err := ParseFilters([]string{"near_duplicates", "min_words=2"})
	if err != nil || !f.Near() || f.Lines() || f.NeedsNear(&Text{Measure: *measure("one")}) || f.Drop(&Text{Measure: *measure("one two"), Near: true}) != "near_duplicates" {
		t.Errorf("near duplicates: %+v, %v", f, err)
	}
}

func BenchmarkMeasure(b *testing.B) {
	text := []byte(strings.Repeat("The weather in the north was cold, but the traders had not been able to wait.\n", 800))
	var a Analyzer
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		var m Measure
		a.Measure(&m, text)
		s := NewSignature()
		a.Signature(&s)
	}
}
