package corpus

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// Format is the form of a file.
type Format string

// The formats. Images, IDX and WAV have their names so that scripts stay valid; this version refuses them.
const (
	Auto       Format = "auto"
	Text       Format = "text"
	JSONL      Format = "jsonl"
	Parquet    Format = "parquet"
	CSV        Format = "csv"
	WebDataset Format = "webdataset"
	Tokens     Format = "bin"
	Images     Format = "images"
	IDX        Format = "idx"
	WAV        Format = "wav"
)

// readableFormats lists what this version reads.
var readableFormats = []Format{Text, JSONL, Parquet, CSV, WebDataset, Tokens}

// FormatNames lists what a caller may ask for.
func FormatNames() string {
	names := []string{string(Auto)}
	for _, f := range readableFormats {
		names = append(names, string(f))
	}
	return strings.Join(names, ", ")
}

// CheckFormat refuses a format that this version does not read, with [ErrOptions] or [ErrFormat].
func CheckFormat(name string) error {
	if f := Format(name); f != Auto && !f.readable() {
		return f.refuse()
	}
	return nil
}

func (f Format) readable() bool { return slices.Contains(readableFormats, f) }

// refuse is the error of a format that is not read.
func (f Format) refuse() error {
	if slices.Contains([]Format{Images, IDX, WAV}, f) {
		return fmt.Errorf("corpus: %w: %s needs a model that sees or hears, which this version does not train: write one of %s", ErrFormat, f, FormatNames())
	}
	return fmt.Errorf("corpus: %w: format %.32q: write one of %s", ErrOptions, string(f), FormatNames())
}

// byName gives the format that a file name promises.
var byName = map[string]Format{
	".jsonl": JSONL, ".ndjson": JSONL, ".csv": CSV, ".tsv": CSV, ".parquet": Parquet, ".tar": WebDataset, ".bin": Tokens,
}

// detect tells the format from magic numbers, which do not lie, and else from the name. Everything else is text.
func detect(path string, head []byte) Format {
	switch {
	case bytes.HasPrefix(head, []byte("PAR1")):
		return Parquet
	case len(head) > 262 && string(head[257:262]) == "ustar":
		return WebDataset
	case len(head) >= tokenHeader && tokenMagic(head) != 0:
		return Tokens
	}
	if f, ok := byName[strings.ToLower(filepath.Ext(path))]; ok {
		return f
	}
	return Text
}

// tokenMagic returns the bytes of one token by the magic number of a token file's header, 0 for another file.
func tokenMagic(head []byte) int {
	switch binary.LittleEndian.Uint32(head) {
	case 20240520: // llm.c with the tokens of GPT-2
		return 2
	case 20240801: // llm.c with the tokens of Llama 3
		return 4
	}
	return 0
}
