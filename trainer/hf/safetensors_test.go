package hf

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/capacloud/capanode/trainer/engine"
)

// pack makes a file from a header and a number of data bytes.
func pack(header string, data int) []byte {
	raw := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	return append(append(raw, header...), make([]byte, data)...)
}

func TestReadHeader(t *testing.T) {
	const a = `"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]}`
	const b = `"b":{"dtype":"F32","shape":[],"data_offsets":[8,12]}`
	good := map[string][]byte{
		"two":      pack("{"+a+","+b+"}", 12),
		"reversed": pack("{"+b+","+a+"}  ", 12),
		"metadata": pack(`{"__metadata__":{"format":"pt","x":"y"},`+a+"}", 8),
		"none":     pack("{}", 0),
	}
	for name, raw := range good {
		tensors, err := ReadHeader(bytes.NewReader(raw), int64(len(raw)))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if len(tensors) > 0 && tensors[0].Name != "a" {
			t.Errorf("%s: %v", name, tensors)
		}
	}
	long := binary.LittleEndian.AppendUint64(nil, 1<<63)
	bad := map[string][]byte{
		"empty":            nil,
		"short":            {1, 2, 3},
		"no header":        pack("", 0),
		"huge length":      append(long, '{', '}'),
		"above the cap":    binary.LittleEndian.AppendUint64(nil, maxHeader+1),
		"beyond the file":  pack("{}", 0)[:9],
		"no object":        pack("[]", 0),
		"leading space":    pack(" {}", 0),
		"trailing JSON":    pack("{}{}", 0),
		"duplicate tensor": pack("{"+a+","+a+"}", 8),
		"duplicate key":    pack(`{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}`, 8),
		"duplicate meta":   pack(`{"__metadata__":{"a":"1","a":"2"}}`, 0),
		"meta number":      pack(`{"__metadata__":{"a":1}}`, 0),
		"gap":              pack(`{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}`, 8),
		"overlap":          pack("{"+a+`,"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}`, 12),
		"tail":             pack("{"+a+"}", 9),
		"cut":              pack("{"+a+"}", 7),
		"wrong size":       pack(`{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}`, 8),
		"zero dimension":   pack(`{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}`, 0),
		"negative":         pack(`{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}`, 8),
		"fraction":         pack(`{"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}}`, 8),
		"overflow":         pack(`{"a":{"dtype":"F32","shape":[2147483647,2147483647,2147483647],"data_offsets":[0,8]}}`, 8),
		"wraps to zero":    pack(`{"a":{"dtype":"F32","shape":[1073741824,1073741824,4],"data_offsets":[0,0]}}`, 0),
		"backwards":        pack(`{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}`, 8),
		"nine dimensions":  pack(`{"a":{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,2],"data_offsets":[0,8]}}`, 8),
		"one offset":       pack(`{"a":{"dtype":"F32","shape":[2],"data_offsets":[0]}}`, 8),
		"no shape":         pack(`{"a":{"dtype":"F32","data_offsets":[0,8]}}`, 8),
		"unknown key":      pack(`{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1}}`, 8),
		"invalid UTF-8":    pack("{\"a\xff\":{}}", 0),
		"deep":             pack(`{"a":`+strings.Repeat("[", 10000), 0),
	}
	for name, raw := range bad {
		if tensors, err := ReadHeader(bytes.NewReader(raw), int64(len(raw))); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v, %v", name, tensors, err)
		}
	}
	half := pack(`{"a":{"dtype":"BF16","shape":[4],"data_offsets":[0,8]}}`, 8)
	if _, err := ReadHeader(bytes.NewReader(half), int64(len(half))); !errors.Is(err, ErrUnsupported) || errors.Is(err, ErrFormat) {
		t.Errorf("half precision: %v", err)
	}
}

func TestHeaderIsAligned(t *testing.T) {
	for n := range 9 {
		params := []engine.Param{{Name: strings.Repeat("n", n), Shape: []int{1}}}
		var b bytes.Buffer
		if err := WriteSafetensors(&b, params, []float32{1}); err != nil {
			t.Fatal(err)
		}
		if length := binary.LittleEndian.Uint64(b.Bytes()); length%8 != 0 {
			t.Errorf("name of %d bytes: header of %d", n, length)
		}
		if _, err := ReadHeader(bytes.NewReader(b.Bytes()), int64(b.Len())); err != nil {
			t.Errorf("name of %d bytes: %v", n, err)
		}
	}
}

// FuzzReadHeader holds the reader to its promises: no panic, and every accepted file is tiled by its tensors.
func FuzzReadHeader(f *testing.F) {
	f.Add(pack(`{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]}}`, 8))
	f.Add(pack(`{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[],"data_offsets":[4,8]}}`, 8))
	f.Add(pack("{}", 0))
	f.Fuzz(func(t *testing.T, raw []byte) {
		tensors, err := ReadHeader(bytes.NewReader(raw), int64(len(raw)))
		if err != nil {
			return
		}
		at := int64(8 + binary.LittleEndian.Uint64(raw))
		for _, tensor := range tensors {
			size := int64(4)
			for _, d := range tensor.Shape {
				size *= int64(d)
			}
			if tensor.Offset != at || tensor.Bytes != size {
				t.Fatalf("tensor %+v at %d", tensor, at)
			}
			at += size
		}
		if at != int64(len(raw)) {
			t.Fatalf("tensors end at %d of %d", at, len(raw))
		}
	})
}

// FuzzConfig checks that whatever config.json says becomes a valid model or an error.
func FuzzConfig(f *testing.F) {
	raw, err := marshal(newConfig(tiny(f).Spec, nil))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte(`{"model_type":"llama","hidden_act":"silu","rope_parameters":{"rope_theta":1e300}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var c configJSON
		if json.Unmarshal(raw, &c) != nil {
			return
		}
		spec, err := c.spec()
		if err != nil {
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
		return p, readJSON(path, &p)
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
