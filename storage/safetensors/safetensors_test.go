package safetensors

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"
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
		"above the cap":    binary.LittleEndian.AppendUint64(nil, MaxHeader+1),
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
	half := pack(`{"a":{"dtype":"BF16","shape":[4],"data_offsets":[0,8]},"b":{"dtype":"NEW","shape":[4],"data_offsets":[8,9]}}`, 9)
	if got, err := ReadHeader(bytes.NewReader(half), int64(len(half))); err != nil || got[0].Type != "BF16" || got[1].Bytes != 1 {
		t.Errorf("other types: %+v, %v", got, err)
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
			size := Width(tensor.Type)
			for _, d := range tensor.Shape {
				size *= int64(d)
			}
			if tensor.Offset != at || size > 0 && tensor.Bytes != size {
				t.Fatalf("tensor %+v at %d", tensor, at)
			}
			at += tensor.Bytes
		}
		if at != int64(len(raw)) {
			t.Fatalf("tensors end at %d of %d", at, len(raw))
		}
	})
}
