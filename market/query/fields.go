package query

import (
	"cmp"
	"slices"
	"strings"

	"github.com/capacloud/capanode/market/credit"
	"github.com/capacloud/capanode/market/offer"
)

// field is one thing that a query can ask about. A number field has number and units; a text field has same, and word unless it
// is the peer.
type field struct {
	number func(*offer.Beacon) uint64      // value in base units
	units  map[string]uint64               // base units per unit; "" is a bare number
	word   func(*offer.Beacon) string      // value of a text field
	same   func(value, wanted string) bool // equality of a text field
	column int                             // among the fields of its kind in a [Table]
}

// compare orders two rows of a table by the field.
func (f field) compare(t *Table, a, b int32) int {
	switch {
	case f.number != nil:
		return cmp.Compare(t.numbers[f.column][a], t.numbers[f.column][b])
	case f.word != nil:
		words := t.lexica[f.column].words
		return cmp.Compare(words[t.words[f.column][a]], words[t.words[f.column][b]])
	}
	return cmp.Compare(t.ids[a], t.ids[b])
}

var (
	// Memory is compared in bytes. A bare number is decimal gigabytes, which is how cards are named: a "24 GB" card
	// reports 24 564 MiB and must match vram>=24.
	memory = map[string]uint64{
		"": 1e9, "gb": 1e9, "g": 1e9, "mb": 1e6, "tb": 1e12, "gib": 1 << 30, "mib": 1 << 20, "tib": 1 << 40,
	}
	credits = map[string]uint64{"": credit.PerCredit}
	// Speed is compared in MFLOP/s; a bare number is GFLOP/s.
	speed = map[string]uint64{
		"": 1000, "m": 1, "g": 1000, "t": 1e6, "mflops": 1, "gflops": 1000, "tflops": 1e6,
	}
	whole = map[string]uint64{"": 1}
	// Durations are compared in seconds; a bare number is hours.
	duration = map[string]uint64{"": 3600, "s": 1, "min": 60, "h": 3600, "d": 86400}
)

var fields = map[string]field{
	"vram":  {number: func(b *offer.Beacon) uint64 { return uint64(b.VRAMMiB) << 20 }, units: memory},
	"price": {number: func(b *offer.Beacon) uint64 { return uint64(b.Price) }, units: credits},
	"floor": {number: func(b *offer.Beacon) uint64 { return uint64(b.Floor) }, units: credits},
	"rate":  {number: func(b *offer.Beacon) uint64 { return uint64(b.Rate) }, units: credits},
	"perf":  {number: func(b *offer.Beacon) uint64 { return b.PerfMFLOPS }, units: speed},
	"slots": {number: func(b *offer.Beacon) uint64 { return uint64(b.Free) }, units: whole},
	"lease": {number: func(b *offer.Beacon) uint64 { return uint64(b.MaxLease) }, units: duration},
	"class": {word: func(b *offer.Beacon) string { return b.Class }, same: sameClass},
	"speed": {word: func(b *offer.Beacon) string {
		if b.Claimed {
			return "claimed"
		}
		return "measured"
	}, same: strings.EqualFold},
	"region": {word: func(b *offer.Beacon) string { return b.Region }, same: strings.EqualFold},
	"peer":   {same: strings.HasPrefix},
}

// numberFields and wordFields are the columns of a [Table].
var numberFields, wordFields = columns()

// columns numbers the fields.
func columns() (numbers, words []field) {
	for _, name := range Fields() {
		f := fields[name]
		switch {
		case f.number != nil:
			f.column = len(numbers)
			numbers = append(numbers, f)
		case f.word != nil:
			f.column = len(words)
			words = append(words, f)
		}
		fields[name] = f
	}
	return numbers, words
}

// sameClass compares a class by its whole name or by one of its words, without regard to case: "4090" is "RTX 4090".
func sameClass(value, wanted string) bool {
	if strings.EqualFold(value, wanted) {
		return true
	}
	for word := range strings.FieldsSeq(value) {
		if strings.EqualFold(word, wanted) {
			return true
		}
	}
	return false
}

// Fields lists the field names in alphabetical order.
func Fields() []string {
	names := make([]string, 0, len(fields))
	for name := range fields {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// suggest proposes the field nearest to a misspelt one, or lists all.
func suggest(word string) string {
	best, distance := "", 3
	for _, name := range Fields() {
		if d := edits(strings.ToLower(word), name); d < distance {
			best, distance = name, d
		}
	}
	if best != "" {
		return "did you mean " + best + "?"
	}
	return "fields are " + strings.Join(Fields(), ", ")
}

// edits is the Levenshtein distance of two words.
func edits(a, b string) int {
	if len(a) > 32 {
		return len(a)
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j+1]+1, row[j]+1)
		}
	}
	return row[len(b)]
}
