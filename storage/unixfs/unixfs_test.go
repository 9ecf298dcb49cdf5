package unixfs_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ipfs/go-cid"

	"github.com/capacloud/capanode/storage/unixfs"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// TestKnownCIDs compares with CIDs that every IPFS implementation gives.
func TestKnownCIDs(t *testing.T) {
	for data, want := range map[string]string{
		"":              "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku",
		"hello world":   "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e",
		"Hello World\n": "bafkreigsvbhuxc3fbe36zd3tzwf6fr2k3vnjcg5gjxzhiwhnqiu5vackey",
	} {
		if got := unixfs.RawCID([]byte(data)).String(); got != want {
			t.Errorf("raw %q: %s, want %s", data, got, want)
		}
	}
	empty, err := unixfs.Node{Kind: unixfs.Directory}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if got := unixfs.NodeCID(empty).String(); got != "bafybeiczsscdsbs7ffqz55asqdf3smv6klcw3gofszvwlyarci47bgf354" {
		t.Errorf("empty folder: %s", got)
	}
}

// slow is an encoder of its own: it writes the protobuf bytes by hand and builds the tree from the top down, as the
// layout is described, not from the bottom up, as the product does.
type slow struct {
	leaves [][]byte
	cids   map[*byte]cid.Cid // of leaves that occur often
}

func (s slow) leaf(b []byte) cid.Cid {
	if len(b) == 0 {
		return unixfs.RawCID(b)
	}
	c, ok := s.cids[&b[0]]
	if !ok {
		c = unixfs.RawCID(b)
		s.cids[&b[0]] = c
	}
	return c
}

func field(num, wire byte, value []byte) []byte {
	out := []byte{num<<3 | wire}
	if wire == 2 {
		out = binary.AppendUvarint(out, uint64(len(value)))
	}
	return append(out, value...)
}

func (s slow) height() int {
	h, capacity := 0, 1
	for capacity < len(s.leaves) {
		capacity *= unixfs.MaxLinks
		h++
	}
	return h
}

// build lays the leaves from first on out in a tree of the given height; it returns CID, content size, total size and the
// next leaf.
func (s slow) build(first, height int) (c cid.Cid, size, total uint64, next int) {
	if height == 0 {
		n := uint64(len(s.leaves[first]))
		return s.leaf(s.leaves[first]), n, n, first + 1
	}
	var links, sizes []byte
	next = first
	for k := 0; k < unixfs.MaxLinks && next < len(s.leaves); k++ {
		var child cid.Cid
		var childSize, childTotal uint64
		child, childSize, childTotal, next = s.build(next, height-1)
		link := field(1, 2, child.Bytes())
		link = append(link, field(2, 2, nil)...)
		link = append(link, field(3, 0, binary.AppendUvarint(nil, childTotal))...)
		links = append(links, field(2, 2, link)...)
		sizes = append(sizes, field(4, 0, binary.AppendUvarint(nil, childSize))...)
		size += childSize
		total += childTotal
	}
	data := append(field(1, 0, []byte{2}), field(3, 0, binary.AppendUvarint(nil, size))...)
	node := append(links, field(1, 2, append(data, sizes...))...)
	return unixfs.NodeCID(node), size, total + uint64(len(node)), next
}

// leavesOf returns n leaves that share one buffer per distinct content, all full but the last.
func leavesOf(n, last int) (blocks [][]byte, digests []unixfs.Digest, size int64) {
	full := make([]byte, unixfs.BlockSize)
	sum := unixfs.Sum(full)
	for range n - 1 {
		blocks, digests = append(blocks, full), append(digests, sum)
	}
	tail := bytes.Repeat([]byte{7}, last)
	return append(blocks, tail), append(digests, unixfs.Sum(tail)), int64(n-1)*unixfs.BlockSize + int64(last)
}

func TestBuildMatchesTheSlowPath(t *testing.T) {
	for _, c := range []struct{ leaves, last int }{{1, 0}, {1, 5}, {2, 1}, {3, unixfs.BlockSize}, {1024, 9}, {1025, 1}, {2049, 77}} {
		blocks, digests, size := leavesOf(c.leaves, c.last)
		got, err := unixfs.Build(digests, size)
		if err != nil {
			t.Fatal(err)
		}
		s := slow{blocks, map[*byte]cid.Cid{}}
		want, wantSize, _, _ := s.build(0, s.height())
		if got.Root != want || uint64(got.Size) != wantSize {
			t.Fatalf("%d leaves: %s of %d bytes, the slow path gives %s of %d", c.leaves, got.Root, got.Size, want, wantSize)
		}
		if c.leaves == 1 {
			continue
		}
		nodes := map[cid.Cid][]byte{}
		for _, n := range got.Nodes {
			nodes[n.CID] = n.Data
		}
		back, err := unixfs.Resolve(got.Root, func(c cid.Cid) ([]byte, error) { return nodes[c], nil })
		if err != nil {
			t.Fatal(err)
		}
		if back.Size != got.Size || back.BlockSize != got.BlockSize || fmt.Sprint(back.Leaves) != fmt.Sprint(got.Leaves) || len(back.Nodes) != len(got.Nodes) {
			t.Fatalf("%d leaves: the resolved layout differs", c.leaves)
		}
	}
}

func TestBuildRefuses(t *testing.T) {
	_, digests, size := leavesOf(2, 1)
	for _, c := range []struct {
		n    int
		size int64
	}{{1, size}, {2, size - 1}, {2, -1}, {0, 0}} {
		if _, err := unixfs.Build(digests[:c.n], c.size); !errors.Is(err, unixfs.ErrInvalid) {
			t.Errorf("%d leaves for %d bytes: %v", c.n, c.size, err)
		}
	}
}

func sampleFolder() unixfs.Node {
	return unixfs.Node{Kind: unixfs.Directory, Links: []unixfs.Link{
		{CID: unixfs.RawCID([]byte("{}")), Name: "config.json", Tsize: 2},
		{CID: unixfs.RawCID([]byte("weights")), Name: "model.safetensors", Tsize: 7},
	}}
}

func TestGolden(t *testing.T) {
	_, digests, size := leavesOf(2, 1)
	file, err := unixfs.Build(digests, size)
	if err != nil {
		t.Fatal(err)
	}
	folder, err := sampleFolder().Encode()
	if err != nil {
		t.Fatal(err)
	}
	mixed, err := unixfs.BuildCuts(digests3(), cut(t, 5, 5+unixfs.BlockSize, 12+unixfs.BlockSize))
	if err != nil {
		t.Fatal(err)
	}
	for name, got := range map[string][]byte{"file.hex": file.Nodes[0].Data, "folder.hex": folder, "mixed.hex": mixed.Nodes[0].Data} {
		path := filepath.Join("testdata", name)
		if *update {
			if err := os.WriteFile(path, []byte(hex.EncodeToString(got)+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if hex.EncodeToString(got) != strings.TrimSpace(string(want)) {
			t.Errorf("%s: %x", name, got)
		}
	}
}

func TestEncodeRefuses(t *testing.T) {
	leaf := unixfs.Link{CID: unixfs.RawCID(nil), Name: "a"}
	anonymous := unixfs.Link{CID: unixfs.RawCID(nil)}
	v0 := unixfs.Link{CID: cid.NewCidV0(unixfs.RawCID(nil).Hash()), Name: "a"}
	for name, n := range map[string]unixfs.Node{
		"no kind":        {},
		"symlink":        {Kind: 4},
		"sharded":        {Kind: 5},
		"empty file":     {Kind: unixfs.File},
		"sizes missing":  {Kind: unixfs.File, Links: []unixfs.Link{anonymous}},
		"zero child":     {Kind: unixfs.File, Links: []unixfs.Link{anonymous}, BlockSizes: []uint64{0}},
		"wrong sum":      {Kind: unixfs.File, Links: []unixfs.Link{anonymous}, BlockSizes: []uint64{2}, FileSize: 3},
		"overflow":       {Kind: unixfs.File, Links: []unixfs.Link{anonymous, anonymous}, BlockSizes: []uint64{math.MaxInt64, 1}, FileSize: 1 << 63},
		"named child":    {Kind: unixfs.File, Links: []unixfs.Link{leaf}, BlockSizes: []uint64{1}, FileSize: 1},
		"sized folder":   {Kind: unixfs.Directory, FileSize: 1},
		"unnamed entry":  {Kind: unixfs.Directory, Links: []unixfs.Link{anonymous}},
		"repeated entry": {Kind: unixfs.Directory, Links: []unixfs.Link{leaf, leaf}},
		"unsorted":       {Kind: unixfs.Directory, Links: []unixfs.Link{{CID: leaf.CID, Name: "b"}, leaf}},
		"traversal":      {Kind: unixfs.Directory, Links: []unixfs.Link{{CID: leaf.CID, Name: "../x"}}},
		"parent":         {Kind: unixfs.Directory, Links: []unixfs.Link{{CID: leaf.CID, Name: ".."}}},
		"separator":      {Kind: unixfs.Directory, Links: []unixfs.Link{{CID: leaf.CID, Name: `a\b`}}},
		"zero byte":      {Kind: unixfs.Directory, Links: []unixfs.Link{{CID: leaf.CID, Name: "a\x00"}}},
		"no UTF-8":       {Kind: unixfs.Directory, Links: []unixfs.Link{{CID: leaf.CID, Name: "a\xff"}}},
		"long name":      {Kind: unixfs.Directory, Links: []unixfs.Link{{CID: leaf.CID, Name: strings.Repeat("a", 256)}}},
		"CIDv0":          {Kind: unixfs.Directory, Links: []unixfs.Link{v0}},
	} {
		if b, err := n.Encode(); err == nil {
			t.Errorf("%s: encodes to %x", name, b)
		}
	}
}

// TestResolveRefuses feeds trees whose nodes are valid one by one and lie about each other.
func TestResolveRefuses(t *testing.T) {
	nodes := map[cid.Cid][]byte{}
	add := func(n unixfs.Node) cid.Cid {
		for _, s := range n.BlockSizes {
			n.FileSize += s
		}
		n.Kind = unixfs.File
		b, err := n.Encode()
		if err != nil {
			t.Fatal(err)
		}
		nodes[unixfs.NodeCID(b)] = b
		return unixfs.NodeCID(b)
	}
	raw := func(s string) unixfs.Link { return unixfs.Link{CID: unixfs.RawCID([]byte(s))} }
	two := add(unixfs.Node{Links: []unixfs.Link{raw("a"), raw("b")}, BlockSizes: []uint64{5, 5}})
	deep := two
	for range unixfs.MaxDepth {
		deep = add(unixfs.Node{Links: []unixfs.Link{{CID: deep}}, BlockSizes: []uint64{10}})
	}
	// A tree of one node that repeats itself: 1024 × 1024 leaves from three small blocks.
	wide := two
	size := uint64(10)
	for range 2 {
		n := unixfs.Node{}
		for range unixfs.MaxLinks {
			n.Links, n.BlockSizes = append(n.Links, unixfs.Link{CID: wide}), append(n.BlockSizes, size)
		}
		wide, size = add(n), size*unixfs.MaxLinks
	}
	folder, err := sampleFolder().Encode()
	if err != nil {
		t.Fatal(err)
	}
	nodes[unixfs.NodeCID(folder)] = folder
	for name, root := range map[string]cid.Cid{
		"too deep":          deep,
		"too many leaves":   wide,
		"folder":            unixfs.NodeCID(folder),
		"folder inside":     add(unixfs.Node{Links: []unixfs.Link{{CID: unixfs.NodeCID(folder)}}, BlockSizes: []uint64{1}}),
		"child's size":      add(unixfs.Node{Links: []unixfs.Link{{CID: two}}, BlockSizes: []uint64{11}}),
		"huge leaf":         add(unixfs.Node{Links: []unixfs.Link{raw("a")}, BlockSizes: []uint64{unixfs.MaxBlock + 1}}),
		"record as content": add(unixfs.Node{Links: []unixfs.Link{{CID: unixfs.Sum(nil).CID(cid.DagCBOR)}}, BlockSizes: []uint64{1}}),
	} {
		t.Run(name, func(t *testing.T) {
			layout, err := unixfs.Resolve(root, func(c cid.Cid) ([]byte, error) {
				if b, ok := nodes[c]; ok {
					return b, nil
				}
				return nil, fmt.Errorf("%s is not there", c)
			})
			if !errors.Is(err, unixfs.ErrInvalid) && !errors.Is(err, unixfs.ErrUnsupported) {
				t.Fatalf("%+v, %v", layout, err)
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	folder, err := sampleFolder().Encode()
	if err != nil {
		f.Fatal(err)
	}
	_, digests, size := leavesOf(3, 9)
	file, err := unixfs.Build(digests, size)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(folder)
	f.Add(file.Nodes[0].Data)
	f.Add([]byte{0x0a, 0x02, 0x08, 0x01})
	f.Add([]byte{0x0a, 0x07, 0x08, 0x01, 0x38, 0xa4, 0x03, 0x42, 0x00})
	f.Fuzz(func(t *testing.T, block []byte) {
		n, err := unixfs.Decode(block)
		if err != nil {
			return
		}
		canonical, err := n.Encode()
		if errors.Is(err, unixfs.ErrUnsupported) {
			return // grew above the block limit by the fields that are optional
		}
		if err != nil {
			t.Fatalf("decoded node does not encode: %v", err)
		}
		again, err := unixfs.Decode(canonical)
		if err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(again) != fmt.Sprint(n) {
			t.Fatalf("%+v became %+v", n, again)
		}
	})
}
