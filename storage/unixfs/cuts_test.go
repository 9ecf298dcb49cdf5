package unixfs_test

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/ipfs/go-cid"
	"pgregory.net/rapid"

	"github.com/capacloud/capanode/storage/unixfs"
)

func digests3() []unixfs.Digest {
	return []unixfs.Digest{unixfs.Sum([]byte("a")), unixfs.Sum([]byte("b")), unixfs.Sum([]byte("c"))}
}

func cut(t *testing.T, ends ...int64) unixfs.Cuts {
	t.Helper()
	c, err := unixfs.CutAt(ends)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestCutsOfEqualLeavesAreTheFixedOnes(t *testing.T) {
	const mib = unixfs.BlockSize
	got := cut(t, mib, 2*mib, 2*mib+1)
	if want := unixfs.Fixed(2*mib + 1); got.Ends != nil || got.Size != want.Size || got.BlockSize != want.BlockSize {
		t.Fatalf("%+v, want %+v", got, want)
	}
	if c := unixfs.Fixed(0); c.Count() != 1 || c.LeafSize(0) != 0 {
		t.Fatalf("an empty file has %d leaves of %d bytes", c.Count(), c.LeafSize(0))
	}
}

func TestCutAtRefuses(t *testing.T) {
	for name, ends := range map[string][]int64{
		"nothing":        {},
		"empty leaf":     {5, 5},
		"empty first":    {0, 5},
		"overlap":        {5, 3},
		"negative":       {-1},
		"huge leaf":      {1, 2 + unixfs.MaxBlock},
		"overflow":       {1, math.MaxInt64, math.MinInt64},
		"too many":       make([]int64, unixfs.MaxLeaves+1),
		"huge only leaf": {unixfs.MaxBlock + 1},
	} {
		if c, err := unixfs.CutAt(ends); !errors.Is(err, unixfs.ErrInvalid) {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
	}
}

// TestCutsAddUp holds random cuts to what they say of each byte: every offset is in the leaf that contains it, leaves touch.
func TestCutsAddUp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var ends []int64
		at := int64(0)
		for range rapid.IntRange(1, 40).Draw(t, "leaves") {
			at += rapid.SampledFrom([]int64{1, 7, 4096, unixfs.BlockSize - 1, unixfs.BlockSize}).Draw(t, "size")
			ends = append(ends, at)
		}
		c, err := unixfs.CutAt(slices.Clone(ends))
		if err != nil {
			t.Fatal(err)
		}
		if c.Count() != len(ends) || c.Size != at {
			t.Fatalf("%d leaves of %d bytes, want %d of %d", c.Count(), c.Size, len(ends), at)
		}
		if most := slices.MaxFunc(ends, func(a, b int64) int { return int(c.LeafSize(c.LeafAt(a-1)) - c.LeafSize(c.LeafAt(b-1))) }); c.Largest() != c.LeafSize(c.LeafAt(most-1)) {
			t.Fatalf("the largest leaf has %d bytes", c.Largest())
		}
		for i, end := range ends {
			if c.LeafOffset(i)+c.LeafSize(i) != end || c.LeafAt(c.LeafOffset(i)) != i || c.LeafAt(end-1) != i {
				t.Fatalf("leaf %d at %d with %d bytes, want its end at %d", i, c.LeafOffset(i), c.LeafSize(i), end)
			}
		}
	})
}

// TestMixedLeavesMatchTheSlowPath builds and resolves files whose leaves differ in size, one of them with two levels of nodes.
func TestMixedLeavesMatchTheSlowPath(t *testing.T) {
	for _, count := range []int{3, 1024, 1030} {
		s := slow{cids: map[*byte]cid.Cid{}}
		var digests []unixfs.Digest
		var ends []int64
		at := int64(0)
		kinds := [][]byte{make([]byte, 300), make([]byte, 17), make([]byte, 70_000)}
		for i := range count {
			b := kinds[i*i%len(kinds)]
			at += int64(len(b))
			s.leaves, digests, ends = append(s.leaves, b), append(digests, unixfs.Sum(b)), append(ends, at)
		}
		got, err := unixfs.BuildCuts(digests, cut(t, ends...))
		if err != nil {
			t.Fatal(err)
		}
		want, size, _, _ := s.build(0, s.height())
		if got.Root != want || uint64(got.Size) != size {
			t.Fatalf("%d leaves: %s of %d bytes, the slow path gives %s of %d", count, got.Root, got.Size, want, size)
		}
		nodes := map[cid.Cid][]byte{}
		for _, n := range got.Nodes {
			nodes[n.CID] = n.Data
		}
		back, err := unixfs.Resolve(got.Root, func(c cid.Cid) ([]byte, error) { return nodes[c], nil })
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(back.Ends, ends) || !slices.Equal(back.Leaves, digests) || back.BlockSize != 0 {
			t.Fatalf("%d leaves: the resolved layout differs", count)
		}
	}
	if _, err := unixfs.BuildCuts(digests3(), cut(t, 5, 9)); !errors.Is(err, unixfs.ErrInvalid) {
		t.Fatalf("three leaves for two cuts: %v", err)
	}
}

// FuzzResolve reads hostile trees: the block is the root and, again, every node below it.
func FuzzResolve(f *testing.F) {
	leaf := unixfs.Link{CID: unixfs.RawCID([]byte("leaf"))}
	node := unixfs.Link{CID: unixfs.NodeCID([]byte("itself"))}
	for _, n := range []unixfs.Node{
		{Kind: unixfs.File, FileSize: 12, BlockSizes: []uint64{5, 3, 4}, Links: []unixfs.Link{leaf, leaf, leaf}},
		{Kind: unixfs.File, FileSize: 12, BlockSizes: []uint64{12}, Links: []unixfs.Link{node}},
		{Kind: unixfs.File, FileSize: math.MaxInt64, BlockSizes: []uint64{math.MaxInt64 - 1, 1}, Links: []unixfs.Link{leaf, leaf}},
	} {
		b, err := n.Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, block []byte) {
		calls := 0
		l, err := unixfs.Resolve(unixfs.NodeCID(block), func(cid.Cid) ([]byte, error) {
			if calls++; calls > 1<<16 {
				return nil, fmt.Errorf("enough of this tree")
			}
			return block, nil
		})
		if err != nil {
			return
		}
		if l.Count() != len(l.Leaves) || l.Count() > unixfs.MaxLeaves {
			t.Fatalf("%d leaves, cuts of %d", len(l.Leaves), l.Count())
		}
		for i := range l.Leaves {
			if l.LeafSize(i) < 1 || l.LeafSize(i) > unixfs.MaxBlock || l.LeafOffset(i)+l.LeafSize(i) > l.Size {
				t.Fatalf("leaf %d of %d bytes at %d of %d", i, l.LeafSize(i), l.LeafOffset(i), l.Size)
			}
		}
	})
}
