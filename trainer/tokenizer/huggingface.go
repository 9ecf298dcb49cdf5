package tokenizer

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// EndOfTextSymbol is how the end-of-text token is spelled in Hugging Face files.
const EndOfTextSymbol = "<|endoftext|>"

// HuggingFaceName is the name of the file that holds the mapping.
const HuggingFaceName = "tokenizer.json"

// ConfigName is the name of the file that names the special tokens.
const ConfigName = "tokenizer_config.json"

// File is one file of a Hugging Face folder.
type File struct {
	Name string
	Data []byte
}

// fastClass is the class of transformers that does what tokenizer.json says.
const fastClass = "PreTrainedTokenizerFast"

// HuggingFace returns tokenizer.json and tokenizer_config.json, in that order, for a tokenizer of this package.
// maxLength is the model's context in tokens. The Python packages tokenizers and transformers load them and give
// the same IDs for valid UTF-8, with two documented differences: a text that spells out a special token becomes that
// token there and plain text here, and decoding IDs that are invalid UTF-8 gives U+FFFD there and the bytes here.
// The bytes are the same on every machine.
func HuggingFace(t Tokenizer, maxLength int) ([]File, error) {
	var spec []byte
	var err error
	config := configJSON{Bos: EndOfTextSymbol, Eos: EndOfTextSymbol, Class: fastClass}
	switch t := t.(type) {
	case Byte:
		spec, err = marshal(byteSpec())
	case *BPE:
		spec, config = t.file, t.config
	default:
		err = fmt.Errorf("tokenizer: no Hugging Face form of %q: %w", t.Name(), ErrUnknown)
	}
	if err != nil {
		return nil, err
	}
	config.MaxLength = maxLength
	raw, err := marshal(config)
	if err != nil {
		return nil, err
	}
	return []File{{HuggingFaceName, spec}, {ConfigName, raw}}, nil
}

// recognizeByte returns the byte tokenizer for the very file that this program writes for it.
func recognizeByte(tokenizerJSON []byte) (Tokenizer, bool) {
	spec, err := marshal(byteSpec())
	if err != nil || !bytes.Equal(spec, tokenizerJSON) {
		return nil, false
	}
	return Byte{}, true
}

// marshal writes JSON as people read it: two spaces, no HTML escapes, a final newline.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("tokenizer: encode JSON: %w", err)
	}
	return b.Bytes(), nil
}

type configJSON struct {
	AddPrefixSpace bool   `json:"add_prefix_space"`
	Bos            string `json:"bos_token"`
	CleanUp        bool   `json:"clean_up_tokenization_spaces"`
	Eos            string `json:"eos_token"`
	Mask           string `json:"mask_token,omitempty"`
	MaxLength      int    `json:"model_max_length"`
	Class          string `json:"tokenizer_class"`
}

type specJSON struct {
	Version       string      `json:"version"`
	Truncation    *struct{}   `json:"truncation"`
	Padding       *struct{}   `json:"padding"`
	Added         []addedJSON `json:"added_tokens"`
	Normalizer    any         `json:"normalizer"`
	PreTokenizer  any         `json:"pre_tokenizer"`
	PostProcessor any         `json:"post_processor"`
	Decoder       byteLevel   `json:"decoder"`
	Model         bpeJSON     `json:"model"`
}

type addedJSON struct {
	ID         int32  `json:"id"`
	Content    string `json:"content"`
	SingleWord bool   `json:"single_word"`
	LStrip     bool   `json:"lstrip"`
	RStrip     bool   `json:"rstrip"`
	Normalized bool   `json:"normalized"`
	Special    bool   `json:"special"`
}

type byteLevel struct {
	Type           string `json:"type"`
	AddPrefixSpace bool   `json:"add_prefix_space"`
	TrimOffsets    bool   `json:"trim_offsets"`
	UseRegex       bool   `json:"use_regex"`
}

type bpeJSON struct {
	Type         string    `json:"type"`
	Dropout      *struct{} `json:"dropout"`
	Unknown      *string   `json:"unk_token"`
	Prefix       *string   `json:"continuing_subword_prefix"`
	Suffix       *string   `json:"end_of_word_suffix"`
	FuseUnknown  bool      `json:"fuse_unk"`
	ByteFallback bool      `json:"byte_fallback"`
	IgnoreMerges bool      `json:"ignore_merges"`
	Vocab        vocabJSON `json:"vocab"`
	Merges       []string  `json:"merges"`
}

// vocabJSON is the vocabulary in ID order; it encodes as an object whose keys keep that order.
type vocabJSON []string

// MarshalJSON implements [json.Marshaler].
func (v vocabJSON) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for id, symbol := range v {
		if id > 0 {
			b.WriteByte(',')
		}
		key, err := json.Marshal(symbol)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&b, "%s:%d", key, id)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

func byteSpec() specJSON {
	level := byteLevel{Type: "ByteLevel"}
	symbols := byteSymbols()
	vocab := make(vocabJSON, 0, byteVocab)
	for _, r := range symbols {
		vocab = append(vocab, string(r))
	}
	vocab = append(vocab, EndOfTextSymbol)
	return specJSON{
		Version:      "1.0",
		Added:        []addedJSON{{ID: byteEndOfText, Content: EndOfTextSymbol, Special: true}},
		PreTokenizer: level,
		Decoder:      level,
		Model:        bpeJSON{Type: "BPE", Vocab: vocab, Merges: []string{}},
	}
}

// byteSymbols returns the printable character that stands for each byte in byte-level BPE vocabularies (the alphabet of
// GPT-2): printable Latin-1 characters stand for themselves, the other bytes take the code points from U+0100 upwards
// in byte order.
func byteSymbols() [256]rune {
	var symbols [256]rune
	next := rune(0x100)
	for b := range symbols {
		r := rune(b)
		printable := r >= '!' && r <= '~' || r >= 0xa1 && r <= 0xac || r >= 0xae && r <= 0xff
		if !printable {
			r = next
			next++
		}
		symbols[b] = r
	}
	return symbols
}
