package encode

const (
	// SampleBytes is how much of a large block is encoded to find out what suits it. A smaller block gives an eighth of itself, but at
	// least MinSample, below which the tables of the codes say more than what they code.
	SampleBytes = 64 << 10
	MinSample   = 16 << 10
	// pieces is from how many places of the block the sample comes.
	pieces = 4
	// worth is the share of a block that an encoding must save, 1/worth, to be used at all.
	worth = 32
	// again is how many blocks may follow each other before the next sample is taken.
	again = 64
)

// Choose encodes samples of a block and returns the encoding of the set that makes it smallest, and the expected share of its
// bytes that are left. Planes win over Zstandard when they are about equal: they are faster.
func (e *Encoder) Choose(block []byte, from Set) (best Encoding, left float64) {
	sample := e.take(block)
	best, left = Raw, 1-1.0/worth
	for _, how := range [...]Encoding{Planes2, Planes4, Zstd} {
		if !from.Has(how) || len(sample) == 0 {
			continue
		}
		if used, packed := e.Encode(how, sample); used == how {
			if share := float64(len(packed)) / float64(len(sample)); share < 0.99*left {
				best, left = how, share
			}
		}
	}
	if best == Raw {
		left = 1
	}
	return best, left
}

// take copies pieces from all over a block, at places that are multiples of eight bytes so that floats stay whole.
func (e *Encoder) take(block []byte) []byte {
	size := min(max(len(block)/8, MinSample), SampleBytes)
	if len(block) <= size {
		return block
	}
	e.sample = e.sample[:0]
	piece := size / pieces &^ 7
	step := (len(block) - piece) / (pieces - 1) &^ 7
	for i := range pieces {
		e.sample = append(e.sample, block[i*step:i*step+piece]...)
	}
	return e.sample
}

// Choice remembers what suits the blocks of one file that follow each other, so that not each one is sampled: a new sample is
// taken where a tensor may begin, that is after a block that is not full, when a block comes out larger than expected, and now and
// then. The zero value is ready.
type Choice struct {
	how     Encoding
	left    float64
	blocks  int  // that rest on this sample
	settled bool // the sample holds for the next block
}

// Next encodes the next block with an encoding of the set. See [Encoder.Encode] for what it returns.
func (c *Choice) Next(e *Encoder, block []byte, from Set) (Encoding, []byte) {
	if !c.settled || c.blocks == again || !from.Has(c.how) {
		c.how, c.left = e.Choose(block, from)
		c.blocks = 0
	}
	c.blocks++
	used, packed := e.Encode(c.how, block)
	as := float64(len(packed)) <= 1.05*c.left*float64(len(block))
	c.settled = len(block) == MaxBlock && used == c.how && as
	return used, packed
}
