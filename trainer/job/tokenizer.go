package job

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/ipfs/go-cid"
)

// The limits of bpe:SIZE: the bytes and an end of text at least, and what 16-bit tokens hold at most.
const (
	leastBPE = 257
	mostBPE  = 1 << 16
)

// TokenizerChoice is what data.tokenizer asks for: one of its fields, or none for bytes.
type TokenizerChoice struct {
	Train int     // size of the vocabulary of a BPE that is trained on the corpus
	File  cid.Cid // tokenizer.json in the store or the network
	Path  string  // tokenizer.json, or a folder with it, on this machine
}

// Choice reads data.tokenizer: bytes, bpe:SIZE, a CID, or a path. A path has a slash or ends in .json, so that a mistyped
// word is not taken for one.
func (d DataPart) Choice() (TokenizerChoice, error) {
	word := d.Tokenizer
	if word == "bytes" {
		return TokenizerChoice{}, nil
	}
	if size, ok := strings.CutPrefix(word, "bpe:"); ok {
		n, err := strconv.Atoi(size)
		if err != nil || n < leastBPE || n > mostBPE {
			return TokenizerChoice{}, fmt.Errorf("%q: write bpe:SIZE with a vocabulary of %d to %d", word, leastBPE, mostBPE)
		}
		return TokenizerChoice{Train: n}, nil
	}
	if strings.ContainsAny(word, `/\`) || strings.HasSuffix(word, ".json") {
		return TokenizerChoice{Path: word}, nil
	}
	if c, err := cid.Decode(word); err == nil {
		return TokenizerChoice{File: c}, nil
	}
	return TokenizerChoice{}, fmt.Errorf("%q is not a tokenizer; write bytes, bpe:SIZE, the path of a tokenizer.json, or its CID", word)
}

// NamesTokenizer reports whether the file itself names a tokenizer, which a dataset made before already has.
func (f *File) NamesTokenizer() bool {
	_, ok := f.lines["data.tokenizer"]
	return ok
}
