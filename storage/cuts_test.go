package storage

import (
	"bytes"
	"errors"
	"testing"

	"github.com/capacloud/capanode/storage/unixfs"
)

// FuzzDecodeCuts reads broken tables of leaf sizes: what is accepted encodes to the same bytes.
func FuzzDecodeCuts(f *testing.F) {
	cuts, err := unixfs.CutAt([]int64{5, 5 + unixfs.BlockSize, 9 + unixfs.BlockSize})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(encodeCuts(cuts), 3)
	f.Add([]byte{0, 1}, 2)
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1}, 1)
	f.Add([]byte{1}, -1)
	f.Fuzz(func(t *testing.T, b []byte, count int) {
		got, err := decodeCuts(b, count)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		if got.Count() != count {
			t.Fatalf("%d leaves, asked for %d", got.Count(), count)
		}
		if got.Ends != nil && len(b) == len(encodeCuts(got)) && !bytes.Equal(encodeCuts(got), b) {
			t.Fatalf("%x became %x", b, encodeCuts(got))
		}
	})
}
