package car

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/p2p/wire"
	"github.com/capacloud/capanode/storage"
	"github.com/capacloud/capanode/storage/storetest"
	"github.com/capacloud/capanode/storage/unixfs"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func open(t testing.TB) *storage.Store {
	t.Helper()
	s, err := storage.Open(t.Context(), "/store", storage.Options{FS: vfs.NewMem()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// archived puts a small folder into a store and returns it as an archive.
func archived(t testing.TB) (cid.Cid, []byte) {
	t.Helper()
	s := open(t)
	var links []unixfs.Link
	for _, x := range []struct{ name, text string }{{"a", "alpha"}, {"b", ""}, {"c", "gamma"}, {"d", "alpha"}} {
		c, err := s.PutBytes(t.Context(), []byte(x.text), storage.PutOptions{})
		if err != nil {
			t.Fatal(err)
		}
		links = append(links, unixfs.Link{CID: c, Name: x.name, Tsize: uint64(len(x.text))})
	}
	node, err := unixfs.Node{Kind: unixfs.Directory, Links: links}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	root := unixfs.NodeCID(node)
	if _, err := s.PutBlock(t.Context(), root, node, storage.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	sum, err := Export(t.Context(), s, root, &out)
	if err != nil || sum.Blocks != 4 || sum.Bytes != int64(out.Len()) {
		t.Fatalf("%+v of %d bytes, %v", sum, out.Len(), err)
	}
	return root, out.Bytes()
}

func TestGolden(t *testing.T) {
	_, b := archived(t)
	path := filepath.Join("testdata", "folder.hex")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(hex.EncodeToString(b)+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(b); got != strings.TrimSpace(string(want)) {
		t.Error(got)
	}
}

// Every kind of object survives the way through an archive, from a file and from a pipe.
func TestRoundTrip(t *testing.T) {
	ctx := t.Context()
	from := open(t)
	record, err := wire.Marshal(map[string]int{"a": 1})
	if err != nil {
		t.Fatal(err)
	}
	roots := map[string]cid.Cid{}
	add := func(name string, c cid.Cid, err error) {
		if err != nil {
			t.Fatal(name, err)
		}
		roots[name] = c
	}
	c, err := from.PutRecord(ctx, record, storage.PutOptions{})
	add("record", c, err)
	c, err = from.PutBytes(ctx, []byte("hello"), storage.PutOptions{})
	add("block", c, err)
	c, err = from.PutBytes(ctx, storetest.Bytes(1, 3*unixfs.BlockSize+5), storage.PutOptions{})
	add("file", c, err)
	c, err = from.PutBytes(ctx, make([]byte, 5*unixfs.BlockSize), storage.PutOptions{})
	add("zeros", c, err)
	dir := storetest.Tree(t)
	c, err = from.AddPath(ctx, dir, storage.PutOptions{})
	add("folder", c, err)
	for name, root := range roots {
		path := filepath.Join(t.TempDir(), "x.car")
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		sum, err := Export(ctx, from, root, f)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		for _, r := range []io.Reader{f, bytes.NewBuffer(b)} {
			to := open(t)
			got, err := Import(ctx, to, r, Options{Pin: cid.Cid.String, Dir: t.TempDir()})
			if err != nil || got.Blocks != sum.Blocks || got.Bytes != sum.Bytes || got.Unused != 0 || got.Roots[0] != root {
				t.Fatalf("%s from %T: %+v, want %+v, %v", name, r, got, sum, err)
			}
			if _, err := to.GC(ctx); err != nil {
				t.Fatal(err)
			}
			var again bytes.Buffer
			if _, err := Export(ctx, to, root, &again); err != nil || !bytes.Equal(again.Bytes(), b) {
				t.Fatalf("%s from %T: %d bytes, want %d, %v", name, r, again.Len(), len(b), err)
			}
		}
	}
}

// TestBroken cuts an archive after each byte and flips a bit of each byte: never a panic, never a half, always an error that
// names a place not behind the fault.
func TestBroken(t *testing.T) {
	ctx := t.Context()
	root, whole := archived(t)
	to := open(t)
	try := func(what string, at int, b []byte) {
		t.Helper()
		_, err := Import(ctx, to, bytes.NewReader(b), Options{Pin: cid.Cid.String, Dir: t.TempDir()})
		if list, lerr := to.List(ctx); lerr != nil || len(list) > 0 {
			t.Fatalf("%s %d: %d objects, %v after %v", what, at, len(list), lerr, err)
		}
		var where *Error
		switch {
		case err == nil:
			t.Fatalf("%s %d: imported", what, at)
		case errors.Is(err, ErrIncomplete):
		case !errors.As(err, &where) || where.Offset > int64(at):
			t.Fatalf("%s %d: %v", what, at, err)
		case !errors.Is(err, ErrTruncated) && !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrUnsupported) && !errors.Is(err, storage.ErrCorrupt):
			t.Fatalf("%s %d: untyped: %v", what, at, err)
		}
	}
	for n := range whole {
		try("cut at", n, whole[:n])
	}
	for n := range whole {
		b := bytes.Clone(whole)
		b[n] ^= 1 << (n % 8)
		try("flip of", n, b)
	}
	if _, err := Import(ctx, to, bytes.NewReader(whole), Options{Dir: t.TempDir()}); err != nil {
		t.Fatal(err)
	}
	if has, err := to.Has(ctx, root); !has || err != nil {
		t.Fatal(has, err)
	}
}

// frame writes a length and its bytes.
func frame(parts ...[]byte) []byte {
	b := bytes.Join(parts, nil)
	return append(binary.AppendUvarint(nil, uint64(len(b))), b...)
}

func TestHostile(t *testing.T) {
	ctx := t.Context()
	root, whole := archived(t)
	head, err := wire.Marshal(header{Roots: []wire.Link{{Cid: root}}, Version: 1})
	if err != nil {
		t.Fatal(err)
	}
	many, err := wire.Marshal(header{Roots: make64(root, MaxRoots+1), Version: 1})
	if err != nil {
		t.Fatal(err)
	}
	three, err := wire.Marshal(header{Roots: []wire.Link{{Cid: root}}, Version: 3})
	if err != nil {
		t.Fatal(err)
	}
	v2, _ := hex.DecodeString("0aa16776657273696f6e02")
	raw := unixfs.RawCID([]byte("x"))
	v0 := append([]byte{0x12, 0x20}, make([]byte, 32)...)
	for name, c := range map[string]struct {
		bytes []byte
		want  error
	}{
		"nothing":             {nil, ErrTruncated},
		"endless length":      {bytes.Repeat([]byte{0xff}, 20), ErrInvalid},
		"length with zeros":   {[]byte{0x80, 0x80, 0}, ErrInvalid},
		"huge header":         {binary.AppendUvarint(nil, 1<<40), ErrInvalid},
		"empty header":        {[]byte{0}, ErrInvalid},
		"no roots":            {frame(mustMarshal(t, header{Roots: []wire.Link{}, Version: 1})), ErrInvalid},
		"many roots":          {frame(many), ErrInvalid},
		"version 2":           {v2, ErrUnsupported},
		"version 3":           {frame(three), ErrUnsupported},
		"header is no record": {frame([]byte("hello")), ErrInvalid},
		"huge section":        {append(frame(head), binary.AppendUvarint(nil, 1<<62)...), ErrUnsupported},
		"section without CID": {append(frame(head), frame([]byte{1})...), ErrInvalid},
		"empty section":       {append(frame(head), 0), ErrInvalid},
		"CIDv0":               {append(frame(head), frame(v0, []byte("x"))...), ErrUnsupported},
		"wrong bytes":         {append(frame(head), frame(raw.Bytes(), []byte("y"))...), storage.ErrCorrupt},
		"root is not there":   {append(frame(head), frame(raw.Bytes(), []byte("x"))...), ErrIncomplete},
		"a part is missing":   {whole[:len(whole)-len(frame(raw.Bytes(), []byte("gamma")))], ErrIncomplete},
	} {
		to := open(t)
		_, err := Import(ctx, to, bytes.NewReader(c.bytes), Options{Dir: t.TempDir()})
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		if u := to.Usage(); u.Used != 0 || u.Reserved != 0 {
			t.Errorf("%s: %+v", name, u)
		}
	}
	// Blocks that nothing needs are counted and left out.
	to := open(t)
	sum, err := Import(ctx, to, bytes.NewReader(append(bytes.Clone(whole), frame(raw.Bytes(), []byte("x"))...)), Options{Dir: t.TempDir()})
	if has, herr := to.Has(ctx, raw); err != nil || sum.Unused != 1 || has || herr != nil {
		t.Errorf("%+v, %v, %v, %v", sum, err, has, herr)
	}
}

func make64(c cid.Cid, n int) []wire.Link {
	out := make([]wire.Link, n)
	for i := range out {
		out[i] = wire.Link{Cid: c}
	}
	return out
}

func mustMarshal(t *testing.T, v any) []byte {
	t.Helper()
	b, err := wire.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// What is damaged here does not get into an archive, and what is not here is said to be missing.
func TestExportOfWhatIsNotThere(t *testing.T) {
	ctx := t.Context()
	s := open(t)
	if _, err := Export(ctx, s, unixfs.RawCID([]byte("x")), io.Discard); !errors.Is(err, storage.ErrNotFound) {
		t.Error(err)
	}
	node, err := unixfs.Node{Kind: unixfs.Directory, Links: []unixfs.Link{{CID: unixfs.RawCID([]byte("x")), Name: "gone"}}}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.PutBlock(ctx, unixfs.NodeCID(node), node, storage.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := Export(ctx, s, unixfs.NodeCID(node), io.Discard); !errors.Is(err, storage.ErrNotFound) || !strings.Contains(err.Error(), "gone") {
		t.Error(err)
	}
}

// FuzzReader reads hostile archives: every block that comes out matches its CID, and nothing is allocated on a claim alone.
func FuzzReader(f *testing.F) {
	_, whole := archived(f)
	f.Add(whole)
	f.Add(whole[:len(whole)-3])
	v2, _ := hex.DecodeString("0aa16776657273696f6e02")
	f.Add(v2)
	f.Add(bytes.Repeat([]byte{0xff}, 20))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, roots, err := newReader(bytes.NewReader(b))
		if err != nil {
			return
		}
		if len(roots) == 0 || len(roots) > MaxRoots {
			t.Fatalf("%d roots", len(roots))
		}
		for {
			s, err := r.next()
			if cap(r.buf) > 2*(cidBytes+unixfs.MaxBlock) {
				t.Fatalf("a buffer of %d bytes", cap(r.buf))
			}
			if err != nil {
				var where *Error
				if err != io.EOF && (!errors.As(err, &where) || where.Offset < 0 || where.Offset > int64(len(b))) {
					t.Fatalf("untyped: %v", err)
				}
				return
			}
			if d, err := unixfs.DigestOf(s.cid); err != nil || d != unixfs.Sum(s.data) || !bytes.Equal(b[s.offset:s.offset+int64(len(s.data))], s.data) {
				t.Fatalf("%s at %d: %v", s.cid, s.offset, err)
			}
		}
	})
}
