package storage_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"path/filepath"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/storetest"
)

// What was hashed since the store was opened is handed out without that, until its file changes.
func TestHashedOnce(t *testing.T) {
	ctx := context.Background()
	fs := vfs.NewMem()
	s, err := storage.Open(ctx, "/store", storage.Options{FS: fs})
	if err != nil {
		t.Fatal(err)
	}
	data := storetest.Bytes(1, 3<<20)
	c, err := s.PutBytes(ctx, data, storage.PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	second, err := s.PutBytes(ctx, storetest.Bytes(2, 2<<20), storage.PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	open := func() *storage.Reader {
		r, err := s.Open(ctx, c)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Close() })
		return r
	}
	r := open()
	leaf := r.Hashed(1)
	if leaf == nil {
		t.Fatal("a leaf that was hashed on its way to the disk must be hashed again")
	}
	if got, err := io.ReadAll(leaf); err != nil || !bytes.Equal(got, data[1<<20:2<<20]) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if r.Hashed(-1) != nil || r.Hashed(3) != nil {
		t.Error("a leaf that there is not counts as hashed")
	}

	text := c.String()
	f, err := fs.OpenReadWrite(filepath.Join("/store/objects", text[len(text)-3:len(text)-1], text+".obj"), vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{data[5] ^ 1}, 5); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if r.Hashed(0) != nil || r.Hashed(1) != nil {
		t.Error("leaves of a file that has changed count as hashed")
	}
	buf := make([]byte, 1<<20)
	if _, err := r.Check(1, buf); err != nil {
		t.Errorf("a leaf that is whole: %v", err)
	}
	if r.Hashed(1) != nil {
		t.Error("a hash just after a change counts for later reads")
	}
	if _, err := r.Check(0, buf); !errors.Is(err, storage.ErrCorrupt) {
		t.Errorf("a leaf that has changed: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	// After a restart nothing is known.
	whole, err := storage.Open(ctx, "/store", storage.Options{FS: fs})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { whole.Close() })
	s, c = whole, second
	if open().Hashed(0) != nil {
		t.Error("a leaf that nobody has hashed since the start counts as hashed")
	}
}
