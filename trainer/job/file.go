package job

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// MaxFile is the largest job file in bytes.
const MaxFile = 1 << 20

// ErrSyntax reports a job file that is not what the schema says. The error names line, column and next step.
var ErrSyntax = errors.New("job file")

// File is a job file as a person writes it. Every field but Data has a default that works.
type File struct {
	Version    int             `yaml:"version"`
	Name       string          `yaml:"name"`
	Task       string          `yaml:"task"`
	Model      ModelPart       `yaml:"model"`
	Init       string          `yaml:"init"`
	LoRA       LoRAPart        `yaml:"lora"`
	Freeze     []string        `yaml:"freeze"` // patterns of parameters that stay as they are
	Data       DataPart        `yaml:"data"`
	Train      TrainPart       `yaml:"train"`
	Rounds     RoundsPart      `yaml:"rounds"`
	Market     MarketPart      `yaml:"market"`
	Checkpoint CheckpointPart  `yaml:"checkpoint"`
	Eval       EvalPart        `yaml:"eval"`
	lines      map[string]mark // where each key stands, for errors of meaning
	path       string
	base       *Base
}

// LoRAPart asks for low-rank adapters beside the frozen model of init. Rank 0 asks for none.
type LoRAPart struct {
	Rank    int      `yaml:"rank"`
	Alpha   float64  `yaml:"alpha"`   // 0 is twice the rank
	Targets []string `yaml:"targets"` // names of modules; empty is all-linear
}

// ModelPart chooses the model: a preset, or a family with its sizes.
type ModelPart struct {
	Preset      string  `yaml:"preset"`
	Family      string  `yaml:"family"`
	Width       int     `yaml:"width"`
	Layers      int     `yaml:"layers"`
	Heads       int     `yaml:"heads"`
	KVHeads     int     `yaml:"kv_heads"`
	FeedForward int     `yaml:"feed_forward"`
	RopeTheta   float64 `yaml:"rope_theta"`
	NormEps     float64 `yaml:"norm_eps"`
	Tie         *bool   `yaml:"tie_embeddings"`
}

// DataPart names the corpus: paths to read, or the CID of a dataset made before.
type DataPart struct {
	Paths       []string `yaml:"paths"`
	CID         string   `yaml:"cid"`
	Include     []string `yaml:"include"`       // file name suffixes or globs to keep; empty keeps all
	Exclude     []string `yaml:"exclude"`       // of the same kind, to leave out
	Format      string   `yaml:"format"`        // auto, or the format of every file
	Text        string   `yaml:"text"`          // field or column that holds the text
	MaxBytes    int64    `yaml:"max_bytes"`     // stop reading after so many bytes of text; 0 is no cap
	MaxDocs     int64    `yaml:"max_documents"` // stop reading after so many documents; 0 is no cap
	Sample      float64  `yaml:"sample"`        // share of the documents that is kept; 0 keeps all
	Filters     []string `yaml:"filters"`       // what a document must be like to be kept
	ShardTokens int      `yaml:"shard_tokens"`  // tokens in one shard; 0 chooses by corpus size
	Tokenizer   string   `yaml:"tokenizer"`
	Validation  float64  `yaml:"validation"` // share of documents held out
}

// TrainPart is the length of the run and the inner optimiser (AdamW).
type TrainPart struct {
	Rounds       int     `yaml:"rounds"`
	Tokens       int64   `yaml:"tokens"` // alternative to Rounds: all peers together
	Batch        int     `yaml:"batch"`  // sequences in one step of one peer
	MicroBatch   int     `yaml:"micro_batch"`
	Context      int     `yaml:"context"` // tokens in one sequence
	LearningRate float64 `yaml:"learning_rate"`
	MinRate      float64 `yaml:"min_learning_rate"`
	Warmup       int     `yaml:"warmup"` // steps
	WeightDecay  float64 `yaml:"weight_decay"`
	Clip         float64 `yaml:"clip"`
	Seed         uint64  `yaml:"seed"`
}

// RoundsPart is the averaging: how long peers train alone, and how they combine.
type RoundsPart struct {
	Pace       string  `yaml:"pace"`        // auto or fixed
	Bits       float64 `yaml:"bits"`        // budget of the auto pace
	LocalSteps int     `yaml:"local_steps"` // of every round; with the auto pace only a unit of the run's length
	Codec      string  `yaml:"codec"`
	Group      int     `yaml:"group"`
	Fragments  int     `yaml:"fragments"`
	Overlap    string  `yaml:"overlap"`   // auto, never or always
	Gradients  string  `yaml:"gradients"` // auto or never
	OuterRate  float64 `yaml:"outer_learning_rate"`
	Momentum   float64 `yaml:"outer_momentum"`
}

// MarketPart is what the run may buy. It stays with the requester and is no part of the run's identity.
type MarketPart struct {
	Peers    int     `yaml:"peers"`
	Query    string  `yaml:"query"`
	MaxPrice float64 `yaml:"max_price"` // credits per slot-hour
	Budget   float64 `yaml:"budget"`    // credits for the whole run; 0 is no cap
}

// CheckpointPart says how often a checkpoint is published and how many are kept.
type CheckpointPart struct {
	Every int `yaml:"every"` // rounds
	Keep  int `yaml:"keep"`
}

// EvalPart says how often the held-out loss is measured, and on how much.
type EvalPart struct {
	Every   int `yaml:"every"`   // rounds; 0 measures at the end only
	Windows int `yaml:"windows"` // held-out sequences per measurement
}

// Words of the rounds part.
const (
	PaceAuto      = "auto"  // steps, codec and outer step of every round follow from the budget, the links and the progress
	PaceFixed     = "fixed" // they are what the job says
	CodecAuto     = "auto"  // the pace chooses; int8 where it is fixed
	OverlapAuto   = "auto"  // the next round's steps run beside the exchange when that saves time
	OverlapNever  = "never" // equal runs end with equal bits
	OverlapAlways = "always"

	GradientsAuto  = "auto"  // the auto pace may make a round one step on everybody's gradients
	GradientsNever = "never" // all rounds are of local steps
)

// DefaultBits is the budget of a job that names none, in bits per parameter and optimiser step that a peer downloads.
const DefaultBits = 1.0

// Defaults returns the file that an empty job file means.
func Defaults() File {
	return File{
		Version: 1, Name: "run", Task: "causal-lm",
		Model:  ModelPart{},
		Data:   DataPart{Format: "auto", Text: "text", Tokenizer: "bytes", Validation: 0.02},
		Train:  TrainPart{Batch: 8, Context: 128, LearningRate: 1e-3, MinRate: 1e-4, Warmup: 20, WeightDecay: 0.1, Clip: 1, Seed: 1},
		Rounds: RoundsPart{Pace: PaceAuto, Bits: DefaultBits, LocalSteps: 20, Codec: CodecAuto, Fragments: 1, Overlap: OverlapAuto, Gradients: GradientsAuto, OuterRate: 0.7, Momentum: 0.6},
		Market: MarketPart{Peers: 3}, Checkpoint: CheckpointPart{Every: 10, Keep: 2}, Eval: EvalPart{Windows: 64},
	}
}

type mark struct{ line, column int }

// Read reads and checks the job file at path. Errors are [ErrSyntax] with line and column, or the file system's own.
func Read(path string) (File, error) {
	info, err := os.Stat(path)
	if err != nil {
		return File{}, fmt.Errorf("job file %s: %w; `capanode init job` writes one", path, err)
	}
	if info.IsDir() {
		return File{}, fmt.Errorf("%w %s: it is a folder: name the job's YAML file", ErrSyntax, path)
	}
	if info.Size() > MaxFile {
		return File{}, fmt.Errorf("%w %s: %d bytes, limit %d: this is no job file", ErrSyntax, path, info.Size(), MaxFile)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return File{}, fmt.Errorf("job file %s: %w", path, err)
	}
	return Parse(path, b)
}

// Parse checks the bytes of a job file; path is used in errors only.
func Parse(path string, b []byte) (File, error) {
	f := Defaults()
	f.path, f.lines = path, map[string]mark{}
	if len(b) > MaxFile {
		return File{}, fmt.Errorf("%w %s: %d bytes, limit %d", ErrSyntax, path, len(b), MaxFile)
	}
	tree, err := parser.ParseBytes(b, 0)
	if err != nil {
		return File{}, syntax(path, err)
	}
	if len(tree.Docs) == 0 || tree.Docs[0].Body == nil {
		return File{}, fmt.Errorf("%w %s: it is empty; the smallest job names data.paths, `capanode init job` writes one", ErrSyntax, path)
	}
	if len(tree.Docs) > 1 {
		return File{}, fmt.Errorf("%w %s: it holds %d YAML documents, a job is one: remove the lines of three dashes", ErrSyntax, path, len(tree.Docs))
	}
	if err := checkKeys(path, tree.Docs[0].Body, &f); err != nil {
		return File{}, err
	}
	if err := yaml.NewDecoder(strings.NewReader(string(b)), yaml.Strict()).Decode(&f); err != nil {
		return File{}, syntax(path, err)
	}
	return f, f.check()
}

// syntax turns a YAML error into one line with position.
func syntax(path string, err error) error {
	var wrong *yaml.TypeError
	if errors.As(err, &wrong) && wrong.GetToken() != nil {
		p := wrong.GetToken().Position
		return fmt.Errorf("%w %s:%d:%d: %q is no %s; `capanode config schema` lists the keys and their types", ErrSyntax, path, p.Line, p.Column,
			wrong.GetToken().Value, kindWord(wrong.DstType))
	}
	var y yaml.Error
	if errors.As(err, &y) && y.GetToken() != nil {
		p := y.GetToken().Position
		return fmt.Errorf("%w %s:%d:%d: %s", ErrSyntax, path, p.Line, p.Column, y.GetMessage())
	}
	return fmt.Errorf("%w %s: %s", ErrSyntax, path, strings.SplitN(err.Error(), "\n", 2)[0])
}

// kindWord says what is expected in the words of a job file.
func kindWord(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Int, reflect.Int64, reflect.Uint64:
		return "whole number"
	case reflect.Float64:
		return "number"
	case reflect.Bool:
		return "true or false"
	case reflect.Slice:
		return "list"
	case reflect.Struct:
		return "section of keys"
	}
	return "text"
}

// checkKeys refuses keys that the schema does not know, suggesting the nearest one, and notes where each key stands.
func checkKeys(path string, body ast.Node, f *File) error {
	schema := map[string][]string{}
	for _, field := range Schema() {
		section, key := "", field.Key
		if i := strings.IndexByte(field.Key, '.'); i >= 0 {
			section, key = field.Key[:i], field.Key[i+1:]
			if !slices.Contains(schema[""], section) {
				schema[""] = append(schema[""], section)
			}
		}
		schema[section] = append(schema[section], key)
	}
	for _, kv := range pairs(body) {
		key, pos := kv.Key.String(), kv.Key.GetToken().Position
		if !slices.Contains(schema[""], key) {
			return unknown(path, "", key, mark{pos.Line, pos.Column}, schema[""])
		}
		f.lines[key] = mark{pos.Line, pos.Column}
		for _, sub := range pairs(kv.Value) {
			name, pos := sub.Key.String(), sub.Key.GetToken().Position
			if len(schema[key]) > 0 && !slices.Contains(schema[key], name) {
				return unknown(path, key+".", name, mark{pos.Line, pos.Column}, schema[key])
			}
			f.lines[key+"."+name] = mark{pos.Line, pos.Column}
		}
	}
	return nil
}

func pairs(n ast.Node) []*ast.MappingValueNode {
	switch n := n.(type) {
	case *ast.MappingNode:
		return n.Values
	case *ast.MappingValueNode:
		return []*ast.MappingValueNode{n}
	}
	return nil
}

func unknown(path, section, key string, at mark, known []string) error {
	hint := "known here: " + strings.Join(known, ", ")
	if near := nearest(key, known); near != "" {
		hint = fmt.Sprintf("did you mean %q?", near)
	}
	return fmt.Errorf("%w %s:%d:%d: unknown key %q; %s", ErrSyntax, path, at.line, at.column, section+key, hint)
}

// nearest returns the known word within two edits of s, or nothing.
func nearest(s string, known []string) string {
	best, word := 3, ""
	for _, k := range known {
		if d := edits(s, k); d < best {
			best, word = d, k
		}
	}
	return word
}

// edits is the Levenshtein distance.
func edits(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			next := min(row[j]+1, row[j-1]+1, diagonal+cost)
			diagonal, row[j] = row[j], next
		}
	}
	return row[len(b)]
}
