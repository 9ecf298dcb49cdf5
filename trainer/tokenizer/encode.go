package tokenizer

import (
	"encoding/binary"
	"math/bits"
)

const (
	cacheSlots = 1 << 14 // of each encoder: about a megabyte
	cacheBytes = 24      // longest pre-token that is remembered
	cacheIDs   = 6       // most tokens of one that is remembered
)

// encoder is the memory that one goroutine needs to encode. It remembers what frequent pre-tokens become: a slot for each
// hash, the newest pre-token of that hash in it, so its size is fixed.
type encoder struct {
	*BPE
	classes *classTable
	out     []int32
	symbols []int32
	merger  merger
	cache   []cached
}

// cached is a pre-token, padded with zeros, and its tokens.
type cached struct {
	key    [cacheBytes / 8]uint64
	ids    [cacheIDs]int32
	length uint8 // of the key in bytes; 0 is an empty slot
	count  uint8
}

// word appends the tokens of a pre-token.
func (e *encoder) word(text []byte) {
	if len(text) > cacheBytes {
		e.out = append(e.out, e.merge(text)...)
		return
	}
	var padded [cacheBytes]byte
	copy(padded[:], text)
	key := [...]uint64{
		binary.LittleEndian.Uint64(padded[:]), binary.LittleEndian.Uint64(padded[8:]), binary.LittleEndian.Uint64(padded[16:]),
	}
	c := &e.cache[hashWord(key, len(text))&(cacheSlots-1)]
	if c.key == key && int(c.length) == len(text) {
		e.out = append(e.out, c.ids[:c.count]...)
		return
	}
	ids := e.merge(text)
	e.out = append(e.out, ids...)
	if len(ids) <= cacheIDs {
		c.key, c.length, c.count = key, uint8(len(text)), uint8(len(ids))
		copy(c.ids[:], ids)
	}
}

// hashWord mixes a key by two wide products.
func hashWord(key [3]uint64, length int) uint64 {
	hi, lo := bits.Mul64(key[0]^0xa0761d6478bd642f, key[1]^0xe7037ed1a0b428db^uint64(length))
	hi2, lo2 := bits.Mul64(hi^lo^key[2], 0x8ebc6af09c88c6e3)
	return hi2 ^ lo2
}

// merge returns the tokens of a pre-token, valid until the next call.
func (e *encoder) merge(text []byte) []int32 {
	if e.whole != nil {
		if id, ok := e.whole[string(text)]; ok {
			e.symbols = append(e.symbols[:0], id)
			return e.symbols
		}
	}
	symbols := e.symbols[:0]
	for _, b := range text {
		symbols = append(symbols, e.bytes[b])
	}
	e.symbols = symbols
	return e.merger.apply(&e.merges, symbols)
}

// plainText appends the tokens of a text in which no added token is looked for.
func (e *encoder) plainText(text []byte) { e.cut(e.steps, text) }
