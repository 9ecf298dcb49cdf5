package job

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"math"
	"math/big"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/capacloud/capanode/p2p/wire"
)

var update = flag.Bool("update", false, "rewrite golden files")

func owner(t testing.TB) peer.ID {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(bytes.NewReader(make([]byte, 64)))
	if err != nil {
		t.Fatal(err)
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func bound(t testing.TB) Record {
	t.Helper()
	f, err := Parse("j.yaml", []byte(smallest))
	if err != nil {
		t.Fatal(err)
	}
	r, err := f.Bind(owner(t), byteDataset("dataset"), 0)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRecordIsGolden(t *testing.T) {
	b, id, err := bound(t).Encode()
	if err != nil {
		t.Fatal(err)
	}
	got := id.String() + "\n" + hex.EncodeToString(b) + "\n"
	path := filepath.Join("testdata", "record.golden")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil || string(want) != got {
		t.Fatalf("record changed (%v): the format needs a new version\n%s", err, got)
	}
	back, err := Decode(b)
	if err != nil || back.Model != bound(t).Model || back.Rounds != DefaultRounds {
		t.Errorf("decoded %+v, %v", back, err)
	}
}

func TestTokensBecomeRounds(t *testing.T) {
	f, err := Parse("j.yaml", []byte(smallest+"train: {tokens: 1000001, batch: 4, context: 10}\nrounds: {local_steps: 25}\nmarket: {peers: 10}\n"))
	if err != nil {
		t.Fatal(err)
	}
	r, err := f.Bind(owner(t), byteDataset("d"), 0)
	if err != nil || r.Rounds != 101 { // 10,000 tokens a round
		t.Errorf("%d rounds, %v; want 101", r.Rounds, err)
	}
}

func TestModelMistakesPointAtTheLine(t *testing.T) {
	for text, want := range map[string]string{
		"model: {preset: gpt-9}\n":                                          "j.yaml:4:9: model.preset",
		"model:\n  width: 30\n  heads: 4\n":                                 "model.",
		"model: {preset: llama-1m, width: 3}\n":                             "not both",
		"model: {width: 64, layers: 1, heads: 4, feed_forward: 99999999}\n": "model.feed_forward: 99999999, allowed",
	} {
		f, err := Parse("j.yaml", []byte(smallest+text))
		if err == nil {
			_, err = f.Bind(owner(t), byteDataset("d"), 0)
		}
		if !errors.Is(err, ErrSyntax) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

func TestEveryCodecIsAllowed(t *testing.T) {
	for _, id := range []string{"fp32", "int8", "int4", "top1", "top64/1", "top2048"} {
		r := bound(t)
		r.Codec = id
		b, err := wire.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Decode(b); err != nil {
			t.Errorf("%s: %v", id, err)
		}
	}
}

func TestHostileRecordsAreRefused(t *testing.T) {
	for name, change := range map[string]func(*Record){
		"rounds":      func(r *Record) { r.Rounds = math.MaxUint64 },
		"steps":       func(r *Record) { r.LocalSteps = 0 },
		"batch":       func(r *Record) { r.Batch = 1 << 40 },
		"micro batch": func(r *Record) { r.MicroBatch = 3 },
		"model":       func(r *Record) { r.Model.Layers = -1 },
		"vocabulary":  func(r *Record) { r.Model.Vocab = 3 },
		"context":     func(r *Record) { r.Context++ },
		"owner":       func(r *Record) { r.Owner = []byte("x") },
		"dataset":     func(r *Record) { r.Dataset = wire.Link{} },
		"name":        func(r *Record) { r.Name = "../../etc" },
		"codec":       func(r *Record) { r.Codec = "zip" },
		"pace":        func(r *Record) { r.Pace = "slow" },
		"overlap":     func(r *Record) { r.Overlap = "" },
		"gradients":   func(r *Record) { r.Gradients = "always" },
		"bits":        func(r *Record) { r.Bits = 1e7 },
		"few bits":    func(r *Record) { r.Bits = -1 },
		"fragments":   func(r *Record) { r.Fragments = 0 },
		"groups":      func(r *Record) { r.Group = 1 },
		"top":         func(r *Record) { r.Codec = "top4096" },
		"rate":        func(r *Record) { r.LearningRate = -1 },
		"version":     func(r *Record) { r.Version = RecordVersion - 1 },
		"peers":       func(r *Record) { r.Peers = MaxPeers + 1 },
		"big step":    func(r *Record) { r.Batch, r.MicroBatch, r.Context, r.Model.Context = 1<<9, 1, 1<<16, 1<<16 },
		"big round":   func(r *Record) { r.Batch, r.LocalSteps = 1<<8, 1e5 },
		"big run": func(r *Record) {
			r.Batch, r.LocalSteps, r.Context, r.Model.Context = 32, 1e5, 1<<19, 1<<19
			r.Rounds, r.Peers = 1e6, MaxPeers
		},
	} {
		r := bound(t)
		change(&r)
		b, err := wire.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Decode(b); !errors.Is(err, ErrRecord) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWorkUnitsAreExact(t *testing.T) {
	r := bound(t)
	program, err := r.Model.Program()
	if err != nil {
		t.Fatal(err)
	}
	flops, err := program.FLOPsPerToken(int(r.Context))
	if err != nil || flops <= 0 {
		t.Fatal(flops, err)
	}
	for range 1000 {
		tokens := rand.Uint64() >> rand.IntN(60)
		want := new(big.Int).Mul(new(big.Int).SetUint64(tokens), big.NewInt(flops))
		want.Div(want, big.NewInt(WorkUnit))
		got, err := r.WorkUnits(tokens)
		if err != nil || want.IsUint64() && got != want.Uint64() {
			t.Fatalf("%d tokens: %d units, want %v, %v", tokens, got, want, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	b, _, err := bound(f).Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := Decode(b)
		if err != nil {
			if !errors.Is(err, ErrRecord) {
				t.Errorf("untyped error %v", err)
			}
			return
		}
		if _, err := r.WorkUnits(1 << 40); err != nil {
			t.Errorf("accepted a record whose work cannot be counted: %v", err)
		}
	})
}

// byteDataset is a dataset of bytes.
func byteDataset(name string) Dataset {
	return Dataset{CID: wire.RecordCID([]byte(name)), Tokenizer: "bytes", Vocab: 257}
}

func TestTokenizerMustFitTheModel(t *testing.T) {
	f, err := Parse("job.yaml", []byte("version: 1\ntask: causal-lm\ndata: {paths: [x], tokenizer: bpe:512}\n"))
	if err != nil {
		t.Fatal(err)
	}
	set := byteDataset("d")
	set.Tokenizer, set.Vocab = "bpe:256:"+wire.RecordCID([]byte("t")).String(), 512
	r, err := f.Bind(owner(t), set, 0)
	if err != nil || r.Model.Vocab != 512 || r.Tokenizer != set.Tokenizer {
		t.Fatalf("%+v, %v", r, err)
	}
	for name, change := range map[string]func(*Record){
		"an end beyond the model": func(r *Record) { r.Tokenizer = "bpe:512:" + wire.RecordCID([]byte("t")).String() },
		"bytes":                   func(r *Record) { r.Tokenizer = "bytes" },
		"no name":                 func(r *Record) { r.Tokenizer = "bpe:512" },
	} {
		bad := r
		change(&bad)
		if err := bad.Check(); !errors.Is(err, ErrRecord) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTokenizerChoice(t *testing.T) {
	c := wire.RecordCID([]byte("t"))
	for word, want := range map[string]TokenizerChoice{
		"bytes": {}, "bpe:512": {Train: 512}, "bpe:65536": {Train: 65536}, "tok/": {Path: "tok/"}, "tokenizer.json": {Path: "tokenizer.json"}, c.String(): {File: c},
	} {
		if got, err := (DataPart{Tokenizer: word}).Choice(); err != nil || got != want {
			t.Errorf("%s: %+v, %v", word, got, err)
		}
	}
	for _, word := range []string{"", "byte", "bpe", "bpe:", "bpe:256", "bpe:65537", "bpe:-1", "bpe:1e3", "gpt2"} {
		if got, err := (DataPart{Tokenizer: word}).Choice(); err == nil {
			t.Errorf("%q passes as %+v", word, got)
		}
	}
}
