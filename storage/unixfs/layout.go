package unixfs

import (
	"fmt"
	"slices"

	"github.com/ipfs/go-cid"
)

// Block is one encoded block and its CID.
type Block struct {
	CID  cid.Cid
	Data []byte
}

// Cuts says where the leaves of one file begin and end.
type Cuts struct {
	Size      int64   // content bytes
	BlockSize int64   // content bytes of every leaf but the last; 0 when the leaves differ in size
	Ends      []int64 // of leaves that differ in size: the content bytes up to the end of each, ascending, the last one Size; else nil
}

// Fixed cuts a file into leaves of [BlockSize] bytes.
func Fixed(size int64) Cuts { return Cuts{Size: size, BlockSize: BlockSize} }

// CutAt cuts a file at the given ends: strictly ascending, at most [MaxBlock] bytes apart, at most [MaxLeaves] of them.
// Ends that happen to be those of equal leaves give the same cuts as if they had been asked for as such.
func CutAt(ends []int64) (Cuts, error) {
	if len(ends) == 0 || len(ends) > MaxLeaves {
		return Cuts{}, fmt.Errorf("unixfs: a file cut into %d leaves, limit %d: %w", len(ends), MaxLeaves, ErrInvalid)
	}
	first, last, at := ends[0], len(ends)-1, int64(0)
	equal := true
	for i, end := range ends {
		size := end - at
		if end <= at || size > MaxBlock {
			return Cuts{}, fmt.Errorf("unixfs: leaf %d from %d to %d, limit %d bytes: %w", i, at, end, MaxBlock, ErrInvalid)
		}
		equal = equal && (size == first || i == last && size < first)
		at = end
	}
	if equal {
		return Cuts{Size: at, BlockSize: first}, nil
	}
	return Cuts{Size: at, Ends: ends}, nil
}

// Count returns the number of leaves; even an empty file has one.
func (c Cuts) Count() int {
	if c.Ends != nil {
		return len(c.Ends)
	}
	return int(max(1, (c.Size+c.BlockSize-1)/max(1, c.BlockSize)))
}

// Largest returns the content bytes of the largest leaf.
func (c Cuts) Largest() int64 {
	if c.Ends == nil {
		return c.BlockSize
	}
	most := int64(0)
	for i := range c.Ends {
		most = max(most, c.LeafSize(i))
	}
	return most
}

// LeafOffset returns the content bytes before leaf i.
func (c Cuts) LeafOffset(i int) int64 {
	switch {
	case c.Ends == nil:
		return int64(i) * c.BlockSize
	case i == 0:
		return 0
	}
	return c.Ends[i-1]
}

// LeafSize returns the content bytes of leaf i.
func (c Cuts) LeafSize(i int) int64 {
	if c.Ends == nil {
		return min(c.BlockSize, c.Size-int64(i)*c.BlockSize)
	}
	return c.Ends[i] - c.LeafOffset(i)
}

// LeafAt returns the leaf that holds the byte at an offset below Size.
func (c Cuts) LeafAt(offset int64) int {
	if c.Ends == nil {
		return int(offset / max(1, c.BlockSize))
	}
	i, found := slices.BinarySearch(c.Ends, offset)
	if found {
		i++ // an end is the first byte of the next leaf
	}
	return i
}

// Layout is the shape of one file: which leaves, in the order of the bytes, and which nodes bind them to one CID.
type Layout struct {
	Cuts
	Root   cid.Cid
	Leaves []Digest
	Nodes  []Block // children before their parents, so the root is last; empty when the file is one raw leaf
}

// Build lays a file of at least one leaf of [BlockSize] out as a balanced tree. One leaf alone is its own root.
func Build(leaves []Digest, size int64) (*Layout, error) {
	if size < 0 {
		return nil, fmt.Errorf("unixfs: a file of %d bytes: %w", size, ErrInvalid)
	}
	return BuildCuts(leaves, Fixed(size))
}

// BuildCuts is [Build] for a file that is cut elsewhere. The same leaves and cuts always give the same CID.
func BuildCuts(leaves []Digest, cuts Cuts) (*Layout, error) {
	if count := cuts.Count(); count > MaxLeaves || len(leaves) != count {
		return nil, fmt.Errorf("unixfs: %d leaves for %d bytes, want %d, limit %d: %w", len(leaves), cuts.Size, count, MaxLeaves, ErrInvalid)
	}
	out := &Layout{Cuts: cuts, Leaves: leaves}
	level := make([]subtree, len(leaves))
	for i, d := range leaves {
		s := uint64(out.LeafSize(i))
		level[i] = subtree{link: Link{CID: d.CID(cid.Raw), Tsize: s}, size: s}
	}
	for len(level) > 1 {
		next := make([]subtree, 0, (len(level)+MaxLinks-1)/MaxLinks)
		for len(level) > 0 {
			n := min(MaxLinks, len(level))
			parent, block, err := join(level[:n])
			if err != nil {
				return nil, err
			}
			out.Nodes = append(out.Nodes, block)
			next = append(next, parent)
			level = level[n:]
		}
		level = next
	}
	out.Root = level[0].link.CID
	return out, nil
}

// subtree is a child on its way to becoming a link: what its parent must know.
type subtree struct {
	link Link
	size uint64 // content bytes
}

func join(children []subtree) (subtree, Block, error) {
	n := Node{Kind: File, BlockSizes: make([]uint64, len(children)), Links: make([]Link, len(children))}
	var below uint64
	for i, c := range children {
		n.Links[i] = c.link
		n.BlockSizes[i] = c.size
		n.FileSize += c.size
		below += c.link.Tsize
	}
	data, err := n.Encode()
	if err != nil {
		return subtree{}, Block{}, err
	}
	c := NodeCID(data)
	return subtree{Link{CID: c, Tsize: below + uint64(len(data))}, n.FileSize}, Block{c, data}, nil
}

// Resolve reads the interior nodes of a file, root first, and returns its layout. get returns the block of a CID and must
// have verified its hash; whatever else the blocks say is checked here: sizes, depth, counts. Memory is bounded by
// [MaxLeaves] and [MaxNodeBytes], whatever the nodes promise.
func Resolve(root cid.Cid, get func(cid.Cid) ([]byte, error)) (*Layout, error) {
	r := resolver{get: get, out: &Layout{Root: root}}
	if err := r.walk(root, 0, 1); err != nil {
		return nil, err
	}
	var err error
	if r.out.Cuts, err = CutAt(r.ends); err != nil {
		return nil, fmt.Errorf("%s: %w", root, err)
	}
	return r.out, nil
}

type resolver struct {
	get       func(cid.Cid) ([]byte, error)
	out       *Layout
	nodeBytes int
	ends      []int64
}

// walk reads the node c. A want of 0 means that nobody has claimed its size yet.
func (r *resolver) walk(c cid.Cid, want uint64, depth int) error {
	if depth > MaxDepth {
		return fmt.Errorf("unixfs: %s: more than %d levels: %w", r.out.Root, MaxDepth, ErrInvalid)
	}
	block, err := r.get(c)
	if err != nil {
		return err
	}
	n, err := Decode(block)
	if err != nil {
		return fmt.Errorf("%s: %w", c, err)
	}
	r.nodeBytes += len(block)
	switch {
	case n.Kind != File:
		return fmt.Errorf("unixfs: %s inside file %s is no file node: %w", c, r.out.Root, ErrInvalid)
	case want != 0 && want != n.FileSize:
		return fmt.Errorf("unixfs: %s has %d bytes, its parent claims %d: %w", c, n.FileSize, want, ErrInvalid)
	case r.nodeBytes > MaxNodeBytes:
		return fmt.Errorf("unixfs: %s: more than %d bytes of nodes: %w", r.out.Root, MaxNodeBytes, ErrUnsupported)
	}
	for i, l := range n.Links {
		switch l.CID.Type() {
		case cid.Raw:
			err = r.leaf(l.CID, n.BlockSizes[i])
		case cid.DagProtobuf:
			err = r.walk(l.CID, n.BlockSizes[i], depth+1)
		default:
			err = fmt.Errorf("unixfs: %s links to codec 0x%x: %w", c, l.CID.Type(), ErrUnsupported)
		}
		if err != nil {
			return err
		}
	}
	r.out.Nodes = append(r.out.Nodes, Block{c, block})
	return nil
}

func (r *resolver) leaf(c cid.Cid, size uint64) error {
	out := r.out
	if size > MaxBlock {
		return fmt.Errorf("unixfs: %s: leaf of %d bytes, limit %d: %w", out.Root, size, MaxBlock, ErrUnsupported)
	}
	if len(out.Leaves) == MaxLeaves {
		return fmt.Errorf("unixfs: %s: more than %d leaves: %w", out.Root, MaxLeaves, ErrUnsupported)
	}
	d, err := DigestOf(c)
	if err != nil {
		return err
	}
	at := int64(size)
	if n := len(r.ends); n > 0 {
		at += r.ends[n-1]
	}
	out.Leaves, r.ends = append(out.Leaves, d), append(r.ends, at)
	return nil
}
