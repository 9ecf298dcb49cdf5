package storage_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/storetest"
	"github.com/capacloud/capanode/storage/unixfs"
)

// An export is the same bytes whether its blocks were hashed in this run, before it, or in part; and a file that was written
// since is never copied unseen.
func TestExportFiles(t *testing.T) {
	ctx, dir := context.Background(), t.TempDir()
	open := func() *storage.Store {
		s, err := storage.Open(ctx, filepath.Join(dir, "store"), storage.Options{})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := open()
	defer func() { s.Close() }()
	data := storetest.Bytes(7, 5<<20+3)
	c, err := s.PutBytes(ctx, data, storage.PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	dest := filepath.Join(dir, "out")
	export := func(what string) {
		t.Helper()
		if err := s.Export(ctx, c, dest); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if got, err := os.ReadFile(dest); err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%s: %d bytes, %v", what, len(got), err)
		}
	}
	export("just put")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open()
	export("hashed by an earlier run")

	text := c.String()
	name := filepath.Join(dir, "store", "objects", text[len(text)-3:len(text)-1], text+".obj")
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt([]byte{data[9] ^ 1}, 9)
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	if err := s.Export(ctx, c, filepath.Join(dir, "bad")); !errors.Is(err, storage.ErrCorrupt) {
		t.Errorf("a damaged file: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "bad")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a damaged file appeared: %v", err)
	}
}

// What a fetch wrote is not hashed again, unless part of it is from an earlier fetch.
func TestFetchedIsHashed(t *testing.T) {
	ctx := context.Background()
	for _, resumed := range []bool{false, true} {
		s, err := storage.OpenMem()
		if err != nil {
			t.Fatal(err)
		}
		data := storetest.Bytes(8, 3<<20)
		layout, c := layoutOf(t, data)
		begin := func() *storage.Partial {
			p, err := s.Begin(ctx, c, func(want cid.Cid) ([]byte, error) {
				for _, n := range layout.Nodes {
					if n.CID == want {
						return n.Data, nil
					}
				}
				return nil, storage.ErrNotFound
			})
			if err != nil {
				t.Fatal(err)
			}
			return p
		}
		p := begin()
		for i := range 3 {
			if err := p.Write(i, data[i<<20:(i+1)<<20]); err != nil {
				t.Fatal(err)
			}
			if i == 1 && resumed {
				if err := p.Close(); err != nil {
					t.Fatal(err)
				}
				p = begin()
			}
		}
		if _, err := p.Commit(ctx); err != nil {
			t.Fatal(err)
		}
		r, err := s.Open(ctx, c)
		if err != nil {
			t.Fatal(err)
		}
		if known := r.Hashed(0) != nil; known == resumed {
			t.Errorf("resumed %v: hashed %v", resumed, known)
		}
		if err := errors.Join(r.Close(), s.Close()); err != nil {
			t.Error(err)
		}
	}
}

func layoutOf(t *testing.T, data []byte) (*unixfs.Layout, cid.Cid) {
	t.Helper()
	var leaves []unixfs.Digest
	for at := 0; at < len(data); at += unixfs.BlockSize {
		leaves = append(leaves, unixfs.Sum(data[at:min(at+unixfs.BlockSize, len(data))]))
	}
	layout, err := unixfs.Build(leaves, int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	return layout, layout.Root
}
