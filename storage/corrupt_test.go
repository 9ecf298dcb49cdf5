package storage_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/storetest"
	"github.com/capacloud/capanode/storage/unixfs"
)

// damage changes one object file behind the store's back.
func damage(t *testing.T, fs vfs.FS, name string, change func([]byte) []byte) {
	t.Helper()
	f, err := fs.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := fs.Remove(name); err != nil {
		t.Fatal(err)
	}
	if b = change(b); b == nil {
		return
	}
	f, err = fs.OpenReadWrite(name, vfs.WriteCategoryUnspecified)
	if err == nil {
		_, err = f.WriteAt(b, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
}

func flip(at int) func([]byte) []byte {
	return func(b []byte) []byte { b[at] ^= 1 << (at % 8); return b }
}

// TestCorruption damages files in each way and place: not one wrong byte is delivered, Verify names the object, the mark
// survives a restart, and good bytes repair it.
func TestCorruption(t *testing.T) {
	const size = 2*unixfs.BlockSize + 500
	rng := rand.New(rand.NewPCG(3, 4))
	for name, change := range map[string]func([]byte) []byte{
		"first byte": flip(0), "last byte": flip(size - 1), "some byte": flip(rng.IntN(size)),
		"truncated": func(b []byte) []byte { return b[:len(b)-1] },
		"emptied":   func([]byte) []byte { return []byte{} },
		"removed":   func([]byte) []byte { return nil },
		"zeroed":    func(b []byte) []byte { clear(b[unixfs.BlockSize:]); return b },
	} {
		for _, restart := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				ctx := context.Background()
				fs := vfs.NewMem()
				s, err := storage.Open(ctx, "/store", storage.Options{FS: fs})
				if err != nil {
					t.Fatal(err)
				}
				defer func() { s.Close() }()
				data := storetest.Bytes(1, size)
				c, err := s.PutBytes(ctx, data, storage.PutOptions{})
				if err != nil {
					t.Fatal(err)
				}
				damage(t, fs, objectFiles(t, fs, ".obj")[0], change)
				reopen := func() {
					if err := s.Close(); err != nil {
						t.Fatal(err)
					}
					if s, err = storage.Open(ctx, "/store", storage.Options{FS: fs}); err != nil {
						t.Fatal(err)
					}
				}
				if restart {
					reopen()
				}
				checkUnreadable(t, s, c, data)
				rep, err := s.Verify(ctx)
				if err != nil || len(rep.Faults) != 1 || rep.Faults[0].CID != c || !errors.Is(rep.Faults[0].Err, storage.ErrCorrupt) {
					t.Fatalf("%+v, %v", rep, err)
				}
				reopen()
				if has, err := s.Has(ctx, c); has || err != nil {
					t.Fatalf("damaged object present: %v, %v", has, err)
				}
				if _, err := s.PutBytes(ctx, data, storage.PutOptions{}); err != nil {
					t.Fatal(err)
				}
				if got, err := s.ReadAll(ctx, c, size); err != nil || !bytes.Equal(got, data) {
					t.Fatalf("%d bytes, %v after repair", len(got), err)
				}
				if rep, err := s.Verify(ctx); err != nil || len(rep.Faults) != 0 {
					t.Fatalf("%+v, %v after repair", rep, err)
				}
				if u := s.Usage(); u.Used <= size || u.Used > size+1000 {
					t.Fatalf("usage %+v after repair", u)
				}
			})
		}
	}
}

// A pinned object that was damaged stays known until it is whole again: a repair that brought nothing must not hide the loss.
func TestUnfinishedRepairIsReported(t *testing.T) {
	ctx := context.Background()
	fs := vfs.NewMem()
	s, err := storage.Open(ctx, "/store", storage.Options{FS: fs})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	data := storetest.Bytes(1, 3*unixfs.BlockSize)
	c, err := s.PutBytes(ctx, data, storage.PutOptions{Pin: "mine"})
	if err != nil {
		t.Fatal(err)
	}
	damage(t, fs, objectFiles(t, fs, ".obj")[0], flip(5))
	if _, err := s.ReadAll(ctx, c, int64(len(data))); !errors.Is(err, storage.ErrCorrupt) {
		t.Fatal(err)
	}
	p, err := s.Begin(ctx, c, func(n cid.Cid) ([]byte, error) { return s.GetBlock(ctx, n, nil) })
	if err != nil || len(p.Missing()) != 1 {
		t.Fatalf("%v blocks to repair, %v", p.Missing(), err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	for _, which := range [][]cid.Cid{nil, {c}} {
		rep, err := s.Verify(ctx, which...)
		if err != nil || len(rep.Faults) != 1 || rep.Faults[0].CID != c || !errors.Is(rep.Faults[0].Err, storage.ErrCorrupt) {
			t.Errorf("%+v, %v", rep, err)
		}
	}
	if _, err := s.PutBytes(ctx, data, storage.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	if rep, err := s.Verify(ctx); err != nil || len(rep.Faults) != 0 {
		t.Errorf("%+v, %v after the repair", rep, err)
	}
}

// Without its index a store refuses to open: everything in it would look like a leftover.
func TestLostIndexRemovesNothing(t *testing.T) {
	ctx := context.Background()
	fs := vfs.NewMem()
	s, err := storage.Open(ctx, "/store", storage.Options{FS: fs})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.PutBytes(ctx, storetest.Bytes(1, 2*unixfs.BlockSize), storage.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := fs.RemoveAll("/store/index"); err != nil {
		t.Fatal(err)
	}
	for range 2 { // also when the first attempt has left an empty index
		if s, err := storage.Open(ctx, "/store", storage.Options{FS: fs}); err == nil {
			s.Close()
			t.Fatal("it opens")
		}
	}
	if n := len(objectFiles(t, fs, ".obj")); n != 1 {
		t.Errorf("%d object files are left", n)
	}
}

// checkUnreadable reads a damaged object in every way: what comes out is a prefix of the right bytes.
func checkUnreadable(t *testing.T, s *storage.Store, c cid.Cid, want []byte) {
	t.Helper()
	ctx := context.Background()
	if r, err := s.Open(ctx, c); err == nil {
		got, err := io.ReadAll(r)
		if !errors.Is(err, storage.ErrCorrupt) || !bytes.HasPrefix(want, got) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
		r.Close()
	} else if !errors.Is(err, storage.ErrCorrupt) {
		t.Fatal(err)
	}
	if _, err := s.ReadAll(ctx, c, 1<<30); !errors.Is(err, storage.ErrCorrupt) {
		t.Fatal(err)
	}
	if err := s.Export(ctx, c, t.TempDir()+"/out"); !errors.Is(err, storage.ErrCorrupt) {
		t.Fatal(err)
	}
}

// TestExportRefusesHostileNames stores folders that a stranger could send.
func TestExportRefusesHostileNames(t *testing.T) {
	ctx := context.Background()
	s, err := storage.OpenMem()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	leaf, err := s.PutBytes(ctx, []byte("x"), storage.PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	good, err := unixfs.Node{Kind: unixfs.Directory, Links: []unixfs.Link{{CID: leaf, Name: "../xx"[3:] + "yyy"}}}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"../xx", "/etc/", `..\..`, "a/../", "\x00\x00\x00\x00\x00"} {
		evil := bytes.Replace(good, []byte("xxyyy"), []byte(name), 1)
		if _, err := s.PutBlock(ctx, unixfs.NodeCID(evil), evil, storage.PutOptions{}); !errors.Is(err, unixfs.ErrInvalid) {
			t.Errorf("%q: %v", name, err)
		}
	}
	// A folder of folders that unfolds to 1024⁴ entries stops at the limit.
	c := leaf
	for range 4 {
		n := unixfs.Node{Kind: unixfs.Directory}
		for i := range 1024 {
			n.Links = append(n.Links, unixfs.Link{CID: c, Name: string(rune('a'+i/32)) + string(rune('a'+i%32))})
		}
		block, err := n.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.PutBlock(ctx, unixfs.NodeCID(block), block, storage.PutOptions{}); err != nil {
			t.Fatal(err)
		}
		c = unixfs.NodeCID(block)
	}
	if _, err := s.GC(ctx); err != nil { // must end, too
		t.Fatal(err)
	}
}

// An entry of the index that cannot be read is one damaged object, not the end of the store; the same bytes, or a fetch of those
// that are missing, heal it.
func TestUnreadableEntry(t *testing.T) {
	ctx := t.Context()
	donor, err := storage.OpenMem()
	if err != nil {
		t.Fatal(err)
	}
	defer donor.Close()
	for _, size := range []int{100, 90 << 10, 2*unixfs.BlockSize + 5} {
		for _, garbage := range [][]byte{nil, {0xff}, bytes.Repeat([]byte{0xa1}, 50)} {
			fs := vfs.NewMem()
			s, err := storage.Open(ctx, "/store", storage.Options{FS: fs})
			if err != nil {
				t.Fatal(err)
			}
			data := storetest.Bytes(1, size)
			c, err := s.PutBytes(ctx, data, storage.PutOptions{Pin: "it"})
			if err == nil {
				_, err = donor.PutBytes(ctx, data, storage.PutOptions{})
			}
			used := s.Usage()
			if err = errors.Join(err, storage.GarbleRecord(s, c, garbage), s.Close()); err != nil {
				t.Fatal(err)
			}
			if s, err = storage.Open(ctx, "/store", storage.Options{FS: fs}); err != nil {
				t.Fatal(err)
			}
			if _, err := s.ReadAll(ctx, c, 1<<30); !errors.Is(err, storage.ErrCorrupt) {
				t.Fatal(err)
			}
			if rep, err := s.Verify(ctx); err != nil || len(rep.Faults) != 1 || rep.Faults[0].CID != c {
				t.Fatalf("%+v, %v", rep, err)
			}
			if _, err := s.GC(ctx); err != nil {
				t.Fatal(err)
			}
			if c.Type() == cid.DagProtobuf {
				fetch(t, donor, s, c)
			} else if _, err := s.PutBytes(ctx, data, storage.PutOptions{}); err != nil {
				t.Fatal(err)
			}
			if got, err := s.ReadAll(ctx, c, 1<<30); err != nil || !bytes.Equal(got, data) {
				t.Fatalf("%d bytes, %v after the repair", len(got), err)
			}
			if u := s.Usage(); u != used {
				t.Fatalf("usage %+v, was %+v", u, used)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestHostileFetches begins fetches of files whose nodes lie: a typed error, nothing reserved, nothing left, and an honest fetch
// of the same root goes on.
func TestHostileFetches(t *testing.T) {
	ctx := t.Context()
	s, err := storage.Open(ctx, "/store", storage.Options{FS: vfs.NewMem(), Quota: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	raw := unixfs.Link{CID: unixfs.RawCID([]byte("x"))}
	nodes := map[cid.Cid][]byte{}
	node := func(links int, link unixfs.Link, size uint64) cid.Cid {
		n := unixfs.Node{Kind: unixfs.File}
		for range links {
			n.Links, n.BlockSizes = append(n.Links, link), append(n.BlockSizes, size)
			n.FileSize += size
		}
		b, err := n.Encode()
		if err != nil {
			t.Fatal(err)
		}
		nodes[unixfs.NodeCID(b)] = b
		return unixfs.NodeCID(b)
	}
	get := func(c cid.Cid) ([]byte, error) {
		if b, ok := nodes[c]; ok {
			return b, nil
		}
		return nil, storage.ErrNotFound
	}
	apart := func(from int) cid.Cid { // a gigabyte in which no block is twice
		n := unixfs.Node{Kind: unixfs.File}
		for i := range 1024 {
			n.Links = append(n.Links, unixfs.Link{CID: unixfs.RawCID(fmt.Appendf(nil, "%d", from+i))})
			n.BlockSizes = append(n.BlockSizes, unixfs.BlockSize)
			n.FileSize += unixfs.BlockSize
		}
		b, err := n.Encode()
		if err != nil {
			t.Fatal(err)
		}
		nodes[unixfs.NodeCID(b)] = b
		return unixfs.NodeCID(b)
	}
	two := unixfs.Node{Kind: unixfs.File, FileSize: 2048 * unixfs.BlockSize, BlockSizes: []uint64{1024 * unixfs.BlockSize, 1024 * unixfs.BlockSize}}
	for i := range 2 {
		two.Links = append(two.Links, unixfs.Link{CID: apart(1024 * i)})
	}
	b, err := two.Encode()
	if err != nil {
		t.Fatal(err)
	}
	nodes[unixfs.NodeCID(b)] = b
	full := node(1024, raw, unixfs.BlockSize)
	wide := node(1024, unixfs.Link{CID: full}, 1024*unixfs.BlockSize)
	for name, c := range map[string]struct {
		root cid.Cid
		want error
	}{
		"a terabyte of one block":   {wide, unixfs.ErrUnsupported},
		"one block 1,023 times":     {node(1023, raw, unixfs.BlockSize), nil}, // overlapping blocks are legal
		"two gigabytes":             {unixfs.NodeCID(b), storage.ErrQuota},
		"one block 2,048 times":     {node(2, unixfs.Link{CID: full}, 1024*unixfs.BlockSize), nil}, // which costs one block
		"a child that lies":         {node(2, unixfs.Link{CID: full}, 7), unixfs.ErrInvalid},
		"a child that is not there": {node(2, unixfs.Link{CID: unixfs.Sum([]byte("y")).CID(cid.DagProtobuf)}, 7), storage.ErrNotFound},
	} {
		p, err := s.Begin(ctx, c.root, get)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		if err == nil {
			if werr := p.Write(0, []byte("x")); !errors.Is(werr, storage.ErrCorrupt) { // the block is shorter than its place
				t.Errorf("%s: %v", name, werr)
			}
			if err := p.Close(); err != nil {
				t.Fatal(err)
			}
			if _, err := s.GC(ctx); err != nil {
				t.Fatal(err)
			}
		}
		p, err = s.Begin(ctx, c.root, get)
		if !errors.Is(err, c.want) {
			t.Errorf("%s, again: %v, want %v", name, err, c.want)
		}
		if err == nil {
			if err := p.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if u := s.Usage(); u.Reserved != 0 {
			t.Errorf("%s: usage %+v", name, u)
		}
	}
}
