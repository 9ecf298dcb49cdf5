package job

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const smallest = "version: 1\ntask: causal-lm\ndata: {paths: [corpus]}\n"

func TestSmallestJobIsThreeLines(t *testing.T) {
	f, err := Parse("j.yaml", []byte(smallest))
	if err != nil {
		t.Fatal(err)
	}
	want := Defaults()
	if f.Train != want.Train || f.Rounds != want.Rounds || f.Data.Paths[0] != "corpus" {
		t.Errorf("defaults did not survive: %+v", f)
	}
}

func TestMistakesNameLineAndNextStep(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"unknown key":       {smallest + "trian: {rounds: 3}\n", `j.yaml:4:1: unknown key "trian"; did you mean "train"?`},
		"unknown inner key": {smallest + "train:\n  rounds: 3\n  bach: 4\n", `j.yaml:6:3: unknown key "train.bach"; did you mean "batch"?`},
		"wrong type":        {smallest + "train:\n  batch: many\n", "j.yaml:5:10"},
		"out of range":      {smallest + "train:\n  batch: 0\n", "j.yaml:5:3: train.batch: 0 is out of range; write 1 to 65536"},
		"not a number":      {smallest + "train:\n  learning_rate: .nan\n", "train.learning_rate"},
		"bad task":          {"task: juggling\ndata: {paths: [x]}\n", "j.yaml:1:1: task"},
		"no data":           {"version: 1\n", "data: needs paths"},
		"two data":          {"data: {paths: [a], cid: b}\n", "one of them"},
		"newer version":     {"version: 7\ndata: {paths: [a]}\n", "write 1"},
		"not YAML":          {"data: [1,\n", "j.yaml"},
		"a list":            {"- 1\n", "j.yaml"},
		"two documents":     {smallest + "---\n" + smallest, "holds 2 YAML documents"},
		"empty":             {"", "data.paths"},
		"duplicate key":     {smallest + "name: a\nname: b\n", "j.yaml"},
		"micro batch":       {smallest + "train: {batch: 8, micro_batch: 3}\n", "does not divide"},
	} {
		_, err := Parse("j.yaml", []byte(c.text))
		if !errors.Is(err, ErrSyntax) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q in it", name, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: error has more than one line: %q", name, err)
		}
	}
}

func TestReadRefusesWhatIsNoFile(t *testing.T) {
	if _, err := Read(filepath.Join(t.TempDir(), "none.yaml")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
	big := filepath.Join(t.TempDir(), "big.yaml")
	if err := os.WriteFile(big, make([]byte, MaxFile+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(big); !errors.Is(err, ErrSyntax) {
		t.Errorf("huge file: %v", err)
	}
}

func TestSchemaCoversEveryKey(t *testing.T) {
	b, err := json.Marshal(JSONSchema())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range Schema() {
		parts := strings.Split(f.Key, ".")
		if !strings.Contains(string(b), `"`+parts[len(parts)-1]+`"`) {
			t.Errorf("%s is not in the JSON schema", f.Key)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(smallest))
	f.Add([]byte("data: {paths: [x]}\ntrain: {batch: 1e9}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := Parse("f", b); err != nil && !errors.Is(err, ErrSyntax) {
			t.Errorf("untyped error %v", err)
		}
	})
}

func TestTemplateIsAJob(t *testing.T) {
	f, err := Parse("t.yaml", []byte(Template("first", "./corpus")))
	if err != nil || f.Name != "first" || f.Data.Paths[0] != "./corpus" {
		t.Errorf("%+v, %v", f, err)
	}
}
