package safetensors

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/capacloud/capanode/storage/unixfs"
)

// fileOf returns the header of a file of tensors with the given bytes, and the file's size.
func fileOf(sizes ...int64) (io.ReaderAt, int64, int64) {
	head := []byte("{")
	at := int64(0)
	for i, n := range sizes {
		if i > 0 {
			head = append(head, ',')
		}
		head = fmt.Appendf(head, `"t%d":{"dtype":"?","shape":[],"data_offsets":[%d,%d]}`, i, at, at+n)
		at += n
	}
	head = append(head, '}')
	raw := append(binary.LittleEndian.AppendUint64(nil, uint64(len(head))), head...)
	return bytes.NewReader(raw), int64(len(raw)) + at, int64(len(raw))
}

func TestCut(t *testing.T) {
	const mib, kib = 1 << 20, 1 << 10
	for name, c := range map[string]struct {
		tensors []int64
		want    []int64 // ends after the header
	}{
		"one large":                 {[]int64{3*mib + 5}, []int64{mib, 2 * mib, 3 * mib, 3*mib + 5}},
		"tensors begin blocks":      {[]int64{mib + 1, 100 * kib, mib}, []int64{mib, mib + 1, mib + 1 + 100*kib, 2*mib + 1 + 100*kib}},
		"a norm between two":        {[]int64{100 * kib, 256, 100 * kib}, []int64{100 * kib, 100*kib + 256, 200*kib + 256}},
		"small ones are grouped":    {[]int64{30 * kib, 30 * kib, 30 * kib, 30 * kib}, []int64{90 * kib, 120 * kib}},
		"a group ends before large": {[]int64{256, 256, 64 * kib, 256}, []int64{512, 64*kib + 512, 64*kib + 768}},
	} {
		r, size, head := fileOf(c.tensors...)
		want := []int64{head}
		for _, end := range c.want {
			want = append(want, head+end)
		}
		if got := Cut(r, size); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
	if got := Cut(bytes.NewReader([]byte("no such file")), 12); got != nil {
		t.Errorf("text is cut at %v", got)
	}
	if r, size, _ := fileOf(unixfs.MaxLeaves * unixfs.BlockSize); Cut(r, size) != nil {
		t.Error("more blocks than a file can have")
	}
}

// TestCutKeepsItsPromises draws files: the cuts are legal, large tensors are blocks of their own, and tiny blocks are rare.
func TestCutKeepsItsPromises(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sizes := rapid.SliceOfN(rapid.SampledFrom([]int64{1, 256, 4096, Small - 1, Small, 300_000, 1 << 20, 2<<20 + 3}), 1, 40).Draw(t, "tensors")
		r, size, head := fileOf(sizes...)
		cuts, err := unixfs.CutAt(Cut(r, size))
		if err != nil || cuts.Size != size {
			t.Fatalf("cuts of %d bytes, %v", cuts.Size, err)
		}
		at := head
		for _, n := range sizes {
			if n >= Small && (cuts.LeafOffset(cuts.LeafAt(at)) != at || cuts.LeafAt(at+n-1)+1 != cuts.Count() && cuts.LeafOffset(cuts.LeafAt(at+n-1)+1) != at+n) {
				t.Fatalf("the tensor of %d bytes at %d is not blocks of its own", n, at)
			}
			at += n
		}
		for i := 3; i < cuts.Count(); i++ { // block 0 is the header
			if cuts.LeafSize(i-2)+cuts.LeafSize(i-1)+cuts.LeafSize(i) < Small {
				t.Fatalf("blocks %d to %d are all tiny", i-2, i)
			}
		}
	})
}
