package assemble_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/assemble"
	"github.com/capacloud/capanode/storage/storetest"
	"github.com/capacloud/capanode/storage/unixfs"
)

// source is another store, which may lie about one block or lack it.
type source struct {
	store *storage.Store
	lies  cid.Cid
	lacks cid.Cid
	asked atomic.Int64
}

var errLacking = errors.New("lacking")

func (s *source) Blocks(ctx context.Context, list []cid.Cid, have func(i int, block []byte) error) error {
	for i, c := range list {
		s.asked.Add(1)
		if c == s.lacks {
			return errLacking
		}
		b, err := s.store.GetBlock(ctx, c, nil)
		if err != nil {
			return err
		}
		if c == s.lies {
			b = append([]byte(nil), b...)
			b[len(b)/2] ^= 1
		}
		if err := have(i, b); err != nil {
			return err
		}
	}
	return nil
}

func open(t *testing.T, quota int64) *storage.Store {
	t.Helper()
	s, err := storage.Open(t.Context(), "/store", storage.Options{FS: vfs.NewMem(), Quota: quota})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// tree is a folder with files of no, one and several blocks, some of them alike.
func tree(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "tree")
	if err := os.MkdirAll(filepath.Join(dir, "sub", "empty"), 0o755); err != nil {
		t.Fatal(err)
	}
	zeros := make([]byte, 3*unixfs.BlockSize)
	for name, b := range map[string][]byte{
		"a": storetest.Bytes(1, 5), "b": nil, "big": storetest.Bytes(2, 2*unixfs.BlockSize+77), "zeros": zeros,
		"sub/again": storetest.Bytes(2, 2*unixfs.BlockSize+77), "sub/mid": storetest.Bytes(3, 100<<10),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestFolderComesWhole(t *testing.T) {
	ctx, dir := t.Context(), tree(t)
	from, to := open(t, 0), open(t, 0)
	root, err := from.AddPath(ctx, dir, storage.PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	src := &source{store: from}
	o := assemble.Options{Pin: func(c cid.Cid) string { return "pin " + c.String() }}
	if err := assemble.Objects(ctx, to, []cid.Cid{root, root}, src, o); err != nil {
		t.Fatal(err)
	}
	if _, err := to.GC(ctx); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "out")
	if err := to.Export(ctx, root, out); err != nil {
		t.Fatal(err)
	}
	storetest.SameTree(t, out, dir)
	asked := src.asked.Load()
	if err := assemble.Objects(ctx, to, []cid.Cid{root}, src, o); err != nil || src.asked.Load() != asked {
		t.Fatalf("asked for %d blocks that are here, %v", src.asked.Load()-asked, err)
	}
}

// TestFailuresLeaveNothing breaks every block in turn, in two ways: the error says what is wrong, and an undo leaves the store
// as it was.
func TestFailuresLeaveNothing(t *testing.T) {
	ctx := t.Context()
	from := open(t, 0)
	root, err := from.AddPath(ctx, tree(t), storage.PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	all := &source{store: from}
	seen := recorder{Source: all, seen: map[cid.Cid]bool{}}
	if err := assemble.Objects(ctx, open(t, 0), []cid.Cid{root}, &seen, assemble.Options{}); err != nil {
		t.Fatal(err)
	}
	if len(seen.seen) < 10 {
		t.Fatalf("only %d blocks", len(seen.seen))
	}
	for c := range seen.seen {
		for want, src := range map[error]*source{storage.ErrCorrupt: {store: from, lies: c}, errLacking: {store: from, lacks: c}} {
			if want == storage.ErrCorrupt && c == unixfs.RawCID(nil) {
				continue // nothing in it to lie about
			}
			to := open(t, 0)
			kept, err := to.PutBytes(ctx, storetest.Bytes(3, 100<<10), storage.PutOptions{}) // also in the folder
			if err != nil {
				t.Fatal(err)
			}
			if c == kept {
				continue
			}
			before := to.Usage()
			if err := assemble.Objects(ctx, to, []cid.Cid{root}, src, assemble.Options{Undo: true}); !errors.Is(err, want) {
				t.Fatalf("block %s: %v, want %v", c, err, want)
			}
			if after := to.Usage(); after != before {
				t.Fatalf("block %s: usage %+v, was %+v", c, after, before)
			}
			if list, err := to.List(ctx); err != nil || len(list) != 1 || list[0].CID != kept {
				t.Fatalf("block %s: %d objects are left, %v", c, len(list), err)
			}
		}
	}
}

type recorder struct {
	assemble.Source
	mu   sync.Mutex
	seen map[cid.Cid]bool
}

func (r *recorder) Blocks(ctx context.Context, list []cid.Cid, have func(i int, block []byte) error) error {
	r.mu.Lock()
	for _, c := range list {
		if len(r.seen) == 0 || c != unixfs.RawCID(nil) {
			r.seen[c] = true
		}
	}
	r.mu.Unlock()
	return r.Source.Blocks(ctx, list, have)
}

// A damaged object is repaired block by block, and a repair that fails takes nothing away.
func TestRepairKeepsWhatIsThere(t *testing.T) {
	ctx := t.Context()
	fs := vfs.NewMem()
	to, err := storage.Open(ctx, "/store", storage.Options{FS: fs})
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	from := open(t, 0)
	data := storetest.Bytes(5, 3*unixfs.BlockSize)
	c, err := to.PutBytes(ctx, data, storage.PutOptions{})
	if err == nil {
		_, err = from.PutBytes(ctx, data, storage.PutOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
	key := c.String()
	f, err := fs.OpenReadWrite("/store/objects/"+key[len(key)-3:len(key)-1]+"/"+key+".obj", vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{data[7] ^ 1}, 7); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if _, err := to.ReadAll(ctx, c, 1<<30); !errors.Is(err, storage.ErrCorrupt) {
		t.Fatal(err)
	}
	first := unixfs.RawCID(data[:unixfs.BlockSize])
	if err := assemble.Objects(ctx, to, []cid.Cid{c}, &source{store: from, lacks: first}, assemble.Options{Undo: true}); !errors.Is(err, errLacking) {
		t.Fatal(err)
	}
	src := &source{store: from}
	if err := assemble.Objects(ctx, to, []cid.Cid{c}, src, assemble.Options{}); err != nil {
		t.Fatal(err)
	}
	if src.asked.Load() != 2 { // the root and the bad leaf
		t.Errorf("asked for %d blocks", src.asked.Load())
	}
	if got, err := to.ReadAll(ctx, c, 1<<30); err != nil || string(got) != string(data) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
}

func TestLimits(t *testing.T) {
	ctx := t.Context()
	from := open(t, 0)
	root, err := from.AddPath(ctx, tree(t), storage.PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, limit := range []int64{1, 100 << 10, 5 << 20} {
		to := open(t, 0)
		err := assemble.Objects(ctx, to, []cid.Cid{root}, &source{store: from}, assemble.Options{Bytes: limit, Undo: true})
		if !errors.Is(err, storage.ErrTooLarge) {
			t.Errorf("limit %d: %v", limit, err)
		}
	}
	// Folders inside folders, of which each is small.
	leaf, err := from.PutBytes(ctx, []byte("x"), storage.PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for range assemble.MaxDepth + 2 {
		block, err := unixfs.Node{Kind: unixfs.Directory, Links: []unixfs.Link{{CID: leaf, Name: "d"}}}.Encode()
		if err != nil {
			t.Fatal(err)
		}
		leaf = unixfs.NodeCID(block)
		if _, err := from.PutBlock(ctx, leaf, block, storage.PutOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	err = assemble.Objects(ctx, open(t, 0), []cid.Cid{leaf}, &source{store: from}, assemble.Options{Undo: true})
	if !errors.Is(err, storage.ErrTooLarge) || !strings.Contains(err.Error(), "deeper") {
		t.Errorf("deep folders: %v", err)
	}
	err = assemble.Objects(ctx, open(t, 64<<10), []cid.Cid{root}, &source{store: from}, assemble.Options{Undo: true})
	if !errors.Is(err, storage.ErrQuota) {
		t.Errorf("quota: %v", err)
	}
}
