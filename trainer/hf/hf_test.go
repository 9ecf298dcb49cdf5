package hf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/model"
	"github.com/capacloud/capanode/trainer/tokenizer"
)

var update = flag.Bool("update", false, "rewrite golden files")

// tiny is a complete model with weights that are easy to recognise.
func tiny(t testing.TB) Model {
	t.Helper()
	spec := model.Spec{
		Family: model.FamilyLlama, Vocab: 257, Width: 8, Layers: 2, Heads: 2, KVHeads: 1, FeedForward: 12, Context: 16,
		RopeTheta: 10000, NormEps: 1e-5, TieEmbeddings: true,
	}
	params, total, err := layout(spec)
	if err != nil {
		t.Fatal(err)
	}
	m := Model{
		Spec: spec, Params: params, Weights: make([]float32, total), Tokenizer: tokenizer.Byte{},
		Provenance: Provenance{
			Version: ProvenanceVersion, Name: "go code", Run: "bafyreirun", Dataset: "bafyreidata", Round: 12, Tokens: 3_456_789,
			State: "00ff", Loss: 1.5,
		},
	}
	for i := range m.Weights {
		m.Weights[i] = float32(i%1000)/512 - 1
	}
	return m
}

func folder(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if files[e.Name()], err = os.ReadFile(filepath.Join(dir, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

func TestRoundTrip(t *testing.T) {
	want := tiny(t)
	dir := filepath.Join(t.TempDir(), "a", "out")
	if err := Write(dir, want); err != nil {
		t.Fatal(err)
	}
	got, err := Read(dir)
	if err != nil {
		t.Fatal(err)
	}
	for i := range got.Params { // how parameters start is no part of a checkpoint's content
		if got.Params[i].Name != want.Params[i].Name {
			t.Fatalf("parameter %d is %s", i, got.Params[i].Name)
		}
	}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("read back %+v", got.Provenance)
	}
}

// TestBFloat16 writes half of each float: the folder is half as large and reads back as the nearest numbers.
func TestBFloat16(t *testing.T) {
	m := tiny(t)
	m.Type = BFloat16
	m.Weights[0], m.Weights[1], m.Weights[2] = 1+1.0/256, 1+3.0/256, -3e38 // a tie to even down, one up, nearly the largest
	dir := filepath.Join(t.TempDir(), "half")
	if err := Write(dir, m); err != nil {
		t.Fatal(err)
	}
	got, err := Read(dir)
	if err != nil || got.Type != BFloat16 {
		t.Fatalf("%v, %v", got.Type, err)
	}
	if got.Weights[0] != 1 || got.Weights[1] != 1+4.0/256 {
		t.Fatalf("ties round to %v and %v", got.Weights[0], got.Weights[1])
	}
	for i, v := range got.Weights {
		if math.Abs(float64(v-m.Weights[i])) > math.Abs(float64(m.Weights[i]))/256 {
			t.Fatalf("weight %d is %v, was %v", i, v, m.Weights[i])
		}
	}
	m.Weights[0] = math.MaxFloat32
	if err := Write(filepath.Join(t.TempDir(), "large"), m); !errors.Is(err, ErrNotFinite) {
		t.Fatalf("a number above the largest bfloat16: %v", err)
	}
	if toBFloat16(maxBFloat16) != 0x7f7f || toBFloat16(math.Nextafter32(maxBFloat16, math.MaxFloat32)) != 0x7f80 {
		t.Fatal("the limit of bfloat16 is another one")
	}
}

func TestEqualModelsGiveEqualBytes(t *testing.T) {
	root := t.TempDir()
	a, b := filepath.Join(root, "a"), filepath.Join(root, "b")
	for _, dir := range []string{a, b} {
		if err := Write(dir, tiny(t)); err != nil {
			t.Fatal(err)
		}
	}
	if !reflect.DeepEqual(folder(t, a), folder(t, b)) {
		t.Fatal("two writes of one model differ")
	}
}

func TestGolden(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "out")
	if err := Write(dir, tiny(t)); err != nil {
		t.Fatal(err)
	}
	files := folder(t, dir)
	names := []string{cardFile, provenanceFile, configFile, generationFile, weightsFile, "tokenizer.json", "tokenizer_config.json"}
	if len(files) != len(names) {
		t.Errorf("the folder has %d files, want %v", len(files), names)
	}
	for _, name := range names {
		if strings.HasPrefix(name, "tokenizer") {
			continue // golden in package tokenizer
		}
		golden := filepath.Join("testdata", "tiny", name)
		if *update {
			if err := os.WriteFile(golden, files[name], 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(files[name], want) {
			t.Errorf("%s differs from its golden file", name)
		}
	}
}

func TestWriteRefusesAnOccupiedDestination(t *testing.T) {
	dir := t.TempDir()
	mine := filepath.Join(dir, "thesis.tex")
	if err := os.WriteFile(mine, []byte("work"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, dest := range []string{dir, mine} {
		if err := Write(dest, tiny(t)); !errors.Is(err, ErrOccupied) {
			t.Errorf("%s: %v", dest, err)
		}
	}
	if got, _ := os.ReadFile(mine); string(got) != "work" {
		t.Fatal("the file was touched")
	}
}

func TestWriteAfterACrash(t *testing.T) {
	root := t.TempDir()
	partial := filepath.Join(root, ".out.partial")
	if err := os.MkdirAll(partial, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(partial, weightsFile), []byte("half"), 0o644); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(root, "out")
	if err := os.Mkdir(dir, 0o755); err != nil { // empty: allowed
		t.Fatal(err)
	}
	if err := Write(dir, tiny(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(partial); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the partial folder is still there: %v", err)
	}

	foreign := filepath.Join(root, ".next.partial")
	if err := os.MkdirAll(filepath.Join(foreign, "photos"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := Write(filepath.Join(root, "next"), tiny(t)); !errors.Is(err, ErrOccupied) {
		t.Fatalf("foreign content under the partial name: %v", err)
	}
}

func TestWriteRefusesContradictions(t *testing.T) {
	cases := map[string]struct {
		change func(*Model)
		want   error
	}{
		"NaN":            {func(m *Model) { m.Weights[7] = float32(math.NaN()) }, ErrNotFinite},
		"infinity":       {func(m *Model) { m.Weights[0] = float32(math.Inf(-1)) }, ErrNotFinite},
		"NaN loss":       {func(m *Model) { m.Provenance.Loss = math.NaN() }, ErrNotFinite},
		"short weights":  {func(m *Model) { m.Weights = m.Weights[1:] }, engine.ErrShape},
		"other shape":    {func(m *Model) { m.Params[0].Shape = []int{1} }, engine.ErrShape},
		"tiny vocab":     {func(m *Model) { m.Spec.Vocab = 100 }, engine.ErrShape},
		"invalid spec":   {func(m *Model) { m.Spec.Heads = 3 }, model.ErrSpec},
		"unknown family": {func(m *Model) { m.Spec.Family = "gpt9" }, model.ErrSpec},
	}
	for name, c := range cases {
		m := tiny(t)
		c.change(&m)
		dir := filepath.Join(t.TempDir(), "out")
		if err := Write(dir, m); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%s: a folder appeared", name)
		}
	}
}

func TestModelCardCannotBeInjected(t *testing.T) {
	m := tiny(t)
	m.Provenance.Name = "x\n---\n# <script>alert(1)</script> [a](b)"
	var b bytes.Buffer
	if err := writeCard(&b, llamaFormat, m); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(b.String(), "<script>") || strings.Contains(b.String(), "x\n---") || strings.Contains(b.String(), "](b)") {
		t.Fatalf("card:\n%s", b.String())
	}
}

func TestReadRefusesContradictions(t *testing.T) {
	edit := func(name, old, new string) func(dir string) error {
		return func(dir string) error {
			path := filepath.Join(dir, name)
			raw, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			changed := strings.Replace(string(raw), old, new, 1)
			if changed == string(raw) {
				return fmt.Errorf("%s has no %s", name, old)
			}
			return os.WriteFile(path, []byte(changed), 0o644)
		}
	}
	cases := map[string]struct {
		change func(dir string) error
		want   error
	}{
		"no config":        {func(dir string) error { return os.Remove(filepath.Join(dir, configFile)) }, fs.ErrNotExist},
		"no weights":       {func(dir string) error { return os.Remove(filepath.Join(dir, weightsFile)) }, fs.ErrNotExist},
		"more layers":      {edit(configFile, `"num_hidden_layers": 2`, `"num_hidden_layers": 3`), ErrFormat},
		"absurd layers":    {edit(configFile, `"num_hidden_layers": 2`, `"num_hidden_layers": 2000000000`), ErrFormat},
		"other width":      {edit(configFile, `"intermediate_size": 12`, `"intermediate_size": 13`), ErrFormat},
		"fraction":         {edit(configFile, `"hidden_size": 8`, `"hidden_size": 8.5`), ErrFormat},
		"other family":     {edit(configFile, `"llama"`, `"mamba"`), ErrUnsupported},
		"bias":             {edit(configFile, `"attention_bias": false`, `"attention_bias": true`), ErrUnsupported},
		"activation":       {edit(configFile, `"silu"`, `"gelu"`), ErrUnsupported},
		"half precision":   {edit(configFile, `"float32"`, `"float64"`), ErrUnsupported},
		"lying type":       {edit(configFile, `"float32"`, `"bfloat16"`), ErrFormat},
		"mixed types":      {edit(weightsFile, `"dtype":"F32","shape":[8],"data_offsets":[8224,8256]`, `"dtype":"I32","shape":[8],"data_offsets":[8224,8256]`), ErrUnsupported},
		"scaled rotary":    {edit(configFile, `"use_cache"`, `"rope_scaling": {"type": "linear"}, "use_cache"`), ErrUnsupported},
		"newer rotary":     {edit(configFile, `"use_cache"`, `"rope_parameters": {"rope_type": "yarn"}, "use_cache"`), ErrUnsupported},
		"head width":       {edit(configFile, `"head_dim": 4`, `"head_dim": 8`), ErrUnsupported},
		"renamed tensor":   {edit(weightsFile, `model.norm.weight`, `model.norm.weighs`), ErrFormat},
		"other type":       {edit(weightsFile, `"F32"`, `"I32"`), ErrUnsupported},
		"other provenance": {edit(provenanceFile, `"version": 1`, `"version": 2`), ErrUnsupported},
		"no JSON":          {edit(provenanceFile, `{`, ``), ErrFormat},
		"cut weights": {func(dir string) error {
			return os.Truncate(filepath.Join(dir, weightsFile), 2000)
		}, ErrFormat},
		"NaN": {func(dir string) error {
			path := filepath.Join(dir, weightsFile)
			raw, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			binary.LittleEndian.PutUint32(raw[len(raw)-4:], 0x7fc00000)
			return os.WriteFile(path, raw, 0o644)
		}, ErrNotFinite},
	}
	for name, c := range cases {
		dir := filepath.Join(t.TempDir(), "out")
		if err := Write(dir, tiny(t)); err != nil {
			t.Fatal(err)
		}
		if err := c.change(dir); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if _, err := Read(dir); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestReadAcceptsNewerSpelling(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "out")
	if err := Write(dir, tiny(t)); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, configFile)
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s := strings.Replace(string(raw), `"torch_dtype"`, `"dtype"`, 1)
	s = strings.Replace(s, `"rope_theta": 10000.0`, `"rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}`, 1)
	if err := os.WriteFile(path, []byte(s), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{provenanceFile, tokenizer.HuggingFaceName} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	m, err := Read(dir)
	if err != nil || m.Tokenizer != nil || m.Spec.RopeTheta != 500000 || m.Provenance != (Provenance{}) {
		t.Fatalf("%+v, %v", m.Spec, err)
	}
}
