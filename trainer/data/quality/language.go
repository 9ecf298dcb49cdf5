package quality

import (
	"fmt"
	"strings"
	"unicode"
)

// Script is a writing system.
type Script int

// The scripts that are told apart.
const (
	Latin Script = iota
	Cyrillic
	Greek
	Arabic
	Hebrew
	Devanagari
	Han
	Kana
	Hangul
	Thai
	OtherScript
	scriptCount
)

// String returns the ISO 15924 code.
func (s Script) String() string {
	return [scriptCount]string{"Latn", "Cyrl", "Grek", "Arab", "Hebr", "Deva", "Hani", "Kana", "Hang", "Thai", "Zyyy"}[s]
}

// spaceless scripts are written without spaces between words.
func (s Script) spaceless() bool { return s == Han || s == Kana || s == Thai }

var scriptTables = [...]*unicode.RangeTable{unicode.Latin, unicode.Cyrillic, unicode.Greek, unicode.Arabic, unicode.Hebrew, unicode.Devanagari, unicode.Han}

func scriptOf(r rune) Script {
	switch { // the blocks that texts are made of, before the tables that know every corner
	case r < 0x250, r >= 0x1e00 && r < 0x1f00:
		return Latin
	case r >= 0x370 && r < 0x400:
		return Greek
	case r >= 0x400 && r < 0x530:
		return Cyrillic
	case r >= 0x4e00 && r < 0xa000:
		return Han
	case r >= 0x3041 && r < 0x3100:
		return Kana
	case r >= 0xac00 && r < 0xd7b0:
		return Hangul
	case r >= 0xe00 && r < 0xe80:
		return Thai
	}
	for s, table := range scriptTables {
		if unicode.Is(table, r) {
			return Script(s)
		}
	}
	return OtherScript
}

// languageCount is how many languages are told apart by their words.
const languageCount = 20

// stopLists are the most frequent short words of languages that share a script. A word may be in several: the counts of all its
// words decide. Norwegian reads as Danish, Croatian and Slovak mostly as Czech, Malay as Indonesian.
var stopLists = [languageCount]struct{ code, words string }{
	{"en", "the of and to in is that it was for on are with as be at this have from by not but which or an they you his were their been has would there what all will if can more when who so no said she we had about its into than them only other some could these may then"},
	{"de", "der die und in den von zu das mit sich des auf für ist im dem nicht ein eine als auch es an werden aus er hat dass sie nach wird bei einer um am sind noch wie einem über einen so zum war haben nur oder aber vor zur bis mehr durch man sein wurde"},
	{"fr", "le de la les et des en un du une que est pour qui dans par sur au plus pas avec il sont ce ne se aux cette mais ou elle son sa ses leur ont été être comme fait nous vous je deux même entre sans"},
	{"es", "de la que el en y a los del se las por un para con no una su al lo como más pero sus le ya o este sí porque esta entre cuando muy sin sobre también me hasta hay donde quien desde todo nos durante todos uno les ni contra otros ese eso"},
	{"it", "di e il la che in un a per è una non sono con del da si le al dei della i nel alla più gli lo come anche ma delle ha dal o nella suo sua se questo questa essere stato tra ci dalla degli loro quando molto"},
	{"pt", "de a o que e do da em um para é com não uma os no se na por mais as dos como mas foi ao ele das tem à seu sua ou ser quando muito há nos já está eu também só pelo pela até isso ela entre era depois sem mesmo aos"},
	{"nl", "de van een het en in is dat op te zijn voor met die niet aan er om ook als dan maar bij nog uit door over ze hij wordt naar heeft hebben ik je wel kan geen werd worden deze was tot meer zo of onder dit"},
	{"sv", "och i att det som en på är av för med till den har de inte om ett han men var jag sig från vi så kan hon då nu där eller när under efter också vid mot ut skulle ska alla sin hade varit"},
	{"da", "og i at det en den til er som på de med han af for ikke der var mig sig men et har om vi min havde ham hun nu over da fra du ud sin dem os op man hans hvor eller hvad skal selv her alle vil blev kunne også efter når"},
	{"pl", "i w na z do się że nie to jest o jak za po od co ale przez tak są dla był było być już może ich tym przed jako ten jego tylko lub czy oraz także ma te która który które gdy pod"},
	{"cs", "a se v na je že s z do o k i to ve pro za by jako po ale jsou tak jak od co aby byl bylo která který které také nebo už při jeho jen podle ze svou své což však byla být mezi není"},
	{"fi", "ja on ei se että oli hän joka mutta ovat kun niin myös kuin tai sen sitä jo jos vain hänen ole olla mukaan joita sekä voi vielä mitä nyt ne näin tämä tämän"},
	{"hu", "a az és hogy nem is egy van ez meg ha de már csak volt mint el ki még azt vagy be minden amely kell fel lehet volna lesz után ezt pedig között olyan mert szerint"},
	{"tr", "ve bir bu da de için ile çok daha olarak ne gibi en kadar sonra o olan var ama her diye ya mi ki değil olduğu tarafından göre ise ancak şey yok hem bunu içinde"},
	{"ro", "de și în a la cu nu o că pe este care din un se mai sau ca pentru sunt fost fi prin au lui al ale dar după când foarte această acest între fără până"},
	{"id", "yang dan di dengan untuk dari pada ini dalam itu adalah tidak ke akan oleh sebagai juga atau dapat telah karena bahwa ada mereka lebih sudah saat secara bisa tersebut kami saya"},
	{"vi", "và của là có trong được cho một các không với những này người đã khi từ đến để năm ra về cũng như nhiều vào trên tại bị theo sau hay nhưng lại"},
	{"ru", "и в не на что с он как это по но из у за от к же вы для бы его так мы было только или если о до ещё еще ее её были был быть может когда уже при чтобы этого они их я ты все"},
	{"uk", "і в не на що з та як це до у за від але для його й про або так є був були було має бути які який яка того цього вже коли щоб їх він вона також після ж"},
	{"bg", "и на да се в от за не с по че е си са като но до ще към при или този които който това още може само след бе ли вече между беше дори обаче"},
}

// gopherStops are the eight words of Gopher's rule (Rae et al. 2021, A1.1).
var gopherStops = []string{"the", "be", "to", "of", "and", "that", "have", "with"}

type stopWord struct {
	hash      uint64
	languages uint32 // bit i: a word of stopLists[i]
	gopher    uint8
}

// stopTable finds words by hash in one or two steps.
type stopTable [4096]stopWord

var stopWords = func() *stopTable {
	var t stopTable
	for i, list := range stopLists {
		for _, w := range strings.Fields(list.words) {
			t.place(w).languages |= 1 << i
		}
	}
	for i, w := range gopherStops {
		t.place(w).gopher = 1 << i
	}
	return &t
}()

func (t *stopTable) place(w string) *stopWord {
	h := uint64(hashSeed)
	for _, r := range w {
		h = step(h, r)
	}
	h = mix(h)
	i := h % uint64(len(t))
	for t[i].hash != 0 && t[i].hash != h {
		i = (i + 1) % uint64(len(t))
	}
	t[i].hash = h
	return &t[i]
}

func (t *stopTable) find(h uint64) *stopWord {
	for i := h % uint64(len(t)); t[i].hash != 0; i = (i + 1) % uint64(len(t)) {
		if t[i].hash == h {
			return &t[i]
		}
	}
	return nil
}

// Words of a language guess that name no language.
const (
	Code     = "code" // looks like a program or markup
	Unknown  = "und"  // too little text, or nothing that is known
	leastHit = 3      // stop words that a guess takes
)

// Language guesses the language of a text: by script alone where a script belongs to one language, else by which language's
// frequent words make up most of it. It gives an ISO 639-1 code, "code", "und-" and a script, or "und". It is no model: it needs
// a sentence or two, knows twenty languages in Latin and Cyrillic letters, and names a mixed text after its larger part.
func (m *Measure) Language() string {
	script, letters := Latin, int64(0)
	for s, n := range m.Scripts {
		if n > letters {
			script, letters = Script(s), n
		}
	}
	if letters*4 < m.Chars-m.Spaces || m.Letters == 0 {
		return Unknown
	}
	switch script {
	case Han, Kana:
		if m.Scripts[Kana]*10 > m.Scripts[Han]+m.Scripts[Kana] {
			return "ja"
		}
		return "zh"
	case Greek:
		return "el"
	case Hebrew:
		return "he"
	case Hangul:
		return "ko"
	case Thai:
		return "th"
	case Latin, Cyrillic:
		return m.byWords(script)
	}
	return fmt.Sprintf("%s-%s", Unknown, script)
}

// byWords picks the language with most of its frequent words. A text of which more than an eighth is signs is a program or markup:
// prose has about one in twenty-five, and single letters of a program are frequent words of some language.
func (m *Measure) byWords(script Script) string {
	best, most := -1, int64(0)
	for i, n := range m.Stops {
		if n > most {
			best, most = i, n
		}
	}
	signs := m.Punctuation + m.Symbols
	switch {
	case signs*8 > m.Chars:
		return Code
	case best >= 0 && most >= leastHit && most*100 >= m.Words*8:
		return stopLists[best].code
	}
	return fmt.Sprintf("%s-%s", Unknown, script)
}
