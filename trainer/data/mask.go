package data

import (
	"crypto/sha256"
	"encoding/binary"
	"math/bits"
	"math/rand/v2"
	"slices"

	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/model"
	"github.com/capacloud/capanode/trainer/round"
)

// Masking turns windows into gaps to fill (Devlin et al., 2018). In each window 15 % of the tokens are targets; of these 80 % are
// replaced by the mask token, 10 % by a token drawn from the vocabulary, and 10 % stay. End-of-text tokens are no targets as
// long as there are others.
//
// What is masked is a pure function of the seed and the window: its shard, its place there, and how often the shard has been gone
// through. So it differs from one pass over the data to the next, and is the same whoever computes it again.
type Masking struct {
	Seed  uint64
	Mask  int32 // stands for masked tokens
	End   int32 // closes documents
	Vocab int   // of the tokenizer: what replacements are drawn from
}

// apply masks the rows of a batch, which are the given windows. The targets become those of the picked tokens alone.
func (m *Masking) apply(b *engine.Batch, windows []round.Window) {
	picks := model.Masked(b.Context)
	b.Picks, b.Targets = make([]int32, 0, b.Rows*picks), make([]int32, 0, b.Rows*picks)
	order := make([]int32, b.Context)
	for row, w := range windows {
		m.row(b, b.Inputs[row*b.Context:(row+1)*b.Context], order, m.draws(w))
	}
}

// row picks and masks the tokens of one window. order is room for as many numbers.
func (m *Masking) row(b *engine.Batch, tokens, order []int32, draws *rand.PCG) {
	words := 0 // that may be picked stand first
	for i, id := range tokens {
		order[i] = int32(i)
		if id != m.End {
			order[i], order[words] = order[words], order[i]
			words++
		}
	}
	if words == 0 {
		words = len(tokens)
	}
	picked := order[:model.Masked(len(tokens))]
	for i := range picked { // the first of a random order, the others following where words run out
		if i < words {
			j := i + int(below(draws, uint64(words-i)))
			order[i], order[j] = order[j], order[i]
		}
	}
	slices.Sort(picked)
	for _, at := range picked {
		id := tokens[at]
		b.Picks = append(b.Picks, at)
		if id == m.End && words < len(tokens) {
			b.Targets = append(b.Targets, engine.Ignore)
			continue
		}
		b.Targets = append(b.Targets, id)
		switch below(draws, 10) {
		case 0: // stays
		case 1:
			tokens[at] = int32(below(draws, uint64(m.Vocab)))
		default:
			tokens[at] = m.Mask
		}
	}
}

// draws returns the window's own stream of random numbers.
func (m *Masking) draws(w round.Window) *rand.PCG {
	key := []byte("capanode/mask/1\x00")
	for _, n := range []uint64{m.Seed, uint64(w.Shard), w.Index, w.Epoch} {
		key = binary.BigEndian.AppendUint64(key, n)
	}
	sum := sha256.Sum256(key)
	return rand.NewPCG(binary.BigEndian.Uint64(sum[:]), binary.BigEndian.Uint64(sum[8:]))
}

// below draws from [0, n): the upper half of a product, which is the same in every version of Go. The bias is below n/2⁶⁴.
func below(draws *rand.PCG, n uint64) uint64 {
	high, _ := bits.Mul64(draws.Uint64(), n)
	return high
}
