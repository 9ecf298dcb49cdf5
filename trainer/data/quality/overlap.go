package quality

const (
	// GramWords is the length of the word n-grams whose overlap shows held-out text in the training text, as in GPT-3
	// (Brown et al. 2020, appendix C).
	GramWords = 13
	// maxGrams bounds the n-grams that an overlap keeps.
	maxGrams = 1 << 19
)

// Overlap estimates which share of the held-out text's n-grams the training text has too, in one pass and bounded memory: of
// all n-grams it keeps those with the smallest hashes, the same of both sides, and halves how many when there are too many.
type Overlap struct {
	below uint64 // hashes below it are kept
	sides map[uint64]uint8
}

// NewOverlap returns an empty estimate.
func NewOverlap() *Overlap { return &Overlap{below: ^uint64(0), sides: map[uint64]uint8{}} }

// Below is the bound of the hashes that [Overlap.Add] still takes. It only falls.
func (o *Overlap) Below() uint64 { return o.below }

// Grams appends the hashes below a bound of the n-grams of the text that [Analyzer.Measure] saw last.
func (a *Analyzer) Grams(dst []uint64, below uint64) []uint64 {
	for i := 0; i+GramWords <= len(a.words); i++ {
		if h := gram(a.words[i : i+GramWords]); h < below {
			dst = append(dst, h)
		}
	}
	return dst
}

// Add counts n-grams of one side.
func (o *Overlap) Add(grams []uint64, held bool) {
	side := uint8(1)
	if held {
		side = 2
	}
	for _, h := range grams {
		if h < o.below {
			o.sides[h] |= side
		}
	}
	for len(o.sides) > maxGrams {
		o.below /= 2
		for h := range o.sides {
			if h >= o.below {
				delete(o.sides, h)
			}
		}
	}
}

// Share returns which share of the held-out n-grams is in the training text, and how many the estimate rests on.
func (o *Overlap) Share() (share float64, held int64) {
	both := int64(0)
	for _, s := range o.sides {
		if s&2 != 0 {
			held++
			if s == 3 {
				both++
			}
		}
	}
	if held == 0 {
		return 0, 0
	}
	return float64(both) / float64(held), held
}
