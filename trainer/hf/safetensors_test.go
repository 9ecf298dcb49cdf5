package hf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/capacloud/capanode/storage/safetensors"
	"github.com/capacloud/capanode/trainer/engine"
	"github.com/capacloud/capanode/trainer/model"
)

func TestHeaderIsAligned(t *testing.T) {
	for n := range 9 {
		params := []engine.Param{{Name: strings.Repeat("n", n), Shape: []int{1}}}
		var b bytes.Buffer
		if err := WriteSafetensors(&b, params, []float32{1}, Float32); err != nil {
			t.Fatal(err)
		}
		if length := binary.LittleEndian.Uint64(b.Bytes()); length%8 != 0 {
			t.Errorf("name of %d bytes: header of %d", n, length)
		}
		if _, err := safetensors.ReadHeader(bytes.NewReader(b.Bytes()), int64(b.Len())); err != nil {
			t.Errorf("name of %d bytes: %v", n, err)
		}
	}
}

// FuzzConfig checks that whatever config.json says becomes a valid model or an error that says what kind it is.
func FuzzConfig(f *testing.F) {
	for _, name := range []string{"llama-tiny", "gpt2-tiny", "bert-tiny"} {
		s, err := model.Preset(name)
		if err != nil {
			f.Fatal(err)
		}
		form, err := formatOf(s)
		if err != nil {
			f.Fatal(err)
		}
		raw, err := marshal(form.write(s, BFloat16, nil))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Add([]byte(`{"model_type":"llama","hidden_act":"silu","rope_parameters":{"rope_theta":1e300}}`))
	f.Add([]byte(`{"model_type":"gpt2","n_embd":4611686018427387904}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		spec, _, err := readConfig(raw)
		if err != nil {
			if !errors.Is(err, ErrFormat) && !errors.Is(err, ErrUnsupported) {
				t.Fatal(err)
			}
			return
		}
		if err := spec.Validate(); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzProvenance checks that what a folder says about its origin is an error or comes back as it was written.
func FuzzProvenance(f *testing.F) {
	raw, err := marshal(Provenance{Version: ProvenanceVersion, Name: "tiny", Run: "bafy", Round: 3, Tokens: 9, State: "00ff", Loss: 2.5, Head: "01"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte(`{"version":2,"loss":1e400}`))
	path := filepath.Join(f.TempDir(), provenanceFile)
	read := func(t *testing.T, raw []byte) (p Provenance, err error) {
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		return p, readJSON(Dir(filepath.Dir(path)), provenanceFile, &p)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		p, err := read(t, raw)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Fatal(err)
			}
			return
		}
		text, err := marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := read(t, text); err != nil || again != p {
			t.Fatalf("%+v came back as %+v, %v", p, again, err)
		}
	})
}
