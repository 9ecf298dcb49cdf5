package tokenizer

import (
	"runtime"

	"github.com/ipfs/go-cid"
)

// BPE is a byte-level BPE tokenizer: a text is cut into pre-tokens, the bytes of each are symbols, and pairs of neighbours
// merge into longer symbols in a fixed order of ranks. Any bytes encode, valid UTF-8 or not, and without a normaliser they
// decode to themselves.
//
// A BPE is made by [Train], [Load] or [Open], does not change, and is safe for concurrent use: each call takes an encoder
// of its own, with a cache of about a megabyte, and there are never more idle ones than processors.
type BPE struct {
	name  string
	file  []byte // tokenizer.json as this program writes it
	cid   cid.Cid
	end   int32
	texts [][]byte // of each ID
	// special IDs stand for no text.
	special []bool

	bytes     [256]int32 // symbol of each byte
	merges    merges
	whole     map[string]int32 // pre-tokens that are tokens as they are, nil where merges decide
	raw       *addedSet        // searched in the text as it is
	normal    *addedSet        // searched in the normalised text
	normalize normalizer
	steps     []step
	front     []int32 // IDs that a template puts around a text
	back      []int32
	config    configJSON
	documents documentRules
	idle      chan *encoder
}

// documentRules say what may happen in a document, where special tokens stay text.
type documentRules struct {
	plain bool // no added token is looked for
	lines bool // a text may be cut after a line
	words bool // a text may be cut before a word
}

// Name returns "bpe:END:CID": the ID of the end-of-text token, and the CID of tokenizer.json.
func (b *BPE) Name() string { return b.name }

// Vocab is the number of IDs.
func (b *BPE) Vocab() int { return len(b.texts) }

// EndOfText is the ID that closes each document.
func (b *BPE) EndOfText() int32 { return b.end }

// File returns the bytes of tokenizer.json, which say everything but the end-of-text token, and their CID. The caller
// must not change them.
func (b *BPE) File() ([]byte, cid.Cid) { return b.file, b.cid }

// Encode appends the IDs of a document to dst. Special tokens that the text spells out stay text, as in the Python package
// with encode_special_tokens, and no template is applied.
func (b *BPE) Encode(dst []int32, text []byte) []int32 { return b.encode(dst, text, false) }

// EncodeAll appends the IDs that the Python package tokenizers gives by default: special tokens that are spelled out become
// those tokens, and the template's tokens are put around the text. It is for prompts of the user's own; a document could
// end itself.
func (b *BPE) EncodeAll(dst []int32, text []byte) []int32 {
	dst = append(dst, b.front...)
	dst = b.encode(dst, text, true)
	return append(dst, b.back...)
}

// Decode appends the text of ids to dst. Special tokens and IDs outside the vocabulary add nothing.
func (b *BPE) Decode(dst []byte, ids []int32) []byte {
	for _, id := range ids {
		if id >= 0 && int(id) < len(b.texts) && !b.special[id] {
			dst = append(dst, b.texts[id]...)
		}
	}
	return dst
}

func (b *BPE) encode(dst []int32, text []byte, special bool) []int32 {
	e := b.encoder()
	e.out = dst
	if b.documents.plain && !special {
		e.plainText(b.normalize.apply(text))
	} else {
		var inner []segment
		for _, p := range b.raw.split(nil, e.classes, text, special) {
			if p.id >= 0 {
				e.out = append(e.out, p.id)
				continue
			}
			inner = b.normal.split(inner[:0], e.classes, b.normalize.apply(p.text), special)
			for _, q := range inner {
				if q.id >= 0 {
					e.out = append(e.out, q.id)
				} else {
					e.plainText(q.text)
				}
			}
		}
	}
	dst, e.out = e.out, nil
	select {
	case b.idle <- e:
	default:
	}
	return dst
}

// encoder takes an idle encoder, or makes one.
func (b *BPE) encoder() *encoder {
	select {
	case e := <-b.idle:
		return e
	default:
		return &encoder{BPE: b, classes: classes(), cache: make([]cached, cacheSlots)}
	}
}

func newIdle() chan *encoder { return make(chan *encoder, runtime.GOMAXPROCS(0)) }
